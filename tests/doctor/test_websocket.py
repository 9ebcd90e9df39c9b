from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kit.rows import each_row
from towerws.core.frames import text_frame
from towerws.doctor.websocket import Ended, OpenSocket, read_url


@contextmanager
def pair() -> Iterator[tuple[OpenSocket, socket.socket]]:
    """An open websocket, and the server's end of its connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield OpenSocket(ours, b""), theirs


@each_row("size", [2, 125, 126, 65535, 65536])
def test_messages_of_any_length(size: int) -> None:
    """The three forms of a length are read."""
    text = f'{{"a":"{"x" * (size - 8)}"}}' if size > 8 else "{}"
    with pair() as (client, server):
        server.sendall(text_frame(text.encode()))
        message = client.receive(5)
    assert message == ({"a": "x" * (size - 8)} if size > 8 else {})


def test_fragments_pings_and_silence() -> None:
    """Fragments are joined, a ping between them is answered, and silence is None and no end."""
    with pair() as (client, server):
        server.sendall(b'\x01\x04{"a"' + b"\x89\x02hi" + b"\x80\x03:1}")
        assert client.receive(5) == {"a": 1}
        assert client.pings == 1
        pong = server.recv(100)
        assert pong[:2] == b"\x8a\x82"
        assert bytes(byte ^ pong[2 + index] for index, byte in enumerate(pong[6:])) == b"hi"
        server.sendall(b"\x81")
        assert client.receive(0.01) is None
        server.sendall(b"\x02{}")
        assert client.receive(5) == {}


def test_a_message_after_the_close() -> None:
    """A close frame that came together with an answer is told after the answer, also if a message is sent between the two."""
    with pair() as (client, server):
        server.sendall(b"\x81\x02{}" + b"\x88\x02" + struct.pack("!H", 1008))
        assert client.receive(5) == {}
        client.send({"ping": 1})
        with pytest.raises(Ended) as ended:
            client.receive(5)
    assert ended.value.code == 1008


@each_row(
    ("data", "code", "text"),
    [
        (b"\x88\x02" + struct.pack("!H", 1008), 1008, "closed with 1008"),
        (b"\x88\x00", None, "closed with None"),
        (b"", None, "without a close frame"),
        (b"\x81\x7f" + struct.pack("!Q", 2**40), None, "a frame of"),
    ],
)
def test_ends(data: bytes, code: int | None, text: str) -> None:
    """Each end is told with its code, if it has one."""
    with pair() as (client, server):
        server.sendall(data)
        server.close()
        with pytest.raises(Ended, match=text) as ended:
            client.receive(5)
    assert ended.value.code == code


@each_row(
    ("url", "read"),
    [
        ("https://h", "wss://h/websocket/"),
        ("http://h:8051/", "ws://h:8051/websocket/"),
        ("wss://h/jobs/websocket", "wss://h/jobs/websocket"),
        ("ws://[::1]:80/websocket/", "ws://[::1]:80/websocket/"),
    ],
)
def test_urls(url: str, read: str) -> None:
    """The path of the websocket is the default."""
    assert read_url(url).geturl() == read


@each_row(
    "url", ["ftp://h", "h", "https://u@h", "https://h/?token=canary", "https://h/#x", "https://h:0", "https://h:99999", "https://h/ä", ""]
)
def test_urls_that_are_none(url: str) -> None:
    """Each is refused with the rule."""
    with pytest.raises(ValueError, match=r"must be|out of range"):
        read_url(url)
