"""One client of the load generator: how it opens, and what it keeps."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.messages import FrameCounter, frame_end, unframe

HOST = "127.0.0.1"
"""Where every server listens."""

# What a browser sends, so that the server has the work and the memory that it will have. By another name than localhost the daemon would
# refuse it on loopback, where it has no credential.
HEAD = (
    "GET /websocket/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n"
    "Upgrade: websocket\r\nOrigin: https://localhost\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en-US,en;q=0.9\r\nCookie: csrftoken=aBcDeFgHiJkLmNoPqRsTuVwXyZ012345; sessionid=0123456789abcdef0123456789abcdef\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; "
)
OFFER = "client_max_window_bits"
DEFLATE = "client_no_context_takeover; server_no_context_takeover"
"""What a browser says about compression, and what one says that must get it here."""


class LoadError(Exception):
    """The server did not do what it should have. A scenario that meets this has no figure."""


@dataclass
class Spec:
    """One client: its topics (none: it only connects), its dialect, where it resumes; `raw` speaks no websocket,
    `slow` reads nothing until it is told to, `pem` is the certificate it trusts: it speaks TLS. `uneven`: what it gets differs
    in length, and is counted frame by frame; `deflate`: and is compressed.
    """

    groups: dict[str, list[int | str]] = field(default_factory=dict)
    v1: bool = False
    raw: bool = False
    slow: bool = False
    since: str | None = None
    pem: str | None = None
    uneven: bool = False
    deflate: bool = False


class Client:
    """One socket and what came through it."""

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
        """Ask for the websocket."""
        self.asked = True
        offer = DEFLATE if self.spec.deflate else OFFER
        last = "Sec-WebSocket-Protocol: towerws.v1" if self.spec.v1 else "X-Requested: no"
        self.sock.send(f"{HEAD}{offer}\r\n{last}\r\n\r\n".encode("ascii"))

    def read(self) -> bool:
        """Whether more of the answers came."""
        try:
            data = self.sock.recv(65536)
        except ssl.SSLWantReadError:  # a ticket of TLS's own
            return False
        if not data:
            raise LoadError(f"the server closed the connection: {self.buffer[:200]!r}")
        self.buffer += data
        return True

    def secured(self) -> bool:
        """True once TLS, where it is spoken, is agreed upon; then the client has asked for its websocket."""
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
        """Read on; True once the client has all its answers. What came behind the last one counts as received."""
        if not self.read():
            return False
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
        """True once the whole answer to the handshake is here; then the client has asked for its topics."""
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
    """TLS with that certificate and no other."""
    return ssl.create_default_context(cafile=pem)


def masked(text: str) -> bytes:
    """A client's text frame; the mask is zero, which is a mask like any other."""
    data = text.encode("ascii")
    size = len(data)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + data
