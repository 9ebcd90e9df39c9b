from __future__ import annotations

import asyncio
from typing import Any

from towerws.client.items import ClientError
from towerws.client.options import Options
from towerws.client.store import MAX_CHARACTERS, UNREADABLE, StoredPosition


class Log:
    """A client's newest handled position, and a store that fails or waits if it is told to."""

    def __init__(self, found: Any = None) -> None:
        self.position: str | None = None
        self.found = found
        self.kept: list[str] = []
        self.errors: list[ClientError] = []
        self.failing = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = asyncio.Event()
        self.stored = StoredPosition(Options(store=self, save_s=0.001, connect_s=5), lambda: self.position, self.errors.append)

    async def get(self) -> Any:
        """The kept position."""
        if self.failing:
            raise OSError("no disk")
        return self.found

    async def set(self, position: str, /) -> None:
        """Keep it, once it may."""
        self.asked.set()
        await self.may_answer.wait()
        if self.failing:
            raise OSError("no disk")
        self.kept.append(position)

    async def keep(self, position: str) -> None:
        """The client has handled events up to there. Returns once the store is asked."""
        self.asked.clear()
        self.position = position
        self.stored.keep()
        await asyncio.wait_for(self.asked.wait(), 30)


def test_what_is_no_position_is_reported() -> None:
    """A store may hold anything. What can't be used is an error, and no server knows the position that is used instead."""

    async def load(found: Any) -> tuple[str | None, list[str]]:
        log = Log(found)
        position = log.position = await log.stored.load()
        log.stored.end()
        await log.stored.ended()
        assert log.kept == [], "what the store has stays until the client has a position"
        return position, [str(error) for error in log.errors]

    assert asyncio.run(load("5-a")) == ("5-a", [])
    for nothing in (None, ""):
        assert asyncio.run(load(nothing)) == (None, [])
    for found, text in ((b"5-a", "store.get() returned bytes"), (5, "returned int"), ("5" * (MAX_CHARACTERS + 1), "257 characters")):
        position, errors = asyncio.run(load(found))
        assert position == UNREADABLE
        assert len(errors) == 1
        assert text in errors[0]


def test_one_call_of_the_store_at_a_time() -> None:
    """While the store is busy, positions wait, and the newest of them is kept next."""

    async def run() -> list[str]:
        log = Log("1-a")
        await log.stored.load()
        log.position = "1-a"
        log.stored.keep()  # it is stored already
        log.may_answer.clear()
        await log.keep("2-a")
        for position in ("3-a", "4-a"):
            log.position = position
            log.stored.keep()
        log.asked.clear()
        log.may_answer.set()
        await asyncio.wait_for(log.asked.wait(), 30)
        await log.stored.ended()
        return log.kept

    assert asyncio.run(run()) == ["2-a", "4-a"]


def test_the_last_position_is_kept_at_the_end() -> None:
    """It waits for the call that is under way."""

    async def run() -> list[str]:
        log = Log()
        log.may_answer.clear()
        await log.keep("1-a")
        log.position = "2-a"
        log.stored.end()
        log.may_answer.set()
        await log.stored.ended()
        return log.kept

    assert asyncio.run(run()) == ["1-a", "2-a"]


def test_a_store_that_fails_is_told_once_in_a_row() -> None:
    """The client goes on, and tells it again after a success."""

    async def run() -> list[int]:
        log = Log()
        log.failing = True
        assert await log.stored.load() == UNREADABLE
        counts = []
        for failing, position in ((True, "1-a"), (False, "2-a"), (True, "3-a")):
            log.failing = failing
            await log.keep(position)
            await log.stored.ended()
            counts.append(len(log.errors))
        assert log.errors[0].code == "store"
        assert isinstance(log.errors[0].__cause__, OSError)
        return counts

    assert asyncio.run(run()) == [1, 1, 2]


def test_a_position_that_could_not_be_kept_is_tried_again_at_the_end() -> None:
    """It is not tried again and again meanwhile."""

    async def run() -> tuple[bool, list[str]]:
        log = Log()
        log.failing = True
        await log.keep("1-a")
        await log.stored.ended()
        log.asked.clear()
        log.failing = False
        log.stored.keep()
        waits = log.stored._timer is not None and not log.stored._timer.cancelled()
        log.stored.end()
        await log.stored.ended()
        return waits, log.kept

    assert asyncio.run(run()) == (False, ["1-a"])
