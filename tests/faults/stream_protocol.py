"""A producer on RabbitMQ's stream protocol, for one purpose: to write entries that AMQP 0-9-1 can't read.

The broker takes any bytes over this protocol. AMQP 0-9-1 reads entries that are AMQP 1.0 messages, one by one or in an uncompressed batch.
The protocol: deps/rabbitmq_stream/docs/PROTOCOL.adoc in RabbitMQ's sources.
"""

from __future__ import annotations

import gzip
import socket
import struct
from typing import Final, Self

DECLARE_PUBLISHER: Final = 0x0001
PUBLISH: Final = 0x0002
PUBLISH_CONFIRM: Final = 0x0003
PEER_PROPERTIES: Final = 0x0011
SASL_HANDSHAKE: Final = 0x0012
SASL_AUTHENTICATE: Final = 0x0013
TUNE: Final = 0x0014
OPEN: Final = 0x0015
RESPONSE: Final = 0x8000
OK: Final = 1
GZIP_BATCH: Final = 0x80 | 1 << 4
"""An entry that holds several messages, compressed: the first bit says so, the next three how."""

ANSWER_S: Final = 20.0

PLUGINS: Final = ("rabbitmq_stream",)
"""What the node needs."""


def listener(port: int) -> str:
    """The lines of rabbitmq.conf that let the plugin listen on this port of 127.0.0.1."""
    return f"stream.listeners.tcp.1 = 127.0.0.1:{port}\n"


class StreamProducer:
    """One connection that publishes to one stream. Every wait ends after `ANSWER_S` with an error."""

    def __init__(self, port: int, stream: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        self._number = 0
        self._ask(PEER_PROPERTIES, struct.pack(">i", 0))
        self._ask(SASL_HANDSHAKE, b"")
        self._ask(SASL_AUTHENTICATE, _text("PLAIN") + _bytes(b"\0guest\0guest"))
        _, limits = self._await(TUNE)
        self._send(TUNE, limits)
        self._ask(OPEN, _text("/"))
        self._ask(DECLARE_PUBLISHER, b"\0" + _text("") + _text(stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def publish(self, entry: bytes) -> None:
        """One entry with these bytes, confirmed."""
        self._publish(_bytes(entry))

    def publish_compressed(self, *messages: bytes) -> None:
        """One entry that holds these messages, compressed by gzip, confirmed. The messages get offsets of their own."""
        plain = b"".join(map(_bytes, messages))
        head = struct.pack(">BHi", GZIP_BATCH, len(messages), len(plain))
        self._publish(head + _bytes(gzip.compress(plain)))

    def _publish(self, entry: bytes) -> None:
        self._number += 1
        self._send(PUBLISH, struct.pack(">BiQ", 0, 1, self._number) + entry)
        _, confirmed = self._await(PUBLISH_CONFIRM)
        assert struct.unpack(">BiQ", confirmed) == (0, 1, self._number)

    def _ask(self, key: int, content: bytes) -> None:
        """A request, and its answer."""
        self._number += 1
        self._send(key, struct.pack(">I", self._number) + content)
        _, answer = self._await(key | RESPONSE)
        number, code = struct.unpack_from(">IH", answer)
        assert (number, code) == (self._number, OK), f"the broker answered command {key:#x} with code {code:#x}"

    def _send(self, key: int, content: bytes) -> None:
        self._socket.sendall(struct.pack(">IHH", len(content) + 4, key, 1) + content)

    def _await(self, wanted: int) -> tuple[int, bytes]:
        """The next command of this key; others that the broker sends by itself are passed over."""
        while True:
            (size,) = struct.unpack(">I", self._read(4))
            frame = self._read(size)
            key, _version = struct.unpack_from(">HH", frame)
            if key == wanted:
                return key, frame[4:]

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            assert piece, "the broker closed the stream connection"
            data += piece
        return data


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode("ascii")


def _bytes(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data
