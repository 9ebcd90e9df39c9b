"""The clients of one process of the load generator: many sockets, cheaper than any server.

Octets are counted, not decoded: Tower's frames are of known length. A sample of the clients keeps what it gets, and that is
compared with what was published after the clock has stopped. `towerws.v1` frames differ in length: there a marker in each
message is counted.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from benchmarks.messages import MARKER, STAMP_AT, numbers, unframe

SOURCES = [f"127.0.0.{last}" for last in range(2, 10)]
"""Eight addresses: one has only 28,000 ports."""

READ_OCTETS = 1 << 20
OPEN_S = 120.0

# What a browser sends, so that the server has the work and the memory that it will have.
HEAD = (
    "GET /websocket/ HTTP/1.1\r\nHost: tower.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n"
    "Upgrade: websocket\r\nOrigin: https://tower.example.com\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en-US,en;q=0.9\r\nCookie: csrftoken=aBcDeFgHiJkLmNoPqRsTuVwXyZ012345; sessionid=0123456789abcdef0123456789abcdef\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
)


class LoadError(Exception):
    """The server did not do what it should have. A scenario that meets this has no figure."""


@dataclass
class Spec:
    """One client: its topics (none: it only connects), its dialect, where it resumes; `raw` speaks no websocket,
    `slow` reads nothing until it is told to.
    """

    groups: dict[str, list[int | str]] = field(default_factory=dict)
    v1: bool = False
    raw: bool = False
    slow: bool = False
    since: str | None = None


@dataclass
class Opened:
    """How opening went: seconds from the first connect to each client's answer, and where each stands (v1)."""

    took_s: list[float]
    positions: list[str]


@dataclass
class Received:
    """What came: messages in all, when the last octet did, failures; for the first message of each read, when it was published
    and how long it took. Monotonic nanoseconds.
    """

    messages: int
    ended_ns: int
    disorder: int
    sent_ns: array[int]
    delays_ns: array[int]

    def delays_ms(self, begin_ns: int = 0, end_ns: int = sys.maxsize) -> list[float]:
        """How long messages took that were published within that time, sorted; `LoadError` when there are none."""
        within = [delay / 1e6 for sent, delay in zip(self.sent_ns, self.delays_ns, strict=True) if begin_ns <= sent <= end_ns]
        if not within:
            raise LoadError("no message was published within the time that is measured")
        return sorted(within)


def masked(text: str) -> bytes:
    """A client's text frame; the mask is zero, which is a mask like any other."""
    data = text.encode("ascii")
    size = len(data)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + data


class _Client:
    __slots__ = ("answers", "buffer", "chunks", "due", "got", "sock", "spec", "tail", "took_s")

    def __init__(self, sock: socket.socket, spec: Spec) -> None:
        self.sock = sock
        self.spec = spec
        self.buffer = b""
        self.answers = 0
        self.took_s = 0.0
        self.due = self.got = 0
        self.tail = b""
        self.chunks: list[bytes] | None = None


