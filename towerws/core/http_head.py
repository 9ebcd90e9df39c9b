r"""The opening handshake of a websocket: reads a request's head strictly, before other code sees it (RFC 9110, 9112, 6455).

Autobahn splits header lines at `\x0b \x0c \x1c \x1d \x1e \x85` (Python's `splitlines`), and nginx passes these inside a value. So a
client could write headers of its own past a proxy that controls them (daphne's CVE-2026-44546). Therefore the only control character
that a head may contain is HTAB, and headers that must be unique may not come twice.

The bytes 0x80 to 0xFF are opaque in a header's value (RFC 9110 section 5.5): a cookie `city=München` must not lock a user out. They are
read as Latin-1. So no code may use `strip()`, `split()`, `isdigit()` or `\s` on a value: these take some of the bytes for spaces or
digits.

Autobahn's own handshake parses the head once more, formats a dozen log lines that are never written, and answers after three
Deferreds. Without it a connect and subscribe takes half the CPU (make bench SCENARIO=storm).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha1
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from towerws.core.deflate import is_extension_list
from towerws.core.errors import HandshakeError

END = b"\r\n\r\n"

TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS ClientHello (RFC 8446 section 5.1)."""

TLS = "tls"
"""The reason for refusing a client that speaks TLS on the plain port."""

WEBSOCKET_PATHS = ("/websocket", "/websocket/")
"""The websocket is at each path that ends with one of these."""

