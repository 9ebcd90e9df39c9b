"""The websocket edge in memory: a clock, a hub, a factory, and clients that send exactly the bytes of a test."""

from __future__ import annotations

import gc
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from towerws.auth.base import Method
from towerws.auth.chain import Open
from towerws.core.batch import PART_BYTES
from towerws.core.errors import BadDelivery
from towerws.core.history import History
from towerws.core.http_head import Head
from towerws.core.hub import Hub
from towerws.core.identity import Identity, Revocation
from towerws.core.ingest import Ingest
from towerws.core.settings import AccessSettings, GroupSettings, LimitSettings, WebSocketSettings
from towerws.core.topics import GroupTable
from towerws.embedded import EmbeddedSource
from towerws.protocol import WebSocketConnection, WebSocketFactory
from towerws.websocket.context import ConnectionContext

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the server's answer there
WALL = 1_800_000_000.0
"""The wall clock's time at the start of a test."""

PAUSE_BYTES = 65536  # twisted.internet.abstract.FileDescriptor.bufferSize


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, raw: int | None = None, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455 section 5.2). `bytes` announces a length other than the payload's."""
    length = len(payload) if raw is None else raw
    flag = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length < 126:
        head += bytes([flag | length])
    elif length < 65536:
        head += struct.pack("!BH", flag | 126, length)
    else:
        head += struct.pack("!BQ", flag | 127, length)
    if not masked:
        return head + payload
    mask = b"\x11\x22\x33\x44"
    size = len(payload)
    masks = (mask * (size // 4 + 1))[:size]
    masked_payload = (int.from_bytes(payload, "big") ^ int.from_bytes(masks, "big")).to_bytes(size, "big")  # all bytes at once
    return head + mask + masked_payload


def text(message: object) -> bytes:
    """A text message in one frame. A string is sent as it is, everything else as JSON."""
    payload = message if isinstance(message, str) else json.dumps(message)
    return frame(TEXT, payload.encode("utf-8", "surrogatepass"))


def close(code: int = 1000) -> bytes:
    """A close frame."""
    return frame(CLOSE, struct.pack("!H", code))


def request(
    path: str = "/websocket/", *, host: str = "tower.example.com", v1: bool = False, without: Sequence[str] = (), added: Sequence[str] = ()
) -> bytes:
    """An opening handshake, without the named headers, and with the added lines.

    A daemon on loopback that asks for no credential wants `localhost` as `host`.
    """
    headers = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    if v1:
        headers["Sec-WebSocket-Protocol"] = "towerws.v1"
    lines = [f"{name}: {value}" for name, value in headers.items() if name not in without]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, *added, "", ""]).encode("latin-1")


