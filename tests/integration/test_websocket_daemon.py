"""The daemon with its embedded source, real sockets, and independent clients, well-behaved and hostile."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import pytest
import websocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.ws_kit import CLOSE, PING, close, frame, request, text

LINGER_S, DRAIN_S, STOP_GRACE_S = 2, 1, 3
"""The same value as below, and in service.py."""

V1 = Subprotocol("towerws.v1")

FLAGS = (f"--websocket-linger-s={LINGER_S}", f"--websocket-drain-s={DRAIN_S}", "--websocket-handshake-s=3")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon without a broker. At the end its log must hold nothing unexpected, and no connection may be left."""
    with Daemon(tmp_path, "embedded:", *FLAGS) as started:
        yield started
        wait_until(lambda: started.get("/status")[1]["connections"]["present"] == 0)
        figures = started.get("/status")[1]
        assert (figures["hub"]["subscribers"], figures["hub"]["topics"]) == (0, 0)
        assert figures["connections"]["opened"] == figures["connections"]["closed"]


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that the test itself stops."""
    with Daemon(tmp_path, "embedded:", *FLAGS) as started:
        yield started


def wait_until(holds: Callable[[], bool], within_s: float = DEADLINE_S) -> float:
    """Poll until the condition holds. Returns the seconds that took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within_s, f"did not hold within {within_s} s"
        time.sleep(0.02)  # between two polls
    return time.monotonic() - started


def test_a_storm_is_accepted_at_the_rate(tmp_path: Path) -> None:
    """More clients connect at once than the rate allows. All are accepted at the rate, and none is refused."""
    with Daemon(tmp_path, "embedded:", *FLAGS, "--limits-accepts-per-s=100", "--limits-half-open=1000") as daemon:
        clients = [socket.create_connection(("127.0.0.1", daemon.port), DEADLINE_S) for _ in range(150)]
        for client in clients:
            client.sendall(request(host="localhost"))
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 101"
        connections = daemon.get("/status")[1]["connections"]
        assert connections["opened"] == 150
        assert connections["refused"] == {}
        assert connections["accept_pauses"] >= 150 // 20 - 1
        for client in clients:
            client.close()


