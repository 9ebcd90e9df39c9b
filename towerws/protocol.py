"""Open websocket connections, on Autobahn: one `WebSocketConnection` per client, made by `WebSocketFactory`.

Autobahn implements RFC 6455. This module adds what Autobahn leaves open. The tests reproduce each point:
- It bounds fragments, control frames, the time that a message may take, and the data after a close.
- A client that closes leaves the hub at once. Every close has a timer that ends in an abort.
- It sends the close codes that a server needs (1008, 1012, 1013). Autobahn's `sendClose` refuses them.

`websocket/handshake.py` has the connection until it is open.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Container
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from towerws.core.client_address import Proxies
from towerws.core.errors import CloseReason, HandshakeError
from towerws.core.frames import is_close_code, whole_text
from towerws.core.handshake_probes import HandshakeProbes
from towerws.core.identity import Identity
from towerws.core.limits import LIMIT_OPTIONS, ConnectionLimits, TokenBucket
from towerws.core.origins import PageCheck
from towerws.core.plain_http import EVENT_STREAM, PlainRequest, json_response, retry_line, stream_response
from towerws.core.requests import Request
from towerws.core.settings import AccessSettings, LimitSettings, Settings, WebSocketSettings
from towerws.core.wire import DIALECTS, Dialect
from towerws.websocket.accept_throttle import AcceptThrottle
from towerws.websocket.autobahn_parts import NullLogger, Timers, with_shared_state
from towerws.websocket.context import ConnectionContext
from towerws.websocket.logs import ConnectionLog, ProxyLog
from towerws.websocket.movable import HANDED_OVER, MovableConnection
from towerws.websocket.plain_http import Heartbeat, PlainAnswer, bound_silence, load_client_files
from towerws.websocket.send_buffer import SendBuffer, open_send_buffer
from towerws.websocket.session import Session
from towerws.websocket.tokens import UnauthenticatedSession

RECONNECT_MS = (500, 5000)
"""A closed client is told to reconnect after a random time between these, so that clients spread."""


class WebSocketConnection(MovableConnection):
    """The connection of one client. It is the hub's `Peer` and the session's `Connection`."""

    # The initial state. As attributes of the class these values cost a connection nothing (autobahn_parts.py).
    _unauthenticated: UnauthenticatedSession | None = None
    _session: Session | None = None
    _send_buffer: SendBuffer | None = None
    _controls: TokenBucket | None = None
    _continuations: TokenBucket | None = None
    _fragments = 0
    _frames_after_close = 0
    _opened_at = 0.0
    _reason = "lost"
    _limit = ""
    _answer: PlainAnswer | None = None
    _heartbeat: Heartbeat | None = None
    """Set for an event stream only."""

    def connectionMade(self) -> None:
        """Begin the handshake, or go on where another process stopped."""
        if self.adoption is None:
            super().connectionMade()
        else:
            self.continue_from(self.adoption)

    # the handshake calls these

    def opened(self, response: bytes) -> None:
        """Begin the session, or wait for a token. The 101 and the first frame leave in one write."""
        factory = self.factory
        dialects = DIALECTS if self._perMessageCompress is None else factory.context.deflated
        dialect = dialects[self.websocket_protocol_in_use]
        self._send_buffer = open_send_buffer(self.transport, factory.settings.backlog_bytes, factory.soon)
        if self.identity is None:
            self.send(response)
            self._unauthenticated = UnauthenticatedSession(factory.context, self, dialect)
        else:
            self._begin(self.identity, dialect, response)

    def answer(self, identity: Identity, request: PlainRequest) -> None:
        """Check the topics of a plain request, and answer it."""
        self._answer = answer = PlainAnswer(self.factory.context, self, identity, request)
        answer.begin()

    # the answer to a plain request calls these

    def open_stream(self, request: Request) -> None:
        """Begin an event stream. Its head, the `retry` line and the welcome leave in one write."""
        assert self.identity is not None
        factory, settings = self.factory, self.factory.settings
        self._answer = None
        self._early = b""
        self.enter_open_state()
        self._send_buffer = open_send_buffer(self.transport, settings.backlog_bytes, factory.soon)
        bound_silence(self.transport, settings.ping_s + settings.pong_s)
        self._heartbeat = Heartbeat(factory.timers, settings.ping_s, self.send)
        self._begin(self.identity, EVENT_STREAM, stream_response(list(self._cors)) + retry_line(random.randint(*RECONNECT_MS)))  # noqa: S311
        if self._session is not None:
            self._session.request(request)

    def send_json(self, body: bytes) -> None:
        """Answer with this body."""
        self._answer = None
        self.respond(json_response(body, list(self._cors)))

    def refuse(self, error: HandshakeError) -> None:
        """Refuse a request whose user is known."""
        self._answer = None
        self._refuse(error, self.identity)

    # the session begins

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
        """Read frames. A read that is exactly one text message, the usual case, skips Autobahn."""
        if self._heartbeat is not None:
            self.discard(data)  # the request is all that a reader sends
            return
        if self.state == self.STATE_OPEN and self.current_frame is None and not self.inside_message and not self.data:
            message = whole_text(data, self.factory.settings.message_bytes)
            if message is not None:
                self.onMessage(message, False)
                return
        if self.utf8validator is None:
            self.utf8validator = Utf8Validator()
        self._dataReceived(data)
        if self.state == self.STATE_CLOSING and self.data:
            self.consumeData()  # Autobahn stops at data that it can't inflate; the client's close may follow
        self._watch_assembly()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Release everything that the connection holds. The client of an event stream closes it by ending its TCP connection."""
        if self._heartbeat is not None and self._ended_by == "lost" and reason.check(ConnectionDone):
            self._ended_by, self._reason = "client", "closed by the client"
        super().connectionLost(reason)

    def left(self) -> None:
        """Leave the hub. After this call only Autobahn's close frame is sent. A second call does nothing."""
        if self._send_buffer is not None:
            self._send_buffer.close()
            self._send_buffer = None
            self.unregisterProducer()
        if self._unauthenticated is not None:
            self._unauthenticated.close()
            self._unauthenticated = None
        if self._heartbeat is not None:
            self._heartbeat.stop()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancel()
        session, self._session = self._session, None
        if session is not None:
            topics = len(session.subscriber.topics)
            session.close()
            self.factory.closed += 1
            self.factory.closed_for[self._ended_by] += 1
            if self._ended_by == HANDED_OVER:
                return  # the connection has not ended, and the hand-over's own line counts it
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
        """Set or check the bounds of a frame whose header was read.

        After the server's close only the client's close frame matters, and the other frames are bounded.
        """
        frame = self.current_frame
        assert frame is not None
        if self.state == self.STATE_CLOSING:
            settings = self.factory.settings
            self._frames_after_close += 1
            kept = frame.opcode > 7 and frame.length > settings.message_bytes
            if kept or self._frames_after_close > settings.fragments:
                self.data = b""
                self.transport.pauseProducing()  # stop waiting for the answer: the close ends in an abort
        elif self._perMessageCompress is not None and not self.inside_message:
            compressed = frame.rsv != 0
            limit = self._perMessageCompress.max_wire_bytes if compressed else self.factory.settings.message_bytes
            self.maxFramePayloadSize = self.maxMessagePayloadSize = limit
        super().onFrameBegin()
        if self.state != self.STATE_OPEN:
            self._stop_decoding()

    def onMessageBegin(self, isBinary: bool) -> None:
        """Begin a message. Stop the timer of the message before it, which ended in time."""
        self._fragments = 0
        if self.state == self.STATE_OPEN:
            self.disarm()
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """Count a frame of a message. An empty frame counts, too, because it has a cost."""
        self._fragments += 1
        if self._fragments > 1 and not self._fragment_allowed():
            self.end(CloseReason.POLICY, "fragments")
        super().onMessageFrameBegin(length)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Pass a complete message to the session."""
        session = self._session or self._unauthenticated
        if session is not None:
            session.message(payload, isBinary)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, unless the client exceeds `controls_per_s`."""
        if self._control_allowed():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """Count a pong: an unsolicited one costs as much as a ping."""
        self._control_allowed()

    def onAutoPingTimeout(self) -> None:
        """Count a ping that got no answer in time, and drop the connection."""
        self.factory.context.limit_counts["pong_s"] += 1
        self._ended_by = "pong_timeout"
        super().onAutoPingTimeout()

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        """End the connection: the client closes, or answers the server's close.

        Autobahn's method is replaced for two reasons. It aborts the connection when the client answers, which browsers report as
        unclean. It also takes a malformed close frame for the answer to the close that this very frame causes.
        """
        if self.state == self.STATE_OPEN:
            if not is_close_code(code):
                self._protocol_violation(f"invalid close code {code}")
            elif reasonRaw is not None and not _is_utf8(reasonRaw):
                self._invalid_payload("invalid close reason (non-UTF8 payload)")
            else:
                self._reason = f"closed by the client with {code}"
                self._ended_by = "client"
                self.left()
                self.wasClean = True
                self.sendCloseFrame(code, isReply=True)  # RFC 6455 section 5.5.1: the answer echoes the code
        elif self.state == self.STATE_CLOSING:
            self.wasClean = is_close_code(code)
        self.dropConnection(abort=False)
        return None

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Send a close frame. Every close that the server starts calls this, also Autobahn's after a protocol violation."""
        if self.state == self.STATE_OPEN and not isReply:
            self._reason = f"closed with {code} {(reasonUtf8 or b'').decode()}{self._limit}"
            if self._ended_by == "lost":
                self._ended_by = "protocol"  # Autobahn ends it: the client broke RFC 6455
            self.left()
            self.failedByMe = True  # Autobahn then keeps no data of later messages
            self._stop_decoding()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection."""
        if self.wasNotCleanReason:
            self._reason = self.wasNotCleanReason
        super().dropConnection(abort)

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        self.end(CloseReason.TOO_BIG, "message_bytes")

    # the console reads these

    @property
    def number(self) -> int:
        """The number of this connection. The daemon counts connections in the order in which it accepts them."""
        return self._slot.number

    @property
    def session(self) -> Session | None:
        """The session, once the client is authenticated."""
        return self._session

    @property
    def opened_at(self) -> float:
        """When the session began, in monotonic seconds."""
        return self._opened_at

    @property
    def stage(self) -> str:
        """In one word, how far the connection is: `handshake`, `token` (it still has to send one), `open` or `closing`."""
        if self._session is not None:
            return "open"
        if self._unauthenticated is not None:
            return "token"
        return "handshake" if self.state == self.STATE_CONNECTING else "closing"

    # the hub and the session call these

    @property
    def send(self) -> Callable[[bytes], bool]:
        """The send buffer's method, which the hub keeps and calls directly: one call per write. Without a buffer it drops the data."""
        return _drop if self._send_buffer is None else self._send_buffer.send

    def await_drain(self) -> None:
        """Feed the session's subscriber once the buffer is empty."""
        if self._send_buffer is not None and self._session is not None:
            self._send_buffer.await_drain(self._session.feed)

    def note_hole(self) -> None:
        """Do nothing. The hub calls this for AWX's clients: their dialect can't report lost events."""

    def end(self, reason: CloseReason, limit: str = "") -> None:
        """Send the reason and close. Autobahn's timer aborts a peer that doesn't answer. Does nothing unless the connection is open.

        `limit` names the limit that was exceeded, for the log and a counter.
        """
        if self.state != self.STATE_OPEN:
            return
        if limit:
            self._limit = f": {limit}"
            self.factory.context.limit_counts[limit] += 1
        self._ended_by = reason.name.lower()
        close = reason.value
        if (session := self._session or self._unauthenticated) is not None:
            delay_ms = None if close.action == "stop" else random.randint(*RECONNECT_MS)  # noqa: S311 - spreads load, protects nothing
            bye = session.dialect.bye(close, delay_ms)
            if bye is not None:
                self.transport.write(session.dialect.wrap(bye))
        if self._heartbeat is not None:
            self._reason = f"closed with {close.code} {close.reason}{self._limit}"
            self.left()
            self.dropConnection(abort=False)
            return
        self.sendCloseFrame(close.code, close.reason.encode("ascii"), isReply=False)

    # the unauthenticated session calls these

    def identified(self, identity: Identity, queued: list[tuple[bytes, bool]]) -> None:
        """The token is valid: begin the session, with the messages that came meanwhile (payload, and whether it was binary)."""
        assert self._unauthenticated is not None
        dialect = self._unauthenticated.dialect
        if (reason := self.factory.connection_limits.admit(self._slot, identity.account)) is not None:
            self.reject(CloseReason.TOO_MANY_CONNECTIONS, reason)
            return
        self._unauthenticated, self.identity = None, identity
        self._begin(identity, dialect)
        for payload, is_binary in queued:
            self.onMessage(payload, is_binary)

    def reject(self, reason: CloseReason, word: str) -> None:
        """Refuse the client, close the connection, and free its slot in the limits. `word` is the reason for the log and a counter."""
        factory = self.factory
        factory.connection_limits.dismiss(self._slot)
        factory.refused_for[word] += 1
        factory.context.refusals.line(self.address, word, status=reason.value.code, detail=LIMIT_OPTIONS.get(word, reason.value.reason))
        self.end(reason)

    # helpers

    def _stop_decoding(self) -> None:
        """Neither inflate nor validate data after a close: Autobahn would stop at invalid data and keep the rest."""
        self._isMessageCompressed = self.utf8validateIncomingCurrentMessage = False

    def _fragment_allowed(self) -> bool:
        """Bound fragments per message and per second: Autobahn copies the rest of the read for each (40 KB of them take 50 ms)."""
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
        return self.state == self.STATE_OPEN

    def _watch_assembly(self) -> None:
        """Bound the time of an unfinished message. Most messages arrive complete, and start no timer."""
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