class Fleet:
    """The clients of one process; its public methods are what the parent may call."""

    def __init__(self) -> None:
        self._clients: list[_Client] = []
        self._by_fd: dict[int, _Client] = {}
        self._epoll = select.epoll()

    def open(self, port: int, specs: list[Spec]) -> Opened:
        """Connect all at once, subscribe, and read each one's answer."""
        started = time.monotonic()
        new = [self._connect(port, spec, number) for number, spec in enumerate(specs)]
        waiting = {client.sock.fileno(): client for client in new}
        while waiting:
            if time.monotonic() - started > OPEN_S:
                raise LoadError(f"{len(waiting)} of {len(new)} clients got no answer within {OPEN_S:g} s")
            for fd, events in self._epoll.poll(1.0):
                client = waiting.get(fd)
                if client is None:
                    continue
                if events & select.EPOLLOUT:
                    self._connected(client)
                    if client.spec.raw:
                        del waiting[fd]
                elif self._answered(client):
                    client.took_s = time.monotonic() - started
                    del waiting[fd]
        self._clients += new
        positions = [json.loads(client.buffer)["position"] for client in new if client.spec.v1]
        for client in new:
            client.buffer = b""
        return Opened([client.took_s for client in new], positions)

    def _connect(self, port: int, spec: Spec, number: int) -> _Client:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, per destination
        sock.bind((SOURCES[number % len(SOURCES)], 0))
        code = sock.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            raise LoadError(f"connect: {os.strerror(code)}")
        client = self._by_fd[sock.fileno()] = _Client(sock, spec)
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        return client

    def _connected(self, client: _Client) -> None:
        if code := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise LoadError(f"connect: {os.strerror(code)}")
        if not client.spec.raw:
            client.sock.send(
                f"{HEAD}{'Sec-WebSocket-Protocol: towerws.v1' if client.spec.v1 else 'X-Requested: no'}\r\n\r\n".encode("ascii")
            )
        self._epoll.modify(client.sock.fileno(), select.EPOLLIN)

    def _answered(self, client: _Client) -> bool:
        """Read on; True once the client has all its answers. What came behind the last one counts as received."""
        data = client.sock.recv(65536)
        if not data:
            raise LoadError(f"the server closed the connection: {client.buffer[:200]!r}")
        client.buffer += data
        if client.answers == 0:
            head, end, rest = client.buffer.partition(b"\r\n\r\n")
            if not end:
                return False
            if not head.startswith(b"HTTP/1.1 101 "):
                raise LoadError(f"refused: {head[:200]!r}")
            client.answers, client.buffer = 1, rest
            if client.spec.groups:
                request: dict[str, Any] = {"groups": client.spec.groups}
                if client.spec.since is not None:
                    request["since"] = client.spec.since
                client.sock.send(masked(json.dumps(request, separators=(",", ":"))))
        while client.answers < 2 + bool(client.spec.groups):
            buffer = client.buffer
            if len(buffer) < 2 or len(buffer) < (size := _frame_octets(buffer)):
                return False
            answer = unframe(buffer[:size])[0]
            client.answers += 1
            if b'"error"' in answer:
                raise LoadError(f"the server answered {answer[:200]!r}")
            client.buffer = buffer[size:]
            if client.answers == 2 + bool(client.spec.groups):
                if client.spec.since is not None and b'"recovered":true' not in answer:
                    raise LoadError(f"nothing was recovered: {answer[-200:]!r}")
                client.tail, client.buffer = client.buffer, answer
        return True

    def expect(self, due: list[int], frame_octets: int, sample: int) -> None:
        """Before anything is published: how many messages each client is due; one client in `sample` keeps what it gets."""
        self._frame_octets = frame_octets
        for number, (client, count) in enumerate(zip(self._clients, due, strict=True)):
            client.due = count
            if client.spec.slow:
                self._epoll.modify(client.sock.fileno(), 0)
            client.chunks = [client.tail] if number % sample == 0 else None
            client.got = client.tail.count(MARKER) if client.spec.v1 else len(client.tail)
            if not client.spec.v1:
                client.tail = b""

    def collect(self, within_s: float, octets: int, expected: dict[int, list[int]], stamped: bool, slow: bool) -> Received:
        """Read until every client has what it is due; `expected` has the numbers for each client of the sample.

        With `slow` the slow ones read, without it the others.
        """
        deadline = time.monotonic() + within_s
        reading = [(number, client) for number, client in enumerate(self._clients) if client.spec.slow is slow]
        for _, client in reading:
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
        missing = sum(client.due * self._unit(client) - client.got for _, client in reading)
        sent, delays = array("q"), array("q")
        buffer = bytearray(READ_OCTETS)
        view = memoryview(buffer)
        clock = time.monotonic_ns
        ended = clock()
        by_fd = self._by_fd
        header = self._frame_octets - octets
        while missing > 0:
            ready = self._epoll.poll(0.2, 4096)
            if not ready and time.monotonic() > deadline:
                raise LoadError(f"{missing} octets (towerws.v1: messages) did not come within {within_s:g} s")
            for fd, _ in ready:
                client = by_fd[fd]
                try:
                    size = client.sock.recv_into(buffer)
                except BlockingIOError:
                    continue
                if not size:
                    raise LoadError("the server closed a connection")
                if stamped:
                    stamp = int(bytes(view[header + STAMP_AT : header + STAMP_AT + 20]))
                    sent.append(stamp)
                    delays.append(clock() - stamp)
                if client.chunks is not None:
                    client.chunks.append(bytes(view[:size]))
                if client.spec.v1:
                    data = client.tail + view[:size]
                    size = data.count(MARKER) - client.tail.count(MARKER)
                    client.tail = data[1 - len(MARKER) :]
                client.got += size
                missing -= size
        ended = clock()
        disorder = self._disorder(reading, octets, expected)
        return Received(sum(client.due for _, client in reading), ended, disorder, sent, delays)

    def _unit(self, client: _Client) -> int:
        """What is counted: messages, or the octets of one."""
        return 1 if client.spec.v1 else self._frame_octets

    def _disorder(self, reading: list[tuple[int, _Client]], octets: int, expected: dict[int, list[int]]) -> int:
        """How many of the sample got anything else than they were due; `LoadError` when a client of all got more or less of it."""
        disorder = 0
        for number, client in reading:
            if client.got != client.due * self._unit(client):
                raise LoadError(f"client {number} got {client.got} octets or messages, which is not {client.due} messages")
            if client.chunks is not None:
                disorder += numbers(unframe(b"".join(client.chunks)), octets) != expected[number]
        return disorder

    def close(self) -> None:
        """Disconnect all."""
        for client in self._clients:
            self._epoll.unregister(client.sock.fileno())
            client.sock.close()
        self._clients.clear()
        self._by_fd.clear()


def _frame_octets(data: bytes) -> int:
    size = data[1]
    if size < 126:
        return 2 + size
    width = 2 if size == 126 else 8
    return 2 + width + int.from_bytes(data[2 : 2 + width], "big") if len(data) >= 2 + width else len(data) + 1
