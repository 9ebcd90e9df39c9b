r"""The head of an HTTP request, read strictly before anything else sees it (RFC 9110, RFC 9112).

Autobahn splits header lines at `\x0b \x0c \x1c \x1d \x1e \x85` (Python's `splitlines`), which nginx lets pass inside a
value: a client could so write whole headers of its own, past a proxy that controls them (daphne's CVE-2026-44546). Hence
no control character but HTAB may stand in a head here, and what must be there once must not be there twice.

The bytes 0x80 to 0xFF are opaque in a header's value (RFC 9110 section 5.5): a cookie `city=München` must not lock a user
out. They are read as Latin-1. So whoever looks at a value must not use `strip()`, `split()`, `isdigit()` or `\s` on it,
which take some of them for spaces or digits.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from towerws.core.errors import HandshakeError

END = b"\r\n\r\n"

TLS_HANDSHAKE = b"\x16"
"""How a TLS ClientHello begins (RFC 8446 section 5.1)."""

TLS = "tls"
"""The reason of a client that speaks TLS on the plain port."""

_is_head = re.compile(rb"[\t\x20-\x7e\x80-\xff\r\n]*").fullmatch
_is_request_line = re.compile(r"([A-Z]{1,20}) ()(/[!-~]*) HTTP/1\.([01])").fullmatch
# A proxy may send the absolute form, and every server takes it (RFC 9112 section 3.2.2). No user may stand in it.
_is_absolute_line = re.compile(
    r"([A-Z]{1,20}) (?i:https?|wss?)://([^\x00-\x20/?#@\x7f-\xff]{1,300})((?:[/?][!-~]*)?) HTTP/1\.([01])"
).fullmatch
# Possessive, and the spaces around a value are left to `strip`: linear. A lone CR or LF, a folded line or a name with a space all fail.
_are_headers = re.compile(r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}+:[\t -~\x80-\xff]*+)*+").fullmatch

_ONCE = frozenset({"host", "origin", "sec-websocket-key", "sec-websocket-version", "content-length", "authorization", "cookie"})
"""Headers that decide something, and of which a second one could only be there to be read by somebody else."""


class Head(NamedTuple):
    """A request's method, path (unquoted), query (as sent) and headers (names in lower case; repeated ones joined by `, `)
    and HTTP version.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    version: str = "1.1"

    @property
    def is_websocket(self) -> bool:
        """Whether it asks for an upgrade to a websocket (RFC 6455 section 4.2.1)."""
        return "websocket" in [part.strip(" \t") for part in self.headers.get("upgrade", "").lower().split(",")]


def find_head(data: bytes) -> tuple[int, int]:
    """Where the request's head begins in what came so far, and where its `END` does, -1 while that is not there.

    One empty line before the request is passed over (RFC 9112 section 2.2). `HandshakeError` for what begins no request, so
    that nobody waits for the rest of it; for a TLS ClientHello with the reason `TLS`.
    """
    if data[:1].isupper():  # nearly always
        return 0, data.find(END)
    start = 2 if data.startswith(b"\r\n") else 0
    if data[:1] == TLS_HANDSHAKE:
        raise HandshakeError(400, "a client speaks TLS where none is expected: it uses wss:// or https:// on a plain port", TLS)
    if data[start : start + 1] and not data[start : start + 1].isupper() and data != b"\r":
        raise HandshakeError(400, "the request line is not METHOD /path HTTP/1.1")
    return start, data.find(END, start)


def parse_head(block: bytes, max_headers: int) -> Head:
    """Read a request's head up to and with its blank line. `HandshakeError` with 400 or 431 for whatever is not plain.

    The host is that of the target where the target names one (RFC 9110 section 7.2), and comes without an empty port.
    """
    text = block[: -len(END)].decode("latin-1")
    first_line, *lines = text.split("\r\n")
    first = _is_request_line(first_line) or _is_absolute_line(first_line)
    if not first or not _are_headers(text, len(first_line)):  # one look at them all: 14.9 -> 9.1 µs for a browser's fourteen
        if not _is_head(block):
            raise HandshakeError(400, "the request's head holds control characters")
        raise HandshakeError(400, "a header line is not name: value" if first else "the request line is not METHOD /path HTTP/1.1")
    if len(lines) > max_headers:
        raise HandshakeError(431, f"more than {max_headers} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            raise HandshakeError(400, f"more than one {name} header")
        else:
            headers[name] += f", {value}"
    if "host" not in headers:
        raise HandshakeError(400, "no host header")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise HandshakeError(400, "a request with a body is of no use here")
    headers["host"] = (first[2] or headers["host"]).removesuffix(":")
    path, _, query = first[3].partition("?")
    return Head(first[1], unquote(path) or "/", query, headers, f"1.{first[4]}")


def check_route(head: Head) -> None:
    """Pass a websocket's opening handshake on `…/websocket` or `…/websocket/`; `HandshakeError` says what else it is."""
    if head.path.rstrip("/").rpartition("/")[2] != "websocket" or head.path.endswith("//"):
        raise HandshakeError(404, "there is nothing here; the websocket is at /websocket/")
    if head.method != "GET":
        raise HandshakeError(405, "the websocket's opening handshake is a GET")
    if not head.is_websocket:
        raise HandshakeError(
            426,
            "this is a websocket: connect with ws:// or wss://. If you did, a proxy on the way took the Upgrade and "
            "Connection headers away (nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
            'proxy_set_header Connection "upgrade";)',
        )


def error_response(error: HandshakeError, *, with_body: bool = True) -> bytes:
    """The whole answer to a request that is refused; the connection ends with it. For HEAD it has no body."""
    body = f"{error}\n".encode("ascii")
    lines = [
        f"HTTP/1.1 {error.status} {_REASONS[error.status]}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if error.status == 426:
        lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    if error.status == 503:
        lines += ["Retry-After: 2"]
    if error.status == 405:
        lines += ["Allow: GET"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body if with_body else b"")


_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
