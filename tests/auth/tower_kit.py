"""Helpers for the tests of the method `tower`."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import pytest_twisted
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer
from towerws.core.http_head import Head
from towerws.core.settings import TowerSettings

T = TypeVar("T")

URL = "http://tower.example"


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Run a test in the reactor."""
    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(test))


def head(query: str = "", **headers: str) -> Head:
    """Return the head of an opening handshake. `_` in a header's name stands for `-`."""
    return Head("GET", "/websocket/", query, {"host": "h"} | {name.lower().replace("_", "-"): value for name, value in headers.items()})


def cookie(session: str) -> Head:
    """Return the head of a browser with a session cookie."""
    return head(cookie=f"sessionid={session}; csrftoken=csrf")


def now(deferred: Deferred[T]) -> T:
    """Return the result of a Deferred that has fired, or raise its exception."""
    results: list[T | Failure] = []
    deferred.addBoth(results.append)
    assert results, "has not fired"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def me(user_id: int = 7, **flags: bool) -> Answer:
    """Return the API's answer to /api/v2/me/."""
    user = {"id": user_id, "is_superuser": False, "is_system_auditor": False} | flags
    return Answer(200, json.dumps({"count": 1, "results": [user]}).encode())


class FakeFetcher:
    """A `Fetcher` that answers when the test says so, or at once with the answer in `answers` for the end of the URL."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[tuple[str, str], ...], Deferred[Answer]]] = []
        self.answers: dict[str, Answer] = {}
        self.stopped = False

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Record the question."""
        asked: Deferred[Answer] = Deferred()
        self.asked.append((url.removeprefix(URL), tuple(headers), asked))
        for end, answer in self.answers.items():
            if url.endswith(end):
                asked.callback(answer)
                break
        return asked

    def stop(self) -> Deferred[None]:
        """Record the call."""
        self.stopped = True
        return succeed(None)

    def paths(self) -> list[str]:
        """Return the questions since the last call."""
        asked, self.asked = self.asked, []
        return [path for path, _, _ in asked]


class Bench:
    """A method with a clock and a fake API."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.fetcher = FakeFetcher()
        self.method = TowerMethod(TowerSettings(url=URL, **settings), self.clock, fetcher=self.fetcher)


class Lines:
    """Collects log events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        """Keep the event."""
        self.events.append(event)

    @property
    def texts(self) -> list[str]:
        """Return the lines."""
        return [formatEvent(event) for event in self.events]

    def everything(self) -> str:
        """Return all text that any observer could write, with tracebacks."""
        tracebacks = [event["log_failure"].getTraceback(detail="verbose") for event in self.events if "log_failure" in event]
        return repr(self.events) + "\n".join(self.texts + tracebacks)


@contextmanager
def logged() -> Iterator[Lines]:
    """Collects all log events of the block."""
    lines = Lines()
    globalLogPublisher.addObserver(lines)  # type: ignore[arg-type]
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(lines)  # type: ignore[arg-type]
