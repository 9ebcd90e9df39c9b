"""The websocket side: one `WebSocketConnection` per client, on Autobahn.

Autobahn does RFC 6455; what it leaves open is closed here (each reproduced in the tests):
- fragments, control frames and the time for a message are bounded, and so is what comes after a close;
- a client that closes is out of the hub at once, and every close has a timer that ends in an abort;
- the close codes that a server needs (1008, 1012, 1013) are sent, which `sendClose` refuses.
`opening.py` has what comes before a connection is open.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.interfaces import IReactorTime

from towerws.core.addresses import Proxies
from towerws.core.connection_limits import OPTIONS, ConnectionLimits
from towerws.core.errors import CloseReason
from towerws.core.frames import is_close_code, text_frame, whole_text
from towerws.core.identity import Identity
from towerws.core.origins import Origins
from towerws.core.rate_limits import TokenBucket
from towerws.core.settings import AccessSettings, LimitSettings, WebSocketSettings
from towerws.core.wire import DIALECTS, Dialect
from towerws.websocket.accept_throttle import AcceptThrottle
from towerws.websocket.connection_log import ConnectionLog, ProxyLog
from towerws.websocket.context import ConnectionContext
from towerws.websocket.opening import NullLogger, OpeningConnection
from towerws.websocket.send_buffer import SendBuffer, open_send_buffer
from towerws.websocket.session import Session
from towerws.websocket.shared_state import with_shared_state
from towerws.websocket.timers import Timers
from towerws.websocket.unauthenticated import UnauthenticatedSession

RECONNECT_MS = (500, 5000)
"""Clients that are told to come back spread themselves over this time."""


class WebSocketConnection(OpeningConnection):
    """One client. It is the hub's `Peer` and the session's `Connection`."""

    factory: WebSocketFactory

    _unauthenticated: UnauthenticatedSession | None = None
    _limit = ""

    def connectionMade(self) -> None:
        """A client has connected; it is nobody yet."""
        self._session: Session | None = None
        self._send_buffer: SendBuffer | None = None
        self._controls: TokenBucket | None = None
        self._continuations: TokenBucket | None = None
        self._fragments = 0
        self._frames_after_close = 0
        self._opened_at = 0.0
        self._reason = "lost"
        super().connectionMade()

    # the opening handshake calls these

    def opened(self, response: bytes) -> None:
        """The client is in. The 101 and the first frame leave in one write."""
        factory = self.factory
        spoken = DIALECTS if self._perMessageCompress is None else factory.context.deflated
        dialect = spoken[self.websocket_protocol_in_use]
        self._send_buffer = open_send_buffer(self.transport, factory.settings.backlog_bytes, factory.soon)
        # The hub writes with this: one call, without a look at the state.
        self.send = self._send_buffer.send  # type: ignore[method-assign]
        if self.identity is None:
            self.send(response)
            self._unauthenticated = UnauthenticatedSession(factory.context, self, dialect)
        else:
            self._begin(self.identity, dialect, response)

    def _begin(self, identity: Identity, dialect: Dialect, response: bytes = b"") -> None:
        factory = self.factory
        self._opened_at = factory.context.reactor.seconds()
        self._session = Session(factory.context, self, identity, dialect, response)
        factory.opened += 1
        factory.log_of_connections.line(
            "connection opened: user {user} from {address}, by {method}, session {session}, speaks {dialect}",
            user=identity.user_id,
            address=self.address,
            method=identity.method,
            session=identity.session,
            dialect=dialect.name,
        )

    def data_after_opening(self, data: bytes) -> None:
        """Frames. One whole text message, which is what clients send nearly always, takes the short way."""
        if self.state == self.STATE_OPEN and self.current_frame is None and not self.inside_message and not self.data:
            message = whole_text(data, self.factory.settings.message_bytes)
            if message is not None:
                self.onMessage(message, False)
                return
        if self.utf8validator is None:
            self.utf8validator = Utf8Validator()
        self._dataReceived(data)
        if self.state == self.STATE_CLOSING and self.data:
            self.consumeData()  # Autobahn stops at what it can't inflate, and the client's close may stand behind it
        self._watch_assembly()

    def left(self) -> None:
        """Out of the hub, and nothing more is sent but what Autobahn has to say. A second call does nothing."""
        if self._send_buffer is not None:
            self._send_buffer.close()
            self._send_buffer = None
            self.send = lambda data: True  # type: ignore[method-assign]
            self.unregisterProducer()
        if self._unauthenticated is not None:
            self._unauthenticated.close()
            self._unauthenticated = None
        session, self._session = self._session, None
        if session is not None:
            topics = len(session.subscriber.topics)
            session.close()
            self.factory.closed += 1
            self.factory.log_of_connections.line(
                "connection ended after {duration:.1f} s: user {user} from {address}, {requests} requests, {topics} topics, {reason}",
                duration=self.factory.context.reactor.seconds() - self._opened_at,
                user=session.identity.user_id,
                address=self.address,
                requests=session.requests,
                topics=topics,
                reason=self._reason,
            )

    # Autobahn calls these

    def onFrameBegin(self) -> None:
        """A frame's head is there. After our close only its answer matters; what hides it is not looked at for long."""
        if self.state == self.STATE_CLOSING:
            settings = self.factory.settings
            self._frames_after_close += 1
            kept = self.current_frame.opcode > 7 and self.current_frame.length > settings.message_bytes
            if kept or self._frames_after_close > settings.fragments:
                self.data = b""
                self.transport.pauseProducing()  # the answer is then not awaited: the close ends in an abort
        elif self._perMessageCompress is not None and not self.inside_message:
            compressed = self.current_frame.rsv != 0
            limit = self._perMessageCompress.max_wire_bytes if compressed else self.factory.settings.message_bytes
            self.maxFramePayloadSize = self.maxMessagePayloadSize = limit
        super().onFrameBegin()
        if self.state != self.STATE_OPEN:
            self._read_plainly()

    def onMessageBegin(self, isBinary: bool) -> None:
        """The first frame of a message; the one before it was finished in time."""
        self._fragments = 0
        if self.state == self.STATE_OPEN:
            self.disarm()
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame of a message: also an empty one costs, and counts."""
        self._fragments += 1
        if self._fragments > 1 and not self._fragment_allowed():
            self.end(CloseReason.POLICY, "fragments")
        super().onMessageFrameBegin(length)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message."""
        talk = self._session or self._unauthenticated
        if talk is not None:
            talk.message(payload, isBinary)

    def onPing(self, payload: bytes) -> None:
        """A ping, answered as long as they do not come in floods."""
        if self._control_allowed():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """A pong; one that nobody asked for costs as much as a ping."""
        self._control_allowed()

    def onAutoPingTimeout(self) -> None:
        """A ping was not answered in time."""
        self.factory.context.limits["pong_s"] += 1
        super().onAutoPingTimeout()

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        """The client closes, or answers our close: from here on it gets nothing but the answer, however long its socket takes.

        Autobahn's own aborts the connection when the client answers, which browsers report as unclean. It also takes a close
        frame that is a violation for the answer to the close which that violation causes.
        """
        if self.state == self.STATE_OPEN:
            if not is_close_code(code):
                self._protocol_violation(f"invalid close code {code}")
            elif reasonRaw is not None and not _is_utf8(reasonRaw):
                self._invalid_payload("invalid close reason (non-UTF8 payload)")
            else:
                self._reason = f"closed by the client with {code}"
                self.left()
                self.wasClean = True
                self.sendCloseFrame(code, isReply=True)  # RFC 6455 section 5.5.1: the answer echoes the code
        elif self.state == self.STATE_CLOSING:
            self.wasClean = is_close_code(code)
        self.dropConnection(abort=False)
        return None

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Every close that starts here passes by: ours, and Autobahn's after a violation of the protocol."""
        if self.state == self.STATE_OPEN and not isReply:
            self._reason = f"closed with {code} {(reasonUtf8 or b'').decode()}{self._limit}"
            self.left()
            self.failedByMe = True  # Autobahn then keeps nothing of the messages that still come
            self._read_plainly()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection."""
        if self.wasNotCleanReason:
            self._reason = self.wasNotCleanReason
        super().dropConnection(abort)

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        self.end(CloseReason.TOO_BIG, "message_bytes")

    # the hub and the session call these

    def send(self, data: bytes) -> bool:
        """Before it is open a connection takes nothing; `opened` puts the outlet's own method in this one's place."""
        return True

    def await_drain(self) -> None:
        """Feed the session's member once the buffer is empty."""
        if self._send_buffer is not None and self._session is not None:
            self._send_buffer.await_drain(self._session.feed)

    def end(self, reason: CloseReason, limit: str = "") -> None:
        """Say why, and close. Autobahn's `sendClose` knows only 1000 and 3000 to 4999; its timer aborts a silent peer.

        `limit` names what was too much, for the log and a counter.
        """
        if self.state != self.STATE_OPEN:
            return
        if limit:
            self._limit = f": {limit}"
            self.factory.context.limits[limit] += 1
        close = reason.value
        if (talk := self._session or self._unauthenticated) is not None:
            delay_ms = None if close.action == "stop" else random.randint(*RECONNECT_MS)  # noqa: S311 - spreads load, guards nothing
            bye = talk.dialect.bye(close, delay_ms)
            if bye is not None:
                self.transport.write(text_frame(bye))
        self.sendCloseFrame(close.code, close.reason.encode("ascii"), isReply=False)

    # the visitor calls these

    def identified(self, identity: Identity, held: list[tuple[bytes, bool]]) -> None:
        """Its token is good: a session begins, with the messages that came meanwhile."""
        assert self._unauthenticated is not None
        dialect = self._unauthenticated.dialect
        if (reason := self.factory.connection_limits.admit(self._slot, identity.account)) is not None:
            self.reject(CloseReason.TOO_MANY_CONNECTIONS, reason)
            return
        self._unauthenticated, self.identity = None, identity
        self._begin(identity, dialect)
        for payload, is_binary in held:
            self.onMessage(payload, is_binary)

    def reject(self, reason: CloseReason, word: str) -> None:
        """It does not get in. It takes nobody's place from now on."""
        factory = self.factory
        factory.connection_limits.dismiss(self._slot)
        factory.refused_for[word] = factory.refused_for.get(word, 0) + 1
        factory.context.refusals.line(self.address, word, status=reason.value.code, detail=OPTIONS.get(word, reason.value.reason))
        self.end(reason)

    # within

    def _read_plainly(self) -> None:
        """Neither inflate nor validate what comes after a close: Autobahn stops reading at what it can't, and keeps the rest."""
        self._isMessageCompressed = self.utf8validateIncomingCurrentMessage = False

    def _fragment_allowed(self) -> bool:
        """So many in a message, and so many a second: Autobahn copies what is left of a read for each (40 KB of them: 50 ms)."""
        allowed = self.factory.settings.fragments
        now = self.factory.context.reactor.seconds()
        if self._continuations is None:
            self._continuations = TokenBucket(allowed, 2 * allowed, now)
        return self._fragments <= allowed and self._continuations.take(now) == 0

    def _control_allowed(self) -> bool:
        settings = self.factory.settings
        now = self.factory.context.reactor.seconds()
        if self._controls is None:
            self._controls = TokenBucket(settings.controls_per_s, settings.controls_burst, now)
        if self._controls.take(now) > 0:
            self.end(CloseReason.POLICY, "controls_per_s")
            return False
        return self.state == self.STATE_OPEN  # type: ignore[no-any-return]

    def _watch_assembly(self) -> None:
        """A message that was begun has to be finished in time; most are whole when they arrive, and arm nothing."""
        if self.state != self.STATE_OPEN:
            return
        if self.inside_message or self.data:
            if self._timer is None:
                self.arm(self.factory.settings.assembly_s, self._assembly_expired)
        elif self._timer is not None:
            self.disarm()

    def _assembly_expired(self) -> None:
        self._timer = None
        self.end(CloseReason.POLICY, "assembly_s")