NO_CREDENTIAL = "no credential was brought"
CREDENTIAL_REFUSED = "the credential was refused"
NO_UPGRADE = (
    "this is a websocket: connect with ws:// or wss://. If you did, a proxy on the way took the Upgrade and "
    "Connection headers away. In nginx, set `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade";`'
)

_is_head = re.compile(rb"[\t\x20-\x7e\x80-\xff\r\n]*").fullmatch
_is_request_line = re.compile(r"([A-Z]{1,20}) ()(/[!-~]*) HTTP/1\.([01])").fullmatch
# A proxy may send the absolute form, and every server must accept it (RFC 9112 section 3.2.2). It may not contain a user.
_is_absolute_line = re.compile(
    r"([A-Z]{1,20}) (?i:https?|wss?)://([^\x00-\x20/?#@\x7f-\xff]{1,300})((?:[/?][!-~]*)?) HTTP/1\.([01])"
).fullmatch
# Possessive, with the spaces around a value left to `strip`, so linear in time. No lone CR or LF, no folded line, no space in a name.
_are_headers = re.compile(r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}+:[\t -~\x80-\xff]*+)*+").fullmatch

_ONCE = frozenset({"host", "origin", "sec-websocket-key", "sec-websocket-version", "content-length", "authorization", "cookie"})
"""Headers that may come only once: of two, a proxy and the daemon could each act on a different one."""


class Head(NamedTuple):
    """A request's head.

    `path` is unquoted, and `query` is as sent. `headers` has names in lower case. Repeated headers are joined by `, `.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    version: str = "1.1"

    @property
    def is_websocket(self) -> bool:
        """Whether the request asks for an upgrade to a websocket (RFC 6455 section 4.2.1)."""
        upgrade = self.headers.get("upgrade", "").lower()
        return upgrade == "websocket" or "websocket" in _tokens(upgrade)


def find_head(data: bytes) -> tuple[int, int]:
    """Return where the request's head begins in the data so far, and where its `END` begins: -1 until that has come.

    One empty line before the request is skipped (RFC 9112 section 2.2). Raises `HandshakeError` at once for data that can't be the
    start of a request. The error's reason is `TLS` for a TLS ClientHello.
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
    """Read a request's head. `block` ends with its blank line. Raise `HandshakeError` with 400 or 431 for any other data.

    The `host` header is that of the target if the target names one (RFC 9110 section 7.2). An empty port is removed from it.
    """
    text = block[: -len(END)].decode("latin-1")
    first_line, *lines = text.split("\r\n")
    first = _is_request_line(first_line) or _is_absolute_line(first_line)
    if not first or not _are_headers(text, len(first_line)):  # one match for all headers: 14.9 -> 9.1 µs for a browser's fourteen
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
    """Accept a websocket's opening handshake on `…/websocket` or `…/websocket/`. Raise `HandshakeError` for any other request."""
    if not head.path.endswith(WEBSOCKET_PATHS):
        raise HandshakeError(404, "there is nothing here; the websocket is at /websocket/")
    if head.method != "GET":
        raise HandshakeError(405, "the websocket's opening handshake is a GET")
    if not head.is_websocket:
        raise HandshakeError(426, NO_UPGRADE)


def error_response(error: HandshakeError, *, with_body: bool = True, more: Iterable[str] = ()) -> bytes:
    """Return the whole answer to a refused request. The connection ends with it. For HEAD it has no body. `more`: further headers."""
    body = f"{error}\n".encode("ascii")
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *more,
    ]
    if error.status == 401:
        lines += ["WWW-Authenticate: Bearer"]  # not Basic: a browser would ask the user for a password
    if error.status == 426:
        lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    if error.status in (429, 503):
        lines += [f"Retry-After: {error.retry_s}"]
    if error.status == 405:
        lines += ["Allow: GET"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body if with_body else b"")


_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

_is_key = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
_is_host = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\x00-\x20\x7f-\xff]+)(?::[0-9]{1,5})?").fullmatch


class Upgrade(NamedTuple):
    """A client's offer: the nonce to answer, its subprotocols in its order of preference, and its `Sec-WebSocket-Extensions`."""

    key: str
    subprotocols: tuple[str, ...]
    extensions: str = ""


def read_upgrade(head: Head) -> Upgrade:
    """Read a client's offer. Raise `HandshakeError` with 400, 426 or 505 if it is not an opening handshake of version 13."""
    headers = head.headers
    if head.version != "1.1":
        raise HandshakeError(505, "a websocket's opening handshake is HTTP/1.1")
    if not _is_host(headers["host"]):
        raise HandshakeError(400, "the host header is not a host, or a host and a port")
    connection = headers.get("connection", "").lower()
    if connection != "upgrade" and "upgrade" not in _tokens(connection):
        raise HandshakeError(400, "not a websocket's opening handshake: the connection header does not say Upgrade")
    version = headers.get("sec-websocket-version")
    if version is None:
        raise HandshakeError(400, "not a websocket's opening handshake: no sec-websocket-version header")
    if version != "13":
        raise HandshakeError(426, "this websocket speaks version 13 only")
    key = headers.get("sec-websocket-key", "")
    if not _is_key(key):
        raise HandshakeError(400, "not a websocket's opening handshake: the sec-websocket-key header is not 16 bytes in base64")
    extensions = headers.get("sec-websocket-extensions", "")
    if extensions and not is_extension_list(extensions):  # RFC 6455 section 9.1: the handshake fails
        raise HandshakeError(400, "the sec-websocket-extensions header is not a list of extensions")
    if (offered := headers.get("sec-websocket-protocol")) is None:  # AWX's clients name none
        return Upgrade(key, (), extensions)
    subprotocols = tuple(filter(None, _tokens(offered)))
    if len(set(subprotocols)) < len(subprotocols):
        raise HandshakeError(400, "the sec-websocket-protocol header names a subprotocol twice")
    return Upgrade(key, subprotocols, extensions)


def switching_protocols(upgrade: Upgrade, subprotocol: str | None, extension: str | None = None) -> bytes:
    """Return the answer that opens the websocket, with the chosen subprotocol and extension."""
    accept = b64encode(sha1(upgrade.key.encode("ascii") + _MAGIC, usedforsecurity=False).digest())
    chosen = b"" if subprotocol is None else b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
    if extension is not None:
        chosen += b"Sec-WebSocket-Extensions: %b\r\n" % extension.encode("ascii")
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%bSec-WebSocket-Accept: %b\r\n\r\n" % (
        chosen,
        accept,
    )


def _tokens(value: str) -> list[str]:
    return [token.strip(" \t") for token in value.split(",")]