def _drop(_: bytes) -> bool:
    return True


def _is_utf8(reason: bytes) -> bool:
    try:
        reason.decode()
    except UnicodeDecodeError:
        return False
    return True


@implementer(IProtocolNegotiationFactory)
class WebSocketFactory(WebSocketServerFactory):
    """Makes the connections, with safe values for Autobahn's options (docs/architecture.md has the reason for each)."""

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
        """`limits.connections` must be resolved, not 0. `page_ports` returns the ports of the daemon's own pages."""
        super().__init__(reactor=reactor)
        self._page_ports = page_ports
        self._use_access(access or AccessSettings())
        self.probes = HandshakeProbes()
        self.connection_limits = ConnectionLimits(limits)
        self.accept_throttle = AcceptThrottle(limits.accepts_per_s, reactor)
        self.timers = self._batched_timer = Timers(reactor)  # the second name is Autobahn's
        self.context = context
        self.connections: dict[WebSocketConnection, None] = {}
        """All TCP connections, including those in their handshake."""
        self.client_files = load_client_files()
        self.opened = 0
        self.closed = 0
        self.closed_for: Counter[str] = Counter()
        """Connections that ended, by reason: a name of `CloseReason` in lower case, or a word of docs/metrics.md."""
        self.log_of_connections = ConnectionLog(reactor)
        self.log_of_proxies = ProxyLog(reactor)
        self.answered = 0
        """Plain requests that got their answer. An event stream counts as opened."""
        self.refused: Counter[int] = Counter()
        """Handshakes refused, by HTTP status."""
        self.refused_for: Counter[str] = Counter()
        """Refusals by reason."""
        self._use_settings(settings)

    def reload(self, settings: Settings, limits: LimitSettings) -> None:
        """Put new settings in force, for later connections. `limits.connections` must be resolved, not 0."""
        self._use_access(settings.access)
        self.connection_limits.limits = limits
        self.accept_throttle.set_rate(limits.accepts_per_s)
        if settings.websocket != self.settings:
            self._use_settings(settings.websocket)

    def _use_access(self, access: AccessSettings) -> None:
        self.proxies = Proxies(access.trusted_proxies)
        self.pages = PageCheck(access, self.proxies, self._page_ports)

    def _use_settings(self, settings: WebSocketSettings) -> None:
        """Make the class of later connections. Open ones keep theirs, because their clients know the interval of the pings."""
        self.settings = settings
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
        self.protocol = with_shared_state(type(self).protocol, self)

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols that TLS may choose from a client's offer (RFC 7301). Without this method Twisted refuses every offer."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: object) -> WebSocketConnection:  # type: ignore[override] # its `factory` is ours, Twisted's any
        """Make the connection of an accepted client."""
        self.accept_throttle.accepted()
        connection = self.protocol()
        connection.factory = self
        connection.address = getattr(addr, "host", "")
        return connection

    def soon(self, call: Any) -> None:
        """Call this in the next iteration of the reactor."""
        self.context.reactor.callLater(0, call)
