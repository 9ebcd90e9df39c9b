"""Promises that need real sockets: hostile clients of a real daemon, and a bystander that must notice nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from private_rabbitmq import free_port
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.integration.test_websocket_daemon import RawClient, closed_with, present, send_for_ever, subscribers, wait_until
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.ws_kit import CLOSE, PING, close, frame, request, text

PING_S, PONG_S, LINGER_S = 1, 2, 2
FLAGS = (
    f"--websocket-ping-s={PING_S}",
    f"--websocket-pong-s={PONG_S}",
    f"--websocket-linger-s={LINGER_S}",
    "--max-payload-bytes=16MiB",
    "--history-max-bytes=32MiB",
    "--websocket-handshake-s=3",
)


def descriptors(daemon: Daemon) -> int:
    """How many files and sockets the daemon has open."""
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


class Bystander:
    """A well-behaved client. It gets exactly the events published for it, in every situation."""

    def __init__(self, daemon: Daemon, client: ClientConnection) -> None:
        self._daemon, self._client = daemon, client
        self._published = 0
        client.recv(DEADLINE_S)
        client.send(json.dumps({"groups": {"jobs": ["status_changed"]}}))
        client.recv(DEADLINE_S)

    def check(self) -> None:
        """The next event arrives."""
        self._published += 1
        self._daemon.publish("jobs.status_changed", {"n": self._published})
        assert json.loads(self._client.recv(DEADLINE_S)) == {"n": self._published}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a broker."""
    with Daemon(tmp_path_factory.mktemp("daemon"), "embedded:", *FLAGS) as daemon:
        yield daemon


@pytest.fixture
def daemon(started: Daemon) -> Iterator[Daemon]:
    """The same daemon. Every test must leave nothing: no connection, subscriber, topic or descriptor."""
    before = descriptors(started)
    yield started
    wait_until(lambda: present(started) == 0)
    hub = started.get("/status")[1]["hub"]
    assert (hub["subscribers"], hub["topics"]) == (0, 0)
    wait_until(lambda: descriptors(started) <= before)


@pytest.fixture
def bystander(daemon: Daemon) -> Iterator[Bystander]:
    """A bystander that is checked before and after the test."""
    with connect(daemon.url, open_timeout=DEADLINE_S) as client:
        made = Bystander(daemon, client)
        made.check()
        yield made
        made.check()


@pytest.mark.parametrize("talks", [False, True], ids=["silent", "talking"])
def test_never_reads(daemon: Daemon, bystander: Bystander, talks: bool) -> None:
    """Promises 20 and 22: 30 MB for a client that never reads are kept once, in history. It is closed when it answers no ping."""
    with RawClient(daemon, groups={"job_events": [1]}) as client:
        before = daemon.rss_kib()
        filler = "y" * 1_000_000
        for _ in range(30):
            daemon.publish("job_events.1", {"x": filler})
            if talks:
                with suppress(OSError):
                    client.socket.sendall(text("hello"))
            bystander.check()
        assert daemon.rss_kib() - before < (30 + 16) * 1024
        wait_until(lambda: present(daemon) == 1, PING_S + PONG_S + LINGER_S + 5)


def test_closes_and_stalls(daemon: Daemon, bystander: Bystander) -> None:
    """Promise 21: a client with a backlog that closes and does not read is removed at once. Its descriptor is free within 3 s."""
    with RawClient(daemon, groups={"job_events": [1]}) as client:
        for _ in range(8):
            daemon.publish("job_events.1", {"x": "y" * 500_000})
        client.socket.sendall(close())
        wait_until(lambda: subscribers(daemon) == 1, 1)
        for _ in range(8):
            daemon.publish("job_events.1", {"x": "y" * 500_000})
            bystander.check()
        wait_until(lambda: present(daemon) == 1, LINGER_S + 3)


