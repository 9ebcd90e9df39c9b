"""The source that consumes RabbitMQ: connects, recovers, and never gives up.

  state      | begins with                        | deadline                        | ends in
  idle       | nothing yet                        | -                               | connecting (start)
  connecting | an attempt at the next host        | attempt_s                       | handshake; lost
  handshake  | TCP (TLS follows) stands           | the same attempt_s              | topology; lost
  topology   | AMQP open; or the channel was lost | the same; or attempt_s again    | proving; refilling; lost
  proving    | consume-ok; or offsets were left out | attempt_s without progress (1) | refilling; consuming; topology; lost
  refilling  | consume-ok; or proven              | the same                        | consuming; topology; lost
  consuming  | history is as full as it can be    | silence_s with nothing received; no marker for 30 s (2) | topology; proving; lost
  backoff    | any loss                           | the delay drawn                 | connecting
  stopped    | stop(), from any state             | STOP_S                          | -

(1) six times that at a single host, (2) twice that: there is no other to try.

What is proven, and how, is told in `broker.stream_reader` and `broker.binding_watch`.

"lost" aborts the transport and leads to backoff. Every attempt is one `BrokerSession` object: an event of an attempt that is not
the present one is ignored, so nothing that comes late can do harm.

The delay is drawn from 0 to a bound (full jitter). The bound is backoff_min_s until each host was tried, then doubles per
round up to backoff_max_s, and starts over after 30 s of consuming. Where nobody listens, or it worked until now, it grows
once only (an attempt costs nothing, and it is how the return of a broker is noticed soon); what an operator must cure is
retried at the slow end.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet import defer, interfaces
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.confirmed_publisher import ConfirmedPublisher
from towerws.broker.connection import BrokerConnection, quiet_pika
from towerws.broker.consumer import Feed
from towerws.broker.control import ControlListener
from towerws.broker.endpoint import broker_endpoint
from towerws.broker.failures import ConnectionFailure, RetryPolicy, from_transport
from towerws.broker.markers import MarkerPublisher
from towerws.broker.queue_reader import QueueReader
from towerws.broker.session import BrokerSession
from towerws.broker.stream_reader import StreamReader
from towerws.broker.topology import Mode, choose_mode
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.core.sources import Sink, SourceState, SourceStatus

__all__ = ["AmqpSource", "quiet_pika"]

STOP_S: Final = 2.0
STEADY_S: Final = 30.0
SAY_AGAIN_S: Final = 60.0
DEAF_S: Final = 30.0
"""No marker for this long, and there is another host: try that. With a single host twice as long, since a living consumer is worth more."""

Endpoint = Callable[[BrokerUrl], interfaces.IStreamClientEndpoint]


class AmqpSource:
    """Consumes the brokers of `settings.urls`, one at a time, into `sink`; `control` listens on the same connections.

    `reactor` gives time and (unless `endpoint` does) connections; `rng` draws the order of the hosts and the delays.
    Markers go out over a connection of their own (`publisher`). `start` once; `stop` ends it for good.
    """

    _log = Logger()

    def __init__(
        self,
        settings: BrokerSettings,
        sink: Sink,
        reactor: Any,
        *,
        control: ControlListener | None = None,
        publisher: ConfirmedPublisher | None = None,
        endpoint: Endpoint | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._endpoint = endpoint or (lambda url: broker_endpoint(reactor, url, settings))
        self._rng = rng or random.SystemRandom()
        self._control = control
        self._publisher = publisher or ConfirmedPublisher(
            settings, reactor, prefer=self._present_url, endpoint=self._endpoint, purpose="markers"
        )
        self._markers = MarkerPublisher(self._publisher, settings.exchange, reactor)
        deaf_s = DEAF_S if len(settings.urls) > 1 else 2 * DEAF_S
        self._watch = BindingWatch(self._markers, reactor, exchange=settings.exchange, passive=settings.passive, deaf_s=deaf_s)
        self._feed = Feed(sink, log=secrets.token_hex(4))
        self._urls = self._rng.sample(settings.urls, len(settings.urls))
        self._next_url = 0
        self._state = SourceState.IDLE
        self._reason: str | None = "not started"
        self._session: BrokerSession | None = None
        self._retry: interfaces.IDelayedCall | None = None
        self._round = 0  # attempts since it last worked, in whole rounds over the hosts
        self._tried = 0
        self._last_failure: ConnectionFailure | None = None
        self._said: dict[str, float] = {}
        self._stopped: list[defer.Deferred[None]] = []
        self._stop_deadline: interfaces.IDelayedCall | None = None
        self._counts = {"attempts": 0, "connects": 0, "failures": 0, "channel_failures": 0}

    # Source

    def start(self) -> None:
        """Begin; returns at once. Does nothing the second time."""
        if self._state is SourceState.IDLE:
            self._connect()

    def stop(self) -> defer.Deferred[None]:
        """Acknowledge, close in order, then by force. Fires with None within 2 s, always; may be called again."""
        waiting: defer.Deferred[None] = defer.Deferred()
        self._stopped.append(waiting)
        if self._state is SourceState.STOPPED:
            if self._session is None:
                self._finish_stop()
            return waiting
        self._move(SourceState.STOPPED, "stopped")
        self._publisher.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        session = self._session
        if session is None or session.connection is None:
            self._finish_stop()
            return waiting
        self._stop_deadline = self._reactor.callLater(STOP_S, self._finish_stop)
        session.set_deadline(None)
        if self._control is not None:
            self._control.end()
        if session.reader is not None:
            session.reader.close()
        session.connection.close()
        return waiting

    def status(self) -> SourceStatus:
        """Where it stands, with the figures an operator asks for."""
        consuming = self._state is SourceState.CONSUMING
        reason = self._watch.reason if consuming else self._reason
        return SourceStatus(self._state, reason, dict(self.counters), self._watch.unproven if consuming else ())

    @property
    def url(self) -> BrokerUrl | None:
        """The broker that it consumes from just now."""
        return self._session.url if self._session is not None and self._state is SourceState.CONSUMING else None

    def _present_url(self) -> BrokerUrl | None:
        return None if self._session is None else self._session.url

    @property
    def counters(self) -> Mapping[str, object]:
        """Figures since the start, and what is in force now; names and numbers only, no secret among them."""
        feed, session, failure = self._feed, self._session, self._last_failure
        return {
            **self._counts,
            "deliveries": feed.deliveries,
            "bytes": feed.received_bytes,
            "acks": feed.acks,
            "poison_headers": feed.poison_headers,
            "sink_errors": feed.sink_errors,
            "offset": feed.read,
            "markers": {
                "sent": self._markers.count,
                "proved": self._watch.proved,
                "lag_s": None if self._watch.lag_s is None else round(self._watch.lag_s, 4),
                "unbound": self._watch.unbound_count,
            },
            "broker": str(session.url) if session else None,
            "mode": session.mode or None if session else None,
            "broker_version": session.version or None if session else None,
            "last_failure": str(failure) if failure else None,
            "last_code": failure.code if failure else None,
        }

    # what the present attempt tells

    def advance(self, session: BrokerSession, state: SourceState, reason: str | None = None) -> None:
        """The attempt got one step further."""
        if session is self._session and self._state is not SourceState.STOPPED:
            self._move(state, self._under_way(state, session) + (f": {reason}" if reason else ""))

    def handshaken(self, session: BrokerSession, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open: look at the broker's version, then set up the topology."""
        if session is not self._session or session.connection is None or self._state is SourceState.STOPPED:
            return
        self._counts["connects"] += 1
        self.advance(session, SourceState.TOPOLOGY)
        session.version = str(server_properties.get("version"))
        try:
            mode = choose_mode(self._settings.consume, server_properties)
        except BrokerError as error:
            self.lost(session, ConnectionFailure(str(error), RetryPolicy.SLOW))
            return
        session.mode = mode.value
        if mode is Mode.STREAM:
            session.reader = StreamReader(
                session.connection, self._settings, self._feed, self._markers, self._watch, self._reactor, session
            )
        else:
            session.reader = QueueReader(session.connection, self._settings, self._feed, self._watch, self._reactor, session)
        session.reader.begin()
        if self._control is not None:
            self._control.begin(session.connection)

    def live(self, session: BrokerSession) -> None:
        """Deliveries come as they are published."""
        if session is not self._session or self._state is SourceState.STOPPED:
            return
        session.live_since = self._reactor.seconds()
        session.consumed = True
        self._move(SourceState.CONSUMING, None)
        self._log.info(
            "consuming {mode} from {broker}, RabbitMQ {version}", mode=session.mode, broker=str(session.url), version=session.version
        )

    def restarted(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The broker took the channel away; a new one is on its way on the same connection."""
        if session is not self._session:
            return
        self._counts["channel_failures"] += 1
        self._note(session, failure)
        self._move(SourceState.TOPOLOGY, str(failure))
        session.set_deadline(self._reactor.callLater(self._settings.attempt_s, self._late, session))

    def lost(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The attempt is over: try again after a while."""
        if session is not self._session or self._state is SourceState.STOPPED:
            return
        self._session = None
        self._counts["failures"] += 1
        session.end()
        if self._control is not None:
            self._control.end()
        self._note(session, failure)
        delay_s = self._delay_s(session, failure)
        self._move(SourceState.BACKOFF, str(failure))
        self._retry = self._reactor.callLater(delay_s, self._connect)

    def gone(self, session: BrokerSession) -> None:
        """The transport is closed."""
        if session is self._session and self._state is SourceState.STOPPED:
            self._finish_stop()

    # our own

    def _connect(self) -> None:
        self._retry = None
        url = self._urls[self._next_url]
        self._next_url = (self._next_url + 1) % len(self._urls)
        session = self._session = BrokerSession(self, url)
        self._counts["attempts"] += 1
        self._move(SourceState.CONNECTING, self._under_way(SourceState.CONNECTING, session))
        session.set_deadline(self._reactor.callLater(self._settings.attempt_s, self._late, session))
        try:
            endpoint = self._endpoint(url)
        except (OSError, ValueError) as error:
            self.lost(session, ConnectionFailure(f"connecting: {error}", RetryPolicy.SLOW))
            return
        factory = Factory.forProtocol(lambda: self._new_connection(session))
        factory.noisy = False
        session.connecting = endpoint.connect(factory)
        session.connecting.addCallbacks(self._connected, self._not_connected, callbackArgs=(session,), errbackArgs=(session,))

    def _new_connection(self, session: BrokerSession) -> BrokerConnection:
        connection = BrokerConnection(session.url, self._settings, self._reactor, session)
        if session is self._session:
            session.connection = connection
        else:
            connection.abort()
        return connection

    def _connected(self, _: object, session: BrokerSession) -> None:
        session.connecting = None

    def _not_connected(self, failure: Failure, session: BrokerSession) -> None:
        session.connecting = None
        self.lost(session, from_transport(failure, "connecting", tls=session.url.tls))

    def _late(self, session: BrokerSession) -> None:
        self.lost(session, ConnectionFailure(f"{self._state.value}: no answer from the broker within {self._settings.attempt_s:g} s"))

    def _delay_s(self, session: BrokerSession, failure: ConnectionFailure) -> float:
        settings = self._settings
        steady = session.live_since is not None and self._reactor.seconds() - session.live_since >= STEADY_S
        if steady:
            self._round = self._tried = 0
        self._tried += 1
        if session.consumed:
            self._round, self._tried = min(self._round, 1), 1
            return self._rng.uniform(0, settings.backoff_min_s)
        if self._tried % len(self._urls):
            return self._rng.uniform(0, settings.backoff_min_s)  # another host is left in this round
        if failure.retry is RetryPolicy.SLOW:
            return settings.backoff_max_s + self._rng.uniform(0, settings.backoff_min_s)
        if failure.retry is RetryPolicy.FAST:
            self._round = min(self._round, 1)
        bound_s = min(settings.backoff_max_s, settings.backoff_min_s * 2**self._round)
        if bound_s < settings.backoff_max_s:
            self._round += 1
        return self._rng.uniform(0, bound_s)

    def _note(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """Keep the reason; say it, but the same one at most once a minute."""
        self._last_failure = failure
        now = self._reactor.seconds()
        self._said = {text: at for text, at in self._said.items() if now - at < SAY_AGAIN_S}
        text = f"{session.url}: {failure}"
        if text not in self._said:
            self._said[text] = now
            self._log.warn("broker {broker}: {reason}", broker=str(session.url), reason=str(failure), code=failure.code)

    def _under_way(self, state: SourceState, session: BrokerSession) -> str:
        return f"{state.value}: {session.url}" + (f"; before that: {self._last_failure}" if self._last_failure else "")

    def _move(self, state: SourceState, reason: str | None) -> None:
        self._state, self._reason = state, reason

    def _finish_stop(self) -> None:
        if self._stop_deadline is not None and self._stop_deadline.active():
            self._stop_deadline.cancel()
        session, self._session = self._session, None
        if session is not None:
            session.end()
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)
