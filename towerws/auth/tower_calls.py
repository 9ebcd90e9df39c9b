"""Questions to the API within bounds: so many at once, so many waiting, a deadline for each, and none while it is down.

state   | begins with                    | ends in
waiting | all calls of its pool are used | asking (one ended); over (it waited too long, a longer queue than others', stop)
asking  | it was sent                    | over (an answer, a failure, its deadline, stop)
over    | its Deferred has fired         | -

A call's deadline begins when it is sent, and none is sent when that is too late for whoever asked: a queue here is no fault of
the API's. The calls are shared fairly between the clients' addresses, so that one of them can't keep the others waiting.

Checks of passwords have calls, a queue and a breaker of their own: each costs the API a hash that is slow on purpose, and
anybody can ask for one. Questions about objects share the calls of sessions and tokens, but not their breaker: an object
that takes the API too long must not keep anybody from signing in.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, drop_frames
from towerws.auth.folded_log import FoldedLog
from towerws.auth.tower_api import Answer, Fetcher
from towerws.auth.tower_credentials import Headers
from towerws.auth.tower_limits import CircuitBreaker, FairQueue
from towerws.core.addresses import address_key
from towerws.core.settings import TowerSettings

T = TypeVar("T")

BACKGROUND_EVERY: Final = 4
"""Handshakes go first; but of so many calls one is for whatever else waits, so that a storm of clients starves no open connection."""


class Kind(enum.Enum):
    """What a question is for."""

    SIGN_IN = "sign_in"
    """A handshake waits for it, and a browser for that."""
    REVALIDATION = "revalidation"
    """A credential of an open connection is checked again."""
    OBJECT = "object"
    """Whether a user sees an object."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and for whom. `address` is the client's; `wait_s` is for how long it may wait to be sent."""

    url: str
    headers: Headers
    kind: Kind
    address: str
    wait_s: float
    password: bool = False
    """Whether it brings a password, which the API has to hash."""


class _Call(Generic[T]):
    """One question, from when it was asked until it is over."""

    def __init__(self, question: Question, read: Callable[[Answer], T]) -> None:
        self.question = question
        self.owner = address_key(question.address)
        self.read = read
        self.done: Deferred[T] = Deferred()
        self.request: Any = None
        self.timer: Any = None
        self.late = False


class TowerCalls:
    """Puts questions to the API. One that can't be put, or is not answered, fails with `Unavailable`."""

    def __init__(self, settings: TowerSettings, fetcher: Fetcher, clock: Any, log: FoldedLog) -> None:
        self._fetcher = fetcher
        self._clock = clock
        signing_in = CircuitBreaker(settings.breaker_failures, settings.breaker_probe_s)
        objects = CircuitBreaker(settings.breaker_failures, settings.breaker_probe_s)
        passwords = CircuitBreaker(settings.breaker_failures, settings.breaker_probe_s)
        self._objects = objects
        self._session_pool = _Pool(
            settings, fetcher, clock, log, ("tower.calls", "tower.calls_waiting"), settings.calls, settings.deadline_s, signing_in, objects
        )
        self._password_pool = _Pool(
            settings,
            fetcher,
            clock,
            log,
            ("tower.password_calls", "tower.calls_waiting"),
            settings.password_calls,
            settings.password_deadline_s,
            passwords,
            passwords,
        )
        self._pauses: dict[Deferred[None], Any] = {}
        self._stopped = False

    def figures(self) -> Mapping[str, object]:
        """Calls made, and those of them that failed; turned away unmade; under way; waiting. The same for checks of passwords."""
        return {**self._session_pool.figures(), "object_breaker": self._objects.state, "passwords": self._password_pool.figures()}

    def get(self, question: Question, read: Callable[[Answer], T]) -> Deferred[T]:
        """Fires with what `read` makes of the answer, or fails with what it raises; `wait_s` and the deadline from now at the latest."""
        return (self._password_pool if question.password else self._session_pool).get(question, read)

    def pause(self, delay_s: float) -> Deferred[None]:
        """Fires after a while; fails with `Unavailable` when everything is stopped meanwhile, or before."""
        if self._stopped:
            return fail(_stopping())

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
        self._session_pool.stop()
        self._password_pool.stop()
        return self._fetcher.stop()


