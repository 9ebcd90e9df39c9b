"""A restart that closes no connection, with real daemons, a real broker, and events published throughout."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pika
import pytest
from private_rabbitmq import PrivateRabbit, free_port

from tests.integration.test_access_daemon import TOKEN, ask, close_code, enter
from tests.integration.test_closing import Dial, open_socket
from tests.integration.test_websocket_transports import tls, unix
from tests.integration.tower_api import CANARY, Api
from tests.kit.daemon import DEADLINE_S, V1Client, publish_all
from tests.kit.handed import Collector, HandedDaemon, Numbers, RawClient, wait_for_end
from tests.kit.rows import each_row
from tests.kit.ws_kit import CLOSE, TEXT, frame, request
from tests.websocket.test_compression import deflate
from towerws.core.handover_state import VERSION
from towerws.handover.predecessor import BATCH, MAX_UNANSWERED

STARTED = re.compile(r"process (\d+) was started").findall
TOPIC = "job_events.7"
RESTARTS = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def notified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path_factory.mktemp("notify") / "socket"))
        manager.setblocking(False)
        yield manager


@pytest.fixture(scope="module")
def daemon(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory, notified: socket.socket) -> Iterator[HandedDaemon]:
    """One daemon for the module. Its process changes."""
    folder = tmp_path_factory.mktemp("daemon")
    flags = ["--websocket-compression", "--websocket-assembly-s=60", "--restart-s=30", "--websocket-backlog-bytes=8KiB"]
    names = ["--exchange=t.handover", "--stream=t.handover.events"]
    with HandedDaemon(folder, rabbit.url, *names, *flags, environment={"NOTIFY_SOCKET": notified.getsockname()}) as daemon:
        yield daemon


def raw(daemon: HandedDaemon, *added: str, receive_buffer: int = 0) -> RawClient:
    """A client that speaks for itself, after its handshake."""
    connected = socket.socket()
    if receive_buffer:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connected.settimeout(DEADLINE_S)
    connected.connect(("127.0.0.1", daemon.port))
    client = RawClient(connected)
    client.send(request(host="localhost", added=added))
    client.read_response()
    client.read_until(b"accept")
    return client


def numbers_in(messages: Iterable[bytes]) -> list[int]:
    """The numbers of events."""
    return [int(found) for message in messages for found in re.findall(rb'"n": (-?\d+)', message)]


def test_no_client_notices_several_restarts(rabbit: PrivateRabbit, daemon: HandedDaemon) -> None:
    """Clients of both dialects get every event once and in order, whether compressed, behind, or in the middle of a message."""
    subscribe = json.dumps({"groups": {"job_events": [7]}}).encode()
    clients = [Collector(daemon.url, TOPIC, v1=v1, compressed=compressed) for v1 in (False, True) for compressed in (False, True)]
    slow = raw(daemon, receive_buffer=4096)
    slow.send(frame(TEXT, subscribe))
    slow.read_until(b"groups_current")
    late = {
        "plain": (raw(daemon), subscribe),
        "deflated": (raw(daemon, "Sec-WebSocket-Extensions: permessage-deflate"), deflate(subscribe)),
    }
    for name, (client, payload) in late.items():
        rsv = 4 if name == "deflated" else 0
        client.send(frame(TEXT, payload[:3], fin=False, rsv=rsv))
        client.send(frame(0, payload[3:])[:9])  # the next frame's head, and a part of its payload
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
    for client, payload in late.values():
        client.send(frame(0, payload[3:])[9:])
        client.read_until(b"groups_current")
    count = publisher.finish()
    expected = [*range(count), -1]
    for each in clients:
        numbers, others, ended = each.result()
        assert ended == ""
        assert numbers == expected
        assert [other for other in others if other.get("type") != "pong"] == []
    assert clients[-1].positions == clients[-2].positions
    assert [other["ping"] for other in clients[-1].others] == list(range(RESTARTS))
    assert numbers_in(slow.read_until(b'{"n": -1}')) == expected
    for client in (slow, *(client for client, _ in late.values())):
        client.close()
    metrics = daemon.get("/status")[1]["handovers"]
    assert metrics["results"]["done"] == RESTARTS


class Asking(threading.Thread):
    """`POST /restart` in a thread, because the answer comes late."""

    def __init__(self, daemon: HandedDaemon) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self.started_before = len(STARTED(daemon.log.read_text()))
        self.answer: tuple[int, Any] = (0, {})

    def run(self) -> None:
        """Ask."""
        self.answer = self._daemon.restart()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.join(DEADLINE_S)

    def successor(self) -> int:
        """The id of the process that the daemon has started, from its log."""
        give_up = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up:
            found = STARTED(self._daemon.log.read_text())
            if len(found) > self.started_before:
                return int(found[-1])
            time.sleep(0.02)  # polled: another process writes the log
        raise AssertionError("no successor was started")


def kept(daemon: HandedDaemon, url: str) -> None:
    """The old process still serves: a new client, and events."""
    client = Collector(daemon.url, TOPIC, v1=True)
    publish_all(url, [(TOPIC, b'{"n": 1}'), (TOPIC, b'{"n": -1}')], "t.handover")
    assert client.result() == ([1, -1], [], "")


def test_a_successor_that_is_killed_leaves_the_old_process_serving(rabbit: PrivateRabbit, daemon: HandedDaemon) -> None:
    """The answer and the log name the signal."""
    client = Collector(daemon.url, TOPIC, v1=False)
    with Asking(daemon) as asking:
        os.kill(asking.successor(), signal.SIGKILL)
    assert asking.answer[0] == 503
    assert "ended by signal 9" in asking.answer[1]["error"]
    kept(daemon, rabbit.url)
    assert client.result() == ([1, -1], [], "")


def test_a_second_restart_at_the_same_time_is_refused(rabbit: PrivateRabbit, daemon: HandedDaemon) -> None:
    """Only one successor is started."""
    with Asking(daemon) as asking:
        pid = asking.successor()
        status, answer = daemon.ask("POST", "/restart", b"")
        os.kill(pid, signal.SIGKILL)
    assert (status, answer["error"]) == (503, "a hand-over is under way already")
    kept(daemon, rabbit.url)


def messages(manager: socket.socket) -> list[str]:
    """What the service manager was told since the last call."""
    found: list[str] = []
    with suppress(BlockingIOError):
        while True:
            found += manager.recv(4096).decode().split("\n")
    return found


def test_the_command_restarts_and_systemd_follows(rabbit: PrivateRabbit, daemon: HandedDaemon, notified: socket.socket) -> None:
    """`towerws restart` says what happened. systemd is told of the new main process, and of no stop."""
    client = Collector(daemon.url, TOPIC, v1=True)
    before = daemon.pid
    messages(notified)
    done = command(daemon, "--config", str(daemon.log.parent / "empty.toml"))
    assert done.stderr == ""
    assert done.returncode == 0
    found = re.search(r"Process (\d+) serves now: 1 connections moved in \d+\.\d{3} s, 0 not moved\.", done.stdout)
    assert found is not None, done.stdout
    daemon.serving = int(found[1])
    wait_for_end(before)
    told: list[str] = []
    give_up = time.monotonic() + DEADLINE_S
    main = f"MAINPID={daemon.serving}"
    while main not in told or "READY=1" not in told[told.index(main) :]:  # an earlier READY=1 is the old process's own
        assert time.monotonic() < give_up, told
        told += messages(notified)
        time.sleep(0.02)  # polled: the new process begins to tell when it is alone
    assert "STOPPING=1" not in told
    kept(daemon, rabbit.url)
    assert client.result() == ([1, -1], [], "")


def test_sigusr2_restarts_too(daemon: HandedDaemon) -> None:
    """The log says what happened. New clients come in, and no listening socket is lost."""
    before = daemon.pid
    done = daemon.get("/status")[1]["handovers"]["results"]["done"]
    os.kill(before, signal.SIGUSR2)
    wait_for_end(before)
    daemon.serving = int(re.findall(r"moved to process (\d+)", daemon.log.read_text())[-1])
    status = daemon.get("/status")[1]
    assert status["handovers"]["results"]["done"] == done + 1
    raw(daemon).close()


def test_a_sibling_is_not_concerned(rabbit: PrivateRabbit, daemon: HandedDaemon, tmp_path: Path) -> None:
    """Another daemon of the same parent, on the same stream, keeps its process and its client, as a worker keeps those of its own."""
    with HandedDaemon(tmp_path, rabbit.url, "--exchange=t.handover", "--stream=t.handover.events") as sibling:
        client, moved = (Collector(each.url, TOPIC, v1=True) for each in (sibling, daemon))
        before = sibling.get("/status")[1]
        status, answer = daemon.restart()
        assert (status, answer["moved"]) == (200, 1)
        kept(daemon, rabbit.url)
        after = sibling.get("/status")[1]
        assert after["uptime_s"] >= before["uptime_s"]
        assert after["connections"]["closed"] == 0
        assert after["handovers"]["results"] == {"done": 0, "failed": 0}
        assert client.result() == moved.result() == ([1, -1], [], "")


def test_the_command_says_why_nothing_was_restarted(fragile: HandedDaemon) -> None:
    """The exit status tells a failed hand-over from a daemon that isn't there."""
    fault = fragile.log.parent / "other-version"
    fault.touch()
    try:
        failed = command(fragile)
    finally:
        fault.unlink()
    assert failed.returncode == 1
    assert failed.stderr == (
        f"towerws: the successor failed: the running process hands over in version {VERSION}, and this release in version 99; "
        "restart towerws; the old process goes on\n"
    )
    missing = command(fragile, "--admin", f"tcp:{free_port()}:interface=127.0.0.1")
    assert missing.returncode == 3
    assert "no answer from a daemon there" in missing.stderr


