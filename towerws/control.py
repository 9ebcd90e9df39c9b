"""What this daemon has to do with the control exchange: it follows the revocations that come, and tells the others of its own.

A revocation that was asked for here is carried out at once, and then published for the other daemons. Its message comes back
to this daemon as to all; it is known by its id, and not followed again: whoever has logged in anew meanwhile stays.

`POST /disconnect` says `others_told: true` on evidence only, within `ANSWER_S`:

- the broker confirmed the message,
- the message came back to this daemon, so it hears the exchange, and with it the others' markers and answers,
- each other daemon whose marker came within `PRESENT_S` answered that it followed the revocation, or said that it stops.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.core.control_messages import MAX_DAEMONS, ControlMarker, Daemons, Done, Leaving, parse_control, revocation_id, wants_answer
from towerws.core.errors import BrokerError, printable
from towerws.core.revocation import Disconnection, Revocation

REPORT_EVERY_S: Final = 60.0
"""Of messages that can't be followed one is logged in this time; all are counted."""

ANSWER_S: Final = 5.0
"""How long a revocation waits for the broker and the other daemons; the broker alone may take as long."""

WAITING: Final = 1000
"""How many revocations may wait for the other daemons."""

INTRODUCE_EVERY_S: Final = 1.0
"""New daemons are greeted at most this often, however many come."""

LEAVE_S: Final = 0.5
"""How long stopping waits for the broker to take this daemon's last message."""

NAMED: Final = 5
"""How many daemons a text names. The admin port's answer lists all."""

Announce = Callable[[bytes, str], Deferred[None]]
"""Publish a body under a message id; fires when all daemons have it, fails with `BrokerError`."""


@dataclass(slots=True, eq=False)
class _Request:
    """A revocation that waits: for the broker's confirm, for its own message, and for the other daemons."""

    whom: str
    closed: int
    awaited: dict[str, str]
    """The names of the daemons that have not answered, by id."""
    too_many: bool
    confirmed: bool = False
    came_back: bool = False
    late: bool = False
    deadline: IDelayedCall | None = None
    answered: Deferred[Disconnection] = field(default_factory=Deferred)


