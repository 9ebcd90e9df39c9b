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

"lost" aborts the transport and leads to backoff. Every attempt is one `Attempt` object: an event of an attempt that is not
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

from towerws.broker.announcer import Announcer
from towerws.broker.attempt import Attempt
from towerws.broker.binding_watch import BindingWatch
from towerws.broker.consumer import Feed
from towerws.broker.control import ControlListener
from towerws.broker.endpoint import broker_endpoint
from towerws.broker.link import Link, quiet_pika
from towerws.broker.loss import Cure, Loss, from_transport
from towerws.broker.markers import MarkerPublisher
from towerws.broker.queue_reader import QueueReader
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
        publisher: Announcer | None = None,
        endpoint: Endpoint | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._endpoint = endpoint or (lambda url: broker_endpoint(reactor, url, settings))
        self._rng = rng or random.SystemRandom()
        self._control = control
        self._publisher = publisher or Announcer(settings, reactor, prefer=self._present_url, endpoint=self._endpoint, purpose="markers")
        self._markers = MarkerPublisher(self._publisher, settings.exchange, reactor)
        deaf_s = DEAF_S if len(settings.urls) > 1 else 2 * DEAF_S
        self._watch = BindingWatch(self._markers, reactor, exchange=settings.exchange, passive=settings.passive, deaf_s=deaf_s)
        self._feed = Feed(sink, log=secrets.token_hex(4))
        self._urls = self._rng.sample(settings.urls, len(settings.urls))
        self._next_url = 0
        self._state = SourceState.IDLE
        self._reason: str | None = "not started"
        self._attempt: Attempt | None = None
        self._retry: interfaces.IDelayedCall | None = None
        self._round = 0  # attempts since it last worked, in whole rounds over the hosts
        self._tried = 0
        self._last_loss: Loss | None = None
        self._said: dict[str, float] = {}
        self._stopped: list[defer.Deferred[None]] = []
        self._stop_deadline: interfaces.IDelayedCall | None = None
        self._counts = {"attempts": 0, "connects": 0, "losses": 0, "channel_losses": 0}

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
            if self._attempt is None:
                self._finish_stop()
            return waiting
        self._move(SourceState.STOPPED, "stopped")
        self._publisher.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        attempt = self._attempt
        if attempt is None or attempt.link is None:
            self._finish_stop()
            return waiting
        self._stop_deadline = self._reactor.callLater(STOP_S, self._finish_stop)
        attempt.set_deadline(None)
        if self._control is not None:
            self._control.end()
        if attempt.reader is not None:
            attempt.reader.close()
        attempt.link.close()
        return waiting

    def status(self) -> SourceStatus:
        """Where it stands, with the figures an operator asks for."""
        consuming = self._state is SourceState.CONSUMING
        reason = self._watch.reason if consuming else self._reason
        return SourceStatus(self._state, reason, dict(self.counters), self._watch.unproven if consuming else ())

    @property
    def url(self) -> BrokerUrl | None:
        """The broker that it consumes from just now."""
        return self._attempt.url if self._attempt is not None and self._state is SourceState.CONSUMING else None

    def _present_url(self) -> BrokerUrl | None:
        return None if self._attempt is None else self._attempt.url

    @property
    def counters(self) -> Mapping[str, object]:
        """Figures since the start, and what is in force now; names and numbers only, no secret among them."""
        feed, attempt, loss = self._feed, self._attempt, self._last_loss
        return {
            **self._counts,
            "deliveries": feed.deliveries,
            "octets": feed.octets,
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
            "broker": str(attempt.url) if attempt else None,
            "mode": attempt.mode or None if attempt else None,
            "broker_version": attempt.version or None if attempt else None,
            "last_loss": str(loss) if loss else None,
            "last_code": loss.code if loss else None,
        }

    # what the present attempt tells

    def advance(self, attempt: Attempt, state: SourceState, reason: str | None = None) -> None:
        """The attempt got one step further."""
        if attempt is self._attempt and self._state is not SourceState.STOPPED:
            self._move(state, self._under_way(state, attempt) + (f": {reason}" if reason else ""))

    def handshaken(self, attempt: Attempt, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open: look at the broker's version, then set up the topology."""
        if attempt is not self._attempt or attempt.link is None or self._state is SourceState.STOPPED:
            return
        self._counts["connects"] += 1
        self.advance(attempt, SourceState.TOPOLOGY)
        attempt.version = str(server_properties.get("version"))
        try:
            mode = choose_mode(self._settings.consume, server_properties)
        except BrokerError as error:
            self.lost(attempt, Loss(str(error), Cure.OPERATOR))
            return
        attempt.mode = mode.value
        if mode is Mode.STREAM:
            attempt.reader = StreamReader(attempt.link, self._settings, self._feed, self._markers, self._watch, self._reactor, attempt)
        else:
            attempt.reader = QueueReader(attempt.link, self._settings, self._feed, self._watch, self._reactor, attempt)
        attempt.reader.begin()
        if self._control is not None:
            self._control.begin(attempt.link)

    def live(self, attempt: Attempt) -> None:
        """Deliveries come as they are published."""
        if attempt is not self._attempt or self._state is SourceState.STOPPED:
            return
        attempt.live_since = self._reactor.seconds()
        attempt.consumed = True
        self._move(SourceState.CONSUMING, None)
        self._log.info(
            "consuming {mode} from {broker}, RabbitMQ {version}", mode=attempt.mode, broker=str(attempt.url), version=attempt.version
        )

    def restarted(self, attempt: Attempt, loss: Loss) -> None:
        """The broker took the channel away; a new one is on its way on the same connection."""
        if attempt is not self._attempt:
            return
        self._counts["channel_losses"] += 1
        self._note(attempt, loss)
        self._move(SourceState.TOPOLOGY, str(loss))
        attempt.set_deadline(self._reactor.callLater(self._settings.attempt_s, self._late, attempt))

    def lost(self, attempt: Attempt, loss: Loss) -> None:
        """The attempt is over: try again after a while."""
        if attempt is not self._attempt or self._state is SourceState.STOPPED:
            return
        self._attempt = None
        self._counts["losses"] += 1
        attempt.end()
        if self._control is not None:
            self._control.end()
        self._note(attempt, loss)
        delay_s = self._delay_s(attempt, loss)
        self._move(SourceState.BACKOFF, str(loss))
        self._retry = self._reactor.callLater(delay_s, self._connect)

    def gone(self, attempt: Attempt) -> None:
        """The transport is closed."""
        if attempt is self._attempt and self._state is SourceState.STOPPED:
            self._finish_stop()

    # our own

    def _connect(self) -> None:
        self._retry = None
        url = self._urls[self._next_url]
        self._next_url = (self._next_url + 1) % len(self._urls)
        attempt = self._attempt = Attempt(self, url)
        self._counts["attempts"] += 1
        self._move(SourceState.CONNECTING, self._under_way(SourceState.CONNECTING, attempt))
        attempt.set_deadline(self._reactor.callLater(self._settings.attempt_s, self._late, attempt))
        try:
            endpoint = self._endpoint(url)
        except (OSError, ValueError) as error:
            self.lost(attempt, Loss(f"connecting: {error}", Cure.OPERATOR))
            return
        factory = Factory.forProtocol(lambda: self._new_link(attempt))
        factory.noisy = False
        attempt.connecting = endpoint.connect(factory)
        attempt.connecting.addCallbacks(self._connected, self._not_connected, callbackArgs=(attempt,), errbackArgs=(attempt,))

    def _new_link(self, attempt: Attempt) -> Link:
        link = Link(attempt.url, self._settings, self._reactor, attempt)
        if attempt is self._attempt:
            attempt.link = link
        else:
            link.abort()
        return link

    def _connected(self, _: object, attempt: Attempt) -> None:
        attempt.connecting = None

    def _not_connected(self, failure: Failure, attempt: Attempt) -> None:
        attempt.connecting = None
        self.lost(attempt, from_transport(failure, "connecting", tls=attempt.url.tls))

    def _late(self, attempt: Attempt) -> None:
        self.lost(attempt, Loss(f"{self._state.value}: no answer from the broker within {self._settings.attempt_s:g} s"))

    def _delay_s(self, attempt: Attempt, loss: Loss) -> float:
        settings = self._settings
        steady = attempt.live_since is not None and self._reactor.seconds() - attempt.live_since >= STEADY_S
        if steady:
            self._round = self._tried = 0
        self._tried += 1
        if attempt.consumed:
            self._round, self._tried = min(self._round, 1), 1
            return self._rng.uniform(0, settings.backoff_min_s)
        if self._tried % len(self._urls):
            return self._rng.uniform(0, settings.backoff_min_s)  # another host is left in this round
        if loss.cure is Cure.OPERATOR:
            return settings.backoff_max_s + self._rng.uniform(0, settings.backoff_min_s)
        if loss.cure is Cure.SOON:
            self._round = min(self._round, 1)
        bound_s = min(settings.backoff_max_s, settings.backoff_min_s * 2**self._round)
        if bound_s < settings.backoff_max_s:
            self._round += 1
        return self._rng.uniform(0, bound_s)

    def _note(self, attempt: Attempt, loss: Loss) -> None:
        """Keep the reason; say it, but the same one at most once a minute."""
        self._last_loss = loss
        now = self._reactor.seconds()
        self._said = {text: at for text, at in self._said.items() if now - at < SAY_AGAIN_S}
        text = f"{attempt.url}: {loss}"
        if text not in self._said:
            self._said[text] = now
            self._log.warn("broker {broker}: {reason}", broker=str(attempt.url), reason=str(loss), code=loss.code)

    def _under_way(self, state: SourceState, attempt: Attempt) -> str:
        return f"{state.value}: {attempt.url}" + (f"; before that: {self._last_loss}" if self._last_loss else "")

    def _move(self, state: SourceState, reason: str | None) -> None:
        self._state, self._reason = state, reason

    def _finish_stop(self) -> None:
        if self._stop_deadline is not None and self._stop_deadline.active():
            self._stop_deadline.cancel()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)
