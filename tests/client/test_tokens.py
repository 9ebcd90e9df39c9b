"""The client's tokens: which one a connection begins with, when it is renewed, and which answers end the attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from towerws.client.items import ClientError
from towerws.client.options import Options, Token, TokenSource
from towerws.client.tokens import TRIES, NoToken, Tokens

LIFE_S = 1000.0


class Renewed:
    """A client's tokens. What they ask for is kept: the times until a renewal, the messages and the errors."""

    def __init__(self, source: TokenSource | None, connect_s: float = 30) -> None:
        self.waits_s: list[float] = []
        self.sent: list[dict[str, Any]] = []
        self.errors: list[ClientError] = []
        self.tokens = Tokens(
            Options(token=source, connect_s=connect_s), renew_after=self.waits_s.append, send=self.sent.append, report=self.errors.append
        )

    async def connect(self) -> str | None:
        """A connection with its first token, which is accepted."""
        first = await self.tokens.first()
        self.tokens.accepted()
        return first

    async def renew(self) -> str:
        """The time of the renewal has come. Return the token that was sent."""
        self.waits_s.pop()
        await self.tokens.send_new()
        text = self.sent.pop()["token"]
        assert isinstance(text, str)
        return text


def numbered(life_s: float | None = LIFE_S) -> Callable[[], Token]:
    """A function that gives `t1`, `t2` and so on, each with so many seconds to live."""
    numbers: Iterator[int] = iter(range(1, 1000))
    return lambda: Token(f"t{next(numbers)}", None if life_s is None else time.time() + life_s)


def test_it_is_renewed_in_time() -> None:
    """After 70 to 80 % of its life another one is sent, and counts once it is accepted. One without an end is not renewed."""

    async def run() -> None:
        client = Renewed(numbered())
        assert await client.connect() == "t1"
        for number in range(2, 5):
            assert 0.69 * LIFE_S < client.waits_s[-1] < 0.81 * LIFE_S
            assert await client.renew() == f"t{number}"
            assert client.waits_s == []
            client.tokens.accepted()
        assert client.errors == []
        for source in (numbered(None), "fixed", None):
            lasting = Renewed(source)
            await lasting.connect()
            assert (lasting.waits_s, lasting.sent) == ([], [])

    asyncio.run(run())


def test_a_token_that_cannot_be_checked_does_not_count() -> None:
    """It is not a bad token. The client sends others as long as the one in use lasts."""

    async def run() -> None:
        client = Renewed(numbered())
        await client.connect()
        for _ in range(5 * TRIES):
            await client.renew()
            client.tokens.not_accepted("unavailable")
            assert 0.4 * LIFE_S < client.waits_s[-1] <= LIFE_S / 2
        await client.renew()
        client.tokens.accepted()
        assert client.waits_s[-1] > LIFE_S / 2

    asyncio.run(run())


def test_no_third_bad_token() -> None:
    """The daemon ends a connection at its third bad token. So the client sends two at most, unless one is accepted between them."""

    async def run() -> None:
        client = Renewed(numbered())
        await client.connect()
        await client.renew()
        client.tokens.not_accepted("token")
        await client.renew()
        client.tokens.accepted()  # the count begins again
        for _ in range(TRIES - 1):
            await client.renew()
            client.tokens.not_accepted("token")
        assert client.waits_s == []
        await client.connect()  # and with each connection
        assert len(client.waits_s) == 1

    asyncio.run(run())


def test_a_source_that_gives_nothing_new() -> None:
    """An error, none, no token at all, the same one again, or none in time: it is asked again, and nothing is sent."""

    async def late() -> Token:
        await asyncio.sleep(3600)
        raise AssertionError

    def fails() -> Token:
        raise OSError("no network")

    first = Token("t1", time.time() + LIFE_S)
    told: dict[Callable[[], Any], str] = {
        lambda: first: "",
        lambda: None: "",
        lambda: "": "",
        fails: "no network",
        lambda: 5: "text, or a Token",
        lambda: "a b": "printable ASCII",
        late: "no new token within",
    }

    async def run() -> None:
        for bad, words in told.items():
            calls: Iterator[Callable[[], Any]] = iter([lambda: first, bad])
            client = Renewed(lambda calls=calls: next(calls)(), connect_s=0.01 if bad is late else 30)
            await client.connect()
            await client.tokens.send_new()
            assert client.sent == []
            assert 0.4 * LIFE_S < client.waits_s[-1] <= LIFE_S / 2
            assert [error.code for error in client.errors] == ["token"] * bool(words)
            assert not words or words in str(client.errors[0])

    asyncio.run(run())


def test_near_its_end_it_is_not_renewed_any_more() -> None:
    """The daemon asks for another one at the end. Attempts come closer, and stop 2 s before it."""

    async def run() -> None:
        client = Renewed(numbered(life_s=2))
        await client.connect()
        await client.renew()
        client.tokens.not_accepted("unavailable")
        assert client.waits_s == []

    asyncio.run(run())


def test_a_handshake_that_is_refused() -> None:
    """After a fixed token, or the same one again, no attempt follows. A function is asked until the third refusal in a row."""

    async def run() -> None:
        fixed = Renewed("fixed")
        await fixed.tokens.first()
        assert fixed.tokens.refused() is False

        again = Renewed(lambda: "t1")
        await again.tokens.first()
        assert again.tokens.refused() is True
        with pytest.raises(NoToken, match="the refused token again") as same:
            await again.tokens.first()
        assert same.value.final

        client = Renewed(numbered())
        for may_help in [True] * (TRIES - 1) + [False]:
            await client.tokens.first()
            assert client.tokens.refused() is may_help

        client = Renewed(numbered())
        for _ in range(2):  # an accepted one begins the count again
            for _ in range(TRIES - 1):
                await client.tokens.first()
                assert client.tokens.refused()
            await client.connect()

    asyncio.run(run())


def test_no_token_to_connect_with() -> None:
    """If the function gives none, that is final. If it fails, a later attempt may help."""

    def fails() -> str:
        raise OSError("no network")

    async def run() -> None:
        for source, final, words in (
            (lambda: None, True, "gave no token"),
            (lambda: "", True, "gave no token"),
            (fails, False, "no network"),
        ):
            with pytest.raises(NoToken, match=words) as missing:
                await Renewed(source).tokens.first()
            assert missing.value.final is final
            assert missing.value.reason.code == "token"

    asyncio.run(run())
