"""Questions to the API within bounds: a deadline for each, so many at once, so many waiting, and none while it is down.

state   | begins with                 | ends in
waiting | all `calls` are under way   | asking (one ended); over (its deadline; the breaker opened; stop)
asking  | it was sent                 | over (an answer, a failure, its deadline, stop)
over    | its Deferred has fired      | -
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, drop_frames
from towerws.auth.breaker import Breaker
from towerws.auth.folded_log import FoldedLog
from towerws.auth.tower_answers import Answer
from towerws.auth.tower_credentials import Headers
from towerws.auth.tower_http import Fetcher
from towerws.core.settings import TowerSettings

T = TypeVar("T")


class _Call(Generic[T]):
    """One question, from when it was asked until it is over."""

    def __init__(self, url: str, headers: Headers, read: Callable[[Answer], T]) -> None:
        self.url = url
        self.headers = headers
        self.read = read
        self.done: Deferred[T] = Deferred()
        self.flight: Any = None
        self.timer: Any = None
        self.waited = False
        self.late = False


class TowerCalls:
    """Puts questions to the API. One that can't be put, or is not answered, fails with `Unavailable`."""

    def __init__(self, settings: TowerSettings, fetcher: Fetcher, clock: Any, log: FoldedLog) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._clock = clock
        self._log = log
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_probe_s)
        self._asking: set[_Call[Any]] = set()
        self._waiting: deque[_Call[Any]] = deque()
        self._pauses: dict[Deferred[None], Any] = {}
        self._stopped = False
        self._made = self._failures = self._turned_away = 0

    def figures(self) -> Mapping[str, object]:
        """Calls made, and those of them that failed (which the breaker counts); turned away unmade; under way; waiting."""
        return {
            "made": self._made,
            "failed": self._failures,
            "turned_away": self._turned_away,
            "in_flight": len(self._asking),
            "waiting": len(self._waiting),
            "breaker": self._breaker.state,
        }

    def get(self, url: str, headers: Headers, read: Callable[[Answer], T]) -> Deferred[T]:
        """Fires with what `read` makes of the answer, or fails with what it raises; `deadline_s` from now at the latest."""
        full = len(self._asking) >= self._settings.calls
        if self._stopped:
            return fail(_stopping())
        if full and (len(self._waiting) >= self._settings.calls_waiting or self._breaker.is_open(self._clock.seconds())):
            self._turned_away += 1
            self._log.warning("too many questions to the Tower API at once")
            return fail(Unavailable("too many questions to the API at once"))
        call = _Call(url, headers, read)
        call.timer = self._clock.callLater(self._settings.deadline_s, self._expire, call)
        if full:
            call.waited = True
            self._waiting.append(call)
        else:
            self._send(call)
        return call.done

    def pause(self, delay_s: float) -> Deferred[None]:
        """Fires after a while; fails with `Unavailable` when everything is stopped meanwhile."""

        def end() -> None:
            del self._pauses[pause]
            pause.callback(None)

        pause: Deferred[None] = Deferred(lambda cancelled: self._pauses.pop(cancelled).cancel())
        self._pauses[pause] = self._clock.callLater(delay_s, end)
        return pause

    def stop(self) -> Deferred[None]:
        """Fail whatever waits, and let go of all connections and timers. Fires when the idle connections are closed."""
        self._stopped = True
        while self._pauses:
            pause, timer = self._pauses.popitem()
            timer.cancel()
            pause.errback(_stopping())
        while self._waiting:
            self._end(self._waiting[0], Failure(_stopping()))
        for call in list(self._asking):
            call.flight.cancel()
        return self._fetcher.stop()

    def _send(self, call: _Call[Any]) -> None:
        if not self._breaker.admit(self._clock.seconds()):
            self._turned_away += 1
            self._end(call, Failure(Unavailable("the API failed again and again; it is asked anew every few seconds")))
            return
        self._made += 1
        self._asking.add(call)
        call.flight = self._fetcher.get(call.url, call.headers)
        call.flight.addCallbacks(self._answered, self._failed, callbackArgs=(call,), errbackArgs=(call,))
        call.flight.addErrback(lambda failure: self._end(call, failure))  # our own fault: shown to who asked

    def _answered(self, answer: Answer, call: _Call[Any]) -> None:
        result: Any
        try:
            result = call.read(answer)
        except (Refused, Unavailable) as error:
            drop_frames(error)  # this frame is one of them, and holds the result
            result = Failure(error)
        # A status of 400 to 499 may be the client's doing: nobody must be able to open the breaker for the others.
        if answer.is_fault or (answer.status < 400 and isinstance(result, Failure) and result.check(Unavailable)):
            self._note_failure(result.getErrorMessage())
        elif self._breaker.succeeded():
            self._log.info("the Tower API answers again")
        self._end(call, result)

    def _failed(self, failure: Failure, call: _Call[Any]) -> None:
        if self._stopped:
            failure = Failure(_stopping())
        elif call.late:
            failure = Failure(Unavailable(f"the API did not answer within {self._settings.deadline_s:g} s"))
        # One that waited for its turn had less than its time: that it was late says nothing of the API.
        if not self._stopped and not (call.late and call.waited):
            self._note_failure(failure.getErrorMessage())
        self._end(call, failure)

    def _expire(self, call: _Call[Any]) -> None:
        # It is under way: all that were before it were asked earlier, so their time was over earlier.
        call.timer = None  # a call that was made still refers to its arguments: a cycle
        call.late = True
        call.flight.cancel()

    def _end(self, call: _Call[Any], result: Any) -> None:
        timer, call.timer = call.timer, None
        if timer is not None:
            timer.cancel()
        self._asking.discard(call)
        if call in self._waiting:
            self._waiting.remove(call)
        while self._waiting and len(self._asking) < self._settings.calls and not self._stopped:
            self._send(self._waiting.popleft())
        if isinstance(result, Failure):
            call.done.errback(result)
        else:
            call.done.callback(result)

    def _note_failure(self, why: str) -> None:
        self._failures += 1
        self._log.warning("the Tower API can't be asked: {why}", why=why)
        if self._breaker.failed(self._clock.seconds()):
            self._log.warning(
                "the Tower API failed {failures} times in a row: asked once in {probe_s:g} s until it answers",
                failures=self._settings.breaker_failures,
                probe_s=self._settings.breaker_probe_s,
            )


def _stopping() -> Unavailable:
    return Unavailable("the daemon is stopping")