def test_ping_flood(daemon: Daemon, bystander: Bystander) -> None:
    """Promise 24: a client that floods pings and reads no pongs is cut off. Another client's events arrive as before."""
    with RawClient(daemon, groups={"job_events": [1]}) as client:

        def flood() -> None:
            with suppress(OSError):
                send_for_ever(client, frame(PING, b"x" * 100) * 1000)

        thread = threading.Thread(target=flood)
        thread.start()
        for _ in range(50):
            bystander.check()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_subscribe_flood(daemon: Daemon, bystander: Bystander) -> None:
    """Promise 33: 10,000 subscriptions, sent as fast as possible, are answered at the rate, and end with 1008."""
    with RawClient(daemon, groups={"job_events": [1]}) as client:

        def flood() -> None:
            with suppress(OSError):
                for _ in range(100):
                    client.socket.sendall(text({"groups": {"job_events": list(range(20))}}) * 100)

        thread = threading.Thread(target=flood)
        thread.start()
        answers = 0
        while True:
            opcode, payload = client.frame()
            if opcode == CLOSE:
                break
            answers += opcode == 1
        assert payload[:2] == b"\x03\xf0"
        assert answers < 100
        bystander.check()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_sizes(daemon: Daemon, bystander: Bystander) -> None:
    """Promise 26: 64 KiB in are accepted and one byte more gets 1009. 8 MiB out arrive whole."""
    with connect(daemon.url, max_size=None, open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
        client.send(json.dumps({"groups": {"job_events": [1]}}).ljust(65_536))
        assert "groups_current" in str(client.recv(DEADLINE_S))
        payload = {"x": "y" * (8 * 1024**2 - 8)}
        daemon.publish("job_events.1", payload)
        assert json.loads(client.recv(DEADLINE_S)) == payload
        bystander.check()
        with suppress(ConnectionClosed):
            client.send("x" * 65_537)
        assert closed_with(client) == 1009


def test_slow_heads(daemon: Daemon, bystander: Bystander) -> None:
    """Promise 19: clients with an unfinished opening are cut off in time. Meanwhile others connect and get events."""
    slow = [RawClient(daemon) for _ in range(40)]
    for client in slow:
        client.socket.sendall(request(host="localhost")[:20])
    for _ in range(20):
        with connect(daemon.url, open_timeout=DEADLINE_S) as late:
            late.recv(DEADLINE_S)
        bystander.check()
    for client in slow:
        assert client.read_to_end() == b""
        client.socket.close()


HOSTILE = "canary\x1b[2J\u0085\u202e\u2066 canary"


@pytest.mark.parametrize("auth", ["open", "tower"])
def test_nothing_of_clients_or_passwords_is_logged(tmp_path: Path, auth: str) -> None:
    """Promise 39: no log line or figure has a token, cookie, header, message, reason, password or control character."""
    broker = f"amqp://towerws:canary-password@127.0.0.1:{free_port()}/vhost"
    flags = ["--tower-url", f"http://127.0.0.1:{free_port()}"] if auth == "tower" else []
    raw = HOSTILE.encode()
    daemon = Daemon(tmp_path, broker, *flags, auth=auth)
    with ExitStack() as leave:
        leave.push(daemon.__exit__)
        daemon.start(ready=False)
        headers = [
            "Cookie: sessionid=canary; csrftoken=canary",
            "Authorization: Bearer canary",
            "User-Agent: canary",
            "X-Forwarded-For: canary",
        ]
        for opening in (
            request("/canary/websocket/?token=canary&session_key=canary", added=headers),
            request("/canary?canary", added=headers),
            request(added=[*headers, "Origin: http://canary"]),
            request(added=headers).replace(b"User-Agent: canary", b"User-Agent: " + raw),
            request(added=headers).replace(b"/websocket/", b"/" + raw + b"/websocket/"),
            raw + b"\r\n\r\n",
        ):
            with RawClient(daemon) as client:
                reason = frame(CLOSE, b"\x03\xe8" + raw)
                messages = text({"groups": {HOSTILE: [HOSTILE]}, "xrftoken": "canary", "id": HOSTILE}) + text(HOSTILE)
                client.socket.sendall(opening + messages + reason)
                client.read_to_end()
        wait_until(lambda: present(daemon) == 0)
        wait_until(lambda: "connection refused" in daemon.log.read_text())
        said = [str(daemon.get(path)) for path in ("/status", "/readyz", "/healthz")]
        daemon.stop()
        log = daemon.log.read_text()
    for seen in (log, *said):
        assert "canary" not in seen
        assert all(line.replace("\t", "").isprintable() for line in seen.splitlines())
