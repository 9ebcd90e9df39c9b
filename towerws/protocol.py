"""The websocket side: one `WebSocketConnection` per client, on Autobahn.

Autobahn does RFC 6455; what it leaves open is closed here (each reproduced in the tests):
- the request's head is read, bounded and checked before Autobahn sees it, and nothing behind it is until the client is in;
- a success that comes after the connection was lost opens nothing;
- fragments, control frames and the time for a message are bounded; every close has a timer that ends in an abort;
- what refuses a client is a fixed text, never what it sent; Autobahn's own log lines, which repeat it, are dropped.
"""

from __future__ import annotations

import random
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable
from towerws.errors import CloseReason, HandshakeError
from towerws.frames import text_frame
from towerws.handshake import END, Head, check_route, error_response, parse_head
from towerws.identity import Identity
from towerws.limits import TokenBucket
from towerws.outlet import Outlet, open_outlet
from towerws.session import Desk, Session
from towerws.settings import WebSocketSettings
from towerws.wire import SUBPROTOCOL, TOWER, V1

RECONNECT_MS = (500, 5000)
"""Clients that are told to come back spread themselves over this time."""

_KEPT_FOR_NOTHING = (
    "http_request_data",
    "http_response_data",
    "http_headers",
    "http_status_line",
    "http_request_uri",
    "http_request_path",
    "http_request_params",
    "http_request_host",
    "websocket_extensions",
    "websocket_protocols",
    "websocket_origin",
    "_wskey",
)
"""What Autobahn holds for the life of a connection and never reads again once it is open."""

_REFUSALS = {400: "not a websocket's opening handshake", 500: "internal error", 505: "HTTP/1.1 is needed"}


class _Silent:
    """Stands in for Autobahn's logger: it formats several debug lines for each write, and repeats what clients sent."""

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        pass

    trace = debug = info = warn = error = failure = _drop


class WebSocketConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One client. It is the hub's `Peer` and the session's `Connection`."""

    log = _Silent()
    _log = Logger()

    factory: WebSocketFactory

    # Twisted calls these

    def connectionMade(self) -> None:
        """A client has connected; it is nobody yet."""
        self._head: bytes | None = b""
        self._early = b""
        self._request: Head | None = None
        self._identity: Identity | None = None
        self._asking: Deferred[Any] | None = None
        self._session: Session | None = None
        self._outlet: Outlet | None = None
        self._timer: Any = None
        self._controls: TokenBucket | None = None
        self._fragments = 0
        self._opened_at = 0.0
        self._reason = "lost"
        self.factory.connections[self] = None
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Octets from the client: to its end the request's head, which is ours; then Autobahn's."""
        if self._head is not None:
            self._read_head(self._head + data)
        elif self.state == self.STATE_CONNECTING:
            self._early += data
            if len(self._early) > self.factory.settings.head_octets:
                self.transport.abortConnection()
        else:
            self._dataReceived(data)
            self._watch_assembly()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, however it went."""
        self.factory.connections.pop(self, None)
        self._disarm()
        asking, self._asking = self._asking, None
        super().connectionLost(reason)
        if asking is not None:
            asking.cancel()
        self._leave()

    # the opening handshake

    def _read_head(self, data: bytes) -> None:
        settings = self.factory.settings
        end = data.find(END)
        if (len(data) if end < 0 else end) > settings.head_octets:
            self._refuse(HandshakeError(431, f"the request's head is longer than {settings.head_octets} octets"))
            return
        if end < 0:
            self._head = data
            return
        self._head = None
        block, self._early = data[: end + len(END)], data[end + len(END) :]
        try:
            self._request = parse_head(block, settings.head_count)
            check_route(self._request)
        except HandshakeError as error:
            self._refuse(error)
            return
        self._dataReceived(block)

    def _refuse(self, error: HandshakeError) -> None:
        if self.state != self.STATE_CONNECTING:
            return
        self._head, self._early = None, b""
        self.factory.refused[error.status] = self.factory.refused.get(error.status, 0) + 1
        self.transport.write(error_response(error))
        self.dropConnection(abort=False)

    # Autobahn calls these

    def onConnect(self, request: ConnectionRequest) -> Deferred[str | None]:
        """Who is it? Fires with the subprotocol to speak; Autobahn then answers 101."""
        assert self._request is not None
        head, self._request = self._request, None
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.protocols else None
        asking = self.factory.desk.auth.authenticate(head, self.transport.getPeer().host)

        def accepted(identity: Identity) -> str | None:
            self._asking = None
            self._identity = identity
            return subprotocol

        def refused(failure: Failure) -> None:
            self._asking = None
            if failure.check(Refused):
                raise ConnectionDeny(403, "the credential was refused")
            if failure.check(Unavailable):
                raise ConnectionDeny(503, "the credential can't be checked just now")
            if self.state == self.STATE_CONNECTING:
                self._log.failure("authentication failed unexpectedly", failure)
            raise ConnectionDeny(500, _REFUSALS[500])

        self._asking = asking
        return asking.addCallbacks(accepted, refused)

    def succeedHandshake(self, res: Any) -> None:
        """Answer 101, unless the connection was lost while the credential was checked."""
        if self.state != self.STATE_CONNECTING:
            return
        super().succeedHandshake(res)
        early, self._early = self._early, b""
        if early:
            self.dataReceived(early)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse with a fixed text: Autobahn's own would repeat the request line, tokens in it and all."""
        text = reason if code in (403, 503) else _REFUSALS.get(code, _REFUSALS[400])
        self._refuse(HandshakeError(code if code in (403, 500, 503, 505) else 400, text))

    def onOpen(self) -> None:
        """The client is in."""
        for name in _KEPT_FOR_NOTHING:
            self.__dict__.pop(name, None)
        factory = self.factory
        assert self._identity is not None
        dialect = V1 if self.websocket_protocol_in_use == SUBPROTOCOL else TOWER
        self._outlet = open_outlet(self.transport, factory.settings.backlog_octets, factory.soon)
        self.send = self._outlet.send  # the hub writes with this: one call, without a look at the state
        self._opened_at = factory.desk.reactor.seconds()
        self._session = Session(factory.desk, self, self._identity, dialect)
        factory.opened += 1
        self._log.info(
            "connection opened: user {user} from {address}, {dialect}",
            user=self._identity.user_id,
            address=self.transport.getPeer().host,
            dialect=dialect.name,
        )

    def onMessageBegin(self, isBinary: bool) -> None:
        """The first frame of a message."""
        self._fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame of a message: also an empty one costs, and counts."""
        self._fragments += 1
        if self._fragments > self.factory.settings.fragments:
            self.end(CloseReason.POLICY)
        super().onMessageFrameBegin(length)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message."""
        if self._session is not None:
            self._session.message(payload, isBinary)

    def onPing(self, payload: bytes) -> None:
        """A ping, answered as long as they do not come in floods."""
        if self._control_allowed():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """A pong; one that nobody asked for costs as much as a ping."""
        self._control_allowed()

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        """The client closes: from here on it gets nothing, however long its socket takes."""
        if self.state == self.STATE_OPEN:
            self._reason = f"closed by the client with {code}"
            self._leave()
        return super().onCloseFrame(code, reasonRaw)  # type: ignore[no-any-return]

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Every close that starts here passes by: ours, and Autobahn's after a violation of the protocol."""
        if self.state == self.STATE_OPEN and not isReply:
            if self._session is not None:
                self._reason = f"closed with {code}"
            self._leave()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection; one that does not end by itself is aborted after the linger time."""
        if self.wasNotCleanReason and self._session is not None:
            self._reason = self.wasNotCleanReason
        super().dropConnection(abort)
        if not abort and self.transport is not None:
            self._arm(self.factory.settings.linger_s, self.transport.abortConnection)

    # the hub and the session call these

    def send(self, data: bytes) -> bool:
        """Before it is open a connection takes nothing; `onOpen` puts the outlet's own method in this one's place."""
        return True

    def await_drain(self) -> None:
        """Feed the session's member once the buffer is empty."""
        if self._outlet is not None and self._session is not None:
            self._outlet.await_drain(self._session.feed)

    def end(self, reason: CloseReason) -> None:
        """Say why, and close. Autobahn's `sendClose` knows only 1000 and 3000 to 4999; its timer aborts a silent peer."""
        if self.state != self.STATE_OPEN:
            return
        close = reason.value
        session = self._session
        if session is not None:
            delay_ms = random.randint(*RECONNECT_MS) if close.reconnect else 0  # noqa: S311 - spreads load, guards nothing
            bye = session.member.dialect.bye(close, delay_ms)
            if bye is not None:
                self.transport.write(text_frame(bye))
        self.sendCloseFrame(close.code, close.reason.encode("ascii"), isReply=False)
        self._reason = f"closed with {close.code} {close.reason}"

    # within

    def _leave(self) -> None:
        """Out of the hub, and nothing more is sent but what Autobahn has to say. A second call does nothing."""
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None
            self.send = lambda data: True
            self.unregisterProducer()
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self.factory.closed += 1
            self._log.info(
                "connection ended after {duration:.1f} s: user {user} from {address}, {reason}",
                duration=self.factory.desk.reactor.seconds() - self._opened_at,
                user=self._identity.user_id if self._identity is not None else None,
                address=self.transport.getPeer().host if self.transport is not None else None,
                reason=self._reason,
            )

    def _control_allowed(self) -> bool:
        settings = self.factory.settings
        now = self.factory.desk.reactor.seconds()
        if self._controls is None:
            self._controls = TokenBucket(settings.controls_per_s, settings.controls_burst, now)
        if self._controls.take(now) > 0:
            self.end(CloseReason.POLICY)
            return False
        return self.state == self.STATE_OPEN  # type: ignore[no-any-return]

    def _watch_assembly(self) -> None:
        """A message that was begun has to be finished in time; most are whole when they arrive, and arm nothing."""
        if self.state != self.STATE_OPEN:
            return
        if self.inside_message or self.data:
            if self._timer is None:
                self._arm(self.factory.settings.assembly_s, self._assembly_expired)
        elif self._timer is not None:
            self._disarm()

    def _assembly_expired(self) -> None:
        self._timer = None
        self.end(CloseReason.POLICY)

    def _arm(self, delay_s: float, call: Any) -> None:
        self._disarm()
        self._timer = self.factory.desk.reactor.callLater(delay_s, call)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


class WebSocketFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections, with Autobahn's options set to what is safe (docs/architecture.md lists each with its reason)."""

    protocol = WebSocketConnection
    log = _Silent()
    noisy = False

    def __init__(self, desk: Desk, settings: WebSocketSettings, reactor: IReactorTime) -> None:
        super().__init__(reactor=reactor)
        self.desk = desk
        self.settings = settings
        self.connections: dict[WebSocketConnection, None] = {}
        """Every TCP connection, open or still at its handshake."""
        self.opened = 0
        self.closed = 0
        self.refused: dict[int, int] = {}
        """Handshakes refused, by HTTP status."""
        self.server = None
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxFramePayloadSize=settings.message_octets,
            maxMessagePayloadSize=settings.message_octets,
            failByDrop=False,
            openHandshakeTimeout=settings.handshake_s,
            closeHandshakeTimeout=settings.linger_s,
            tcpNoDelay=True,
            autoPingInterval=settings.ping_s,
            autoPingTimeout=settings.pong_s,
            autoPingSize=16,
            autoPingRestartOnAnyTraffic=False,
            allowedOrigins=["*"],
            allowNullOrigin=True,
            perMessageCompressionAccept=lambda offers: None,
        )

    def soon(self, call: Any) -> None:
        """Run this in another turn of the reactor."""
        self.desk.reactor.callLater(0, call)
