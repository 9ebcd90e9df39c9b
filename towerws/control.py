"""Revocations over the control exchange: this daemon carries out those of other daemons, and publishes its own.

A revocation from this daemon's admin port is carried out at once, and then published for the other daemons. Its message comes
back to this daemon, too. The daemon recognizes it by its id and ignores it, so a user who logged in again meanwhile stays connected.

`POST /disconnect` answers `others_told: true` on evidence only, within `ANSWER_S`:

- The broker confirmed the message.
- The message came back to this daemon. That shows that it receives the exchange's messages, and so the others' markers and answers.
- Each other daemon whose marker came within `PRESENT_S` answered that it carried out the revocation, or announced that it stops.
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
from towerws.core.identity import Disconnection, Revocation
from towerws.logs import LineSpacing

REPORT_EVERY_S: Final = 60.0
"""Shortest time between two log lines about bad messages. All of them are counted."""

ANSWER_S: Final = 5.0
"""How long a revocation waits for the broker and the other daemons together."""

MAX_WAITING: Final = 1000
"""Revocations that may wait for the other daemons at once."""

INTRODUCE_EVERY_S: Final = 1.0
"""Shortest time between two markers that introduce this daemon to new ones."""

LEAVE_S: Final = 0.5
"""How long a stop waits for the broker to confirm this daemon's last message."""

NAMED: Final = 5
"""Daemons that an error text names. The admin port's answer lists all."""

Announce = Callable[[bytes, str], Deferred[None]]
"""Publishes a body under a message id. Fires when all daemons' queues have it, fails with `BrokerError`."""


@dataclass(slots=True, eq=False)
class _Request:
    """A revocation that waits for the broker's confirm, for its own message to come back, and for the other daemons."""

    target: str
    closed: int
    awaited: dict[str, str]
    """Names of the daemons that haven't answered, by id."""
    too_many: bool
    confirmed: bool = False
    came_back: bool = False
    late: bool = False
    """Whether `ANSWER_S` is over."""
    deadline: IDelayedCall | None = None
    answered: Deferred[Disconnection] = field(default_factory=Deferred)


