"""The clients of one process of the load generator: many sockets, cheaper than any server.

Bytes are counted, not decoded: Tower's frames have a known length. A sample of the clients keeps its bytes. They are
compared with the published messages after the clock has stopped. `towerws.v1` frames and events of a stream differ in length: there a
marker in each message is counted. Other uneven frames are counted one by one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import ssl
import sys
import time
from array import array
from dataclasses import dataclass

from benchmarks.client import HOST, Client, LoadError, Spec, trusting
from benchmarks.messages import MARKER, STAMP_AT, numbers, split_events, unframe

SOURCES = [f"127.0.0.{last}" for last in range(2, 10)]
"""Eight addresses, because one has only 28,000 ports."""

Due = list[int] | list[bytes]
"""What a client must get, in order: the numbers of messages or, if their lengths differ, the messages."""

READ_BYTES = 1 << 20
OPEN_S = 120.0


@dataclass
class Opened:
    """The result of opening: seconds from the first connect to each client's answer, and each client's position (v1)."""

    took_s: list[float]
    positions: list[str]


@dataclass
class Received:
    """The result of a run: messages and bytes in all, the time of the last message, and failures. For the first message of each read
    it has the time of publishing and the delay. Times are monotonic nanoseconds.
    """

    messages: int
    size: int
    ended_ns: int
    disorder: int
    sent_ns: array[int]
    delays_ns: array[int]

    def delays_ms(self, begin_ns: int = 0, end_ns: int = sys.maxsize) -> list[float]:
        """Delays of messages published within that time, sorted. Raises `LoadError` if there are none."""
        within = [delay / 1e6 for sent, delay in zip(self.sent_ns, self.delays_ns, strict=True) if begin_ns <= sent <= end_ns]
        if not within:
            raise LoadError("no message was published within the time that is measured")
        return sorted(within)


class Fleet:
    """The clients of one process. The parent may call the public methods."""

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._by_fd: dict[int, Client] = {}
        self._epoll = select.epoll()

    def open(self, port: int, specs: list[Spec]) -> Opened:
        """Connect all at once, subscribe, and read each answer."""
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
                elif client.secured() and client.answered():
                    client.took_s = time.monotonic() - started
                    del waiting[fd]
        self._clients += new
        positions = [json.loads(client.buffer)["position"] for client in new if client.spec.v1]
        for client in new:
            client.buffer = b""
        return Opened([client.took_s for client in new], positions)

    def _connect(self, port: int, spec: Spec, number: int) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, per destination
        sock.bind((SOURCES[number % len(SOURCES)], 0))
        code = sock.connect_ex((HOST, port))
        if code not in (0, errno.EINPROGRESS):
            raise LoadError(f"connect: {os.strerror(code)}")
        client = self._by_fd[sock.fileno()] = Client(sock, spec)
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        return client

    def _connected(self, client: Client) -> None:
        if code := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise LoadError(f"connect: {os.strerror(code)}")
        self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
        if client.spec.pem is not None:
            context = trusting(client.spec.pem)
            client.sock = context.wrap_socket(client.sock, server_hostname=HOST, do_handshake_on_connect=False)
            client.secured()
        elif not client.spec.raw:
            client.ask()

    def expect(self, due: list[int], frame_bytes: int, sample: int) -> None:
        """Set how many messages each client must get, before any is published. One client in `sample` keeps its bytes."""
        self._frame_bytes = frame_bytes
        for number, (client, count) in enumerate(zip(self._clients, due, strict=True)):
            client.due = count
            if client.spec.slow:
                self._epoll.modify(client.sock.fileno(), 0)
            client.chunks = [client.tail] if number % sample == 0 else None
            client.size = len(client.tail)
            if client.spec.marked:
                client.got = client.tail.count(MARKER)
                continue
            client.got = client.frames.count(client.tail) if client.spec.uneven else len(client.tail)
            client.tail = b""

    def collect(self, within_s: float, message_bytes: int, expected: dict[int, Due], stamped: bool, slow: bool) -> Received:
        """Read until every client has all its messages. `expected` has the numbers for each client of the sample.

        With `slow` the slow clients read, otherwise all others.
        """
        deadline = time.monotonic() + within_s
        reading = [(number, client) for number, client in enumerate(self._clients) if client.spec.slow is slow]
        for _, client in reading:
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
        missing = sum(client.due * self._unit(client) - client.got for _, client in reading)
        sent, delays = array("q"), array("q")
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        clock = time.monotonic_ns
        ended = clock()
        by_fd = self._by_fd
        header = self._frame_bytes - message_bytes
        while missing > 0:
            ready = self._epoll.poll(0.2, 4096)
            if not ready and time.monotonic() > deadline:
                raise LoadError(f"{missing} bytes (towerws.v1 and uneven: messages) did not come within {within_s:g} s")
            for fd, _ in ready:
                client = by_fd[fd]
                try:
                    size = client.sock.recv_into(buffer)
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                if not size:
                    raise LoadError("the server closed a connection")
                # A server that can't keep up is sometimes read in the middle of a frame: that read has no stamp at its start.
                if stamped and not client.spec.marked and client.got % self._frame_bytes == 0 and size >= header + STAMP_AT + 20:
                    stamp = int(bytes(view[header + STAMP_AT : header + STAMP_AT + 20]))
                    sent.append(stamp)
                    delays.append(clock() - stamp)
                client.size += size
                if client.chunks is not None:
                    client.chunks.append(bytes(view[:size]))
                if client.spec.marked:
                    data = client.tail + view[:size]
                    size = data.count(MARKER) - client.tail.count(MARKER)
                    client.tail = data[1 - len(MARKER) :]
                elif client.spec.uneven:
                    size = client.frames.count(bytes(view[:size]))
                client.got += size
                missing -= size
        ended = clock()
        disorder = self._disorder(reading, message_bytes, expected)
        total = sum(client.size for _, client in reading)
        for _, client in reading:
            client.tail = b""
        return Received(sum(client.due for _, client in reading), total, ended, disorder, sent, delays)

    def _unit(self, client: Client) -> int:
        """The unit of the count: messages, or the bytes of one."""
        return 1 if client.spec.marked or client.spec.uneven else self._frame_bytes

    def _disorder(self, reading: list[tuple[int, Client]], size: int, expected: dict[int, Due]) -> int:
        """How many clients of the sample got wrong messages. Raises `LoadError` if any client got more or fewer."""
        disorder = 0
        for number, client in reading:
            if client.got != client.due * self._unit(client):
                raise LoadError(f"client {number} got {client.got} bytes or messages, which is not {client.due} messages")
            if client.chunks is not None:
                data = b"".join(client.chunks)
                payloads = split_events(data) if client.spec.events else unframe(data, deflated=client.spec.deflate)
                disorder += (payloads if client.spec.uneven else numbers(payloads, size)) != expected[number]
        return disorder

    def close(self) -> None:
        """Disconnect all clients."""
        for client in self._clients:
            self._epoll.unregister(client.sock.fileno())
            client.sock.close()
        self._clients.clear()
        self._by_fd.clear()
