"""Listens to the control exchange: on every connection to the broker, on a channel of its own beside the one for events.

  state     | begins with                             | deadline    | ends in
  off       | no connection to the broker             | -           | starting
  starting  | AMQP is open, or the pause is over      | attempt_s   | listening; paused; off
  listening | consume-ok                              | -           | paused; off
  paused    | the broker refused, or took it away     | the pause   | starting; off
  off       | the connection is lost, from any state  | -           | starting

While it listens, a `ControlWatch` proves by markers that the queue is still bound, and has it bound again when it is not.

What goes wrong here costs the channel and is told, and events go on: a user without permission for this exchange still gets
its events, and who may listen is asked about every minute anyway. A set-up that did not end well, also one that the connection
ended with, doubles the pause before the next, from 1 s to a minute: if it should be the broker's reason to end the connection
(a limit on channels, say), events have a minute at a time.
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
from towerws.broker.deadline import Deadline
from towerws.broker.failures import ConnectionFailure, from_channel
from towerws.broker.topology import bind_control, declare_control
from towerws.core.settings import BrokerSettings
from towerws.core.sources import ControlSink

PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0
SAY_AGAIN_S: Final = 600.0

_HINTS: Final = {
    403: "grant the user configure and read on it and on queues named amq.gen-…: docs/operations.md",
    404: "with passive set towerws creates nothing: declare it on the broker, a durable fanout, or set passive = false",
    406: "choose another name for control_exchange, or delete the existing one",
}


class ControlListener:
    """Feeds `sink` with what is published to the control exchange while there is a connection. `begin` and `end` take turns.

    `marker` gives the body of this daemon's marker with a text, and `announce` publishes it.
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
        self._last: str | None = None
        """Why it did not listen when it could have."""
        self._connection: BrokerConnection | None = None
        self._channel: Channel | None = None
        self._deadline = Deadline(reactor)
        self._pause_s = PAUSE_MIN_S
        self._not_before = 0.0
        self._failures = 0
        self._errors = 0
        self._said: tuple[str, float] | None = None
        self._watch = ControlWatch(settings.control, marker, announce, self, reactor)

    @property
    def status(self) -> Mapping[str, object]:
        """Where it stands, whether its binding is proven, why it does not listen or is not proven, and how often it could not."""
        why = {"off": "no connection to the broker", "starting": "waiting for the broker's answer", "listening": self._watch.reason}
        reason = "; before that: ".join(filter(None, (why.get(self._state), self._last))) or None
        return {
            "state": self._state,
            "proven": self._watch.reason is None,
            "reason": reason,
            "failures": self._failures,
            "unbound": self._watch.unbound,
            "errors": self._errors,
        }

    def begin(self, connection: BrokerConnection) -> None:
        """A connection is open: listen on it, at once or when the pause is over."""
        self.end()
        self._connection = connection
        wait_s = self._not_before - self._reactor.seconds()
        if wait_s > 0:
            self._state = "paused"
            self._deadline.set(wait_s, self._start)
        else:
            self._start()

    def end(self) -> None:
        """The connection is gone, or going. A second call does nothing."""
        if self._connection is None:
            return
        if self._state == "starting":
            self._pause()
            self._failures += 1
            self._last = "the connection was lost while this was set up"
        self._deadline.clear()
        self._watch.end()
        self._connection = self._channel = None
        self._state = "off"

    # pika calls these, each with the channel that it was asked for

    def _opened(self, channel: Channel) -> None:
        if channel is not self._channel:
            return
        channel.add_on_cancel_callback(
            lambda _: self._lost(channel, ConnectionFailure("the broker cancelled the consumer: its queue was deleted"))
        )
        declare_control(channel, self._settings)
        # Without acknowledgements: what is sent ahead is dealt with in the same read, and the queue dies with the connection.
        channel.basic_consume("", unused_callback, auto_ack=True, exclusive=True, callback=lambda _: self._listening(channel))

    def _listening(self, channel: Channel) -> None:
        if channel is not self._channel:
            return
        self._deadline.clear()
        self._pause_s, self._not_before = PAUSE_MIN_S, 0.0
        self._state, self._last = "listening", None
        if self._said is not None:
            self._said = None
            self._log.info("listening to control exchange {exchange} again", exchange=self._settings.control)
        self._hand_on(self._sink.listening)
        self._watch.begin()

    def _bound(self, channel: Channel) -> None:
        if channel is self._channel and self._state == "listening":
            self._deadline.clear()
            self._watch.bound()

    def _closed(self, channel: Channel, reason: Exception) -> None:
        failure = from_channel(reason)
        self._lost(channel, replace(failure, hint=_HINTS.get(failure.code or 0, failure.hint)))

    # the link calls this, once per message

    def _deliver(self, _tag: int, _routing_key: str, content: Content, body: bytes) -> None:
        if self._state == "listening" and not self._watch.came(content.message_id):
            self._hand_on(lambda: self._sink.control(body, content.message_id))

    # WatchOwner

    def bind_again(self) -> None:
        """Declare and bind once more on the channel that consumes; no answer ends it."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        bind_control(channel, self._settings, lambda: self._bound(channel))
        self._deadline.set(
            self._settings.attempt_s, lambda: self._lost(channel, ConnectionFailure(f"no answer within {self._settings.attempt_s:g} s"))
        )

    def was_unbound(self, how: str) -> None:
        """Say so; what was missed is made up for as after any other loss."""
        self._log.warn(
            "control exchange {exchange}: this daemon's queue was not bound to it any more ({how}); it was bound again, and all"
            " credentials are checked again, since revocations may have been missed",
            exchange=self._settings.control,
            how=how,
        )
        self._hand_on(self._sink.listening)

    def channel_silent(self) -> None:
        """Begin with another channel and queue."""
        self._lost(self._channel, ConnectionFailure(f"the broker confirms markers, and nothing has come for {SILENT_S:g} s"))

    # our own

    def _start(self) -> None:
        self._deadline.clear()
        connection = self._connection
        if connection is None or connection.dead:
            return
        self._state = "starting"
        channel = self._channel = connection.open_channel(self._opened, self._deliver)
        channel.add_on_close_callback(self._closed)
        self._deadline.set(
            self._settings.attempt_s, lambda: self._lost(channel, ConnectionFailure(f"no answer within {self._settings.attempt_s:g} s"))
        )

    def _lost(self, channel: Channel | None, failure: ConnectionFailure) -> None:
        """Not, or no more: again after a pause, as long as the connection stands."""
        connection = self._connection
        if channel is None or channel is not self._channel or connection is None or connection.dead:
            return
        self._channel = None
        self._watch.end()
        self._failures += 1
        self._state, self._last = "paused", str(failure)
        now = self._reactor.seconds()
        if self._said is None or self._said[0] != str(failure) or now - self._said[1] >= SAY_AGAIN_S:
            self._said = (str(failure), now)
            self._log.warn(
                "control exchange {exchange}: {reason}; until that is cured nobody can end connections here but by POST /disconnect",
                exchange=self._settings.control,
                reason=str(failure),
            )
        if channel.is_open:
            channel.close()
        self._deadline.set(self._pause(), self._start)

    def _pause(self) -> float:
        """Take a pause, and make the next one longer."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, PAUSE_MAX_S)
        self._not_before = self._reactor.seconds() + pause_s
        return pause_s

    def _hand_on(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - ours to mend, but it must not end the connection
            self._errors += 1
            if self._errors == 1:
                self._log.failure("a control message could not be followed; further failures are only counted")
