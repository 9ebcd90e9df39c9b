"""One websocket client of the swarm: small, on asyncio, for thousands in one process. It keeps its position and its story."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import time
import zlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from tests.faults.judge import Gap, Lost, Story, Subscribed

if TYPE_CHECKING:
    from tests.faults.swarm import Loop

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10
COMPRESSED: Final = 0x40
"""The bit of a frame's first byte that marks a compressed message (RFC 7692)."""

DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
OPEN_S: Final = 30.0
RETRY_S: Final = (0.05, 0.5)
REFUSED_S: Final = (0.3, 1.0)
SMALL_BUFFER: Final = 4096
"""A small socket buffer, so that the daemon soon notices a client that stalls."""


@dataclass(frozen=True)
class Spec:
    """The properties of a client. `stall` is a kind of bad conduct: see `Client.misbehave`."""

    urls: tuple[tuple[str, int], ...]
    """Hosts and ports of daemons. Each connection goes to one of them, at random."""
    topics: tuple[str, ...]
    kinds: frozenset[int]
    """The indexes of these topics in the journal."""
    v1: bool = True
    small_buffer: bool = False
    segment_bytes: int = 0
    """The largest TCP segment that it accepts, if not 0. With small ones the daemon's kernel buffers kilobytes for it, not megabytes."""
    judged: bool = True
    returns: bool = True
    """Whether it reconnects when its connection ends."""
    pem: str = ""
    """The file of a trusted certificate. Empty: no TLS."""
    headers: str = ""
    """More lines of the opening handshake, each with its line end."""
    group_name: str = ""
    """A group name, by which commands select clients."""
    compressed: bool = False
    """Whether it asks for compression, and ends a connection that has none."""
    timed: bool = True
    """Whether its latency counts. A client that stalls gets its events late by its own doing."""


