"""Makes the daemon's parts, joins them, and starts and stops them in order.

Start: the ports, then the source. A port that can't be opened ends the start.

Stop, under one deadline: At once the daemon reports that it is not ready, and accepts no connections. Over the drain window it closes the
open connections with 1012. Then the source stops. The admin port closes last.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger

from towerws import __version__
from towerws.admin import (
    AdminSite,
    ConsoleData,
    MetricsPage,
    PageContent,
    Samples,
    console_endpoints,
    monitor_site,
    topics_of,
)
from towerws.amqp import AmqpSource
from towerws.auth.base import takes_tokens
from towerws.auth.chain import make_chain
from towerws.broker.confirmed_publisher import ConfirmedPublisher, EventPublisher
from towerws.broker.control import ControlListener
from towerws.config.certificates import ReplaceableCertificate, TlsReactor, fingerprint, read_certificate
from towerws.control import Control
from towerws.core.control_messages import ControlMarker, DaemonName
from towerws.core.deliveries import derive_key
from towerws.core.errors import BadDelivery, CloseReason, ConfigError
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.identity import Disconnection, Revocation
from towerws.core.ingest import Ingest
from towerws.core.publication import Outcome, Publication, Published
from towerws.core.settings import BrokerSettings, LimitSettings, Settings
from towerws.core.sources import SourceState, SourceStatus
from towerws.core.topics import GroupTable
from towerws.embedded import EmbeddedSource
from towerws.handover.restart import Restarts
from towerws.listening import listen
from towerws.logs import LineSpacing
from towerws.process import descriptors_for_clients, use_monotonic_clock
from towerws.protocol import WebSocketFactory
from towerws.reload import Reloads
from towerws.status import ReactorLag, status_figures
from towerws.websocket.accept_throttle import BACKLOG
from towerws.websocket.context import ConnectionContext
from towerws.websocket.inspection import canonical_topic, end_connection, explain, list_connections
from towerws.websocket.replay import ReplayBounds
from towerws.workers.worker import Membership, SharingReactor

CLOSES_PER_S = 1000
"""Lowest rate at which connections are closed while draining. With many connections the drain window needs a higher rate."""

JOINABLE_S = 2.0
"""How long a daemon that starts accepts no client, unless the broker confirms a marker of the daemon before that.

The marker separates events that were published before a client subscribed from later ones. The confirm takes 50 ms. If the broker is
away, clients wait no longer than this."""

STOP_GRACE_S = 3.0
"""How long stopping may take after the drain window: for the linger time of the last close, and for the broker's answer."""

MOVING = "the daemon is being restarted; {} again in a moment"

FULL_S = 60.0
"""Shortest time between two log lines that say that the daemon is full."""


class Source(Protocol):
    """A source of deliveries: a broker, or the embedded one."""

    def start(self) -> None:
        """Start to pass deliveries to the sink."""

    def stop(self) -> Deferred[None]:
        """Stop. The Deferred always fires, with None."""

    def status(self) -> SourceStatus:
        """Return its state."""


