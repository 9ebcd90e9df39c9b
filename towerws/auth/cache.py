"""Keeps answers for a time, and makes one call at a time for each question. All times are monotonic seconds of the caller's clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class TtlCache(Generic[T]):
    """Keeps each answer for `lifetime_s`. Beyond `entries` answers it evicts the oldest."""

    def __init__(self, lifetime_s: float, entries: int) -> None:
        self._lifetime_s = lifetime_s
        self._entries = entries
        self._kept: dict[Hashable, tuple[float, T]] = {}  # from the oldest to the newest

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, now: float, since: float = -inf) -> T | None:
        """Return the answer under this key. Return None if there is none, if it is too old, or if it is from before `since`."""
        if (kept := self._kept.get(key)) is None:
            return None
        at, answer = kept
        if now - at >= self._lifetime_s:
            del self._kept[key]
            return None
        return answer if at >= since else None

    def put(self, key: Hashable, answer: T, now: float) -> None:
        """Store an answer. It replaces the one under the same key."""
        self._kept.pop(key, None)
        self._kept[key] = (now, answer)
        if len(self._kept) > self._entries:
            del self._kept[next(iter(self._kept))]

    def discard(self, key: Hashable) -> None:
        """Remove the answer under this key, if there is one."""
        self._kept.pop(key, None)


class SingleFlight(Generic[T]):
    """Callers that ask the same question at the same time share one call.

    A caller may cancel its own Deferred. The call goes on, for the other callers and for the cache.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, list[Deferred[T]]] = {}

    def ask(self, key: Hashable, call: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with the result of `call`. If a call for this key is in flight already, fires with the result of that one."""
        first = key not in self._flights
        waiting = self._flights.setdefault(key, [])
        waiter: Deferred[T] = Deferred(waiting.remove)
        waiting.append(waiter)
        if first:
            call().addBoth(self._finish, key)
        return waiter

    def _finish(self, result: T | Failure, key: Hashable) -> None:
        waiting = self._flights.pop(key)
        while waiting:  # a caller's callback may cancel another caller
            waiter = waiting.pop(0)
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