@dataclass
class Counts:
    """What one client met, apart from its story."""

    refused: int = 0
    connections: int = 0
    unknown_frames: int = 0
    worst_ns: int = 0
    violations: list[str] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One client over all its connections."""

    def __init__(self, loop: Loop, spec: Spec, number: int) -> None:
        self.spec = spec
        self.number = number
        self.story = Story(spec.kinds, spec.v1, array("q"), roams=len(spec.urls) > 1)
        self.counts = Counts()
        self.position: str | None = None
        self.state = "down"
        """down, connecting, opening, asking, live, leaving"""
        self._loop = loop
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._code = 1006
        self._after_s: float | None = None
        self._opening: asyncio.TimerHandle | None = None
        self._gone = False
        self._talk: asyncio.TimerHandle | None = None
        self._unsent: bytes | None = None
        """The rest of a message that was begun."""
        self._held: list[bytes] = []
        """Payloads of pings that came in the middle of a frame. They are answered behind it."""
        self.last = -1
        """The highest number received."""

    # Life

    def connect(self, delay_s: float = 0.0) -> None:
        """Connect after this time."""
        if not self._gone:
            self.state = "connecting"
            self._loop.loop.call_later(delay_s, self._begin)

    def leave(self) -> None:
        """Disconnect, and do not reconnect."""
        self._gone = True
        self._abort()

    def drop(self) -> None:
        """Lose the connection, as after a short network failure. The client reconnects by itself."""
        if self._transport is not None:
            self.state = "leaving"  # at once, so that it is not counted as live until the loop has ended the connection
        self._abort()

    def misbehave(self, how: str, seconds: float = 0.0) -> None:
        """Stop reading for a time (`stall`) or permanently: `never`, `talk` (it goes on sending) or `close` (it sends a close first)."""
        if self._transport is None:
            return
        if how == "close":
            self._send(CLOSE, b"\x03\xe8")
        self._transport.pause_reading()
        if how == "stall":
            self._loop.loop.call_later(seconds, self._read_on, self._transport)
        elif how == "talk":
            self._talk_on(self._transport)

    def _talk_on(self, transport: asyncio.Transport) -> None:
        if self._transport is transport and not transport.is_closing():
            self._send(PONG, b"")
            self._talk = self._loop.loop.call_later(0.5, self._talk_on, transport)

    def _read_on(self, transport: asyncio.Transport) -> None:
        if self._transport is transport and not transport.is_closing():
            transport.resume_reading()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        if not self._gone:
            task = self._loop.loop.create_task(self._connect())
            self._loop.tasks.add(task)
            task.add_done_callback(self._loop.tasks.discard)

    async def _connect(self) -> None:
        host, port = self._loop.random.choice(self.spec.urls)
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen for each destination
            if self.spec.small_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            if self.spec.segment_bytes:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.spec.segment_bytes)
            if host == "127.0.0.1":
                sock.bind((f"127.0.0.{2 + self.number % 8}", 0))
            async with asyncio.timeout(OPEN_S):
                await self._loop.loop.sock_connect(sock, (host, port))
                if self.spec.pem:
                    context = self._loop.context(self.spec.pem)
                    await self._loop.loop.create_connection(lambda: self, sock=sock, ssl=context, server_hostname="127.0.0.1")
                else:
                    await self._loop.loop.create_connection(lambda: self, sock=sock)
        except OSError:  # TimeoutError and ssl.SSLError are OSErrors
            sock.close()
            self.counts.refused += 1
            self.connect(self._loop.random.uniform(*RETRY_S))

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self.state, self._code, self._after_s = "opening", 1006, None
        self._buffer.clear()
        self.counts.connections += 1
        self._unsent = None
        self._held.clear()
        key = base64.b64encode(os.urandom(16)).decode()
        more = self.spec.headers + (DEFLATE if self.spec.compressed else "")
        protocol = "Sec-WebSocket-Protocol: towerws.v1\r\n" if self.spec.v1 else ""
        self._transport.write(
            f"GET /websocket/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{protocol}{more}\r\n".encode()
        )
        self._opening = self._loop.loop.call_later(OPEN_S, self._abort)

    def data_received(self, data: bytes) -> None:
        """Handle frames."""
        buffer = self._buffer
        buffer += data
        if self.state == "opening":
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101 ") or self.spec.compressed != (b"permessage-deflate" in buffer[:end]):
                self.counts.refused += 1
                self._after_s = self._loop.random.uniform(*REFUSED_S)
                self._abort()
                return
            del buffer[: end + 4]
            self.state = "asking"
            if not self.spec.v1:
                self._ask()
        self._frames()

    def connection_lost(self, error: Exception | None) -> None:
        """Note it, and reconnect."""
        self._transport = None
        for timer in (self._opening, self._talk):
            if timer is not None:
                timer.cancel()
        if self.state in {"asking", "live", "leaving"}:
            self.story.note(Lost(self._code))
        self.state = "down"
        if self.spec.returns:
            after = self._after_s
            self.connect(self._loop.random.uniform(*RETRY_S) if after is None else after)

    # Frames

    def _frames(self) -> None:
        buffer, at = self._buffer, 0
        size = len(buffer)
        while size - at >= 2:
            first, opcode, length, head = buffer[at], buffer[at] & 15, buffer[at + 1], 2
            if length == 126:
                head = 4
                length = int.from_bytes(buffer[at + 2 : at + 4]) if size - at >= 4 else size
            elif length == 127:
                head = 10
                length = int.from_bytes(buffer[at + 2 : at + 10]) if size - at >= 10 else size
            if size - at < head + length:
                break
            payload = bytes(buffer[at + head : at + head + length])
            at += head + length
            if opcode == TEXT:
                self._text(_inflate(payload) if first & COMPRESSED else payload)
            elif opcode == PING and self._unsent is not None:
                self._held.append(payload)
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                self._code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
                self.state = "leaving"
                self._send(CLOSE, payload[:2])
                if self._transport is not None:
                    self._transport.close()
                break
        del buffer[:at]

    def _text(self, payload: bytes) -> None:
        try:
            frame: dict[str, Any] = json.loads(payload)
        except ValueError:
            self.counts.violations.append(f"not JSON: {payload[:80]!r}")
            return
        if self.spec.v1:
            self._v1(frame)
        elif "n" in frame:
            self._event(frame)
        elif "groups_current" in frame:
            self._subscribed(None)
        elif "accept" not in frame:
            self.counts.unknown_frames += 1

    def _v1(self, frame: dict[str, Any]) -> None:
        kind = frame.get("type")
        if kind == "event":
            self.position = frame["position"]
            self._event(frame["payload"])
        elif kind == "welcome":
            self._ask()
        elif kind == "subscribed":
            # Without a position in the request, older daemons answer false and newer ones null.
            self._subscribed(frame.get("recovered") if self.asked_since is not None else None)
            self.position = frame["position"]
        elif kind == "gap":
            self.story.note(Gap(time.monotonic_ns(), tuple(frame.get("topics", ()))))
            self.position = frame["to"]
        elif kind == "bye":
            self._after_s = min(frame["reconnect_after_ms"], 30_000) / 1000
        else:
            self.counts.unknown_frames += 1

    asked_since: str | None = None
    """The position in the last request."""

    def _ask(self, *, again: bool = False) -> None:
        self._send(TEXT, self._request(again=again))

    def _request(self, *, again: bool = False) -> bytes:
        groups: dict[str, list[str]] = {}
        for topic in self.spec.topics:
            group, _, event = topic.partition(".")
            groups.setdefault(group, []).append(event)
        request: dict[str, Any] = {"groups": groups}
        self.asked_since = self.position if self.spec.v1 and not again else None
        if self.asked_since is not None:
            request["since"] = self.asked_since
        return json.dumps(request).encode()

    def ask_again(self) -> None:
        """Subscribe to the same topics again on the open connection."""
        self._ask(again=True)

    def begin_message(self) -> None:
        """Send the first frame of a request for the same topics, and a part of the second one."""
        if self._transport is None or self._unsent is not None:
            return
        request = self._request(again=True)
        cut = len(request) // 3
        self._transport.write(_frame(TEXT, request[:cut], final=False))
        rest = _frame(CONTINUATION, request[cut:])
        self._transport.write(rest[: len(rest) // 2])
        self._unsent = rest[len(rest) // 2 :]
        self._answers = self.answers

    def finish_message(self) -> None:
        """Send the rest of it."""
        rest, self._unsent = self._unsent, None
        if self._transport is not None and rest is not None:
            self._transport.write(rest)
            while self._held:
                self._send(PONG, self._held.pop(0))

    @property
    def is_answered(self) -> bool:
        """Whether the message that was begun last has its answer."""
        return self._unsent is None and self.answers > self._answers

    answers = 0
    """Answers to requests, over all connections."""
    _answers = -1

    def _subscribed(self, recovered: bool | None) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self.state == "asking":
            self.state = "live"
        self.answers += 1
        self.story.note(Subscribed(time.monotonic_ns(), recovered))

    def _event(self, payload: dict[str, Any]) -> None:
        number: int = payload["n"]
        if payload["k"] not in self.spec.kinds:
            self.counts.violations.append(f"{number} on a topic that was not asked for")
        self.story.track.append(number)
        self.last = max(self.last, number)
        delay = time.monotonic_ns() - payload["t"]
        self.counts.worst_ns = max(self.counts.worst_ns, delay)

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send one frame, masked with zeros, which leave the payload unchanged."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(_frame(opcode, payload))


def _frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([(0x80 if final else 0) | opcode]) + length + bytes(4) + payload


def _inflate(payload: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff")