def test_embedded_hands_over_its_history(tmp_path: Path) -> None:
    """Without a broker, too: positions of before count, and nothing is lost while events are published."""
    with HandedDaemon(tmp_path, "embedded:") as daemon:
        client = Collector(daemon.url, TOPIC, v1=True)
        tower = Collector(daemon.url, TOPIC, v1=False)
        first = [daemon.publish(TOPIC, {"n": number}) for number in range(3)]
        status, answer = daemon.restart()
        assert (status, answer["moved"]) == (200, 2)
        last = daemon.publish(TOPIC, {"n": -1})
        late = V1Client(daemon.url, {"job_events": [7]})
        late.position = first[0]
        late.open().until({"n": -1})
        late.close()
        assert late.payloads == [{"n": 1}, {"n": 2}, {"n": -1}]
        assert late.positions == [*first[1:], last]
        assert client.result() == tower.result() == ([0, 1, 2, -1], [], "")


def test_the_credential_goes_along(tmp_path: Path, tower: tuple[type[Api], str]) -> None:
    """The new process asks AWX with the client's own cookie, wants its `xrftoken`, and ends the connection with the session."""
    api, url = tower
    flags = ("--tower-url", url, "--revalidate-s", "1", "--trusted-proxies", "127.0.0.1", "--tower-valid-s", "0")
    with HandedDaemon(tmp_path, "embedded:", *flags, auth="tower") as daemon:
        with enter(daemon, Cookie=f"sessionid={CANARY}; csrftoken={TOKEN}", X_Forwarded_For="203.0.113.5") as client:
            assert ask(client, {"groups": {"job_events": [42]}, "xrftoken": TOKEN})[0]["groups_current"] == ["job_events-42"]
            status, answer = daemon.restart()
            assert (status, answer["moved"]) == (200, 1)
            daemon.publish("job_events.42", {"n": 1})
            assert json.loads(client.recv(DEADLINE_S)) == {"n": 1}
            assert ask(client, {"groups": {"job_events": [42]}}) == [{"error": "access denied to channel"}]
            denied, kept = ask(client, {"groups": {"job_events": [42, 43]}, "xrftoken": TOKEN}, 2)
            assert denied["error"] == "access denied to channel job_events for resource id 43"
            assert (kept["groups_current"], kept["groups_joined"]) == (["job_events-42"], [])
            assert api.asked[-1].endswith(" for 203.0.113.5")
            api.sessions.clear()
            assert close_code(client) == 1008
        log = daemon.log.read_text()
    assert "canary" not in log


