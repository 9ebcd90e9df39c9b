"""Bounds the calls to the API: the number in flight, the number waiting, a deadline for each. While the API is down, it sends only probes.

state     | begins when                      | ends in
waiting   | all calls of its pool are in use | in flight (another call ended); done (waited too long, dropped from a full queue, stop)
in flight | it is sent                       | done (an answer, a failure, its deadline, stop)
done      | its Deferred has fired           | -

A call's deadline begins when it is sent, since a queue here is not the API's fault. A call that has waited too long for its client
is not sent. Addresses share the calls fairly, so that one address can't keep the others waiting.

Checks of passwords have their own calls, queue and breaker. Each costs the API a slow hash, and any client can ask for one.
Questions about objects share the calls of sessions and tokens but have their own breaker. An object that the API is slow to
answer about must not stop clients from signing in.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, drop_frames
from towerws.auth.tower_api import Answer, Fetcher
from towerws.auth.tower_credentials import Headers
from towerws.auth.tower_limits import CircuitBreaker, FairQueue
from towerws.core.client_address import address_key
from towerws.core.measurements import SECONDS, Histogram
from towerws.core.settings import TowerSettings
from towerws.logs import FoldedLog

T = TypeVar("T")

BACKGROUND_EVERY: Final = 4
"""Handshakes go first. One call in this many is for other questions, so that a storm of clients starves no open connection."""

RESERVED: Final = 0.25
"""The share of the calls that only handshakes use. A user with many slow objects must not keep new clients out, which can't wait long."""


class Kind(enum.Enum):
    """The purpose of a question."""

    SIGN_IN = "sign_in"
    """A handshake waits for it, and a browser waits for the handshake."""
    REVALIDATION = "revalidation"
    """It checks the credential of an open connection again."""
    OBJECT = "object"
    """It asks whether a user sees an object."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the API. `address` is the client's address. The question may wait `wait_s` seconds before it is sent."""

    url: str
    headers: Headers
    kind: Kind
    address: str
    wait_s: float
    password: bool = False
    """Whether it has a password, which the API must hash."""
    client: Hashable = None
    """Identifies the client for the circuit breaker, which counts failures of a single client differently."""


class _Call(Generic[T]):
    """A question in one of the states above."""

    def __init__(self, question: Question, read: Callable[[Answer], T]) -> None:
        self.question = question
        self.owner = address_key(question.address)
        """The client's address or network. Addresses share the calls fairly."""
        self.read = read
        self.done: Deferred[T] = Deferred()
        self.request: Any = None
        self.timer: Any = None
        self.late = False
        """Whether its deadline passed while it was in flight."""
        self.sent_at = 0.0

    def cancel_timer(self) -> None:
        """Cancel the timer of the current state."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()


class _Counts:
    """Counts of one pool since the start. A reload hands them on to the next pool."""

    def __init__(self) -> None:
        self.made = self.failed = self.turned_away = 0
        self.seconds = Histogram(SECONDS)


class TowerCalls:
    """Sends questions to the API. A question that can't be sent, or is not answered, fails with `Unavailable`."""

    def __init__(self, settings: TowerSettings, fetcher: Fetcher, clock: Any, log: FoldedLog) -> None:
        self._fetcher = fetcher
        self._clock = clock
        signing_in, objects, passwords = (CircuitBreaker(settings.breaker_failures, settings.breaker_probe_s) for _ in range(3))
        self._objects = objects
        pool = partial(_Pool, settings, fetcher, clock, log)
        self._session_pool = pool("tower.calls", settings.calls, settings.deadline_s, signing_in, objects)
        self._password_pool = pool("tower.password_calls", settings.password_calls, settings.password_deadline_s, passwords, passwords)
        self._pauses: dict[Deferred[None], Any] = {}
        self._stopped = False

    def figures(self) -> Mapping[str, object]:
        """Return how many calls were made, failed and turned away, and how many are in flight and waiting. The same for passwords."""
        return {**self._session_pool.figures(), "object_breaker": self._objects.state, "passwords": self._password_pool.figures()}

    def get(self, question: Question, read: Callable[[Answer], T]) -> Deferred[T]:
        """Fires with what `read` returns for the answer, or fails with what it raises, within `wait_s` plus the deadline."""
        return (self._password_pool if question.password else self._session_pool).get(question, read)

    def take_over(self, before: TowerCalls) -> None:
        """Go on with the counts of the calls that are replaced. Their last answers count, too."""
        self._session_pool.counts = before._session_pool.counts
        self._password_pool.counts = before._password_pool.counts

    def pause(self, delay_s: float) -> Deferred[None]:
        """Fires after `delay_s` seconds. Fails with `Unavailable` if everything is stopped before that."""
        if self._stopped:
            return fail(_stopping())

        def end() -> None:
            del self._pauses[pause]
            pause.callback(None)

        pause: Deferred[None] = Deferred(lambda cancelled: self._pauses.pop(cancelled).cancel())
        self._pauses[pause] = self._clock.callLater(delay_s, end)
        return pause

    def stop(self) -> Deferred[None]:
        """Fail all calls and pauses, and cancel all timers. Fires when the idle connections are closed."""
        self._stopped = True
        while self._pauses:
            pause, timer = self._pauses.popitem()
            timer.cancel()
            pause.errback(_stopping())
        self._session_pool.stop()
        self._password_pool.stop()
        return self._fetcher.stop()


