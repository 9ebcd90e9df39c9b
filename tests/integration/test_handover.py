"""A restart that closes no connection, with real daemons, a real broker, and events published throughout."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_rabbitmq import PrivateRabbit

from tests.kit.daemon import DEADLINE_S, publish_all
from tests.kit.handed import Collector, HandedDaemon, Numbers, read_frames
from tests.kit.rows import each_row
from tests.kit.ws_kit import TEXT, frame, request
from tests.websocket.test_compression import deflate
from towerws.core.handover_state import VERSION

TOPIC = "job_events.7"
RESTARTS = 3


@pytest.fixture(scope="module")
def daemon(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandedDaemon]:
    """One daemon for the module. Its process changes."""
    flags = ["--exchange=t.handover", "--stream=t.handover.events", "--websocket-compression", "--websocket-assembly-s=60", "--restart-s=30"]
    with HandedDaemon(tmp_path_factory.mktemp("daemon"), rabbit.url, *flags, "--websocket-backlog-bytes=8K") as daemon:
        yield daemon


def raw(daemon: HandedDaemon, *, receive_buffer: int = 0, **headers: str) -> socket.socket:
    """A socket that speaks for itself, after its handshake."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(DEADLINE_S)
    client.connect(("127.0.0.1", daemon.port))
    client.sendall(request(host="localhost", **headers))
    read_frames(client, b"}")
    return client


def numbers_in(frames: bytes) -> list[int]:
    """The numbers of uncompressed events, in the order of their frames."""
    return [int(found) for found in re.findall(rb'"n": (-?\d+)', frames)]


def test_no_client_notices_several_restarts(rabbit: PrivateRabbit, daemon: HandedDaemon) -> None:
    """Clients of both dialects get every event once and in order, whether compressed, behind, or in the middle of a message."""
    subscribe = json.dumps({"groups": {"job_events": [7]}}).encode()
    clients = [Collector(daemon.url, TOPIC, v1=v1, compressed=compressed) for v1 in (False, True) for compressed in (False, True)]
    slow = raw(daemon, receive_buffer=4096)
    slow.sendall(frame(TEXT, subscribe))
    read_frames(slow, b"}")
    late = {"plain": (raw(daemon), subscribe), "deflated": (raw(daemon, sec_websocket_extensions="permessage-deflate"), deflate(subscribe))}
    for name, (client, payload) in late.items():
        rsv = 4 if name == "deflated" else 0
        client.sendall(frame(TEXT, payload[:3], fin=False, rsv=rsv))
        client.sendall(frame(0, payload[3:])[:9])  # the next frame's head, and a part of its payload
    publisher = Numbers(rabbit.url, "t.handover", TOPIC)
    publisher.start()
    for number in range(RESTARTS):
        before = publisher.count
        status, answer = daemon.restart()
        assert status == 200, answer
        assert answer["moved"] == len(clients) + 3
        assert answer["closed"] == {}
        assert answer["results"] == {"done": number + 1, "failed": 0}
        assert publisher.count > before
        clients[-1].send({"ping": number})
    for _, (client, payload) in late.items():
        client.sendall(frame(0, payload[3:])[9:])
        assert b"groups_current" in read_frames(client, b"}")
    count = publisher.finish()
    expected = [*range(count), -1]
    for client in clients:
        numbers, others, ended = client.result()
        assert ended == ""
        assert numbers == expected
        assert [other for other in others if other.get("type") != "pong"] == []
    assert clients[-1].positions == clients[-2].positions
    assert [other["pong"] for other in clients[-1].others] == list(range(RESTARTS))
    assert numbers_in(read_frames(slow, b'{"n": -1}')) == expected
    for client in (slow, *(client for client, _ in late.values())):
        client.close()
    metrics = daemon.get("/status")[1]["handovers"]
    assert metrics["results"]["done"] == RESTARTS