class TowerwsService(Service):
    """The whole daemon, or one of its workers: then `membership` is its place among them."""

    _log = Logger()

    def __init__(self, settings: Settings, reactor: Any, membership: Membership | None = None) -> None:
        use_monotonic_clock(reactor)
        self.setName("towerws")
        self._reactor = reactor
        self._settings = settings
        self._membership = membership
        self._started_at = 0.0
        self._ports: dict[str, IListeningPort] = {}
        self._certificates: dict[str, ReplaceableCertificate] = {}
        self.reloads = Reloads(time.time())
        self.stopping = False  # whether the stop has begun
        self._finish: Callable[[], None] | None = None
        self._hurried = False
        self.log_observer: ILogObserver | None = None
        self.ending: Callable[[], bool] = lambda: False
        """Whether a signal that ends the process came before the reactor runs."""
        self._full_lines = LineSpacing(FULL_S)
        self._refused_before = 0
        """How many refused clients the log lines about a full daemon have reported."""
        self.warnings: Sequence[str] = ()
        """Sentences that the daemon logs at its start."""
        self.history = History(settings.history.max_bytes, settings.history.max_age_s)
        self.hub = Hub(self.history, lambda call: reactor.callLater(0, call))
        self.ingest = Ingest(
            self.history,
            self.hub,
            max_payload_bytes=settings.max_payload_bytes,
            clock=reactor.seconds,
            wall_clock=time.time,
            report=self._report,
            new_epoch=lambda: secrets.token_hex(4),
            key=b"" if settings.broker is None else _position_key(settings.broker),
        )
        self._event_publisher: EventPublisher | None = None
        embedded: EmbeddedSource | None = None
        if settings.broker is None:
            self._embedded = embedded = EmbeddedSource(self.ingest)
            self.source: Source = embedded
        self._limits = _resolve_max_connections(settings.limits)
        self.auth = make_chain(settings, reactor)
        groups = GroupTable(settings.groups)
        context = ConnectionContext(
            self.hub,
            self.ingest,
            self.auth,
            groups,
            settings.websocket,
            reactor,
            check_xrftoken=settings.access.check_xrftoken,
            revalidate_s=settings.access.revalidate_s,
            replays=ReplayBounds(settings.limits.replay_bytes_per_s, settings.history.max_bytes),
        )
        self.context = context
        self._control_publisher = None if settings.broker is None else ConfirmedPublisher(settings.broker, reactor, prefer=lambda: amqp.url)
        announce = None if self._control_publisher is None else self._control_publisher.announce
        self._id = secrets.token_hex(8)
        self.control = Control(
            context.credential_monitor.disconnect, context.credential_monitor.recheck_all, announce, reactor, self._id, self._marker
        )
        self.control_listener: ControlListener | None = None
        if settings.broker is not None and announce is not None:
            self.control_listener = ControlListener(settings.broker, self.control, reactor, marker=self._marker, announce=announce)
            self.source = amqp = AmqpSource(settings.broker, self.ingest, reactor, control=self.control_listener)
            self._event_publisher = EventPublisher(
                settings.broker, reactor, prefer=lambda: amqp.url, max_payload_bytes=settings.max_payload_bytes
            )
        self.websockets = WebSocketFactory(
            context, settings.websocket, reactor, access=settings.access, limits=self._limits, page_ports=self._page_ports
        )
        self.restarts = Restarts(settings, reactor, self.websockets, self.source.status, self._ports, embedded)
        self.reactor_lag = ReactorLag(reactor)
        self.metrics = MetricsPage(lambda: status_figures(self), reactor.seconds)
        self.samples = Samples(lambda: status_figures(self), lambda: self.source_status().ready)
        self.admin = AdminSite(
            status=lambda: status_figures(self),
            source_status=self.source_status,
            publish=self._publish,
            flush=(lambda: None) if embedded is None else embedded.flush,
            later=lambda call: reactor.callLater(0, call),
            disconnect=self._disconnect,
            disconnect_here=None if membership is None else context.credential_monitor.disconnect,
            restart=self.restarts.restart,
            websocket_port=lambda: getattr(self._ports["listen"].getHost(), "port", 0) if "listen" in self._ports else 0,
            max_payload_bytes=settings.max_payload_bytes,
            why_no_subscriber=self._why_no_subscriber,
            page=self._page,
            metrics=self.metrics,
            console=console_endpoints(self._console_data()),
            probes=self.websockets.probes,
            show_details=settings.admin_details,
        )
        self._every_second = LoopingCall(self._each_second)
        self._every_second.clock = reactor

    # IService

    def privilegedStartService(self) -> None:
        """Open the ports, before privileges are dropped.

        The websocket port is last: no client has to wait while another address isn't available yet.
        """
        self._listen("admin", self._settings.admin, self.admin)
        if self._settings.monitor:
            self._listen("monitor", self._settings.monitor, monitor_site(self.source_status, self.metrics))
        self._listen("listen", self._settings.listen, self.websockets)
        self.websockets.accept_throttle.attach(self._ports["listen"], backlog="backlog=" not in self._settings.listen)

    def startService(self) -> None:
        """Start the source."""
        super().startService()
        assert self._reactor.seconds is time.monotonic, "the reactor's clock was changed back"
        self._started_at = self._reactor.seconds()
        accept_throttle = self.websockets.accept_throttle
        self.ingest.on_joinable = accept_throttle.release
        accept_throttle.hold(JOINABLE_S)
        self.source.start()
        self.reactor_lag.start()
        self._every_second.start(1.0, now=False)
        self.context.credential_monitor.start()
        self.restarts.start()
        self._log.info(
            "towerws {version}: websockets on {listen}, admin on {admin}, source {source}, auth {auth}",
            version=__version__,
            listen=self._settings.listen,
            admin=self._settings.admin,
            source="embedded:" if self._settings.broker is None else ",".join(map(str, self._settings.broker.urls)),
            auth=",".join(self._settings.auth),
        )
        if self._membership is None:  # a worker's parent has logged them
            for sentence in self.warnings:
                self._log.warn("{sentence}", sentence=sentence)

    def stopService(self) -> Deferred[None]:
        """Fires with None once everything is closed, at the latest `STOP_GRACE_S` after the drain window."""
        self.stopping = True
        self.restarts.stop()
        self.websockets.accept_throttle.detach()
        if self._every_second.running:
            self._every_second.stop()
        self.context.credential_monitor.stop()
        self.reactor_lag.stop()
        done: Deferred[None] = Deferred()

        def finish(_: object = None) -> None:
            if not done.called:
                for connection in list(self.websockets.connections):
                    connection.transport.abortConnection()
                if deadline.active():
                    deadline.cancel()
                self._log.info("towerws stopped")
                done.callback(None)

        self._finish = finish
        deadline = self._reactor.callLater(self._settings.websocket.drain_s + STOP_GRACE_S, finish)
        if self.restarts.shares_ports:
            self._ports.clear()
        admin_ports = [self._ports.pop(key) for key in ("admin", "monitor") if key in self._ports]
        listening = [port.stopListening() for port in self._ports.values()]
        steps = DeferredList([_settled(port) for port in listening])
        steps.addCallback(lambda _: self._drain())
        steps.addCallback(lambda _: _settled(self.context.auth.stop()))
        steps.addCallback(lambda _: self._leave_broker())
        steps.addCallback(lambda _: DeferredList([_settled(port.stopListening()) for port in admin_ports]))
        steps.addErrback(lambda failure: self._log.failure("an error while stopping; the stop goes on", failure))
        steps.addCallback(finish)
        super().stopService()
        if self._hurried:
            finish()
        return done

    def stop_now(self) -> None:
        """Finish the stop at once, and abort the open connections. If no stop has begun, the next one ends at once."""
        self._hurried = True
        if self._finish is not None:
            self._finish()

    def setServiceParent(self, parent: Any) -> None:
        """Join twistd's application, and register the log observer there, where twistd looks for it."""
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)

    def prepare(self, settings: Settings) -> tuple[Callable[[], Deferred[None]], Sequence[str]]:
        """Make everything that new settings need, and change nothing. Raises `ConfigError` if that fails.

        Returns a function that puts the settings in force, and the names of the files whose content has changed. The function can't fail.
        Its Deferred fires once each session has given up the topics that the groups no longer allow. For the options that need a restart,
        `settings` must have the values in force.
        """
        methods = self.auth.make_replacements(settings, self._reactor)
        certificates = {key: _certificate(key, getattr(settings, key)) for key in self._certificates}
        groups, limits = GroupTable(settings.groups), _resolve_max_connections(settings.limits)
        before = self._settings
        files = [f"the files of auth {name}" for name in methods.other_files]
        files += [
            f"the certificate of {key}"
            for key, certificate in certificates.items()
            if fingerprint(certificate) != fingerprint(self._certificates[key].options)
        ]

        def put_in_force() -> Deferred[None]:
            self._settings, self._limits = settings, limits
            self.auth.replace(methods, self._reactor)
            for key, certificate in certificates.items():
                self._certificates[key].options = certificate
            self.context.reload(settings, groups)
            self.websockets.reload(settings, limits)
            unchanged = not methods.methods and settings.groups == before.groups
            return succeed(None) if unchanged else self.context.credential_monitor.apply_groups_to_all()

        return put_in_force, files

    # helpers

    def _listen(self, key: str, description: str, factory: Any) -> None:
        shared = self._membership is not None and key == "listen"
        reactor = TlsReactor(SharingReactor(self._reactor) if shared else self._reactor)
        inherited = self.restarts.open_port(key, description, factory, reactor.on)
        port: Any = inherited or listen(reactor, key, description, factory, self.ending, self.restarts.tell_why)
        self._ports[key] = port
        if self._membership is not None and key == "admin":
            # A UNIX socket refuses connections that its queue can't hold, and a busy worker accepts none for a while.
            port.socket.listen(BACKLOG)
        if reactor.certificate is not None:
            self._certificates[key] = reactor.certificate

    def _why_no_subscriber(self, group: str, event: str) -> str | None:
        return self.context.groups.why_no_subscriber(group, event)

    def _page(self) -> PageContent:
        configured = self.context.groups.configured
        return PageContent(
            groups=configured,
            auth=self._settings.auth,
            takes_tokens=takes_tokens(self.auth),
            max_topics=self.context.settings.topics,
            topics=lambda: topics_of(configured, self.history),
            position=lambda: self.history.head.position or None,
        )

    def _drain(self) -> Deferred[None]:
        """Close all connections, spread over the drain window. Fires once all are closed, or `STOP_GRACE_S / 2` after the window."""
        waiting = list(self.websockets.connections)
        window = self._settings.websocket.drain_s
        batch = max(1, int(max(CLOSES_PER_S, len(waiting) / max(window, 0.1)) / 20))
        done: Deferred[None] = Deferred()

        def step() -> None:
            for connection in waiting[:batch]:
                connection.end(CloseReason.RESTART)
                if connection.state == connection.STATE_CONNECTING:
                    connection.transport.loseConnection()
            del waiting[:batch]
            if not self.websockets.connections or self._reactor.seconds() > give_up:
                loop.stop()

        give_up = self._reactor.seconds() + window + STOP_GRACE_S / 2
        loop = LoopingCall(step)
        loop.clock = self._reactor
        loop.start(0.05).addCallbacks(lambda _: done.callback(None), done.errback)
        return done

    def _leave_broker(self) -> Deferred[Any]:
        """Tell the other daemons that this one leaves, so that no revocation waits for it. Then stop the source and the publishers."""

        def stop(_: object) -> Deferred[Any]:
            publishers = [publisher for publisher in (self._control_publisher, self._event_publisher) if publisher is not None]
            return DeferredList([_settled(self.source.stop()), *(_settled(publisher.stop()) for publisher in publishers)])

        return self.control.leave().addCallback(stop)

    def _publish(self, event: Publication) -> Deferred[Published]:
        """Publish an event of `POST /publish`. Raises `BadDelivery` for an event that ingest would skip."""
        topic, message_id = event.topic.routing_key, event.message_id
        self.ingest.check(topic, event.payload)
        if self._event_publisher is not None:
            return self._event_publisher.publish(event)
        if message_id is not None and self.history.has_message(topic, message_id):
            return succeed(Published(Outcome.DUPLICATE, published=True, message_id=message_id))
        if self.restarts.moving:
            return succeed(Published(Outcome.UNAVAILABLE, published=False, message_id=message_id, error=MOVING.format("publish")))
        position = self._embedded.publish(topic, event.payload, message_id)
        return succeed(Published(Outcome.CONFIRMED, published=True, message_id=message_id, position=position))

    def _disconnect(self, revocation: Revocation) -> Deferred[Disconnection]:
        """Close the connections of a credential here and on the other daemons.

        Without a broker, the successor of a hand-over can't be told. The answer says so.
        """
        if self._settings.broker is not None or not self.restarts.moving:
            return self.control.revoke(revocation)
        closed = self.context.credential_monitor.disconnect(revocation)
        return succeed(Disconnection(closed, told=False, reason=MOVING.format("disconnect")))

    def _marker(self, text: str) -> bytes:
        """Return the body of this daemon's control marker, with the current process id: twistd may have forked."""
        return ControlMarker(DaemonName(self._id, f"{platform.node()}:{os.getpid()}"), text).body

    def _each_second(self) -> None:
        now = self._reactor.seconds()
        self.history.trim(now)
        try:
            self.samples.tick(now)
        except Exception:  # noqa: BLE001 - the loop must go on
            self._log.failure("no sample for the console could be taken")
        refused = self.websockets.refused_for["connections"]
        if refused > self._refused_before and self._full_lines.due("full", now):
            self._log.warn(
                "full: {refused} more clients were refused, because there is room for {limit} connections; raise limits.connections, "
                "and LimitNOFILE with it, or start another daemon",
                refused=refused - self._refused_before,
                limit=self._limits.connections,
            )
            self._refused_before = refused

    def _report(self, bad: BadDelivery) -> None:
        self._log.warn("message from the broker skipped ({reason}): {text}", reason=bad.reason, text=str(bad))

    def _console_data(self) -> ConsoleData:
        def explain_topic(user: str, topic: str) -> Deferred[dict[str, object]]:
            return explain(self.websockets, self.history, user, canonical_topic(topic), self.source_status)

        return ConsoleData(
            instance=self._id,
            status=lambda: status_figures(self),
            samples=self.samples,
            history=self.history,
            hub=self.hub,
            groups=lambda: self.context.groups.listing,
            auth=self._settings.auth,
            clock=self._reactor.seconds,
            connections=lambda after, text, limit, behind: list_connections(
                self.websockets, after=after, text=text, limit=limit, behind=behind
            ),
            end=self._end_connection,
            explain=explain_topic,
            show_details=self._settings.admin_details,
        )

    def _end_connection(self, number: int) -> bool:
        ended = end_connection(self.websockets, number)
        if ended:
            self._log.info("connection {number} was ended from the admin port", number=number)
        return ended

    def _page_ports(self) -> tuple[int, ...]:
        """Return the ports of the daemon's own pages: the admin port, if it is open and no UNIX socket. For a worker: its parent's port."""
        if self._membership is not None:
            return (self._membership.page_port,)
        admin = self._ports.get("admin")
        port = None if admin is None else getattr(admin.getHost(), "port", None)
        return () if port is None else (port,)

    @property
    def drain_s(self) -> float:
        """Seconds over which a stop spreads the closing of connections."""
        return self._settings.websocket.drain_s

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return float(self._reactor.seconds() - self._started_at)

    @property
    def max_connections(self) -> int:
        """The limit of connections in force."""
        return self._limits.connections

    @property
    def history_span_s(self) -> float:
        """Age of the oldest event in history, in seconds: how long a client may have been away."""
        oldest = self.history.oldest if len(self.history) else None
        return 0.0 if oldest is None else max(0.0, float(self._reactor.seconds() - oldest.arrived))

    @property
    def delayed_calls(self) -> int:
        """How many timers the reactor has."""
        return len(self._reactor.getDelayedCalls())

    def source_status(self) -> SourceStatus:
        """Return the source's state. While the daemon stops, it is not ready."""
        status = self.source.status()
        if self.stopping:
            return SourceStatus(SourceState.STOPPED, "the daemon is stopping", status.details)
        if self.websockets.accept_throttle.holding:
            reason = f"no client is accepted before the broker has confirmed a marker, for at most {JOINABLE_S:g} s"
            return replace(status, reason=f"{status.reason}; {reason}" if status.reason else reason)
        return status


def _position_key(settings: BrokerSettings) -> bytes:
    """Derive the key of positions. Daemons that share `position_key`, or else the credentials, derive the same key for a stream."""
    salt = f"towerws position\0{settings.stream}".encode()
    if settings.position_key is not None:
        return derive_key(settings.position_key.reveal().encode(), salt)
    first = min((url.vhost, url.username, url.password.reveal()) for url in settings.urls)
    return derive_key("\0".join(first).encode(), salt)


def _certificate(key: str, description: str) -> CertificateOptions:
    try:
        return read_certificate(description)
    except ValueError as error:
        raise ConfigError(f"{key} = {description!r}: {error}") from None


def _resolve_max_connections(limits: LimitSettings) -> LimitSettings:
    room = descriptors_for_clients()
    return replace(limits, connections=min(limits.connections or room, room))


def _settled(result: Deferred[Any] | None) -> Deferred[Any]:
    """Return `result`, but with None where it would fail, so that the stop goes on."""
    return succeed(None) if result is None else result.addErrback(lambda failure: None)