class _Pool:
    """A bounded number of calls in flight, and queues for the rest. `option` is the name of the option that has the number, for the log."""

    def __init__(
        self,
        settings: TowerSettings,
        fetcher: Fetcher,
        clock: Any,
        log: FoldedLog,
        option: str,
        calls: int,
        deadline_s: float,
        breaker: CircuitBreaker,
        object_breaker: CircuitBreaker,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._clock = clock
        self._log = log
        self._option = option
        self._calls = calls
        self._background_calls = calls - int(calls * RESERVED)
        self._deadline_s = deadline_s
        self._breaker = breaker
        self._object_breaker = object_breaker
        self._in_flight: set[_Call[Any]] = set()
        self._in_flight_by_owner: Counter[str] = Counter()
        self._background_in_flight = 0
        self._handshake_queue: FairQueue[_Call[Any]] = FairQueue(settings.calls_waiting)
        self._background_queue: FairQueue[_Call[Any]] = FairQueue(settings.calls_waiting)
        self._sending = self._stopped = False
        self.counts = _Counts()

    def figures(self) -> dict[str, object]:
        """See `TowerCalls`."""
        return {
            "made": self.counts.made,
            "failed": self.counts.failed,
            "turned_away": self.counts.turned_away,
            "in_flight": len(self._in_flight),
            "waiting": len(self._handshake_queue) + len(self._background_queue),
            "breaker": self._breaker.state,
            "seconds": self.counts.seconds.figures(),
        }

    def get(self, question: Question, read: Callable[[Answer], T]) -> Deferred[T]:
        """See `TowerCalls`."""
        if self._stopped:
            return fail(_stopping())
        call = _Call(question, read)
        if self._has_room_for(call):
            self._send(call)
        elif self._breaker_of(call).is_open(self._clock.seconds()):
            self._turn_away(call, "it failed repeatedly, and is asked rarely until it answers")
        else:
            call.timer = self._clock.callLater(question.wait_s, self._expire_waiting, call)
            dropped = self._queue_of(call).push(call.owner, call)
            if dropped is not None:
                self._turn_away(dropped, "too many questions wait already (tower.calls_waiting)")
        return call.done

    def stop(self) -> None:
        """Fail all calls."""
        self._stopped = True
        for queue in (self._handshake_queue, self._background_queue):
            while queue:
                self._end(queue.pop({}), Failure(_stopping()))
        for call in list(self._in_flight):
            call.request.cancel()

    def _breaker_of(self, call: _Call[Any]) -> CircuitBreaker:
        return self._object_breaker if call.question.kind is Kind.OBJECT else self._breaker

    def _has_room_for(self, call: _Call[Any]) -> bool:
        if len(self._in_flight) >= self._calls:
            return False
        return call.question.kind is Kind.SIGN_IN or self._background_in_flight < self._background_calls

    def _queue_of(self, call: _Call[Any]) -> FairQueue[_Call[Any]]:
        return self._handshake_queue if call.question.kind is Kind.SIGN_IN else self._background_queue

    def _expire_waiting(self, call: _Call[Any]) -> None:
        call.timer = None  # a cycle, as in `_expire`
        self._queue_of(call).remove(call.owner, call)
        self._turn_away(call, f"all calls were in use for too long ({self._option})")

    def _turn_away(self, call: _Call[Any], why: str) -> None:
        """End a call that was not sent. The log says why, since this is not the API's fault."""
        self.counts.turned_away += 1
        self._log.warning(f"a question to the Tower API was not sent: {why}; {{in_flight}} in flight", in_flight=len(self._in_flight))
        self._end(call, Failure(Unavailable(f"the API could not be asked: {why}")))

    def _send(self, call: _Call[Any]) -> None:
        call.cancel_timer()
        if not self._breaker_of(call).admit(self._clock.seconds()):
            self._turn_away(call, "it failed repeatedly, and is asked rarely until it answers")
            return
        self.counts.made += 1
        call.sent_at = self._clock.seconds()
        self._in_flight.add(call)
        self._in_flight_by_owner[call.owner] += 1
        self._background_in_flight += call.question.kind is not Kind.SIGN_IN
        call.timer = self._clock.callLater(self._deadline_s, self._expire, call)
        call.request = maybeDeferred(self._fetcher.get, call.question.url, call.question.headers)
        call.request.addCallbacks(self._answered, self._failed, callbackArgs=(call,), errbackArgs=(call,))
        call.request.addErrback(lambda failure: self._end(call, failure))  # a fault in our code goes to the caller

    def _answered(self, answer: Answer, call: _Call[Any]) -> None:
        result: Any
        try:
            result = call.read(answer)
        except (Refused, Unavailable) as error:
            drop_frames(error)  # this frame is one of them, and refers to the result
            result = Failure(error)
        if isinstance(result, Failure) and result.check(Unavailable) and (answer.status < 400 or answer.is_fault):
            self._note_failure(result.getErrorMessage())
        # A status below 500 may be caused by the client: a gateway redirects clients that it does not know, or shows its own page.
        # So may a 5xx: AWX answers 500 for an object that it can't show. No client may open the breaker for the others.
        if answer.is_fault:
            self._count_failure(call, by_client=True)
        elif self._breaker_of(call).succeeded():
            self._log.info("the Tower API answers again")
        self._end(call, result)

    def _failed(self, failure: Failure, call: _Call[Any]) -> None:
        if self._stopped:
            failure = Failure(_stopping())
        else:
            if call.late:
                failure = Failure(Unavailable(f"the API did not answer within {self._deadline_s:g} s"))
            self._note_failure(failure.getErrorMessage())
            self._count_failure(call, by_client=call.late)
        self._end(call, failure)

    def _expire(self, call: _Call[Any]) -> None:
        call.timer = None  # a DelayedCall that has fired still refers to its arguments, a cycle
        call.late = True
        call.request.cancel()

    def _end(self, call: _Call[Any], result: Any) -> None:
        call.cancel_timer()
        if call in self._in_flight:
            self._in_flight.discard(call)
            self.counts.seconds.observe(self._clock.seconds() - call.sent_at)
            self._in_flight_by_owner[call.owner] -= 1
            self._background_in_flight -= call.question.kind is not Kind.SIGN_IN
            if not self._in_flight_by_owner[call.owner]:
                del self._in_flight_by_owner[call.owner]
        self._send_next()
        if isinstance(result, Failure):
            call.done.errback(result)
        else:
            call.done.callback(result)

    def _send_next(self) -> None:
        if self._sending:  # with an open breaker `_send` ends a call at once, which calls this again: hundreds deep
            return
        self._sending = True
        while len(self._in_flight) < self._calls and not self._stopped:
            background = bool(self._background_queue) and self._background_in_flight < self._background_calls
            if self._handshake_queue and not (background and self.counts.made % BACKGROUND_EVERY == 0):
                self._send(self._handshake_queue.pop(self._in_flight_by_owner))
            elif background:
                self._send(self._background_queue.pop(self._in_flight_by_owner))
            else:
                break
        self._sending = False

    def _note_failure(self, why: str) -> None:
        self.counts.failed += 1
        self._log.warning("the Tower API can't be asked: {why}", why=why)

    def _count_failure(self, call: _Call[Any], *, by_client: bool) -> None:
        """Count a failure. `by_client`: the question of this client may have caused it."""
        client = hash(call.question.client) if by_client else None
        if self._breaker_of(call).failed(self._clock.seconds(), client):
            self._log.warning(
                "the Tower API failed {failures} times in a row: it is asked once in {probe_s:g} s until it answers",
                failures=self._settings.breaker_failures,
                probe_s=self._settings.breaker_probe_s,
            )


def _stopping() -> Unavailable:
    return Unavailable("the daemon is stopping")
