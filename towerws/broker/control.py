"""Listens to the control exchange, on each connection to the broker, on a channel separate from the one for events.

  state     | begins with                              | deadline    | ends in
  off       | no connection to the broker              | -           | starting
  starting  | AMQP is open, or the pause is over       | attempt_s   | listening, paused, off
  listening | bind-ok, after consume-ok                | -           | paused, off
  paused    | the broker refused, or closed the channel | the pause  | starting, off
  off       | the connection ended, from any state     | -           | starting

While it listens, a `ControlWatch` proves by markers that the queue is still bound. If it is not, the queue is bound again.

An error on this channel ends only this channel, and is logged. Events continue, even if the broker's user has no permission for this
exchange. Credentials are re-checked at intervals anyway.

A set-up that fails doubles the pause before the next one, from 1 s to a minute. That includes a set-up during which the connection ended:
perhaps the broker ended it because of this channel, for example by a limit on channels. The pause of a minute then lets events through
between two such ends.

While the broker has not closed `UNANSWERED_CHANNELS` channels that were given up, no other is opened: the pause begins again instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from pika.channel import Channel
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import unused_callback
from towerws.broker.content import Content
from towerws.broker.control_watch import SILENT_S, Announce, ControlWatch
from towerws.broker.failures import ConnectionFailure, from_channel
from towerws.broker.topology import bind_control, declare_control
from towerws.core.identity import MAX_REVOCATION_BYTES
from towerws.core.settings import BrokerSettings
from towerws.core.sources import ControlSink
from towerws.outgoing import Deadline

PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0
UNANSWERED_CHANNELS: Final = 8
"""While this many channels that were given up wait for the broker's close, no other is opened. A connection has at most 2047 channels."""
LOG_AGAIN_S: Final = 600.0
"""The same failure is logged at most once in this time."""

_HINTS: Final = {
    403: "grant the user configure and read on it and on queues named amq.gen-…: docs/operations.md",
    404: "with passive set towerws creates nothing: declare it on the broker, a durable fanout, or set passive = false",
    406: "choose another name for control_exchange, or delete the existing one",
}


