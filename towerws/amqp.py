"""The source that consumes RabbitMQ: it connects, recovers, and never gives up.

  state      | begins with                                | deadline                              | ends in
  idle       | the start of the process                   | -                                     | connecting (start)
  connecting | an attempt at the next host                | attempt_s                             | handshake, backoff
  handshake  | TCP is connected, and TLS if asked for     | the same attempt_s                    | topology, backoff
  topology   | AMQP is open; or the channel was closed    | the same; or attempt_s again          | proving, refilling, consuming, backoff
  proving    | consume-ok; or offsets were left out       | attempt_s without progress (1)        | refilling, consuming, topology, backoff
  refilling  | consume-ok; or proven                      | the same                              | consuming, topology, backoff
  consuming  | history is as complete as it can be        | silence_s, or 30 s without marker (2) | topology, proving, backoff
  backoff    | a failure in any state                     | the delay                             | connecting
  stopped    | stop(), from any state                     | STOP_S                                | -

(1) six times that with a single host, and three times while a scout is asked where the stream begins or what time the node has.
(2) 60 s without a marker with a single host: there is no other to try.

`broker.stream_reader` and `broker.binding_watch` explain what is proven, and how. Each attempt is one `BrokerSession`. A failure aborts
the session. The source ignores events of earlier sessions, so a late event can do no harm.

The delay is random between 0 and a bound (full jitter). The bound is backoff_min_s until each host was tried. Then it doubles per round
over the hosts, up to backoff_max_s. The bound starts over after 30 s of consuming. `RetryPolicy` has the exceptions.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet import defer, interfaces
from twisted.logger import Logger

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.confirmed_publisher import ConfirmedPublisher
from towerws.broker.connection import quiet_pika
from towerws.broker.control import ControlListener
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.markers import MarkerPublisher, machine_uptime
from towerws.broker.reader import ReadProgress
from towerws.broker.session import BrokerSession, SessionParts
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.core.sources import Sink, SourceState, SourceStatus
from towerws.outgoing import MakeEndpoint, broker_endpoint

__all__ = ["AmqpSource", "quiet_pika"]

STOP_S: Final = 2.0
STEADY_S: Final = 30.0
"""After this long in consuming, the backoff starts over."""
LOG_AGAIN_S: Final = 60.0
"""The same failure is logged at most once in this time."""
NO_MARKER_S: Final = 30.0
"""After this long without a marker, the next host is tried. With a single host it is twice as long: a live consumer is worth more."""


class AmqpSource:
    """Consumes the brokers of `settings.urls`, one at a time, into `sink`. `control` listens on the same connections.

    `reactor` gives time. `endpoint` returns the endpoint for a broker's URL; without it `reactor` makes the connections. `rng` draws the
    order of the hosts and the delays. `publisher` publishes the markers, over a connection of its own. `uptime` returns the seconds since
    this machine started. Call `start` once. `stop` ends the source permanently.
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
        endpoint: MakeEndpoint | None = None,
        rng: random.Random | None = None,
        uptime: Callable[[], float] = machine_uptime,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._endpoint = endpoint or (lambda url: broker_endpoint(reactor, url, settings))
        self._rng = rng or random.SystemRandom()
        self._publisher = publisher or ConfirmedPublisher(
            settings, reactor, prefer=self._current_url, endpoint=self._endpoint, purpose="markers"
        )
        self._markers = MarkerPublisher(self._publisher, settings.exchange, reactor, uptime)
        no_marker_s = NO_MARKER_S if len(settings.urls) > 1 else 2 * NO_MARKER_S
        self._watch = BindingWatch(self._markers, reactor, exchange=settings.exchange, passive=settings.passive, no_marker_s=no_marker_s)
        self._progress = ReadProgress(sink, epoch=secrets.token_hex(4))
        self._parts = SessionParts(settings, reactor, self._progress, self._markers, self._watch, control)
        self._urls = self._rng.sample(settings.urls, len(settings.urls))
        self._next_url = 0
        self._state = SourceState.IDLE
        self._reason: str | None = "not started"
        self._session: BrokerSession | None = None
        self._retry: interfaces.IDelayedCall | None = None
        self._tried = 0  # attempts since a session was last live
        self._round = 0  # complete rounds over the hosts since then: the exponent of the delay's bound
        self._last_failure: ConnectionFailure | None = None
        self._logged_at: dict[str, float] = {}
        self._stopped: list[defer.Deferred[None]] = []
        self._stop_deadline: interfaces.IDelayedCall | None = None
        self._counts = {"attempts": 0, "connects": 0, "failures": 0, "channel_failures": 0}

    # Source

    def start(self) -> None:
        """Begin, and return at once. A second call does nothing."""
        if self._state is SourceState.IDLE:
            self._connect()

    def stop(self) -> defer.Deferred[None]:
        """Acknowledge what was read, and close the connection in order. After `STOP_S` the connection is aborted.

        Fires with None within `STOP_S`, and never fails. May be called again.
        """
        stopped: defer.Deferred[None] = defer.Deferred()
        self._stopped.append(stopped)
        if self._state is SourceState.STOPPED:
            if self._session is None:
                self._finish_stop()
            return stopped
        self._set_state(SourceState.STOPPED, "stopped")
        self._publisher.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        session = self._session
        if session is None or session.connection is None:
            self._finish_stop()
            return stopped
        self._stop_deadline = self._reactor.callLater(STOP_S, self._finish_stop)
        session.close()
        return stopped

    def status(self) -> SourceStatus:
        """Return the state, why the source is not ready, the counters, and what is not proven."""
        consuming = self._state is SourceState.CONSUMING
        reason = self._watch.reason if consuming else self._reason
        return SourceStatus(self._state, reason, dict(self.counters), self._watch.unproven if consuming else ())

    @property
    def url(self) -> BrokerUrl | None:
        """The broker that the source consumes now. None: it does not consume."""
        return self._session.url if self._session is not None and self._state is SourceState.CONSUMING else None

    def _current_url(self) -> BrokerUrl | None:
        return None if self._session is None else self._session.url

    @property
    def counters(self) -> Mapping[str, object]:
        """Counts since the start, and the current values, without any secret: the password in the broker's URL is masked."""
        progress, session, failure = self._progress, self._session, self._last_failure
        return {
            **self._counts,
            "deliveries": progress.deliveries,
            "bytes": progress.received_bytes,
            "acks": progress.acks,
            "poison_headers": progress.poison_headers,
            "sink_errors": progress.sink_errors,
            "markers": {
                "sent": self._markers.count,
                "proved": self._watch.proved,
                "lag_s": None if self._watch.lag_s is None else round(self._watch.lag_s, 4),
                "unbound": self._watch.unbound_count,
                "stalls": self._watch.stalls,
            },
            "broker": str(session.url) if session else None,
            "mode": session.mode or None if session else None,
            "broker_version": session.version or None if session else None,
            "last_failure": str(failure) if failure else None,
            "last_code": failure.code if failure else None,
        }

    # SessionOwner

    def session_state(self, session: BrokerSession, state: SourceState, reason: str | None = None) -> None:
        """The session got one step further."""
        if session is self._session and self._state is not SourceState.STOPPED:
            self._set_state(state, self._state_text(state, session) + (f": {reason}" if reason else ""))

    def session_opened(self, session: BrokerSession) -> None:
        """AMQP is open."""
        if session is self._session:
            self._counts["connects"] += 1

    def session_live(self, session: BrokerSession) -> None:
        """Deliveries arrive as they are published."""
        if session is not self._session or self._state is SourceState.STOPPED:
            return
        self._set_state(SourceState.CONSUMING, None)
        self._log.info(
            "consuming {mode} from {broker}, RabbitMQ {version}", mode=session.mode, broker=str(session.url), version=session.version
        )

    def session_restarted(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The broker closed the channel. The session sets up a new one on the same connection."""
        if session is not self._session:
            return
        self._counts["channel_failures"] += 1
        self._record_failure(session, failure)
        self._set_state(SourceState.TOPOLOGY, str(failure))

    def session_failed(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The session can't go on: try again after a delay."""
        if session is not self._session or self._state is SourceState.STOPPED:
            return
        self._session = None
        self._counts["failures"] += 1
        session.abort()
        self._record_failure(session, failure)
        delay_s = self._delay_s(session, failure)
        self._set_state(SourceState.BACKOFF, str(failure))
        self._retry = self._reactor.callLater(delay_s, self._connect)

    def session_closed(self, session: BrokerSession) -> None:
        """The transport is closed."""
        if session is self._session and self._state is SourceState.STOPPED:
            self._finish_stop()

    # our own

    def _connect(self) -> None:
        self._retry = None
        url = self._urls[self._next_url]
        self._next_url = (self._next_url + 1) % len(self._urls)
        session = self._session = BrokerSession(self, url, self._parts)
        self._counts["attempts"] += 1
        self._set_state(SourceState.CONNECTING, self._state_text(SourceState.CONNECTING, session))
        session.start_deadline()
        try:
            endpoint = self._endpoint(url)
        except (OSError, ValueError) as error:
            self.session_failed(session, ConnectionFailure(f"connecting: {error}", RetryPolicy.SLOW))
            return
        session.connect(endpoint)

    def _delay_s(self, session: BrokerSession, failure: ConnectionFailure) -> float:
        """Return the delay before the next attempt, in seconds, and count the attempt that failed."""
        settings = self._settings
        steady = session.live_since is not None and self._reactor.seconds() - session.live_since >= STEADY_S
        if steady:
            self._round = self._tried = 0
        self._tried += 1
        if session.live_since is not None:
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

    def _record_failure(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """Keep the failure for `/status`. Log it, unless the same one was logged less than `LOG_AGAIN_S` ago."""
        self._last_failure = failure
        now = self._reactor.seconds()
        self._logged_at = {text: at for text, at in self._logged_at.items() if now - at < LOG_AGAIN_S}
        text = f"{session.url}: {failure.log_key}"
        if text not in self._logged_at:
            self._logged_at[text] = now
            self._log.warn("broker {broker}: {reason}", broker=str(session.url), reason=str(failure), code=failure.code)

    def _state_text(self, state: SourceState, session: BrokerSession) -> str:
        return f"{state.value}: {session.url}" + (f"; before that: {self._last_failure}" if self._last_failure else "")

    def _set_state(self, state: SourceState, reason: str | None) -> None:
        self._state, self._reason = state, reason

    def _finish_stop(self) -> None:
        if self._stop_deadline is not None and self._stop_deadline.active():
            self._stop_deadline.cancel()
        session, self._session = self._session, None
        if session is not None:
            session.abort()
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)