class RawClient:
    """A client that sends and reads exactly what a test wants, with a small receive buffer."""

    def __init__(self, daemon: Daemon, *, groups: dict[str, list[int]] | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", daemon.port))
        self._rest = b""
        if groups is not None:
            self.socket.sendall(request(host="localhost") + text({"groups": groups}))
            while b"\r\n\r\n" not in self._rest:
                self._rest += self.socket.recv(4096)
            self._rest = self._rest.partition(b"\r\n\r\n")[2]
            assert self.frame()[1].startswith(b'{"accept"')
            assert self.frame()[1].startswith(b'{"groups_current"')

    def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        opcode, length = self._take(2)
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        return opcode & 0x0F, self._take(length)

    def _take(self, raw: int) -> bytes:
        while len(self._rest) < raw:
            found = self.socket.recv(65536)
            if not found:
                raise EOFError
            self._rest += found
        taken, self._rest = self._rest[:raw], self._rest[raw:]
        return taken

    def read_to_end(self) -> bytes:
        """All bytes until the server ends the connection."""
        found = [self._rest]
        try:
            while piece := self.socket.recv(65536):
                found.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def send_for_ever(client: RawClient, raw: bytes) -> None:
    """Send until that fails."""
    while True:
        client.socket.sendall(raw)


def closed_with(client: ClientConnection) -> int | None:
    """The server's close code. The close must be the next frame."""
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(DEADLINE_S)
    return None if caught.value.rcvd is None else caught.value.rcvd.code


def present(daemon: Daemon) -> int:
    """How many TCP connections the daemon has."""
    return int(daemon.get("/status")[1]["connections"]["present"])


def subscribers(daemon: Daemon) -> int:
    """How many connections are in its hub."""
    return int(daemon.get("/status")[1]["hub"]["subscribers"])


def test_two_clients_of_other_makers(daemon: Daemon) -> None:
    """`websockets` and `websocket-client`, one on each dialect, get their events in order, and close cleanly."""
    with (
        connect(daemon.url, subprotocols=[V1], open_timeout=DEADLINE_S) as first,
        closing(websocket.create_connection(daemon.url[:-1])) as second,
    ):
        both(daemon, first, second)
    assert first.close_code == 1000


def both(daemon: Daemon, first: ClientConnection, second: Any) -> None:
    """The steps of the test above, with both clients."""
    second.settimeout(DEADLINE_S)
    assert json.loads(first.recv(DEADLINE_S))["type"] == "welcome"
    assert json.loads(second.recv()) == {"accept": True, "user": 0}
    first.send(json.dumps({"groups": {"job_events": [1]}, "id": 1}))
    second.send(json.dumps({"groups": {"job_events": [1], "jobs": ["status_changed"]}}))
    assert json.loads(first.recv(DEADLINE_S))["groups_current"] == ["job_events.1"]
    assert json.loads(second.recv())["groups_current"] == ["job_events-1", "jobs-status_changed"]
    for number in range(50):
        daemon.publish("job_events.1" if number % 2 else "jobs.status_changed", {"n": number})
    assert [json.loads(first.recv(DEADLINE_S))["payload"]["n"] for _ in range(25)] == list(range(1, 50, 2))
    assert [json.loads(second.recv())["n"] for _ in range(50)] == list(range(50))


def test_large_messages_both_ways(daemon: Daemon) -> None:
    """4 MiB out arrive whole. More than 64 KiB in gets 1009, which a client reads even if it sends much more."""
    with connect(daemon.url, max_size=None, open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
        client.send(json.dumps({"groups": {"job_events": [1]}}))
        client.recv(DEADLINE_S)
        daemon.publish("job_events.1", {"x": "y" * (4 * 1024**2 - 100)})
        assert len(client.recv(DEADLINE_S)) > 4_000_000
        with suppress(ConnectionClosed):
            client.send("x" * 1024**2)
        assert closed_with(client) == 1009


def test_stops_reading_and_starts_again(daemon: Daemon) -> None:
    """A client that stops reading gets everything in order when it reads again. Little is kept for it, and a bystander notices nothing."""
    count, filler = 300, "y" * 100_000
    with RawClient(daemon, groups={"job_events": [1]}) as slow, connect(daemon.url, open_timeout=DEADLINE_S) as bystander:
        bystander.recv(DEADLINE_S)
        bystander.send(json.dumps({"groups": {"job_events": [1]}}))
        bystander.recv(DEADLINE_S)
        before = daemon.rss_kib()
        slowest = 0.0
        for number in range(count):
            published = time.monotonic()
            daemon.publish("job_events.1", {"n": number, "x": filler})
            assert json.loads(bystander.recv(DEADLINE_S))["n"] == number
            slowest = max(slowest, time.monotonic() - published)
        assert slowest < 2
        assert daemon.get("/status")[1]["hub"]["behind"] == 1
        history = count * 100  # KiB: these messages, kept once
        assert daemon.rss_kib() - before < history + 12_000, "kept twice, it would be 30 MB more"
        assert [json.loads(slow.frame()[1])["n"] for _ in range(count)] == list(range(count))
        daemon.publish("job_events.1", {"n": count})
        assert json.loads(slow.frame()[1])["n"] == count
        assert daemon.get("/status")[1]["hub"]["behind"] == 0


def test_closes_and_stalls(daemon: Daemon) -> None:
    """A client with a backlog that closes and does not read is removed from the hub at once, and cut after the linger time."""
    with RawClient(daemon, groups={"job_events": [1]}) as client:
        for _ in range(40):
            daemon.publish("job_events.1", {"x": "y" * 100_000})
        client.socket.sendall(close())
        wait_until(lambda: subscribers(daemon) == 0, 1)
        assert present(daemon) == 1
        wait_until(lambda: present(daemon) == 0, LINGER_S + 2)


def test_ping_flood(daemon: Daemon) -> None:
    """A client that floods pings and reads nothing is closed with 1008. Others notice nothing."""
    with RawClient(daemon, groups={"job_events": [1]}) as flooder, connect(daemon.url, open_timeout=DEADLINE_S) as bystander:
        flood = frame(PING, b"x" * 100) * 1000
        flooder.socket.settimeout(LINGER_S + 3)
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            send_for_ever(flooder, flood)
        bystander.recv(DEADLINE_S)
        assert bystander.ping().wait(2)


def test_flooder_is_told_why(daemon: Daemon) -> None:
    """A client that sends a burst of too many pings can read the code 1008."""
    with RawClient(daemon, groups={"job_events": [1]}) as flooder:
        flooder.socket.sendall(frame(PING) * 500)
        while True:
            opcode, payload = flooder.frame()
            if opcode == CLOSE:
                break
        assert struct.unpack("!H", payload[:2]) == (1008,)


def test_http_requests(daemon: Daemon) -> None:
    """A browser's plain request gets an answer that names what is missing. An unfinished handshake is cut off."""
    for path, status, word in (("/websocket/", 426, b"proxy_set_header"), ("/", 404, b"/websocket/")):
        plain = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=DEADLINE_S)
        plain.request("GET", path)
        answer = plain.getresponse()
        assert answer.status == status
        assert word in answer.read()
        plain.close()
    with RawClient(daemon) as endless:
        endless.socket.sendall(b"GET /websocket/ HTTP/1.1\r\nX: " + b"a" * 17_000)
        assert endless.read_to_end().startswith(b"HTTP/1.1 431 ")
    with RawClient(daemon) as slow:
        slow.socket.sendall(b"GET /websocket/ HTTP/1.1\r\n")
        assert slow.read_to_end() == b""


def test_admin_port(daemon: Daemon) -> None:
    """The live page is served. A body that is too long gets a 413, which also a client reads that sends all of it first."""
    plain = http.client.HTTPConnection("127.0.0.1", daemon.admin_port, timeout=DEADLINE_S)
    plain.request("GET", "/live")
    page = plain.getresponse()
    assert page.status == 200
    assert str(daemon.port).encode() in page.read()
    plain.close()
    status, answer = daemon.ask("POST", "/publish", b"x" * 10_000_000)
    assert (status, list(answer)) == (413, ["error"])


def test_sigterm(stopping: Daemon) -> None:
    """SIGTERM closes the clients with 1012, aborts those that do not answer or read, and ends the daemon in time."""
    with (
        connect(stopping.url, subprotocols=[V1], open_timeout=DEADLINE_S) as polite,
        RawClient(stopping, groups={"job_events": [1]}) as deaf,
        RawClient(stopping, groups={"job_events": [1]}) as silent,
        RawClient(stopping) as late,
    ):
        assert json.loads(polite.recv(DEADLINE_S))["type"] == "welcome"
        late.socket.sendall(b"GET /websocket/ HTTP/1.1\r\n")
        for _ in range(40):
            stopping.publish("job_events.1", {"x": "y" * 100_000})
        for _ in range(40):
            silent.frame()
        wait_until(lambda: present(stopping) == 4)
        started = time.monotonic()
        status = stopping.stop()
        took = time.monotonic() - started
        bye = json.loads(polite.recv(DEADLINE_S))
        assert (bye["type"], bye["reason"]) == ("bye", "restart")
        assert bye["reconnect_after_ms"] > 0
        assert closed_with(polite) == 1012
        opcode, payload = silent.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1012))
        assert silent.read_to_end() == b""
        assert late.read_to_end() == b""
        assert deaf.read_to_end()
    assert status in (0, -signal.SIGTERM)
    assert took < DRAIN_S + STOP_GRACE_S + 1


def test_sigterm_without_clients(stopping: Daemon) -> None:
    """Without clients the end is prompt."""
    started = time.monotonic()
    stopping.stop()
    assert time.monotonic() - started < 2
