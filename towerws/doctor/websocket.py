"""A blocking websocket client (RFC 6455) that shows what Autobahn hides: the status, headers and text of a refusal, and when it ended."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from towerws import __version__
from towerws.core.wire import SUBPROTOCOL
from towerws.doctor.network import STEP_S, Unreachable, connect, days_left, reason

MAX_HEAD_BYTES = 64 * 1024
MAX_FRAME_BYTES = 16 * 1024**2
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Ended(Exception):
    """The connection ended. `code` is that of the close frame, None if there was none."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


@dataclass(slots=True)
class Handshake:
    """The answer to an opening handshake. With `status` 101 and `genuine`, `socket` is an open websocket."""

    status: int
    headers: Mapping[str, str]
    text: str
    seconds: float
    days: float | None
    local_port: int
    """This end's port. A server that sees it has no proxy in front."""
    genuine: bool = False
    socket: OpenSocket | None = None

    def close(self) -> None:
        """Close the websocket, if it is open."""
        if self.socket is not None:
            self.socket.close()


def read_url(url: str) -> SplitResult:
    """Return the parts of a public URL, with ws or wss as the scheme. Raises `ValueError` with the rule."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    printable = url.isascii() and url.isprintable() and " " not in url
    if scheme not in {"ws", "wss"} or not parts.hostname or parts.username is not None or parts.query or "#" in url or not printable:
        raise ValueError("must be https://host/websocket/ or http://, without a user, a query or a fragment")
    if parts.port == 0:  # `port` raises if it is no port
        raise ValueError("the port must be 1 to 65535")
    return parts._replace(scheme=scheme, path=parts.path if parts.path.strip("/") else "/websocket/")


def handshake(url: SplitResult, headers: Mapping[str, str], ca: str = "") -> Handshake:
    """Send one opening handshake on a connection of its own. Raises `Unreachable`."""
    tls = url.scheme == "wss"
    connection = connect(url.hostname or "", url.port or (443 if tls else 80), tls=tls, ca=ca, ca_option="--url-ca")
    days = days_left(connection)
    local_port = int(connection.getsockname()[1])
    key = base64.b64encode(secrets.token_bytes(16)).decode("ascii")
    lines = {
        "Host": url.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
        "User-Agent": f"towerws-doctor/{__version__}",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    began = time.monotonic()
    try:
        connection.sendall(f"GET {url.path} HTTP/1.1\r\n{head}\r\n".encode("ascii"))
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece or len(data) > MAX_HEAD_BYTES:
                raise ConnectionResetError
            data += piece
        seconds = time.monotonic() - began
        first, _, rest = data.partition(b"\r\n")
        fields, _, body = rest.partition(b"\r\n\r\n")
        found = {}
        for line in fields.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            found[name.strip().lower()] = value.strip()
        status = int(first.split(b" ")[1])
        answer = Handshake(status, found, "", seconds, days, local_port)
        if status == 101:
            digest = hashlib.sha1(f"{key}{_MAGIC}".encode("ascii"), usedforsecurity=False).digest()
            answer.genuine = found.get("sec-websocket-accept") == base64.b64encode(digest).decode("ascii")
            answer.socket = OpenSocket(connection, bytearray(body))
        else:
            with connection:
                answer.text = _rest(connection, body, found).decode("utf-8", "replace")
    except (OSError, ValueError, IndexError) as error:
        connection.close()
        why = reason(error) if isinstance(error, OSError) else "the answer is not HTTP/1.1"
        raise Unreachable(f"no answer to the handshake: {why}", "see the log of the proxy, and whether towerws runs behind it") from None
    return answer


def _rest(connection: socket.socket, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the body of a refusal, as far as it comes: it is only shown."""
    length = headers.get("content-length", "")
    wanted = min(int(length), MAX_HEAD_BYTES) if length.isdecimal() else 0
    while len(body) < wanted and (piece := connection.recv(65536)):
        body += piece
    return body


@dataclass(slots=True)
class OpenSocket:
    """An open websocket. It answers pings."""

    _connection: socket.socket
    _data: bytearray
    pings: int = 0
    """Pings that the server sent."""
    _parts: list[bytes] = field(default_factory=list)

    def send(self, message: Mapping[str, object]) -> None:
        """Send one JSON object. Raises `Ended`."""
        self._write(_TEXT, json.dumps(message).encode("ascii"))

    def receive(self, within_s: float) -> dict[str, Any] | None:
        """Return the next JSON object, or None if none comes in time. Raises `Ended`."""
        until = time.monotonic() + within_s
        while True:
            frame = self._frame(until)
            if frame is None:
                return None
            opcode, final, payload = frame
            if opcode == _PING:
                self.pings += 1
                self._write(_PONG, payload)
            elif opcode == _CLOSE:
                code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
                raise Ended(f"closed with {code} {payload[2:].decode('utf-8', 'replace')!r}", code)
            elif opcode != _PONG:
                self._parts.append(payload)
                if final:
                    text, self._parts = b"".join(self._parts), []
                    try:
                        message = json.loads(text)
                    except (ValueError, RecursionError):
                        continue  # an event that Python can't read
                    if isinstance(message, dict):
                        return message

    def close(self) -> None:
        """Send a close frame, and close the connection."""
        with suppress(Ended):
            self._write(_CLOSE, (1000).to_bytes(2, "big"))
        self._connection.close()

    def _write(self, opcode: int, payload: bytes) -> None:
        mask = secrets.token_bytes(4)
        size = len(payload)
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        try:
            self._connection.settimeout(STEP_S)
            self._connection.sendall(head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)))
        except OSError as error:
            raise Ended(reason(error)) from None

    def _frame(self, until: float) -> tuple[int, bool, bytes] | None:
        """Return opcode, end and payload of the next frame, or None if it isn't complete in time."""
        while True:
            size = _frame_size(self._data)
            if size is not None and len(self._data) >= sum(size):
                head, length = size
                first = self._data[0]
                payload = bytes(self._data[head : head + length])
                del self._data[: head + length]
                return first & 0x0F, bool(first & 0x80), payload
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._connection.settimeout(left)
            try:
                piece = self._connection.recv(65536)
            except TimeoutError:
                return None
            except OSError as error:
                raise Ended(reason(error)) from None
            if not piece:
                raise Ended("the connection was closed without a close frame")
            self._data += piece


def _frame_size(data: bytearray) -> tuple[int, int] | None:
    """Return the sizes of head and payload of the frame at the start, None until they are known. Servers don't mask."""
    if len(data) < 2:
        return None
    short = data[1] & 0x7F
    head = {126: 4, 127: 10}.get(short, 2)
    if len(data) < head:
        return None
    length = short if head == 2 else int.from_bytes(data[2:head], "big")
    if length > MAX_FRAME_BYTES:
        raise Ended(f"a frame of {length} bytes")
    return head, length
