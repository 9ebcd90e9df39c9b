"""A blocking websocket client (RFC 6455) that shows the status, headers and text of a refusal, and how a connection ended."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from towerws import __version__
from towerws.core.wire import SUBPROTOCOL
from towerws.doctor.network import STEP_S, Unreachable, connect, days_left, reason

MAX_HEAD_BYTES = 64 * 1024
MAX_FRAME_BYTES = 16 * 1024**2
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Ended(Exception):
    """The connection ended. `code` is the code of the close frame, None without one."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


@dataclass(slots=True)
class Handshake:
    """The answer to an opening handshake. With `status` 101, `socket` is an open websocket.

    `days` is for how many days the certificate is still valid, None without TLS. `genuine`: whether Sec-WebSocket-Accept is right.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    seconds: float
    days: float | None
    local_port: int
    """The port of this end. If the server sees this port, there is no proxy in front of it."""
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
            answer.socket = OpenSocket(connection, body)
        else:
            with connection:
                answer.text = _rest(connection, body, found).decode("utf-8", "replace")
    except (OSError, ValueError, IndexError) as error:
        connection.close()
        why = reason(error) if isinstance(error, OSError) else "the answer is not HTTP/1.1"
        raise Unreachable(f"no answer to the handshake: {why}", "see the log of the proxy, and whether towerws runs behind it") from None
    return answer


def _rest(connection: socket.socket, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the body of a refusal. It may be incomplete, because it is only shown."""
    length = headers.get("content-length", "")
    wanted = min(int(length), MAX_HEAD_BYTES) if length.isdecimal() else 0
    while len(body) < wanted and (piece := connection.recv(65536)):
        body += piece
    return body


class OpenSocket:
    """An open websocket, which answers pings. `data` are the bytes that arrived after the head of the handshake's answer."""

    def __init__(self, connection: socket.socket, data: bytes) -> None:
        self.pings = 0
        """Pings that the server sent."""
        self._connection = connection
        self._protocol = Protocol(Side.CLIENT, max_size=MAX_FRAME_BYTES)
        self._protocol.receive_data(data)
        self._frames: deque[Frame] = deque()
        self._parts: list[bytes] = []

    def send(self, message: Mapping[str, object]) -> None:
        """Send one JSON object. Raises `Ended`. After a close frame of the server it sends nothing, and `receive` raises `Ended`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(json.dumps(message).encode("ascii"))
            self._write()

    def receive(self, within_s: float) -> dict[str, Any] | None:
        """Return the next JSON object, or None if none comes in time. Raises `Ended`."""
        until = time.monotonic() + within_s
        while (frame := self._frame(until)) is not None:
            if frame.opcode is Opcode.PING:
                self.pings += 1
                self._write()
            elif frame.opcode is Opcode.CLOSE:
                payload = bytes(frame.data)
                code = int.from_bytes(payload[:2], "big") if payload else None
                raise Ended(f"closed with {code} {payload[2:].decode('utf-8', 'replace')!r}", code)
            elif frame.opcode is not Opcode.PONG:
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    text, self._parts = b"".join(self._parts), []
                    try:
                        message = json.loads(text)
                    except (ValueError, RecursionError):
                        continue  # an event that Python can't read
                    if isinstance(message, dict):
                        return message
        return None

    def close(self) -> None:
        """Send a close frame, and close the connection."""
        with suppress(Ended):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
            self._write()
        self._connection.close()

    def _write(self) -> None:
        """Send the bytes that `Protocol` has made: our messages, and answers to pings and close frames."""
        try:
            self._connection.settimeout(STEP_S)
            self._connection.sendall(b"".join(self._protocol.data_to_send()))
        except OSError as error:
            raise Ended(reason(error)) from None

    def _frame(self, until: float) -> Frame | None:
        """Return the next frame, or None if it isn't complete in time."""
        while True:
            self._frames += (event for event in self._protocol.events_received() if isinstance(event, Frame))
            if self._frames:
                return self._frames.popleft()
            if (error := self._protocol.parser_exc) is not None:
                raise Ended(f"a frame of {error.size} bytes" if isinstance(error, PayloadTooBig) else str(error))
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._connection.settimeout(left)
            try:
                piece = self._connection.recv(65536)
            except TimeoutError:
                return None
            except OSError as failure:
                raise Ended(reason(failure)) from None
            if not piece:
                raise Ended("the connection was closed without a close frame")
            self._protocol.receive_data(piece)
