"""Watches the binding of this daemon's control queue, by markers that must come back through the control exchange.

A broker reports nothing when an exchange is deleted or made again with another type, or when a binding is removed. So a marker is
published every `MARKER_S`. Only the broker's answers and messages that were read prove anything. Silence proves nothing:

  what happened to a marker                                 | what follows
  it came back                                              | the binding is proven
  returned (312), or no exchange (404)                      | unbound: bind again, re-check all credentials, send another marker
  confirmed, and not back within `COME_S`                   | not proven: bind again, which changes nothing if the binding exists, and
                                                            | send another marker
  confirmed and not back, but a later one came              | it was unbound in between: re-check all credentials
  refused (403)                                             | not proven: bind again every `MARKER_S`, a marker every `REFUSED_S`
  anything else (an alarm, no connection, a full queue)     | not proven, no conclusion
  confirmed, but nothing at all came for `SILENT_S`         | not proven: a new channel with a new queue

A marker that is sent after the confirm of an earlier one can't overtake it. A confirm means that every bound queue has the message, and a
queue keeps its order. Other daemons' messages prove the binding, too, but not that nothing was missed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from twisted.internet import defer, interfaces
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.core.errors import BrokerError
from towerws.outgoing import Deadline

MARKER_S: Final = 10.0
"""How often a marker is published."""
COME_S: Final = 1.0
"""How long a confirmed marker may take to come back. It takes 3 ms on an idle machine, and may be read before its confirm.

Binding needlessly costs the broker 10 ms."""
REFUSED_S: Final = 60.0
"""While markers are refused, one is published this often. A refused marker ends the connection that publishes, so this is rare."""
PROVEN_S: Final = 30.0
"""A marker proves the binding for this long."""
SILENT_S: Final = 60.0
"""A channel on which nothing arrived for this long is replaced, if the broker confirms markers."""
LOG_AGAIN_S: Final = 600.0
"""The same reason is logged at most once in this time."""

NO_ROUTE: Final = 312
NOT_FOUND: Final = 404
ACCESS_REFUSED: Final = 403

Announce = Callable[[bytes, str], defer.Deferred[None]]
"""Publishes a body with a message id, as `ConfirmedPublisher.announce` does. Its `BrokerError` has the broker's code."""


class WatchOwner(Protocol):
    """The listener whose channel is watched."""

    def bind_again(self) -> None:
        """Declare and bind again, and call `ControlWatch.bound` when the broker did. A refusal closes the channel."""

    def was_unbound(self, how: str) -> None:
        """The binding was missing, during one interval of the markers or longer: messages may be lost. `how` says what showed that."""

    def channel_silent(self) -> None:
        """Nothing arrives on this channel although the broker confirms markers: open another one."""


@dataclass(slots=True, eq=False)
class _SentMarker:
    """A marker that was published. `again`: it was published because an earlier one did not come back."""

    text: str
    again: bool
    confirmed: bool = False


