"""The socket pair of a hand-over. A descriptor belongs to the state that names it, also if the kernel drops others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from towerws.core.handover_state import encode_message
from towerws.handover.channel import Channel


class Transport:
    """Keeps what is written. The kernel's part is the test's."""

    def __init__(self) -> None:
        self.bytes = b""
        self.descriptors: list[int] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.bytes += data

    def sendFileDescriptor(self, descriptor: int) -> None:
        """Keep a copy, as the kernel does."""
        self.descriptors.append(os.dup(descriptor))

    def abortConnection(self) -> None:
        """Note it."""
        self.aborted = True


class Pair:
    """Both ends. `send` writes a batch and returns its bytes and copies of its descriptors."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int | None]]] = []
        self._sender, self._written = Channel(lambda message, descriptors: None, lambda: None), Transport()
        self._sender.transport = self._written
        self.receiver = Channel(lambda message, descriptors: self.batches.append((message["name"], descriptors)), lambda: None)
        self.receiver.transport = Transport()

    def send(self, name: str, sockets: list[socket.socket]) -> tuple[bytes, list[int]]:
        """Write a batch of these sockets."""
        self._sender.tell("batch", [each.fileno() for each in sockets], ["{}"] * len(sockets), name=name)
        written, self._written.bytes = self._written.bytes, b""
        copies, self._written.descriptors = self._written.descriptors, []
        return written, copies

    def arrived(self) -> dict[str, list[int | None]]:
        """The local ports of the sockets that came, by batch. Closes them."""
        ports: dict[str, list[int | None]] = {}
        for name, descriptors in self.batches:
            ports[name] = []
            for descriptor in descriptors:
                if descriptor is None:
                    ports[name].append(None)
                    continue
                with socket.socket(fileno=descriptor) as copy:
                    ports[name].append(copy.getsockname()[1])
        return ports


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Five sockets, each with a port of its own."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    yield opened
    for each in opened:
        each.close()


def port(of: socket.socket) -> int:
    """Its local port."""
    found: int = of.getsockname()[1]
    return found


def test_a_dropped_descriptor_moves_no_other(sockets: list[socket.socket]) -> None:
    """Whichever of three are dropped, the others stay with their states, and the next batch has its own."""
    for count in range(4):
        for dropped in combinations(range(3), count):
            pair = Pair()
            first, its = pair.send("first", sockets[:3])
            second, others = pair.send("second", sockets[3:])
            for number, descriptor in enumerate(its):
                if number in dropped:
                    os.close(descriptor)
                else:
                    pair.receiver.fileDescriptorReceived(descriptor)
            pair.receiver.dataReceived(first[:7])
            pair.receiver.fileDescriptorReceived(others[0])  # it comes with the last bytes of the message before it
            pair.receiver.dataReceived(first[7:] + second[:1])
            pair.receiver.fileDescriptorReceived(others[1])
            pair.receiver.dataReceived(second[1:])
            assert pair.arrived() == {
                "first": [None if number in dropped else port(each) for number, each in enumerate(sockets[:3])],
                "second": [port(each) for each in sockets[3:]],
            }


def test_what_belongs_to_no_message_is_closed_with_the_channel(sockets: list[socket.socket]) -> None:
    """Also a descriptor that no message names."""
    pair = Pair()
    _, (descriptor,) = pair.send("first", sockets[:1])
    pair.receiver.fileDescriptorReceived(descriptor)
    body = encode_message("other", descriptors=[], name="other")
    pair.receiver.stringReceived(body)
    assert pair.batches == [("other", [])]
    pair.receiver.connectionLost()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_message_without_descriptors_ends_the_channel() -> None:
    """It is of another version, or not of a hand-over."""
    for body in (b"{}", b"[]", b"no JSON", b'{"kind": "batch"}', b'{"kind": "batch", "descriptors": 2}'):
        pair = Pair()
        pair.receiver.stringReceived(body)
        transport: Any = pair.receiver.transport
        assert transport.aborted
        assert pair.batches == []
