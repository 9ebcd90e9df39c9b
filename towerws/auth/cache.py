"""Answers that are good for a while. No clock of its own: times are monotonic seconds.

One call at a time per question: whoever asks the same meanwhile gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class TtlCache(Generic[T]):
    """Keeps each answer for `lifetime_s`, and no more than `entries` of them: the oldest goes first."""

    def __init__(self, lifetime_s: float, entries: int) -> None:
        self._lifetime_s = lifetime_s
        self._entries = entries
        self._kept: dict[Hashable, tuple[float, T]] = {}  # from the oldest to the newest

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, now: float, since: float = -inf) -> T | None:
        """The answer kept under this key, unless it is too old, or from before `since`."""
        if (kept := self._kept.get(key)) is None:
            return None
        at, answer = kept
        if now - at >= self._lifetime_s:
            del self._kept[key]
            return None
        return answer if at >= since else None

    def put(self, key: Hashable, answer: T, now: float) -> None:
        """Keep an answer, in place of what was kept."""
        self._kept.pop(key, None)
        self._kept[key] = (now, answer)
        if len(self._kept) > self._entries:
            del self._kept[next(iter(self._kept))]

    def discard(self, key: Hashable) -> None:
        """Forget what is kept under this key, if anything is."""
        self._kept.pop(key, None)


class SingleFlight(Generic[T]):
    """Joins equal questions. One who cancels waits no longer; the call goes on, for the others and for what is kept of it."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, list[Deferred[T]]] = {}

    def ask(self, key: Hashable, call: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with what `call` fires with; when one for this key is under way, with what that one does."""
        first = key not in self._flights
        waiting = self._flights.setdefault(key, [])
        waiter: Deferred[T] = Deferred(waiting.remove)
        waiting.append(waiter)
        if first:
            call().addBoth(self._finish, key)
        return waiter

    def _finish(self, result: T | Failure, key: Hashable) -> None:
        waiting = self._flights.pop(key)
        while waiting:  # one that is told may cancel another
            waiter = waiting.pop(0)
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
