"""One client of the load generator: its handshake, and the data that it keeps."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.messages import FrameCounter, frame_end, unframe

HOST = "127.0.0.1"
"""The address on which every server listens."""

# Headers of a browser, so that the server has realistic work and memory. On loopback, without a credential, the daemon
# accepts only the name localhost.
HEAD = (
    "GET /websocket/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n"
    "Upgrade: websocket\r\nOrigin: https://localhost\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en-US,en;q=0.9\r\nCookie: csrftoken=aBcDeFgHiJkLmNoPqRsTuVwXyZ012345; sessionid=0123456789abcdef0123456789abcdef\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; "
)
OFFER = "client_max_window_bits"
DEFLATE = "client_no_context_takeover; server_no_context_takeover"
"""A browser's offer of compression, and the offer of a client that must get it."""


class LoadError(Exception):
    """The server did not do what it should have. The scenario then has no figure."""


@dataclass
class Spec:
    """One client: its topics, its dialect, and the position where it resumes. Without topics it only connects.
    `raw` speaks no websocket. `slow` reads nothing until it is told to. `pem` is the certificate that it trusts for TLS.
    `uneven`: its messages differ in length, and are counted frame by frame. `deflate`: they are compressed, too. `events` reads an event
    stream instead of a websocket.
    """

    groups: dict[str, list[int | str]] = field(default_factory=dict)
    v1: bool = False
    raw: bool = False
    slow: bool = False
    since: str | None = None
    pem: str | None = None
    uneven: bool = False
    deflate: bool = False
    events: bool = False

    @property
    def marked(self) -> bool:
        """Whether a marker in its messages is counted: they are in envelopes of different lengths."""
        return self.v1 or self.events


class Client:
    """One socket, and the data that arrived on it."""

    __slots__ = ("answers", "asked", "buffer", "chunks", "due", "frames", "got", "size", "sock", "spec", "tail", "took_s")

    def __init__(self, sock: socket.socket, spec: Spec) -> None:
        self.sock = sock
        self.spec = spec
        self.buffer = b""
        self.asked = False
        self.answers = 0
        self.took_s = 0.0
        self.due = self.got = self.size = 0
        self.frames = FrameCounter()
        self.tail = b""
        self.chunks: list[bytes] | None = None

    def ask(self) -> None:
        """Send the handshake."""
        self.asked = True
        if self.spec.events:
            topics = "&".join(f"topic={group}.{event}" for group, events in self.spec.groups.items() for event in events)
            self.sock.send(f"GET /events?{topics} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("ascii"))
            return
        offer = DEFLATE if self.spec.deflate else OFFER
        last = "Sec-WebSocket-Protocol: towerws.v1" if self.spec.v1 else "X-Requested: no"
        self.sock.send(f"{HEAD}{offer}\r\n{last}\r\n\r\n".encode("ascii"))

    def read(self) -> bool:
        """Read more of the answers. Returns whether any came."""
        try:
            data = self.sock.recv(65536)
        except ssl.SSLWantReadError:  # TLS sent a ticket of its own
            return False
        if not data:
            raise LoadError(f"the server closed the connection: {self.buffer[:200]!r}")
        self.buffer += data
        return True

    def secured(self) -> bool:
        """True once TLS, if used, is established. The client has then sent its handshake."""
        if self.asked:
            return True
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.ask()
        return False

    def answered(self) -> bool:
        """Read on. True once the client has all its answers. Bytes after the last one count as received."""
        if not self.read():
            return False
        if self.spec.events:
            head, found, rest = self.buffer.partition(b"event: subscribed\n")
            answer, end, self.tail = rest.partition(b"\n\n")
            if found and not head.startswith(b"HTTP/1.1 200 "):
                raise LoadError(f"refused: {head[:200]!r}")
            return bool(end and answer)
        if self.answers == 0 and not self._upgraded():
            return False
        while self.answers < 2 + bool(self.spec.groups):
            whole = frame_end(self.buffer, 0)
            if not whole or whole > len(self.buffer):
                return False
            answer = unframe(self.buffer[:whole], deflated=self.spec.deflate)[0]
            self.answers += 1
            if b'"error"' in answer:
                raise LoadError(f"the server answered {answer[:200]!r}")
            self.buffer = self.buffer[whole:]
            if self.answers == 2 + bool(self.spec.groups):
                if self.spec.since is not None and b'"recovered":true' not in answer:
                    raise LoadError(f"nothing was recovered: {answer[-200:]!r}")
                self.tail, self.buffer = self.buffer, answer
        return True

    def _upgraded(self) -> bool:
        """True once the answer to the handshake is complete. The client has then sent its subscription."""
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 101 "):
            raise LoadError(f"refused: {head[:200]!r}")
        if self.spec.deflate is not (b"permessage-deflate" in head):
            raise LoadError(f"compression was {'' if self.spec.deflate else 'not '}asked for: {head[:400]!r}")
        self.answers, self.buffer = 1, rest
        if self.spec.groups:
            request: dict[str, Any] = {"groups": self.spec.groups}
            if self.spec.since is not None:
                request["since"] = self.spec.since
            self.sock.send(masked(json.dumps(request, separators=(",", ":"))))
        return True


@cache
def trusting(pem: str) -> ssl.SSLContext:
    """A TLS context that trusts only this certificate."""
    return ssl.create_default_context(cafile=pem)


def masked(text: str) -> bytes:
    """A client's text frame. Its mask is zero, which is a valid mask."""
    data = text.encode("ascii")
    size = len(data)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + data
