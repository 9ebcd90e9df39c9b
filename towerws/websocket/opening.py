"""The opening handshake: what a connection is before it is open.

Autobahn's own is not safe where requests come from strangers (each point reproduced in the tests) and takes half of what a
connect and subscribe costs (core/http_head.py), so:
- the request's head is read, bounded, checked and answered here; Autobahn sees nothing of it, and what comes behind it only
  once the client is in;
- a success that comes after the connection was lost opens nothing;
- what refuses a client is a fixed text, never what it sent; Autobahn's own log lines, which repeat it, are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, at_once, takes_tokens
from towerws.core.addresses import UNIX, Proxies, forwarded_nodes, read_address, read_node
from towerws.core.connection_limits import LIMIT_TEXTS, OPTIONS, ConnectionLimits, ConnectionSlot
from towerws.core.deflate import negotiate
from towerws.core.errors import HandshakeError
from towerws.core.http_head import (
    END,
    TLS,
    Head,
    Upgrade,
    check_route,
    error_response,
    find_head,
    parse_head,
    read_upgrade,
    switching_protocols,
)
from towerws.core.identity import Identity
from towerws.core.origins import Origins, is_local
from towerws.core.settings import AccessSettings, WebSocketSettings
from towerws.core.wire import SUBPROTOCOL
from towerws.websocket.connection_log import ProxyLog
from towerws.websocket.context import ConnectionContext
from towerws.websocket.inflater import Inflater
from towerws.websocket.send_buffer import is_plain_tcp
from towerws.websocket.timers import Timer, Timers

DISCARDED_BYTES = 1024 * 1024
"""How much a client may send after the end of our stream. `linger_s` bounds it as well."""


class NullLogger:
    """Stands in for Autobahn's logger: it formats several debug lines for each write, and repeats what clients sent."""

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        pass

    trace = debug = info = warn = error = failure = _drop


class ConnectionFactory(Protocol):
    """What a connection needs of its factory while it opens."""

    context: ConnectionContext
    settings: WebSocketSettings
    connections: dict[Any, None]
    access: AccessSettings
    proxies: Proxies
    origins: Origins
    page_ports: Callable[[], Container[int]]
    connection_limits: ConnectionLimits
    countConnections: int  # Autobahn's, which counts down
    timers: Timers
    refused: dict[int, int]
    refused_for: dict[str, int]
    log_of_proxies: ProxyLog


class OpeningConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """A client at the door. The open connection derives from it and says what `opened`, `bytes` and `left` do."""

    log = NullLogger()
    websocket_version = 13
    _log = Logger()

    factory: ConnectionFactory
    _discarded = 0
    _is_for_head = False
    # Autobahn's
    closeHandshakeTimeoutCall: Timer | None
    openHandshakeTimeoutCall: Timer | None
    autoPingPendingCall: Timer | None
    utf8validator: Any
    current_frame: Any
    _perMessageCompress: Any
    data: bytes

    # the open connection's part

    def opened(self, response: bytes) -> None:
        """The client is in; `response`, the 101, is to be written before anything else."""
        raise NotImplementedError

    def data_after_opening(self, data: bytes) -> None:
        """Bytes from a client that is in, or on its way out."""
        raise NotImplementedError

    def left(self) -> None:
        """The connection is gone, or to be taken for gone. Called more than once."""
        raise NotImplementedError

    # Twisted calls these

    def __init__(self) -> None:
        """Autobahn's own makes what nobody asks for (lean.py)."""

    def connectionMade(self) -> None:
        """A client has connected; it is nobody yet."""
        self._head: bytes | None = b""
        self._early = b""
        self._asking: Deferred[Any] | None = None
        self._timer: Any = None
        self._limit_met: str | None = None
        self.identity: Identity | None = None
        self.address = self._peer_address()
        """Where the client is, as far as is known: in front of trusted proxies once the request's head is read."""
        factory = self.factory
        factory.connections[self] = None
        connection_limits = factory.connection_limits
        self._slot: ConnectionSlot = connection_limits.arrive()
        factory.countConnections += 1
        self.openHandshakeTimeoutCall = factory.timers.call_later(factory.settings.handshake_s, self.onOpenHandshakeTimeout)
        if connection_limits.overflowing:
            self._count_refusal(_limit_error("connections"))
            self.dropConnection(abort=True)
        elif connection_limits.full:
            # Told once it has said something: what was not read when the socket closes would make the answer a reset.
            self._limit_met = "connections"
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)
        elif not self.factory.proxies.trust(self.address):
            self._limit_met = connection_limits.locate(self._slot, self.address)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client: to its end the request's head, which is ours; then Autobahn's."""
        if self._limit_met is not None:
            reason, self._limit_met = self._limit_met, None
            self._is_for_head = data.startswith(b"HEAD ")
            self._refuse(_limit_error(reason))
        elif self._head is not None:
            self._read_head(self._head + data)
        elif self.state == self.STATE_CONNECTING:
            self._keep_early(data)
        elif self.state != self.STATE_CLOSED:  # Autobahn would keep what nobody reads any more
            self.data_after_opening(data)
        else:
            self._discard(data)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, however it went."""
        if self in self.factory.connections:
            del self.factory.connections[self]
            self.factory.connection_limits.leave(self._slot)
        self.disarm()
        asking, self._asking = self._asking, None
        if self.closeHandshakeTimeoutCall is not None:
            self.closeHandshakeTimeoutCall.cancel()  # Autobahn lets it run, and holds the connection until then
            self.closeHandshakeTimeoutCall = None
        super().connectionLost(reason)
        if asking is not None:
            asking.cancel()
        self.left()

    # the request

    def _read_head(self, data: bytes) -> None:
        settings = self.factory.settings
        try:
            start, end = find_head(data)
            if data.startswith(b"HEAD ", start):
                self._is_for_head = True
            if (len(data) if end < 0 else end) > settings.head_bytes:
                raise HandshakeError(431, f"the request's head is longer than {settings.head_bytes} bytes")
            if end < 0:
                self._head = data
                return
            self._head = None
            head = parse_head(data[start : end + len(END)], settings.head_count)
            check_route(head)
            upgrade = read_upgrade(head)
            self._locate(head)
            self._check_page(head)
        except HandshakeError as error:
            self._refuse(error)
            return
        self._keep_early(data[end + len(END) :])
        if self.state == self.STATE_CONNECTING:
            self._authenticate(head, upgrade)

    def _keep_early(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > self.factory.settings.head_bytes:
            self._early = b""
            self.dropConnection(abort=True)

    def _refuse(self, error: HandshakeError, who: Identity | NotAdmitted | None = None) -> None:
        self._head, self._early = None, b""
        if self.state != self.STATE_CONNECTING:
            return
        self._count_refusal(error, who)
        if error.reason != TLS:
            self.transport.write(error_response(error, with_body=not self._is_for_head))
        self.dropConnection(abort=False)

    def _count_refusal(self, error: HandshakeError, who: Identity | NotAdmitted | None = None) -> None:
        factory = self.factory
        factory.context.refusals.line(
            self.address,
            error.reason,
            status=error.status,
            credential=who.credential if isinstance(who, NotAdmitted) else "" if who is None else who.method,
            session="" if who is None else who.session,
            detail=_detail(error, who),
        )
        factory.connection_limits.dismiss(self._slot)
        factory.refused[error.status] = factory.refused.get(error.status, 0) + 1
        factory.refused_for[error.reason] = factory.refused_for.get(error.reason, 0) + 1

    def _locate(self, head: Head) -> None:
        """Find out for whom a trusted proxy speaks; `HandshakeError` when there are too many of those."""
        proxies = self.factory.proxies
        if proxies.trust(self.address):
            nodes = forwarded_nodes(head.headers.get("x-forwarded-for"), head.headers.get("forwarded"))
            if nodes and read_node(nodes[0]) is None:
                self.factory.log_of_proxies.unread_address(self.address)
            self.address = proxies.client(self.address, nodes)
            if (reason := self.factory.connection_limits.locate(self._slot, self.address)) is not None:
                raise _limit_error(reason)

    # who is it?

    def _authenticate(self, head: Head, upgrade: Upgrade) -> None:
        began = self.factory.context.reactor.seconds()
        asked: Deferred[Identity | None] = maybeDeferred(self.factory.context.auth.authenticate, head, self.address)
        if (known := at_once(asked)) is not None:
            try:
                self._let_in(known, head, upgrade, began)
            except Exception:  # noqa: BLE001 - whatever it is, the connection must not stay half open
                self._broken(Failure())
            return

        def authenticated(identity: Identity | None) -> None:
            self._asking = None
            if self.state == self.STATE_CONNECTING:
                self._let_in(identity, head, upgrade, began)

        def failed(failure: Failure) -> None:
            self._asking = None
            if isinstance(failure.value, NotAdmitted):
                self._refuse(_not_admitted(failure.value), failure.value)
            elif self.state == self.STATE_CONNECTING:
                self._log.failure("authentication failed unexpectedly", failure)
                self._refuse(HandshakeError(500, "internal error", "error"))

        self._asking = asked
        asked.addCallbacks(authenticated, failed).addErrback(self._broken)

    def _let_in(self, identity: Identity | None, head: Head, upgrade: Upgrade, began: float) -> None:
        try:
            # With no credential, nobody yet: where tokens are taken the first message may bring one.
            if identity is not None or not takes_tokens(self.factory.context.auth):
                self.identity = self._admit(identity, head, began)
        except HandshakeError as error:
            self._refuse(error, identity)
        else:
            self._open(upgrade)

    def _admit(self, identity: Identity | None, head: Head, began: float) -> Identity:
        """Let this user in, or say with a `HandshakeError` why not."""
        factory = self.factory
        if identity is None:
            raise HandshakeError(403, "no credential was brought", "no_credential")
        if factory.context.credential_monitor.was_revoked(identity, began):
            raise HandshakeError(403, "the credential was refused", "revoked")
        if identity.session is None:
            self._check_name(head)
        if (reason := factory.connection_limits.admit(self._slot, identity.account)) is not None:
            raise _limit_error(reason)
        return identity

    # which page is it?

    def _check_page(self, head: Head) -> None:
        """`HandshakeError` for a page of another origin. A client that names no origin is no browser."""
        factory = self.factory
        origin = head.headers.get("origin")
        if origin is None or not factory.access.check_origin:
            return
        hosts = self._hosts(head)
        # The ports of the daemon's own pages, which are a question to the kernel, are looked at last.
        if not factory.origins.allow(origin, hosts) and not factory.origins.allow(origin, hosts, factory.page_ports()):
            raise HandshakeError(403, "a page of this origin may not connect here", "origin")

    def _check_name(self, head: Head) -> None:
        """`HandshakeError` for another name of this machine's own address, as on the admin port (DNS rebinding).

        A browser that was led here by such a name has no credential for it, so this protects what needs none. A trusted proxy
        passes on the name that its clients know it by.
        """
        host = head.headers["host"]
        if is_local(host) or self.factory.origins.lists(host) or self.factory.proxies.trust(self._peer_address()):
            return
        listening = read_address(getattr(self.transport.getHost(), "host", ""))
        if listening is not None and listening.is_loopback:
            raise HandshakeError(403, "on this machine's own address the websocket answers for localhost and addresses only", "host")

    def _hosts(self, head: Head) -> list[str]:
        """The hosts that the browser may have asked for. Of a chain of trusted proxies the first to be asked knows best."""
        forwarded = head.headers.get("x-forwarded-host") if self.factory.proxies.trust(self._peer_address()) else None
        return [head.headers["host"], *(forwarded.split(",") if forwarded else [])]

    def _open(self, upgrade: Upgrade) -> None:
        """Answer 101; from here on Autobahn reads what comes."""
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in upgrade.subprotocols else None
        self.websocket_protocol_in_use = subprotocol
        # What Autobahn's own `succeedHandshake` leaves behind.
        self.state = self.STATE_OPEN
        self.inside_message, self.current_frame = False, None
        if self.openHandshakeTimeoutCall is not None:
            self.openHandshakeTimeoutCall.cancel()
            self.openHandshakeTimeoutCall = None
        if self.autoPingInterval:
            self.autoPingPendingCall = self.factory.timers.call_later(self.autoPingInterval, self._sendAutoPing)
        extension = negotiate(upgrade.extensions) if self.factory.settings.compression and upgrade.extensions else None
        if extension is not None:
            self._perMessageCompress = Inflater(self.factory.settings.message_bytes)
        self.opened(switching_protocols(upgrade, subprotocol, extension))
        early, self._early = self._early, b""
        if early:
            self.dataReceived(early)

    def _broken(self, failure: Failure) -> None:
        """A fault of ours, after which the connection would be half open."""
        self._log.failure("a connection could not be opened", failure)
        self.left()
        self.dropConnection(abort=True)

    # Autobahn calls these

    def onOpenHandshakeTimeout(self) -> None:
        """The handshake was not done in time."""
        if self.state == self.STATE_CONNECTING:
            self.factory.context.limits["handshake_s"] += 1
        super().onOpenHandshakeTimeout()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection; one that does not end by itself is aborted after the linger time."""
        super().dropConnection(abort)
        if not abort and self.transport is not None:
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)

    def _closeConnection(self, abort: bool = False) -> None:
        """End the TCP connection so that the client can read what it was told, unless that is to be aborted.

        A client that may still be sending gets the end of our stream only. If its bytes found a closed socket, the kernel's
        reset could overtake the answer.
        """
        if abort:
            self.transport.abortConnection()
        elif self.wasClean or not is_plain_tcp(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _discard(self, data: bytes) -> None:
        """Read on after the end of our stream, to the end of the client's."""
        self._discarded += len(data)
        if self._discarded > DISCARDED_BYTES:
            self.transport.abortConnection()

    # for both parts

    def _peer_address(self) -> str:
        return getattr(self.transport.getPeer(), "host", UNIX)

    def arm(self, delay_s: float, call: Any) -> None:
        """Call this after a while; in place of what was armed before."""
        self.disarm()
        self._timer = self.factory.context.reactor.callLater(delay_s, call)

    def disarm(self) -> None:
        """Call nothing."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _detail(error: HandshakeError, who: Identity | NotAdmitted | None) -> str:
    """What the log says beside the reason: of a credential more than its client is told, of a limit its option."""
    if isinstance(who, NotAdmitted):
        return str(who)
    option = OPTIONS.get(error.reason)
    return str(error) if option is None else f"{error} ({option})"


def _not_admitted(problem: NotAdmitted) -> HandshakeError:
    if isinstance(problem, Refused):
        return HandshakeError(403, "the credential was refused", problem.reason)
    return HandshakeError(503, "the credential can't be checked just now", problem.reason)


def _limit_error(reason: str) -> HandshakeError:
    return HandshakeError(503, LIMIT_TEXTS[reason], reason)