def _is_utf8(reason: bytes) -> bool:
    try:
        reason.decode()
    except UnicodeDecodeError:
        return False
    return True


class WebSocketFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections, with Autobahn's options set to what is safe (docs/architecture.md lists each with its reason)."""

    protocol = WebSocketConnection
    log = NullLogger()
    noisy = False

    def __init__(
        self,
        context: ConnectionContext,
        settings: WebSocketSettings,
        reactor: IReactorTime,
        *,
        access: AccessSettings | None = None,
        limits: LimitSettings,
        page_ports: Callable[[], Container[int]] = tuple,
    ) -> None:
        """`limits.connections` is the number itself here, never 0. `page_ports` gives the ports of the daemon's own pages."""
        super().__init__(reactor=reactor)
        self.access = access or AccessSettings()
        self.proxies = Proxies(self.access.trusted_proxies)
        self.origins = Origins(self.access.origins)
        self.page_ports = page_ports
        self.connection_limits = ConnectionLimits(limits)
        self.accept_throttle = AcceptThrottle(limits.accepts_per_s, reactor)
        self.timers = self._batched_timer = Timers(reactor)  # the second name is where Autobahn looks for its own
        self.context = context
        self.settings = settings
        self.connections: dict[WebSocketConnection, None] = {}
        """Every TCP connection, open or still at its handshake."""
        self.opened = 0
        self.closed = 0
        self.log_of_connections = ConnectionLog(reactor)
        self.log_of_proxies = ProxyLog(reactor)
        self.refused: dict[int, int] = {}
        """Handshakes refused, by HTTP status."""
        self.refused_for: dict[str, int] = {}
        """The same, by the reason's word."""
        self.setProtocolOptions(
            maxFramePayloadSize=settings.message_bytes,
            maxMessagePayloadSize=settings.message_bytes,
            failByDrop=False,
            openHandshakeTimeout=settings.handshake_s,
            closeHandshakeTimeout=settings.linger_s,
            autoPingInterval=settings.ping_s,
            autoPingTimeout=settings.pong_s,
            autoPingSize=16,
            autoPingRestartOnAnyTraffic=False,
        )
        self.protocol = with_shared_state(self.protocol, self)

    def buildProtocol(self, addr: object) -> WebSocketConnection:
        """One for a client that was accepted."""
        self.accept_throttle.accepted()
        connection = self.protocol()
        connection.factory = self
        return connection

    def soon(self, call: Any) -> None:
        """Run this in another turn of the reactor."""
        self.context.reactor.callLater(0, call)