class ControlWatch:
    """Watches the binding to `exchange`, between `begin` and `end` of each channel.

    `marker(text)` returns the body of a marker. `announce` publishes it.
    """

    _log = Logger()

    def __init__(
        self, exchange: str, marker: Callable[[str], bytes], announce: Announce, owner: WatchOwner, reactor: interfaces.IReactorTime
    ) -> None:
        self.unbound = 0
        """How often the binding was found missing."""
        self._exchange = exchange
        self._marker = marker
        self._announce = announce
        self._owner = owner
        self._reactor = reactor
        self._timer = Deadline(reactor)
        self._watching = False
        self._sent: _SentMarker | None = None
        self._missing: _SentMarker | None = None
        """The oldest marker that was confirmed and has not come back."""
        self._owner_told = False
        """Whether the owner was told of a missing binding since the last marker that came back."""
        self._after_bind: Callable[[], None] | None = None
        self._refused_at = -inf
        self._proven_at = self._received_at = -inf
        self._reason = "no marker has come back yet"
        self._warned: tuple[str, float] | None = None

    @property
    def reason(self) -> str | None:
        """Why the binding is not proven. None: it is."""
        if self._watching and self._reactor.seconds() - self._proven_at <= PROVEN_S:
            return None
        return f"binding not proven: {self._reason}"

    def begin(self) -> None:
        """The channel consumes: send the first marker."""
        self.end()
        self._watching = True
        self._proven_at = -inf
        self._received_at = self._reactor.seconds()
        self._reason = "no marker has come back yet"
        self._send()

    def end(self) -> None:
        """The channel ended. A second call does nothing."""
        self._watching = False
        self._timer.clear()
        self._sent = self._missing = self._after_bind = None
        self._owner_told = False

    def message_arrived(self, message_id: str | None) -> bool:
        """A message came through the exchange, from any daemon. Returns whether it is a marker of this watch."""
        self._proven_at = self._received_at = self._reactor.seconds()
        sent, missing = self._sent, self._missing
        if missing is not None and message_id == missing.text:
            self._missing = None
            return True
        if sent is None or message_id != sent.text:
            return False
        self._sent = self._missing = None
        self._timer.set(MARKER_S, self._next)
        if missing is not None and not self._owner_told:
            self._found_unbound("a marker that the broker confirmed did not come, and a later one did")
        self._owner_told = False
        if self._warned is not None:
            self._warned = None
            self._log.info("control exchange {exchange}: the binding is proven again", exchange=self._exchange)
        return True

    def bound(self) -> None:
        """The broker has declared and bound again."""
        then, self._after_bind = self._after_bind, None
        if self._watching and then is not None:
            then()

    # our own

    def _send(self, *, again: bool = False) -> None:
        sent = self._sent = _SentMarker(secrets.token_hex(8), again)
        self._timer.set(MARKER_S, self._next)
        announced = self._announce(self._marker(sent.text), sent.text)
        announced.addCallbacks(self._confirmed, self._failed, callbackArgs=(sent,), errbackArgs=(sent,))

    def _next(self) -> None:
        """Send the next marker. While markers are refused, bind again instead."""
        now = self._reactor.seconds()
        if now - self._refused_at < REFUSED_S:
            self._timer.set(MARKER_S, self._next)
            self._bind(lambda: None)
        elif self._missing is not None and now - self._received_at >= SILENT_S:
            self._owner.channel_silent()
        else:
            self._send()

    def _confirmed(self, _: None, sent: _SentMarker) -> None:
        if sent is self._sent:
            sent.confirmed = True
            self._refused_at = -inf
            self._timer.set(COME_S, lambda: self._not_back(sent))

    def _not_back(self, sent: _SentMarker) -> None:
        """The marker was confirmed and did not come back: bind again, and send another one. The connection may just be slow."""
        self._timer.set(MARKER_S - COME_S, self._next)
        if self._missing is None:
            self._missing = sent
        self._reason = "the broker confirmed a marker that has not come back"
        if sent.again:
            self._warn(self._reason)
        else:
            self._bind(lambda: self._send(again=True))

    def _failed(self, failure: Failure, sent: _SentMarker) -> None:
        if failure.check(BrokerError) is None:
            self._log.failure("a control marker could not be published", failure)
        if sent is not self._sent:
            return
        self._sent = None
        code = getattr(failure.value, "code", None)
        self._reason = failure.getErrorMessage()
        if code in (NO_ROUTE, NOT_FOUND):
            if sent.again:
                self._warn(f"bound again, and still: {self._reason}")
            else:
                self._bind(self._bound_again)
            return
        self._warn(self._reason)
        if code == ACCESS_REFUSED:
            self._refused_at = self._reactor.seconds()
            self._bind(lambda: None)

    def _bound_again(self) -> None:
        if not self._owner_told:
            self._found_unbound(self._reason)
        self._send(again=True)

    def _found_unbound(self, how: str) -> None:
        self.unbound += 1
        self._owner_told = True
        self._owner.was_unbound(how)

    def _bind(self, then: Callable[[], None]) -> None:
        self._after_bind = then
        self._owner.bind_again()

    def _warn(self, reason: str) -> None:
        """Log why the binding is not proven, unless the same reason was logged less than `LOG_AGAIN_S` ago."""
        now = self._reactor.seconds()
        if self._warned is None or self._warned[0] != reason or now - self._warned[1] >= LOG_AGAIN_S:
            self._warned = (reason, now)
            self._log.warn(
                "control exchange {exchange}: binding not proven: {reason}; revocations by other daemons may not reach this one",
                exchange=self._exchange,
                reason=reason,
            )