@each_row("transport", [unix, tls])
def test_other_transports(tmp_path: Path, transport: Callable[[Path], tuple[str, Dial]]) -> None:
    """A client of a UNIX socket moves. TLS that ends in the daemon can't: its client is closed with 1012. Both sockets go on listening.

    A UNIX socket keeps the mode of its file.
    """
    folder = tmp_path / transport.__name__
    folder.mkdir()
    endpoint, dial = transport(folder)
    if transport is unix:
        endpoint += ":mode=600"
    with HandedDaemon(folder, "embedded:", "--listen", endpoint) as daemon:
        client = RawClient(open_socket(dial))
        client.send(frame(TEXT, b'{"groups": {"job_events": [7]}}'))
        client.read_until(b"groups_current")
        status, answer = daemon.restart()
        assert status == 200, answer
        if transport is unix:
            assert (answer["moved"], answer["closed"]) == (1, {})
            daemon.publish(TOPIC, {"n": -1})
            client.read_until(b'{"n": -1}')
            assert stat.S_IMODE((folder / "towerws.sock").stat().st_mode) == 0o600
        else:
            assert (answer["moved"], answer["closed"]) == (0, {"TLS or the PROXY protocol ends in the daemon": 1})
            assert client.socket.recv(4096)[2:4] == struct.pack("!H", 1012)
        client.close()
        open_socket(dial).close()