class MemoryTransport:
    """A transport that buffers without a bound, and closes only once it is empty, as Twisted's TCP transport does.

    `stalled`: the client does not read, and written bytes stay in `waiting`. Otherwise they are in `received` at once.
    """

    def __init__(self, clock: Clock, protocol: Any, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self._clock = clock
        self._protocol = protocol
        self._producer: Any = None
        self.received = bytearray()
        self.waiting = bytearray()
        self.stalled = False
        self.reading = True
        self.closing = False
        self.aborted = False
        self.lost = False

    # Twisted's protocols call these

    def write(self, data: bytes) -> None:
        """Take anything."""
        if self.aborted or self.lost:
            return
        self.waiting += data
        if not self.stalled:
            self.drain()
        elif self._producer is not None and len(self.waiting) > PAUSE_BYTES:
            self._producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Remember which producer to pause."""
        assert streaming
        assert self._producer is None
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Forget it. A second call does nothing."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Stop reading."""
        self.reading = False

    def loseConnection(self) -> None:
        """Close once everything is written."""
        self.closing = True
        if not self.waiting:
            self._clock.callLater(0, self.lose, ConnectionDone())

    def abortConnection(self) -> None:
        """Close at once."""
        if not self.aborted:
            self.aborted = True
            self._clock.callLater(0, self.lose, ConnectionAborted())

    def getPeer(self) -> IPv4Address:
        """The client's address."""
        return IPv4Address("TCP", self.peer, 54321)

    def getHost(self) -> IPv4Address:
        """The server's address."""
        return IPv4Address("TCP", "192.0.2.2", 8051)

    # The client's side

    def drain(self) -> None:
        """The client reads all waiting bytes."""
        self.received += self.waiting
        self.waiting = bytearray()
        if self._producer is not None:
            self._producer.resumeProducing()
        if self.closing and not self.waiting:
            self._clock.callLater(0, self.lose, ConnectionDone())

    def lose(self, reason: Exception) -> None:
        """The connection is lost."""
        if not self.lost:
            self.lost = True
            producer, self._producer = self._producer, None
            if producer is not None:
                producer.stopProducing()
            protocol, self._protocol = self._protocol, None  # as Twisted's transports do: otherwise it would be a cycle
            protocol.connectionLost(Failure(reason))


class Client:
    """One client: its own bytes out, the server's frames in."""

    def __init__(self, clock: Clock, connection: WebSocketConnection, transport: MemoryTransport) -> None:
        self.clock = clock
        self.connection = connection
        self.transport = transport
        self.frames: list[tuple[int, bytes]] = []
        """Frames that arrived and were not taken yet: opcode and payload."""
        self._read = 0

    def send(self, *pieces: bytes) -> Self:
        """Send bytes. The server gets each piece in one read."""
        for piece in pieces:
            if self.transport.reading and not self.transport.lost:
                self.connection.dataReceived(piece)
        return self

    def ask(self, groups: Mapping[str, object], **more: object) -> Self:
        """Send a request."""
        return self.send(text({"groups": groups, **more}))

    def listen(self, *events: int) -> Self:
        """Subscribe to job events, and read the answer."""
        self.ask({"job_events": list(events)})
        assert self.take()
        return self

    @property
    def held(self) -> int:
        """The bytes that the server keeps of this client's messages."""
        connection = self.connection
        found = len(connection.data) + len(connection._head or b"") + len(connection._early)
        for name in ("message_data", "frame_data", "control_frame_data"):
            found += sum(len(piece) + 8 for piece in getattr(connection, name, None) or [])
        return found

    @property
    def response(self) -> bytes:
        """The HTTP answer: for a refusal all bytes, otherwise up to the first frame."""
        received = self.transport.received
        return bytes(received[: received.find(b"\r\n\r\n") + 4] if received.startswith(b"HTTP/1.1 101 ") else received)

    @property
    def status(self) -> int:
        """The HTTP status of the answer, 0 while there is none."""
        return int(self.response[9:12] or b"0")

    def take(self) -> list[Any]:
        """The messages since the last call, as JSON. Other frames stay in `frames`."""
        self._parse()
        taken = [json.loads(payload) for opcode, payload in self.frames if opcode == TEXT]
        self.frames = [found for found in self.frames if found[0] != TEXT]
        return taken

    def close_code(self) -> int | None:
        """The code of the close frame, 1005 if it has none, None without a close frame. Asserts that no frame follows it."""
        self._parse()
        closes = [payload for opcode, payload in self.frames if opcode == CLOSE]
        assert len(closes) <= 1, "one close frame only"
        if not closes:
            return None
        assert self.frames[-1][0] == CLOSE, "nothing follows a close frame"
        assert len(closes[0]) <= 125
        return int.from_bytes(closes[0][:2], "big") if closes[0] else 1005

    def control(self, opcode: int) -> list[bytes]:
        """The payloads of the pings or pongs that arrived."""
        self._parse()
        return [payload for found, payload in self.frames if found == opcode]

    def hang_up(self) -> None:
        """End the TCP connection without a close frame."""
        self.transport.lose(ConnectionDone())

    def _parse(self) -> None:
        data = self.transport.received
        if self._read == 0:
            assert self.status == 101, self.response
            self._read = len(self.response)
        while len(data) >= self._read + 2:
            at = self._read
            opcode, length = data[at] & 0x0F, data[at + 1]
            deflated = bool(data[at] & 0x40)
            assert data[at] & 0xB0 == 0x80, "a server's frames are whole"
            assert not deflated or b"permessage-deflate" in self.response, "a server's frames are plain"
            assert length < 128, "a server's frames are not masked"
            at += 2
            if length > 125:
                size = 2 if length == 126 else 8
                length = int.from_bytes(data[at : at + size], "big")
                at += size
            if len(data) < at + length:
                return
            payload = bytes(data[at : at + length])
            self.frames.append((opcode, zlib.decompressobj(-12).decompress(payload + b"\0\0\xff\xff") if deflated else payload))
            self._read = at + length


class Edge:
    """All parts that a connection needs, in memory."""

    def __init__(
        self,
        clock: Clock,
        settings: WebSocketSettings,
        auth: Method,
        *,
        start: bool,
        access: AccessSettings,
        limits: LimitSettings,
        part_bytes: int,
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.history = History(1024**2, 120)
        self.hub = Hub(self.history, lambda call: clock.callLater(0, call), part_bytes=part_bytes)
        self.bad: list[BadDelivery] = []
        self.ingest = Ingest(
            self.history,
            self.hub,
            max_payload_bytes=1024**2,
            clock=clock.seconds,
            wall_clock=clock.seconds,
            report=self.bad.append,
            new_epoch=lambda: "mark",
        )
        self.source = EmbeddedSource(self.ingest)
        groups = GroupTable({"chat": GroupSettings()})
        self.context = ConnectionContext(
            self.hub,
            self.ingest,
            auth,
            groups,
            settings,
            clock,
            check_xrftoken=access.check_xrftoken,
            revalidate_s=access.revalidate_s,
            wall=lambda: WALL + clock.seconds(),
        )
        self.factory = WebSocketFactory(self.context, settings, clock, access=access, limits=limits)
        self.clients: list[Client] = []
        if start:
            self.source.start()

    def connect(self, peer: str = "192.0.2.1") -> Client:
        """A client with a TCP connection only."""
        connection = self.factory.buildProtocol(None)
        transport = MemoryTransport(self.clock, connection, peer)
        self.clients.append(Client(self.clock, connection, transport))
        connection.makeConnection(transport)
        return self.clients[-1]

    def open(self, *, v1: bool = False) -> Client:
        """A client whose connection is open. Its welcome has been read."""
        client = self.connect().send(request(v1=v1))
        assert client.status == 101, client.response
        assert len(client.take()) == 1
        return client

    def publish(self, topic: str, payload: object) -> str:
        """Publish. Returns the position."""
        position = self.source.publish(topic, payload if isinstance(payload, bytes) else json.dumps(payload).encode())
        self.source.flush()
        return position

    def advance(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, in small steps: Autobahn's timers are set by other timers."""
        self.clock.pump([0, *[step] * round(seconds / step)])

    def hang_up(self) -> None:
        """End all TCP connections."""
        for client in self.clients:
            client.hang_up()

    def check(self) -> None:
        """Check that nothing is left of the clients."""
        assert self.factory.connections == {}
        assert self.factory.connection_limits.present == 0
        assert self.hub.subscribers == {}
        assert self.hub.topics == 0
        assert self.factory.countConnections == 0
        waiting = [str(call) for call in self.clock.getDelayedCalls() if call.getTime() > self.clock.seconds()]
        self.clock.advance(0)
        assert not waiting, waiting
        assert not self.clock.getDelayedCalls()


class Edges:
    """Makes edges, each checked for leaks when the test is over."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.made: list[Edge] = []
        self._failures: list[str] = []

    def __call__(
        self,
        auth: Method | None = None,
        *,
        start: bool = True,
        access: AccessSettings | None = None,
        limits: Mapping[str, int] | None = None,
        part_bytes: int = PART_BYTES,
        **settings: Any,
    ) -> Edge:
        """An edge with the usual limits, except for those given. So much of a batch is written in one turn of the reactor."""
        bounds = LimitSettings(**{"connections": 1000, "per_address": 1000, "half_open": 1000, **(limits or {})})
        edge = Edge(
            self.clock,
            WebSocketSettings(**settings),
            auth or Open(),
            start=start,
            access=access or AccessSettings(),
            limits=bounds,
            part_bytes=part_bytes,
        )
        self.made.append(edge)
        return self.made[-1]

    def note(self, event: LogEvent) -> None:
        """Keep each event that is logged as a failure."""
        if "log_failure" in event:
            self._failures.append(event["log_failure"].getTraceback())

    def failures(self) -> list[str]:
        """The tracebacks logged since the last call. A test that leaves any fails."""
        gc.collect(1)  # a Deferred with an unhandled error reports it when collected, and the old generation would take 50 ms
        failures, self._failures = self._failures, []
        return failures


@contextmanager
def edges() -> Iterator[Edges]:
    """A maker of edges."""
    clock = Clock()
    maker = Edges(clock)
    observer = cast("ILogObserver", maker.note)
    globalLogPublisher.addObserver(observer)
    try:
        yield maker
        for edge in maker.made:
            edge.hang_up()
        for edge in maker.made:
            edge.check()
        failures = maker.failures()
        assert not failures, failures
    finally:
        globalLogPublisher.removeObserver(observer)


class SlowMethod:
    """A method that authenticates when the test says so."""

    name = "slow"

    def __init__(self, *, slow_handshake: bool = False) -> None:
        self.handshakes: list[tuple[Head, Deferred[Identity | None]]] = []
        self.questions: list[tuple[Sequence[str], Deferred[dict[str, str]]]] = []
        self.cancelled = 0
        self._slow_handshake = slow_handshake

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Note the head. Answer at once unless `held` is set."""
        asked: Deferred[Identity | None] = Deferred(self._cancel)
        self.handshakes.append((head, asked))
        if not self._slow_handshake:
            asked.callback(Identity(7))
        return asked

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Note the question."""
        asked: Deferred[dict[str, str]] = Deferred(self._cancel)
        self.questions.append((topics, asked))
        return asked

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """The identity unchanged."""
        return succeed(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Nothing is cached."""

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)

    def _cancel(self, asked: Deferred[Any]) -> None:
        self.cancelled += 1
