"""The opening handshake (RFC 6455 section 4.2): a connection until it is open.

This module replaces Autobahn's handshake. Autobahn's isn't safe for requests from strangers, and takes half of the CPU of a connect and
subscribe (core/http_head.py). The tests reproduce each point:
- The request's head is read, bounded, checked and answered here. Autobahn gets only the bytes behind it, once the connection is open.
- An authentication that succeeds after the connection was lost opens nothing.
- A refusal is a fixed text that never repeats the request. Autobahn's log lines, which do repeat it, are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, result_if_ready, waits_for_token
from towerws.core.client_address import UNIX, forwarded_nodes, read_node
from towerws.core.deflate import negotiate
from towerws.core.errors import HandshakeError, QueryError
from towerws.core.handshake_probes import PROBE_HEADER
from towerws.core.http_head import (
    CREDENTIAL_REFUSED,
    END,
    NO_CREDENTIAL,
    NO_UPGRADE,
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
from towerws.core.limits import LIMIT_OPTIONS, LIMIT_TEXTS, ConnectionSlot
from towerws.core.plain_http import (
    PlainRequest,
    Route,
    cors_headers,
    file_response,
    find_route,
    last_segment,
    plain_error,
    preflight_response,
    read_plain_request,
)
from towerws.core.wire import SUBPROTOCOL
from towerws.websocket.autobahn_parts import Inflater, NullLogger
from towerws.websocket.send_buffer import has_arrived, is_plain_tcp

if TYPE_CHECKING:
    from towerws.protocol import WebSocketFactory

MAX_DISCARDED_BYTES = 1024 * 1024
"""The most bytes that a client may send after the server closed its own direction. `linger_s` bounds the time as well."""


class OpeningConnection(WebSocketServerProtocol):
    """A connection during its handshake. The subclass implements `opened`, `data_after_opening` and `left` for the open connection."""

    log = NullLogger()
    websocket_version = 13
    _log = Logger()

    factory: WebSocketFactory
    address = ""
    """The client's address. Behind trusted proxies it is known once the request's head was read."""
    identity: Identity | None = None
    _head: bytes | None = b""
    """The part of the request's head that has come. None: the head is complete, or no longer wanted."""
    _early = b""
    """Bytes behind the head that came before the connection was open."""
    _asking: Deferred[Any] | None = None
    """The authentication that is under way."""
    _timer: Any = None
    """See `arm`."""
    _discarded = 0
    _is_head_request = False
    _limit_met: str | None = None
    """Why the connection is refused after its first read, if a limit refuses it."""
    _route: Route | None = None
    """What a plain request is for. None: it is an opening handshake, or not read yet."""
    _cors: Sequence[str] = ()
    _perMessageCompress: Inflater | None

    # the subclass implements these

    def opened(self, response: bytes) -> None:
        """Begin the open connection. `response`, the 101, must be written before anything else."""
        raise NotImplementedError

    def answer(self, identity: Identity, request: PlainRequest) -> None:
        """Answer a plain request of this user."""
        raise NotImplementedError

    def data_after_opening(self, data: bytes) -> None:
        """Read bytes from the client of a connection that is open or closing."""
        raise NotImplementedError

    def left(self) -> None:
        """Release what the open connection holds: it is lost, or counts as lost. May be called more than once."""
        raise NotImplementedError

    # Twisted calls these

    def __init__(self) -> None:
        """Skip Autobahn's constructor: its state is shared (autobahn_parts.py)."""

    def connectionMade(self) -> None:
        """Count the new connection, start its handshake's timer, and apply the limits that don't depend on its user."""
        self.begin()
        factory = self.factory
        connection_limits = factory.connection_limits
        self.openHandshakeTimeoutCall = factory.timers.call_later(factory.settings.handshake_s, self.onOpenHandshakeTimeout)
        if connection_limits.full:
            if connection_limits.overflowing:
                self._count_refusal(_limit_error("connections"))
                self.dropConnection(abort=True)
                return
            # Answer after the first read: unread bytes at the close would turn the answer into a reset.
            self._limit_met = "connections"
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)
        elif not self.factory.proxies.trust(self.address):
            self._limit_met = connection_limits.locate(self._slot, self.address)

    def begin(self) -> None:
        """Count a connection that has read nothing yet."""
        if not self.address:
            self.address = self._peer_address()
        factory = self.factory
        factory.connections[self] = None  # type: ignore[index]  # each connection is of the subclass
        self._slot: ConnectionSlot = factory.connection_limits.arrive()
        factory.countConnections += 1

    def dataReceived(self, data: bytes) -> None:
        """Read the request's head, and pass everything behind it to `data_after_opening`."""
        if self._limit_met is not None:
            reason, self._limit_met = self._limit_met, None
            self._is_head_request = data.startswith(b"HEAD ")
            self._refuse(_limit_error(reason))
        elif self._head is not None:
            self._read_head(self._head + data)
        elif self.state == self.STATE_CONNECTING:
            self._keep_early(data)
        elif self.state != self.STATE_CLOSED:  # Autobahn would keep these bytes, though nothing reads them
            self.data_after_opening(data)
        else:
            self.discard(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Release everything that the connection holds: it is lost, for any reason."""
        if self in self.factory.connections:
            del self.factory.connections[self]
            self.factory.connection_limits.leave(self._slot)
        self.disarm()
        asking, self._asking = self._asking, None
        if self.closeHandshakeTimeoutCall is not None:
            self.closeHandshakeTimeoutCall.cancel()  # Autobahn lets it run, and holds the connection until then
            self.closeHandshakeTimeoutCall = None
        self._connectionLost(reason)  # without Autobahn's debug lines, which cost more than the rest
        if asking is not None:
            asking.cancel()
        self.left()

    # the request

    def _read_head(self, data: bytes) -> None:
        settings = self.factory.settings
        try:
            start, end = find_head(data)
            if data.startswith(b"HEAD ", start):
                self._is_head_request = True
            if (len(data) if end < 0 else end) > settings.head_bytes:
                raise HandshakeError(431, f"the request's head is longer than {settings.head_bytes} bytes")
            if end < 0:
                self._head = data
                return
            self._head = None
            head = parse_head(data[start : end + len(END)], settings.head_count)
            request: Upgrade | PlainRequest | None
            if (route := find_route(head, self.factory.client_files)) is None:
                check_route(head)
                request = read_upgrade(head)
                self._locate(head)
                if PROBE_HEADER in head.headers:
                    self._note_probe(head)
                self.factory.pages.check_origin(head, self._peer_address)
            else:
                request = self._read_plain_request(head, route)
        except HandshakeError as error:
            self._refuse(error)
            return
        if request is None:
            return
        if rest := data[end + len(END) :]:
            self._keep_early(rest)
        if self.state == self.STATE_CONNECTING:
            self._authenticate(head, request)

    def _read_plain_request(self, head: Head, route: Route) -> PlainRequest | None:
        """Read a request that is no opening handshake. Return None if it needs no user and was answered here."""
        factory, self._route = self.factory, route
        if route is Route.FILE:
            self._locate(head)
            self.respond(file_response(head, factory.client_files[last_segment(head.path)]))
            return None
        self._cors = cors = cors_headers(
            head.headers.get("origin"), credentials=factory.pages.may_read_with_cookies(head, self._peer_address)
        )
        self._locate(head)
        factory.pages.check_origin(head, self._peer_address)
        if head.method == "OPTIONS" and "origin" in head.headers:
            self.respond(preflight_response(cors))
            return None
        factory.pages.check_site(head)
        return read_plain_request(head, route, factory.context.groups, factory.settings.topics)

    def respond(self, response: bytes) -> None:
        """Answer a plain request with these bytes, and close. The client may take `pong_s` to read them."""
        factory = self.factory
        factory.answered += 1
        factory.connection_limits.answered(self._slot)
        self.transport.write(response)
        self.dropConnection(abort=False)
        self.arm(factory.settings.pong_s, self.transport.abortConnection)

    def _keep_early(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > self.factory.settings.head_bytes:
            self._early = b""
            self.dropConnection(abort=True)

    def _refuse(self, error: HandshakeError, who: Identity | NotAdmitted | None = None) -> None:
        self._head, self._early = None, b""
        if self.state != self.STATE_CONNECTING:
            return
        if self._route is not None:
            error = plain_error(error, self._route)
        self._count_refusal(error, who)
        if error.reason != TLS:
            self.transport.write(error_response(error, with_body=not self._is_head_request, more=self._cors))
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
        factory.refused[error.status] += 1
        factory.refused_for[error.reason] += 1

    def _locate(self, head: Head) -> None:
        """Take the client's address from a trusted proxy. Raises `HandshakeError` 503 if that address has too many connections."""
        proxies = self.factory.proxies
        if proxies.trust(self.address):
            nodes = forwarded_nodes(head.headers.get("x-forwarded-for"), head.headers.get("forwarded"))
            if nodes and read_node(nodes[0]) is None:
                self.factory.log_of_proxies.unread_address(self.address)
            self.address = proxies.client(self.address, nodes)
            if (reason := self.factory.connection_limits.locate(self._slot, self.address)) is not None:
                raise _limit_error(reason)

    def _note_probe(self, head: Head) -> None:
        """Remember how a handshake of `towerws doctor` arrived."""
        peer = self._peer_address()
        port = getattr(self.transport.getPeer(), "port", 0)
        self.factory.probes.note(head.headers, peer, port, self.address, trusted=self.factory.proxies.trust(peer))

    # authentication

    def _authenticate(self, head: Head, request: Upgrade | PlainRequest) -> None:
        began = self.factory.context.reactor.seconds()
        asked: Deferred[Identity | None] = maybeDeferred(self.factory.context.auth.authenticate, head, self.address)
        if (known := result_if_ready(asked)) is not None:
            try:
                self._authenticated(known, head, request, began)
            except Exception:  # noqa: BLE001 - the connection must not stay half open, whatever failed
                self._broken(Failure())
            return

        def authenticated(identity: Identity | None) -> None:
            self._asking = None
            if self.state == self.STATE_CONNECTING:
                self._authenticated(identity, head, request, began)

        def failed(failure: Failure) -> None:
            self._asking = None
            if isinstance(failure.value, NotAdmitted):
                self._refuse(_not_admitted(failure.value), failure.value)
            elif self.state == self.STATE_CONNECTING:
                self._log.failure("authentication failed unexpectedly", failure)
                self._refuse(HandshakeError(500, "internal error", "error"))

        self._asking = asked
        asked.addCallbacks(authenticated, failed).addErrback(self._broken)

    def _authenticated(self, identity: Identity | None, head: Head, request: Upgrade | PlainRequest, began: float) -> None:
        try:
            # Without a credential the connection may still open: where tokens are accepted, the first message may carry one.
            if identity is not None or not self._waits_for_token(request):
                self.identity = self._admit(identity, head, began)
            is_websocket_path = isinstance(request, PlainRequest) and request.route is Route.WEBSOCKET_PATH
            if is_websocket_path and "sec-websocket-key" in head.headers:
                raise HandshakeError(426, NO_UPGRADE)  # a handshake whose Upgrade a proxy took away: the log must say so
        except HandshakeError as error:
            self._refuse(error, identity)
            return
        if isinstance(request, Upgrade):
            self._open(request)
        elif is_websocket_path:
            self.respond(error_response(HandshakeError(426, NO_UPGRADE), more=self._cors))
        else:
            assert self.identity is not None, "a plain request waits for no token"
            self.answer(self.identity, request)

    def _waits_for_token(self, request: Upgrade | PlainRequest) -> bool:
        if isinstance(request, Upgrade):
            return waits_for_token(self.factory.context.auth, awx_client=SUBPROTOCOL not in request.subprotocols)
        # AWX's clients send no plain GET.
        return request.route is Route.WEBSOCKET_PATH and waits_for_token(self.factory.context.auth, awx_client=False)

    def _admit(self, identity: Identity | None, head: Head, began: float) -> Identity:
        """Count the connection for its user, and return the user. Raises `HandshakeError` with the reason of a refusal."""
        factory = self.factory
        if identity is None:
            raise HandshakeError(403, NO_CREDENTIAL, "no_credential")
        if factory.context.credential_monitor.was_revoked(identity, began):
            raise HandshakeError(403, CREDENTIAL_REFUSED, "revoked")
        if identity.session is None:
            factory.pages.check_host(head, self._peer_address, self._listening_address)
        if (reason := factory.connection_limits.admit(self._slot, identity.account)) is not None:
            raise _limit_error(reason)
        return identity

    def _open(self, upgrade: Upgrade) -> None:
        """Answer 101. From here on Autobahn reads what the client sends."""
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in upgrade.subprotocols else None
        self.websocket_protocol_in_use = subprotocol
        self.enter_open_state()
        if self.autoPingInterval:
            self.autoPingPendingCall = self.factory.timers.call_later(self.autoPingInterval, self._sendAutoPing)
        extension = negotiate(upgrade.extensions) if self.factory.settings.compression and upgrade.extensions else None
        if extension is not None:
            self._perMessageCompress = Inflater(self.factory.settings.message_bytes)
        self.opened(switching_protocols(upgrade, subprotocol, extension))
        early, self._early = self._early, b""
        if early:
            self.dataReceived(early)

    def enter_open_state(self) -> None:
        """Enter the state that Autobahn's `succeedHandshake` leaves."""
        self.state = self.STATE_OPEN
        self.inside_message, self.current_frame = False, None
        self.stop_handshake_timeout()

    def stop_handshake_timeout(self) -> None:
        """Stop the handshake's timer: the handshake has ended, or what it waits for has a deadline of its own."""
        if self.openHandshakeTimeoutCall is not None:
            self.openHandshakeTimeoutCall.cancel()
            self.openHandshakeTimeoutCall = None

    def _broken(self, failure: Failure) -> None:
        """End a connection that an internal error would leave half open."""
        self._log.failure("a connection could not be opened", failure)
        self.left()
        self.dropConnection(abort=True)

    # Autobahn calls these

    def onOpenHandshakeTimeout(self) -> None:
        """Count a handshake that did not end in time, and drop the connection."""
        if self.state == self.STATE_CONNECTING:
            self.factory.context.limit_counts["handshake_s"] += 1
        super().onOpenHandshakeTimeout()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection. If the client doesn't end it within `linger_s`, abort it."""
        super().dropConnection(abort)
        if not abort and self.transport is not None:
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)

    def _closeConnection(self, abort: bool = False) -> None:
        """End the TCP connection so that the client can still read the answer, or abort it.

        If the client may still be sending, only the server's direction is closed. Bytes that reach a closed socket make the
        kernel send a reset, which could overtake the answer.

        An abort resets the connection only if some bytes have not reached the client: otherwise the kernel would keep them. nginx logs
        an error for each reset, and each laptop that falls asleep would cause one.
        """
        if abort and not has_arrived(self.transport):
            self.transport.abortConnection()
        elif abort or self.wasClean or not is_plain_tcp(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def discard(self, data: bytes) -> None:
        """Read and drop what the client sends after the server closed its own direction."""
        self._discarded += len(data)
        if self._discarded > MAX_DISCARDED_BYTES:
            self.transport.abortConnection()

    # for this class and its subclass

    def _peer_address(self) -> str:
        return getattr(self.transport.getPeer(), "host", UNIX)

    def _listening_address(self) -> str:
        return getattr(self.transport.getHost(), "host", "")

    def arm(self, delay_s: float, call: Any) -> None:
        """Call this after `delay_s` seconds. A call that was armed before is cancelled: a connection has one such timer."""
        self.disarm()
        self._timer = self.factory.context.reactor.callLater(delay_s, call)

    def disarm(self) -> None:
        """Cancel the armed call, if there is one."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _detail(error: HandshakeError, who: Identity | NotAdmitted | None) -> str:
    """Return the detail for the log: what was wrong with a credential, or the option that sets a limit. The client is told less.

    The detail holds nothing that the client sent: the log would keep that, and lines with different details would not fold.
    """
    if isinstance(who, NotAdmitted):
        return str(who)
    if isinstance(error, QueryError):
        return error.logged
    option = LIMIT_OPTIONS.get(error.reason)
    return str(error) if option is None else f"{error} ({option})"


def _not_admitted(problem: NotAdmitted) -> HandshakeError:
    if isinstance(problem, Refused):
        return HandshakeError(403, CREDENTIAL_REFUSED, problem.reason)
    return HandshakeError(503, "the credential can't be checked just now", problem.reason)


def _limit_error(reason: str) -> HandshakeError:
    return HandshakeError(503, LIMIT_TEXTS[reason], reason)