def test_a_queue_says_why_it_cannot(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """Another process's queue has another order. Nothing is started."""
    with HandedDaemon(tmp_path, rabbit.url, "--consume=queue", "--exchange=t.handover.queue") as daemon:
        status, answer = daemon.restart()
    reason = "a daemon that reads a queue of its own can't hand over: the queue ends with its process; use a stream"
    assert (status, answer["error"]) == (503, reason)


def command(daemon: HandedDaemon, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `towerws restart` for this daemon."""
    (daemon.log.parent / "empty.toml").touch()
    words: list[str | Path] = [Path(sys.executable).with_name("towerws"), "restart", "--auth=open", "--broker=embedded:"]
    admin = [] if "--admin" in flags else ["--admin", f"tcp:{daemon.admin_port}:interface=127.0.0.1"]
    return subprocess.run([*words, *admin, *flags], capture_output=True, text=True, check=False, timeout=90)


@pytest.fixture(scope="module")
def fragile(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandedDaemon]:
    """A daemon whose successors fail as the files in its folder say. It is never replaced."""
    folder = tmp_path_factory.mktemp("fragile")
    (folder / "sitecustomize.py").write_text(FAULTS)
    (folder / "towerws.toml").write_text(GOOD)
    declare_classic_queue(rabbit.url, "t.fragile.classic")
    environment = {"PYTHONPATH": f"{folder}:{ROOT}"}
    with HandedDaemon(folder, rabbit.url, "--config=towerws.toml", "--exchange=t.fragile", environment=environment) as daemon:
        yield daemon


FAULTS = """
import os
if os.path.exists("other-version"):
    import towerws.core.handover_state
    towerws.core.handover_state.VERSION = 99
if os.path.exists("dies-in-batch"):
    import towerws.handover.successor
    towerws.handover.successor.Successor._adopt_batch = lambda self, message, descriptors: os._exit(9)
"""
"""Read by each new process of the daemon, before its own code."""

FEW_DESCRIPTORS = """
import os, resource
if "_TOWERWS_HANDOVER" in os.environ:
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
"""
"""Read by each new process. A successor has room for some 70 connections then."""

GOOD = 'restart_s = 10\nstream = "t.fragile.events"\n'
FAILURES: dict[str, tuple[str, str, str]] = {
    "bad configuration": ("towerws.toml", GOOD + "nonsense = 1\n", "ended with status 2|failed: .*nonsense"),
    "never ready": ("towerws.toml", GOOD.replace("events", "classic"), r"did not say 'ready' within 10 s; it is not ready: .+"),
    "another log": ("towerws.toml", GOOD.replace(".events", ".others"), "its log does not hold the place"),
    "a port that it can't open": (
        "towerws.toml",
        GOOD + 'monitor = "unix:sitecustomize.py"\n',
        "(ended with status 2|failed): monitor = .* the path exists and isn't a socket",
    ),
    "another version": ("other-version", "", f"the running process hands over in version {VERSION}, and this release in version 99"),
}
"""By fault: the file that causes it, its content, and the reason that the operator reads."""


@each_row("fault", list(FAILURES))
def test_a_successor_that_fails_leaves_the_old_process_serving(fragile: HandedDaemon, rabbit: PrivateRabbit, fault: str) -> None:
    """The reason is in the answer and in the log. No client notices anything."""
    name, content, reason = FAILURES[fault]
    file = fragile.log.parent / name
    before = file.read_text() if file.exists() else None
    client = Collector(fragile.url, TOPIC, v1=False)
    file.write_text(content)
    try:
        status, answer = fragile.restart()
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)
    assert status == 503
    assert re.search(reason, answer["error"]), answer
    assert re.search(rf"hand-over failed: .*({reason})", fragile.log.read_text())
    publish_all(rabbit.url, [(TOPIC, b'{"n": -1}')], "t.fragile")
    assert client.result() == ([-1], [], "")


def test_a_full_daemon_while_refused_clients_try_again(tmp_path: Path) -> None:
    """They get no place of a connection that has still to move."""
    limit = 120
    with HandedDaemon(tmp_path, "embedded:", f"--limits-connections={limit}") as daemon, ExitStack() as leave:
        held = [raw(daemon) for _ in range(limit)]
        for client in held:
            leave.enter_context(client.socket)
        stop, served = threading.Event(), [0]

        def try_again() -> None:
            while not stop.is_set():
                with suppress(OSError), socket.create_connection(("127.0.0.1", daemon.port), DEADLINE_S) as refused:
                    refused.sendall(request(host="localhost"))
                    served[0] += refused.recv(100).startswith(b"HTTP/1.1 101")

        threads = [threading.Thread(target=try_again) for _ in range(8)]
        for thread in threads:
            thread.start()
        status, answer = daemon.restart()
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert (status, answer["moved"], answer["closed"]) == (200, limit, {})
        assert served == [0]
        for client in held:
            client.send(frame(TEXT, b'{"groups": {"jobs": ["summary"]}}'))
            client.read_until(b"groups_joined")


def test_a_successor_with_too_few_descriptors(tmp_path: Path) -> None:
    """What it can't take is closed with 1012 by the old process. What it takes goes on, each client with its own topic."""
    count = 2 * BATCH
    (tmp_path / "sitecustomize.py").write_text(FEW_DESCRIPTORS)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with HandedDaemon(tmp_path, "embedded:", environment=environment) as daemon, ExitStack() as leave:
        clients = [raw(daemon) for _ in range(count)]
        for number, client in enumerate(clients):
            leave.enter_context(client.socket)
            client.send(frame(TEXT, b'{"groups": {"job_events": [%d]}}' % number))
            client.read_until(b"groups_joined")
        status, answer = daemon.restart()
        assert status == 200
        left = answer["closed"]["not moved"]
        assert answer["moved"] + left == count
        assert 10 < left < BATCH
        for number in range(count):
            assert daemon.ask("POST", "/publish", b'{"topic": "job_events.%d", "payload": {"n": %d}}' % (number, number))[0] == 202
        closed = 0
        for number, client in enumerate(clients):
            opcode, payload = client.read_frame()
            if opcode == CLOSE:
                closed += 1
                assert int.from_bytes(payload[:2], "big") == 1012
            else:
                assert numbers_in([payload]) == [number]
        assert closed == left


def test_a_successor_that_dies_in_the_middle_takes_only_what_it_got(fragile: HandedDaemon, rabbit: PrivateRabbit) -> None:
    """The batches that were sent are lost with it. Those of the next batch, and those that were not taken yet, go on in the old process."""
    lost, kept_open = MAX_UNANSWERED * BATCH, BATCH + 20
    clients = [raw(fragile) for _ in range(lost + kept_open)]
    for client in clients:
        client.send(frame(TEXT, b'{"groups": {"job_events": [7]}}'))
        client.read_until(b"groups_current")
    fault = fragile.log.parent / "dies-in-batch"
    fault.touch()
    try:
        status, answer = fragile.restart()
    finally:
        fault.unlink()
    assert (status, "ended with status 9" in answer["error"]) == (503, True), answer
    publish_all(rabbit.url, [(TOPIC, b'{"n": -1}')], "t.fragile")
    came = [first_of(client) for client in clients]
    assert came.count(True) == kept_open
    assert f"{lost} connections had moved already and are lost with the successor" in fragile.log.read_text()


def first_of(client: RawClient) -> bool:
    """Whether an event comes. False: the connection ended."""
    try:
        came = client.socket.recv(1 << 16)
    except ConnectionResetError:
        came = b""
    client.close()
    return bool(came)


def declare_classic_queue(url: str, name: str) -> None:
    """Declare a queue that is no stream."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    connection.channel().queue_declare(name, durable=True)
    connection.close()
