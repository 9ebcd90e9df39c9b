"""One call at a time per question: whoever asks the same meanwhile gets the same answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


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
            call().addBoth(self._land, key)
        return waiter

    def _land(self, result: T | Failure, key: Hashable) -> None:
        waiting = self._flights.pop(key)
        while waiting:  # one that is told may cancel another
            waiter = waiting.pop(0)
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