class _Pool:
    """Calls of one kind of cost: so many at once, and queues for the rest."""

    def __init__(
        self,
        settings: TowerSettings,
        fetcher: Fetcher,
        clock: Any,
        log: FoldedLog,
        options: tuple[str, str],
        calls: int,
        deadline_s: float,
        breaker: CircuitBreaker,
        object_breaker: CircuitBreaker,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._clock = clock
        self._log = log
        self._options = options
        self._calls = calls
        self._deadline_s = deadline_s
        self._breaker = breaker
        self._object_breaker = object_breaker
        self._in_flight: set[_Call[Any]] = set()
        self._in_flight_by_owner: Counter[str] = Counter()
        self._handshake_queue: FairQueue[_Call[Any]] = FairQueue(settings.calls_waiting)
        self._background_queue: FairQueue[_Call[Any]] = FairQueue(settings.calls_waiting)
        self._sending = self._stopped = False
        self._sent = self._failures = self._turned_away = 0

    def figures(self) -> dict[str, object]:
        """See `TowerCalls`."""
        return {
            "made": self._sent,
            "failed": self._failures,
            "turned_away": self._turned_away,
            "in_flight": len(self._in_flight),
            "waiting": len(self._handshake_queue) + len(self._background_queue),
            "breaker": self._breaker.state,
        }

    def get(self, question: Question, read: Callable[[Answer], T]) -> Deferred[T]:
        """See `TowerCalls`."""
        if self._stopped:
            return fail(_stopping())
        call = _Call(question, read)
        if len(self._in_flight) < self._calls:
            self._send(call)
        elif self._breaker_of(call).is_open(self._clock.seconds()):
            self._turn_away(call, "it failed again and again, and is asked once in a while until it answers")
        else:
            call.timer = self._clock.callLater(question.wait_s, self._expire_waiting, call)
            dropped = self._queue_of(call).push(call.owner, call)
            if dropped is not None:
                self._turn_away(dropped, f"too many questions wait already ({self._options[1]})")
        return call.done

    def stop(self) -> None:
        """Fail all."""
        self._stopped = True
        for queue in (self._handshake_queue, self._background_queue):
            while queue:
                self._end(queue.pop({}), Failure(_stopping()))
        for call in list(self._in_flight):
            call.request.cancel()

    def _breaker_of(self, call: _Call[Any]) -> CircuitBreaker:
        return self._object_breaker if call.question.kind is Kind.OBJECT else self._breaker

    def _queue_of(self, call: _Call[Any]) -> FairQueue[_Call[Any]]:
        return self._handshake_queue if call.question.kind is Kind.SIGN_IN else self._background_queue

    def _expire_waiting(self, call: _Call[Any]) -> None:
        call.timer = None  # as in `_expire`
        self._queue_of(call).remove(call.owner, call)
        self._turn_away(call, f"all calls were taken for too long ({self._options[0]})")

    def _turn_away(self, call: _Call[Any], why: str) -> None:
        """Not asked at all: the log says why, since it is no failure of the API's."""
        self._turned_away += 1
        self._log.warning(f"a question to the Tower API was not put: {why}; {{in_flight}} are under way", in_flight=len(self._in_flight))
        self._end(call, Failure(Unavailable(f"the API could not be asked: {why}")))

    def _send(self, call: _Call[Any]) -> None:
        timer, call.timer = call.timer, None
        if timer is not None:
            timer.cancel()
        if not self._breaker_of(call).admit(self._clock.seconds()):
            self._turn_away(call, "it failed again and again, and is asked once in a while until it answers")
            return
        self._sent += 1
        self._in_flight.add(call)
        self._in_flight_by_owner[call.owner] += 1
        call.timer = self._clock.callLater(self._deadline_s, self._expire, call)
        call.request = self._fetcher.get(call.question.url, call.question.headers)
        call.request.addCallbacks(self._answered, self._failed, callbackArgs=(call,), errbackArgs=(call,))
        call.request.addErrback(lambda failure: self._end(call, failure))  # our own fault: shown to whoever asked

    def _answered(self, answer: Answer, call: _Call[Any]) -> None:
        result: Any
        try:
            result = call.read(answer)
        except (Refused, Unavailable) as error:
            drop_frames(error)  # this frame is one of them, and holds the result
            result = Failure(error)
        if isinstance(result, Failure) and result.check(Unavailable) and (answer.status < 400 or answer.is_fault):
            self._note_failure(result.getErrorMessage())
        # Anything below 500 may be the client's doing (a gateway redirects whoever it does not know, or shows its own page): nobody
        # must be able to open the breaker for the others.
        if answer.is_fault:
            self._count_failure(call)
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
            self._count_failure(call)
        self._end(call, failure)

    def _expire(self, call: _Call[Any]) -> None:
        call.timer = None  # a call that was made still refers to its arguments: a cycle
        call.late = True
        call.request.cancel()

    def _end(self, call: _Call[Any], result: Any) -> None:
        timer, call.timer = call.timer, None
        if timer is not None:
            timer.cancel()
        if call in self._in_flight:
            self._in_flight.discard(call)
            self._in_flight_by_owner[call.owner] -= 1
            if not self._in_flight_by_owner[call.owner]:
                del self._in_flight_by_owner[call.owner]
        self._send_next()
        if isinstance(result, Failure):
            call.done.errback(result)
        else:
            call.done.callback(result)

    def _send_next(self) -> None:
        if self._sending:  # one that ends at once, with an open breaker, comes here again: two hundred deep otherwise
            return
        self._sending = True
        while (self._handshake_queue or self._background_queue) and len(self._in_flight) < self._calls and not self._stopped:
            background = self._background_queue and (not self._handshake_queue or self._sent % BACKGROUND_EVERY == 0)
            self._send((self._background_queue if background else self._handshake_queue).pop(self._in_flight_by_owner))
        self._sending = False

    def _note_failure(self, why: str) -> None:
        self._failures += 1
        self._log.warning("the Tower API can't be asked: {why}", why=why)

    def _count_failure(self, call: _Call[Any]) -> None:
        if self._breaker_of(call).failed(self._clock.seconds()):
            self._log.warning(
                "the Tower API failed {failures} times in a row: asked once in {probe_s:g} s until it answers",
                failures=self._settings.breaker_failures,
                probe_s=self._settings.breaker_probe_s,
            )


def _stopping() -> Unavailable:
    return Unavailable("the daemon is stopping")