class Control:
    """Carries out and publishes revocations. The `ControlSink` of the control exchange.

    `disconnect` closes the connections of this daemon, and returns their number. `recheck_all` is called when revocations may have been
    missed. `announce` is None if there are no other daemons. `daemon` is this daemon's id. `marker(text)` returns the body of its marker.
    """

    _log = Logger()

    def __init__(
        self,
        disconnect: Callable[[Revocation], int],
        recheck_all: Callable[[], None],
        announce: Announce | None,
        clock: IReactorTime,
        daemon: str,
        marker: Callable[[str], bytes],
    ) -> None:
        self._disconnect = disconnect
        self._recheck_all = recheck_all
        self._announce = announce
        self._clock = clock
        self._me = daemon
        self._marker = marker
        self._others = Daemons()
        self._requests: dict[str, _Request] = {}  # by message id
        self._announced = self._published = 0
        self._reports = LineSpacing(REPORT_EVERY_S)
        self._introduced_at = -inf
        self._introducing: IDelayedCall | None = None
        self._left = False
        self._counts = dict.fromkeys(("received", "own", "bad", "announced", "not_announced", "answers", "not_answered"), 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts since the start.

        `received`, `own`, `bad`: revocations received in all, this daemon's own among them, and bad messages. `announced`, `not_announced`:
        revocations from the admin port that all daemons carried out, or not. `answers`, `not_answered`: answers to other daemons that were
        published, or could not be.
        """
        return self._counts

    @property
    def others(self) -> list[dict[str, object]]:
        """The other known daemons, with the seconds since the last marker of each."""
        present = self._others.present(self._clock.seconds())
        return [{"id": daemon.id, "name": daemon.name, "heard_s": round(age_s, 1)} for daemon, age_s in present.items()]

    def revoke(self, revocation: Revocation) -> Deferred[Disconnection]:
        """Close the connections of this daemon now, and tell the other daemons. Fires within `ANSWER_S`, and never fails."""
        closed = self._disconnect(revocation)
        target = printable(revocation)
        if self._announce is None:
            self._log.info("disconnect {target}: {closed} connections ended", closed=closed, target=target)
            return succeed(Disconnection(closed))
        now = self._clock.seconds()
        awaited = {other.id: other.name for other in self._others.present(now)}
        request = _Request(target, closed, awaited, self._others.too_many(now))
        self._announced += 1
        message_id = revocation_id(self._me, self._announced)
        if len(self._requests) >= MAX_WAITING:
            self._settle(message_id, request, f"{MAX_WAITING} revocations wait for the other daemons already")
            return request.answered
        self._requests[message_id] = request
        request.deadline = self._clock.callLater(ANSWER_S, self._late, message_id, request)
        self._announce(revocation.body, message_id).addCallbacks(
            self._confirmed, self._not_announced, callbackArgs=(message_id, request), errbackArgs=(message_id, request)
        )
        return request.answered

    def leave(self) -> Deferred[None]:
        """Tell the others not to wait for this daemon. Fires when the broker has confirmed that, or after `LEAVE_S`. Never fails."""
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

        def finish(_: object = None) -> None:
            if not gone.called:
                if deadline.active():
                    deadline.cancel()
                gone.callback(None)

        deadline = self._clock.callLater(LEAVE_S, finish)
        self._publish(Leaving(self._me).body).addBoth(finish)
        return gone

    # ControlSink

    def listening(self) -> None:
        """The control exchange is consumed now. This daemon may have missed messages before that, so all credentials are checked again."""
        self._others.restart_timeouts(self._clock.seconds())
        self._recheck_all()

    def control(self, body: bytes, message_id: str | None) -> None:
        """Handle a control message: carry out a revocation of another daemon, or note a marker, an answer or a leave."""
        if message_id is not None and message_id.startswith(f"{self._me}-"):
            self._counts["received"] += 1
            self._counts["own"] += 1
            if (request := self._requests.get(message_id)) is not None:
                request.came_back = True
                self._answer_if_known(message_id, request)
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
                self._carry_out(message, message_id)
            case ControlMarker(daemon=daemon) if daemon.id != self._me:
                if self._others.heard(daemon, self._clock.seconds()):
                    self._introduce()
            case Done(daemon=by, message_id=followed):
                if (request := self._requests.get(followed)) is not None:
                    request.awaited.pop(by, None)
                    self._answer_if_known(followed, request)
            case Leaving(daemon=by):
                self._others.left(by)
                for own_id, request in list(self._requests.items()):
                    request.awaited.pop(by, None)
                    self._answer_if_known(own_id, request)

    # revocations of other daemons

    def _carry_out(self, revocation: Revocation, message_id: str | None) -> None:
        if closed := self._disconnect(revocation):
            self._log.info(
                "disconnect {target}, by a control message: {closed} connections ended here", closed=closed, target=printable(revocation)
            )
        if message_id is not None and wants_answer(message_id) and not self._left:
            self._publish(Done(self._me, message_id).body).addCallbacks(self._answered, self._not_answered)

    def _answered(self, _: None) -> None:
        self._counts["answers"] += 1

    def _not_answered(self, failure: Failure) -> None:
        self._counts["not_answered"] += 1
        if self._reports.due("answer", self._clock.seconds()):
            self._log.warn(
                "a revocation was carried out, but the daemon that sent it could not be told: {reason}", reason=failure.getErrorMessage()
            )

    # this daemon's revocations

    def _confirmed(self, _: None, message_id: str, request: _Request) -> None:
        request.confirmed = True
        self._answer_if_known(message_id, request)

    def _not_announced(self, failure: Failure, message_id: str, request: _Request) -> None:
        if failure.check(BrokerError) is None:
            self._log.failure("a revocation could not be published", failure)
        self._settle(message_id, request, failure.getErrorMessage())

    def _late(self, message_id: str, request: _Request) -> None:
        request.late = True
        self._answer_if_known(message_id, request)

    def _answer_if_known(self, message_id: str, request: _Request) -> None:
        """Answer the request if its result is known. If the broker doesn't confirm, `announce` fails, and its reason is the answer."""
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
                "disconnect {target}: {closed} connections ended here; the other daemons were told",
                closed=request.closed,
                target=request.target,
            )
            request.answered.callback(Disconnection(request.closed, told=True))
            return
        self._counts["not_announced"] += 1
        self._log.warn(
            "disconnect {target}: {closed} connections ended here; the other daemons were not told: {reason}",
            closed=request.closed,
            target=request.target,
            reason=reason,
        )
        no_answer = tuple(request.awaited.items()) if request.confirmed else ()
        request.answered.callback(Disconnection(request.closed, told=False, reason=reason, no_answer=no_answer))

    # helpers

    def _introduce(self) -> None:
        """Send a marker soon, so that a new daemon knows this one without waiting for the next regular marker."""
        if self._introducing is None and not self._left:
            wait_s = max(0.0, self._introduced_at + INTRODUCE_EVERY_S - self._clock.seconds())
            self._introducing = self._clock.callLater(wait_s, self._introduce_now)

    def _introduce_now(self) -> None:
        self._introducing = None
        self._introduced_at = self._clock.seconds()
        # An error that lasts is logged with the next regular marker.
        self._publish(self._marker(secrets.token_hex(8))).addErrback(lambda _: None)

    def _publish(self, body: bytes) -> Deferred[None]:
        assert self._announce is not None, "without a broker there are no other daemons"
        self._published += 1
        return self._announce(body, f"{self._me}.{self._published}")

    def _skip(self, size: int, rule: str) -> None:
        self._counts["bad"] += 1
        if self._reports.due("bad", self._clock.seconds()):
            self._log.warn("control message of {size} bytes skipped: {rule}", size=size, rule=rule)


def _names(awaited: Mapping[str, str]) -> str:
    """Return the first `NAMED` names, and the number of the others."""
    named = ", ".join(printable(name) for name in list(awaited.values())[:NAMED])
    more = len(awaited) - NAMED
    return named if more <= 0 else f"{named} and {more} more"