class Control:
    """A `ControlSink`, and what the admin port asks. `disconnect` closes the connections here, and gives how many they were.

    `doubt` is called when revocations may have been missed. `announce` is None where there are no other daemons. `daemon` is
    the id of this one, and `marker` gives the body of its marker with a text.
    """

    _log = Logger()

    def __init__(
        self,
        disconnect: Callable[[Revocation], int],
        doubt: Callable[[], None],
        announce: Announce | None,
        clock: IReactorTime,
        daemon: str,
        marker: Callable[[str], bytes],
    ) -> None:
        self._disconnect = disconnect
        self._doubt = doubt
        self._announce = announce
        self._clock = clock
        self._me = daemon
        self._marker = marker
        self._others = Daemons()
        self._requests: dict[str, _Request] = {}  # by message id
        self._announced = self._said = 0
        self._reported_at: dict[str, float] = {}
        self._introduced_at = -inf
        self._introducing: IDelayedCall | None = None
        self._left = False
        self._counts = dict.fromkeys(("received", "own", "bad", "announced", "not_announced", "answers", "not_answered"), 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """Revocations received: all, this daemon's own, and messages that can't be followed; those of the admin port that all
        daemons followed, or not; revocations of others that this daemon answered to, or could not.
        """
        return self._counts

    @property
    def others(self) -> list[dict[str, object]]:
        """The other daemons that exist, with the seconds since each was heard."""
        present = self._others.present(self._clock.seconds())
        return [{"id": daemon.id, "name": daemon.name, "heard_s": round(age_s, 1)} for daemon, age_s in present.items()]

    def revoke(self, revocation: Revocation) -> Deferred[Disconnection]:
        """End the connections here, now, and have the other daemons end theirs. Fires within `ANSWER_S`; never fails."""
        closed = self._disconnect(revocation)
        whom = printable(revocation)
        if self._announce is None:
            self._log.info("disconnect {whom}: {closed} connections ended", closed=closed, whom=whom)
            return succeed(Disconnection(closed))
        now = self._clock.seconds()
        awaited = {other.id: other.name for other in self._others.present(now)}
        request = _Request(whom, closed, awaited, self._others.too_many(now))
        self._announced += 1
        message_id = revocation_id(self._me, self._announced)
        if len(self._requests) >= WAITING:
            self._settle(message_id, request, f"{WAITING} revocations wait for the other daemons already")
            return request.answered
        self._requests[message_id] = request
        request.deadline = self._clock.callLater(ANSWER_S, self._late, message_id, request)
        self._announce(revocation.body, message_id).addCallbacks(
            self._confirmed, self._not_announced, callbackArgs=(message_id, request), errbackArgs=(message_id, request)
        )
        return request.answered

    def leave(self) -> Deferred[None]:
        """Tell the others not to wait for this daemon. Fires when the broker has the message, or after `LEAVE_S`; never fails."""
        self._left = True
        for message_id, request in list(self._requests.items()):
            self._settle(message_id, request, "the daemon is stopping")
        if self._introducing is not None:
            self._introducing.cancel()
            self._introducing = None
        gone: Deferred[None] = Deferred()
        if self._announce is None:
            gone.callback(None)
            return gone

        def over(_: object = None) -> None:
            if not gone.called:
                if deadline.active():
                    deadline.cancel()
                gone.callback(None)

        deadline = self._clock.callLater(LEAVE_S, over)
        self._say(Leaving(self._me).body).addBoth(over)
        return gone

    # ControlSink

    def listening(self) -> None:
        """Messages will come; what was published before is lost to this daemon."""
        self._others.restart_timeouts(self._clock.seconds())
        self._doubt()

    def control(self, body: bytes, message_id: str | None) -> None:
        """Follow a revocation, unless it is one of ours. Take note of what the other daemons say."""
        if message_id is not None and message_id.startswith(f"{self._me}-"):
            self._counts["received"] += 1
            self._counts["own"] += 1
            if (request := self._requests.get(message_id)) is not None:
                request.came_back = True
                self._look(message_id, request)
            return
        try:
            message = parse_control(body)
        except ValueError as error:
            self._counts["received"] += 1
            self._skip(len(body), str(error))
            return
        match message:
            case Revocation():
                self._counts["received"] += 1
                self._follow(message, message_id)
            case ControlMarker(daemon=daemon) if daemon.id != self._me:
                if self._others.heard(daemon, self._clock.seconds()):
                    self._introduce()
            case Done(daemon=by, message_id=followed):
                if (request := self._requests.get(followed)) is not None:
                    request.awaited.pop(by, None)
                    self._look(followed, request)
            case Leaving(daemon=by):
                self._others.left(by)
                for own_id, request in list(self._requests.items()):
                    request.awaited.pop(by, None)
                    self._look(own_id, request)

    # a revocation of another

    def _follow(self, revocation: Revocation, message_id: str | None) -> None:
        if closed := self._disconnect(revocation):
            self._log.info(
                "disconnect {whom}, by a control message: {closed} connections ended here", closed=closed, whom=printable(revocation)
            )
        if message_id is not None and wants_answer(message_id) and not self._left:
            self._say(Done(self._me, message_id).body).addCallbacks(self._said_done, self._not_done)

    def _said_done(self, _: None) -> None:
        self._counts["answers"] += 1

    def _not_done(self, failure: Failure) -> None:
        self._counts["not_answered"] += 1
        if self._report("answer"):
            self._log.warn(
                "a revocation was followed, and the daemon that sent it could not be told: {reason}", reason=failure.getErrorMessage()
            )

    # a revocation of ours

    def _confirmed(self, _: None, message_id: str, request: _Request) -> None:
        request.confirmed = True
        self._look(message_id, request)

    def _not_announced(self, failure: Failure, message_id: str, request: _Request) -> None:
        if failure.check(BrokerError) is None:
            self._log.failure("a revocation could not be published", failure)
        self._settle(message_id, request, failure.getErrorMessage())

    def _late(self, message_id: str, request: _Request) -> None:
        request.late = True
        self._look(message_id, request)

    def _look(self, message_id: str, request: _Request) -> None:
        """Answer, if there is an answer. Without the broker's confirm it is `announce` that gives up, and knows why."""
        if not request.confirmed:
            return
        if request.came_back and not request.awaited:
            too_many = f"there are more than {MAX_DAEMONS} other daemons" if request.too_many else None
            self._settle(message_id, request, too_many)
        elif request.late and not request.came_back:
            self._settle(message_id, request, "this daemon doesn't hear the control exchange: see control in /status")
        elif request.late:
            self._settle(message_id, request, f"no answer within {ANSWER_S:g} s from {_names(request.awaited)}")

    def _settle(self, message_id: str, request: _Request, reason: str | None) -> None:
        self._requests.pop(message_id, None)
        if request.answered.called:
            return
        if request.deadline is not None and request.deadline.active():
            request.deadline.cancel()
        if reason is None:
            self._counts["announced"] += 1
            self._log.info(
                "disconnect {whom}: {closed} connections ended here; the other daemons were told", closed=request.closed, whom=request.whom
            )
            request.answered.callback(Disconnection(request.closed, told=True))
            return
        self._counts["not_announced"] += 1
        self._log.warn(
            "disconnect {whom}: {closed} connections ended here; the other daemons were not told: {reason}",
            closed=request.closed,
            whom=request.whom,
            reason=reason,
        )
        no_answer = tuple(request.awaited.items()) if request.confirmed else ()
        request.answered.callback(Disconnection(request.closed, told=False, reason=reason, no_answer=no_answer))

    # our own

    def _introduce(self) -> None:
        """A daemon that has just begun to listen has to wait for our next marker to know us: send one now."""
        if self._introducing is None and not self._left:
            wait_s = max(0.0, self._introduced_at + INTRODUCE_EVERY_S - self._clock.seconds())
            self._introducing = self._clock.callLater(wait_s, self._introduce_now)

    def _introduce_now(self) -> None:
        self._introducing = None
        self._introduced_at = self._clock.seconds()
        # The markers of every few seconds follow, and say when it goes wrong.
        self._say(self._marker(secrets.token_hex(8))).addErrback(lambda _: None)

    def _say(self, body: bytes) -> Deferred[None]:
        assert self._announce is not None, "nobody else is heard without a broker"
        self._said += 1
        return self._announce(body, f"{self._me}.{self._said}")

    def _skip(self, size: int, rule: str) -> None:
        self._counts["bad"] += 1
        if self._report("bad"):
            self._log.warn("control message of {size} bytes skipped: {rule}", size=size, rule=rule)

    def _report(self, what: str) -> bool:
        """Whether it is time for a line about this again."""
        now = self._clock.seconds()
        if now - self._reported_at.get(what, -inf) < REPORT_EVERY_S:
            return False
        self._reported_at[what] = now
        return True


def _names(awaited: Mapping[str, str]) -> str:
    """The first few names, and how many more there are."""
    named = ", ".join(printable(name) for name in list(awaited.values())[:NAMED])
    more = len(awaited) - NAMED
    return named if more <= 0 else f"{named} and {more} more"
