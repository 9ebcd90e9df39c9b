"""The websocket's half of an opening handshake (RFC 6455 section 4.2), behind `handshake.py`'s reading of the head.

It is ours and not Autobahn's for its cost: a connect and subscribe takes half of the CPU (make bench SCENARIO=storm). Autobahn
parses the head once more, formats a dozen log lines that nobody reads, and goes through three Deferreds to write the answer.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1
from typing import NamedTuple

from towerws.core.deflate import is_extension_list
from towerws.core.errors import HandshakeError
from towerws.core.handshake import Head

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

_is_key = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
_is_host = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\x00-\x20\x7f-\xff]+)(?::[0-9]{1,5})?").fullmatch


class Upgrade(NamedTuple):
    """What a client offers: the nonce to be answered, and the subprotocols it speaks, the one it likes best first, and
    its `Sec-WebSocket-Extensions`, as they stand there.
    """

    key: str
    subprotocols: tuple[str, ...]
    extensions: str = ""


def read_upgrade(head: Head) -> Upgrade:
    """Read what a client offers. `HandshakeError` with 400, 426 or 505 when it is no opening handshake that can be answered."""
    headers = head.headers
    if head.version != "1.1":
        raise HandshakeError(505, "a websocket's opening handshake is HTTP/1.1")
    if not _is_host(headers["host"]):
        raise HandshakeError(400, "the host header is not a host, or a host and a port")
    if "upgrade" not in _tokens(headers.get("connection", "").lower()):
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
    if not is_extension_list(extensions):  # RFC 6455 section 9.1: the handshake fails
        raise HandshakeError(400, "the sec-websocket-extensions header is not a list of extensions")
    subprotocols = tuple(filter(None, _tokens(headers.get("sec-websocket-protocol", ""))))
    if len(set(subprotocols)) < len(subprotocols):
        raise HandshakeError(400, "the sec-websocket-protocol header names a subprotocol twice")
    return Upgrade(key, subprotocols, extensions)


def switching_protocols(upgrade: Upgrade, subprotocol: str | None, extension: str | None = None) -> bytes:
    """The answer that opens the websocket, with the subprotocol and the extension that were chosen."""
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