class ControlListener:
    """Passes the messages of the control exchange to `sink`, between `begin` and `end` of each connection.

    `marker(text)` returns the body of this daemon's marker. `announce` publishes it.
    """

    _log = Logger()

    def __init__(
        self,
        settings: BrokerSettings,
        sink: ControlSink,
        reactor: interfaces.IReactorTime,
        *,
        marker: Callable[[str], bytes],
        announce: Announce,
    ) -> None:
        self._settings = settings
        self._sink = sink
        self._reactor = reactor
        self._state = "off"
        self._last_failure: str | None = None
        """Why the listener did not listen although there was a connection."""
        self._connection: BrokerConnection | None = None
        self._channel: Channel | None = None
        self._binding: Channel | None = None
        """The channel on which an answer to `bind_again` is awaited, until its deadline."""
        self._given_up: list[Channel] = []
        """Channels of this connection that were given up. The broker has not closed them yet."""
        self._deadline = Deadline(reactor)
        self._pause_s = PAUSE_MIN_S
        self._not_before = 0.0
        self._failures = 0
        self._errors = 0
        self._logged: tuple[str, float] | None = None
        self._watch = ControlWatch(settings.control, marker, announce, self, reactor)

    @property
    def status(self) -> Mapping[str, object]:
        """The state, whether the binding is proven, the reason if not, and counts since the start."""
        why = {"off": "no connection to the broker", "starting": "waiting for the broker's answer", "listening": self._watch.reason}
        reason = "; before that: ".join(filter(None, (why.get(self._state), self._last_failure))) or None
        return {
            "state": self._state,
            "proven": self._watch.reason is None,
            "reason": reason,
            "failures": self._failures,
            "unbound": self._watch.unbound,
            "errors": self._errors,
        }

    def begin(self, connection: BrokerConnection) -> None:
        """`connection` is open: listen on it, at once or after the pause."""
        self.end()
        self._connection = connection
        wait_s = self._not_before - self._reactor.seconds()
        if wait_s > 0:
            self._state = "paused"
            self._deadline.set(wait_s, self._start)
        else:
            self._start()

    def end(self) -> None:
        """The connection ended, or is about to. A second call does nothing."""
        if self._connection is None:
            return
        if self._state == "starting":
            self._pause()
            self._failures += 1
            self._last_failure = "the connection was lost while this was set up"
        self._deadline.clear()
        self._watch.end()
        self._connection = self._channel = self._binding = None
        self._given_up.clear()
        self._state = "off"

    # pika calls these, each with the channel that it is about

    def _opened(self, channel: Channel) -> None:
        if channel is not self._channel:
            return
        channel.add_on_cancel_callback(
            lambda _: self._fail(channel, ConnectionFailure("the broker cancelled the consumer: its queue was deleted"))
        )
        declare_control(channel, self._settings, lambda: self._consume(channel), lambda: self._listening(channel))

    def _consume(self, channel: Channel) -> None:
        # Without acknowledgements: messages are handled in the read that brings them, and the queue ends with the connection.
        channel.basic_consume("", unused_callback, auto_ack=True, exclusive=True)

    def _listening(self, channel: Channel) -> None:
        if channel is not self._channel:
            return
        self._deadline.clear()
        self._pause_s, self._not_before = PAUSE_MIN_S, 0.0
        self._state, self._last_failure = "listening", None
        if self._logged is not None:
            self._logged = None
            self._log.info("listening to control exchange {exchange} again", exchange=self._settings.control)
        self._call_sink(self._sink.listening)
        self._watch.begin()

    def _bound(self, channel: Channel) -> None:
        if channel is self._channel and self._state == "listening":
            self._binding = None
            self._deadline.clear()
            self._watch.bound()

    def _closed(self, channel: Channel, reason: Exception) -> None:
        failure = from_channel(reason)
        self._fail(channel, replace(failure, hint=_HINTS.get(failure.code or 0, failure.hint)))

    # BrokerConnection calls this, once per message

    def _deliver(self, _tag: int, _routing_key: str, content: Content, body: bytes) -> None:
        # Messages may come before bind-ok. The broker has confirmed them to their publishers, so none may be dropped.
        if self._state in {"starting", "listening"} and not self._watch.message_arrived(content.message_id):
            self._call_sink(lambda: self._sink.control(body, content.message_id))

    # WatchOwner

    def bind_again(self) -> None:
        """Declare and bind again, on the channel that consumes. Without an answer within `attempt_s` the channel is closed.

        A second call before the answer sends nothing, and does not move the deadline.
        """
        channel = self._channel
        if channel is None or not channel.is_open or self._binding is channel:
            return
        self._binding = channel
        bind_control(channel, self._settings, lambda: self._bound(channel))
        self._expect_answer(channel)

    def was_unbound(self, how: str) -> None:
        """Log that the binding was missing, and re-check all credentials, as after any other interruption."""
        self._log.warn(
            "control exchange {exchange}: this daemon's queue was not bound to it any more ({how}). It was bound again. Revocations may"
            " have been missed, so all credentials are checked again",
            exchange=self._settings.control,
            how=how,
        )
        self._call_sink(self._sink.listening)

    def channel_silent(self) -> None:
        """Close the channel. After the pause another channel gets a queue of its own."""
        self._fail(self._channel, ConnectionFailure(f"the broker confirms markers, but nothing arrived for {SILENT_S:g} s"))

    # our own

    def _start(self) -> None:
        self._deadline.clear()
        connection = self._connection
        if connection is None or connection.dead:
            return
        self._given_up = [channel for channel in self._given_up if not channel.is_closed]
        if len(self._given_up) >= UNANSWERED_CHANNELS:
            self._deadline.set(self._pause(), self._start)
            return
        self._state = "starting"
        channel = self._channel = connection.open_channel(self._opened, self._deliver, max_body_bytes=MAX_REVOCATION_BYTES)
        channel.add_on_close_callback(self._closed)
        self._expect_answer(channel)

    def _expect_answer(self, channel: Channel) -> None:
        """Give the channel up unless the broker answers within `attempt_s`."""
        attempt_s = self._settings.attempt_s
        self._deadline.set(attempt_s, lambda: self._fail(channel, ConnectionFailure(f"no answer within {attempt_s:g} s")))

    def _fail(self, channel: Channel | None, failure: ConnectionFailure) -> None:
        """The channel ended, or could not be set up: try again after a pause, if the connection is open."""
        connection = self._connection
        if channel is None or channel is not self._channel or connection is None or connection.dead:
            return
        self._channel = self._binding = None
        self._watch.end()
        self._failures += 1
        self._state, self._last_failure = "paused", str(failure)
        now = self._reactor.seconds()
        if self._logged is None or self._logged[0] != failure.log_key or now - self._logged[1] >= LOG_AGAIN_S:
            self._logged = (failure.log_key, now)
            self._log.warn(
                "control exchange {exchange}: {reason}; until that is cured, revocations by other daemons don't reach this one: send"
                " POST /disconnect to its admin port as well",
                exchange=self._settings.control,
                reason=str(failure),
            )
        connection.close_channel(channel)
        self._given_up.append(channel)
        self._deadline.set(self._pause(), self._start)

    def _pause(self) -> float:
        """Note when the pause ends, and double the next one. Returns the length of the pause in seconds."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, PAUSE_MAX_S)
        self._not_before = self._reactor.seconds() + pause_s
        return pause_s

    def _call_sink(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a bug of ours must not end the connection
            self._errors += 1
            if self._errors == 1:
                self._log.failure(
                    "a control message was lost by an error in towerws: report it with this traceback; further errors are only counted"
                )
