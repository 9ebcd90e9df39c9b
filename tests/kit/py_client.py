"""The Python client in its own event loop, as tests drive it: it follows topics, and the test waits for what it tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from tests.kit.daemon import DEADLINE_S
from towerws.client import ClientError, Event, Item, StateChange, sync


class PyClient:
    """A client with one subscription. Use it as a context manager. `until` waits for what its handlers were told."""

    def __init__(self, url: str, groups: dict[str, list[int | str]], **options: Any) -> None:
        self.items: list[Item] = []
        self.changes: list[StateChange] = []
        self.errors: list[ClientError] = []
        self._url, self._groups = url, groups
        self._options = {"onstate": self._keep(self.changes), "onerror": self._keep(self.errors), **options}
        self._news = threading.Condition()

    def _keep(self, into: list[Any]) -> Callable[[Any], None]:
        def keep(what: Any) -> None:
            with self._news:
                into.append(what)
                self._news.notify_all()

        return keep

    def __enter__(self) -> Self:
        self.client = sync.connect(self._url, **self._options)
        keep = self._keep(self.items)
        with suppress(ClientError):  # It may have stopped already. `errors` has the reason.
            self.client.subscribe(self._groups, keep, subscribed=keep, recovered=keep, stale=keep, gap=keep, denied=keep)
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    @property
    def numbers(self) -> list[Any]:
        """The numbers in the payloads of its events."""
        return [item.payload["n"] for item in self.items if isinstance(item, Event)]

    @property
    def notices(self) -> list[str]:
        """The types of its other items."""
        return [item.type for item in self.items if not isinstance(item, Event)]

    @property
    def states(self) -> list[str]:
        """The states of the connection."""
        return [change.state for change in self.changes]

    def until(self, condition: Callable[[], object], within_s: float = DEADLINE_S) -> None:
        """Wait until the condition is true."""
        give_up = time.monotonic() + within_s
        with self._news:
            while not condition():
                left_s = give_up - time.monotonic()
                assert left_s > 0, f"it did not come within {within_s} s: {self.items[-5:]}, {self.states[-5:]}, {self.errors[-5:]}"
                self._news.wait(left_s)

    def until_subscribed(self) -> None:
        """Wait for the first notice of the subscription."""
        self.until(lambda: self.notices)

    def until_recovered(self, count: int) -> None:
        """Wait until it has resumed this many times."""
        self.until(lambda: self.notices.count("recovered") >= count)

    def until_number(self, number: int) -> None:
        """Wait for the event with this number, or a later one."""
        self.until(lambda: any(n is not None and n >= number for n in self.numbers[-1:]))
