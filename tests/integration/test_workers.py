"""Several workers below one parent, with real processes, a real broker, and clients that must not notice."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from private_rabbitmq import PrivateRabbit, free_port
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.integration.test_access_daemon import TOKEN, close_code, enter
from tests.integration.test_start_and_stop import Process, tcp
from tests.integration.tower_api import CANARY, Api
from tests.kit import preloaded
from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, TWISTD, V1Client, publish_all
from tests.kit.handed import Collector, Numbers
from tests.kit.rows import each_row
from tests.kit.workers import WorkersDaemon, children
from towerws.cli import main
from towerws.workers.processes import KEEPS_DYING

TOPIC = "job_events.7"
RESTART_S = 4 * DEADLINE_S
"""How long a test waits for two hand-overs, each of which starts a process."""

CLIENTS = 60
"""One worker gets fewer than 10 of them once in 10^8 runs, if the kernel spreads evenly."""


class ServiceManager(threading.Thread):
    """Keeps what a daemon tells its service manager. Nothing waits in the socket, which holds ten messages."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = str(path)
        self.told: list[str] = []
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.start()

    def run(self) -> None:
        """Receive."""
        while (message := self._socket.recv(4096).decode()) != "END":
            with self._news:
                self.told += message.split("\n")
                self._news.notify_all()

    def until(self, start: str) -> None:
        """Wait until something that begins so was told. The daemon tells it a little later than it is so."""
        with self._news:
            assert self._news.wait_for(lambda: any(each.startswith(start) for each in self.told), DEADLINE_S), self.told

    def stop(self) -> None:
        """Close the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"END", self.path)
        self.join(DEADLINE_S)
        self._socket.close()


@pytest.fixture(scope="module")
def notified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceManager]:
    """The service manager of the module's daemon."""
    manager = ServiceManager(tmp_path_factory.mktemp("notify") / "socket")
    yield manager
    manager.stop()


@pytest.fixture(scope="module")
def monitor() -> int:
    """The port of `monitor`."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(
    rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory, notified: ServiceManager, monitor: int
) -> Iterator[WorkersDaemon]:
    """Two workers for the module, below a service manager, with what supervisord and Kubernetes set in the environment."""
    environment = {
        "NOTIFY_SOCKET": notified.path,
        "WATCHDOG_USEC": "30000000",
        "SUPERVISOR_ENABLED": "1",
        "TOWERWS_PORT": "tcp://10.96.0.7:8051",
        "TOWERWS_SERVICE_HOST": "10.96.0.7",
        "TOWERWS_WORKERS_SERVICE_PORT": "8051",
    }
    names = ("--exchange=t.workers", "--stream=t.workers.events", "--restart-s=60", "--limits-per-address=201")
    flags = ("--workers=2", "--monitor", tcp(monitor), *names)
    with WorkersDaemon(tmp_path_factory.mktemp("daemon"), rabbit.url, *flags, environment=environment) as daemon:
        yield daemon


def event(number: int) -> bytes:
    """The body of a `POST /publish`."""
    return json.dumps({"topic": TOPIC, "payload": {"n": number}}).encode()


def test_connections_spread_and_each_client_gets_each_event_once(daemon: WorkersDaemon, notified: ServiceManager) -> None:
    """The kernel gives each worker its part. An event of `POST /publish` goes through the broker once, and so reaches all workers."""
    notified.until("READY=1")
    notified.until("WATCHDOG=1")
    with ExitStack() as leave:
        clients = [V1Client(daemon.url, {"job_events": [7]}).open() for _ in range(CLIENTS)]
        for client in clients:
            leave.callback(client.close)
        figures = daemon.get("/status")[1]
        each = [worker["status"]["connections"]["present"] for worker in figures["workers"]]
        assert sum(each) == figures["connections"]["present"] == CLIENTS
        assert min(each) >= 10
        for number in (1, 2):
            status, answer = daemon.ask("POST", "/publish", event(number))
            assert (status, answer["outcome"]) == (202, "confirmed")
        for client in clients:
            client.until({"n": 2})
            assert client.payloads == [{"n": 1}, {"n": 2}]
        assert len({client.position for client in clients}) == 1
        lines = b"\n".join(event(number) for number in (3, 4))
        assert daemon.ask("POST", "/publish", b"no object")[0] == 400
        assert daemon.ask("POST", "/publish", lines)[0] == 400
        assert clients[0].payloads[-1] == {"n": 2}


def test_figures_for_all(daemon: WorkersDaemon, monitor: int) -> None:
    """`/status` has totals and each worker. In `/metrics` each sample names its worker, and the parent has its own."""
    figures = daemon.get("/status")[1]
    assert [(each["worker"], each["state"], each["error"]) for each in figures["workers"]] == [(1, "serving", None), (2, "serving", None)]
    parts = [each["status"] for each in figures["workers"]]
    assert figures["connections"]["opened"] == sum(part["connections"]["opened"] for part in parts)
    assert figures["hub"]["deliveries_out"] == sum(part["hub"]["deliveries_out"] for part in parts)
    assert figures["connections"]["limits"] == {}
    assert figures["source"]["state"] == "consuming"
    assert figures["history"]["deliveries"] == max(part["history"]["deliveries"] for part in parts)
    text = daemon.text("/metrics")
    found = {family.name: family for family in text_string_to_metric_families(text)}
    accepted = {each.labels["worker"]: each.value for each in found["towerws_connections_accepted"].samples}
    assert accepted == {str(each["worker"]): each["status"]["connections"]["accepted"] for each in figures["workers"]}
    assert {each.labels["worker"] for each in found["process_open_fds"].samples} == {"1", "2", "parent"}
    assert [each.value for each in found["towerws_worker_serving"].samples] == [1, 1]
    assert [each.value for each in found["towerws_worker_starts"].samples] == [1, 1]
    assert all("worker" in sample.labels for family in found.values() for sample in family.samples)
    for name in ("le", "worker"):
        assert name in found["towerws_delivery_seconds"].samples[0].labels
    public = daemon.text("/metrics", monitor)
    assert {family.name for family in text_string_to_metric_families(public)} == set(found)


def test_health_for_all(daemon: WorkersDaemon, monitor: int) -> None:
    """Both ports answer for all workers. The public one gives no reasons."""
    assert daemon.get("/healthz") == (200, {"healthy": True})
    each = [{"worker": number, "ready": True, "process": "serving", "last_known": False} for number in (1, 2)]
    assert daemon.get("/readyz") == (200, {"ready": True, "state": "consuming", "workers": each})
    assert json.loads(daemon.text("/readyz", monitor)) == {"ready": True}
    assert json.loads(daemon.text("/healthz", monitor)) == {"healthy": True}
    assert "nothing is at" in daemon.text("/status", monitor)


def test_what_shows_one_process(daemon: WorkersDaemon) -> None:
    """The console is below `/workers/N/`. Its own paths say so."""
    for path in ("/", "/console/connections", "/console/samples", "/console.js"):
        assert daemon.get(path) == (501, {"error": "this path shows one process, and there are 2 workers: ask /workers/1/ to /workers/2/"})
    assert "<title>" in daemon.text("/workers/1/")
    assert "import" in daemon.text("/workers/2/console.js")
    instances = [daemon.get(f"/workers/{number}/console/connections?limit=1")[1]["instance"] for number in (1, 2)]
    assert instances[0] != instances[1]
    assert daemon.get("/workers/2/console/connections?limit=0")[0] == 400
    for instance, status in zip(instances, (404, 409), strict=True):
        body = json.dumps({"connection": 999999, "instance": instance}).encode()
        assert daemon.ask("POST", "/workers/1/console/connections/end", body)[0] == status
    assert daemon.get("/workers/3/status") == (404, {"error": "there is no worker 3: they are 1 to 2"})
    assert daemon.get("/workers/x/status")[0] == 404
    assert str(daemon.port) in daemon.text("/live")
    assert daemon.get("/live/topics")[0] == 200
    assert daemon.ask("POST", "/probe", json.dumps({"probe": "0" * 32}).encode()) == (200, {"seen": None})
    assert daemon.ask("POST", "/probe", b"{}")[0] == 400


def test_why_a_user_gets_no_events(daemon: WorkersDaemon) -> None:
    """Each worker answers for its own connections, and the parent puts their answers together."""
    ask = f"/console/explain?topic={TOPIC}"
    daemon.until_connections(0)
    assert daemon.get(ask)[1]["verdict"]["rule"] == "the user is connected to this daemon"
    with ExitStack() as leave:
        clients = [V1Client(daemon.url, {"job_events": [7]}).open() for _ in range(4)]
        for client in clients:
            leave.callback(client.close)
        daemon.ask("POST", "/publish", event(11))
        for client in clients:
            client.until({"n": 11})
        status, answer = daemon.get(ask)
        assert (status, answer["verdict"]["passes"], len(answer["connections"])) == (200, True, 4)
        one = V1Client(daemon.url, {"job_events": [8]}).open()
        leave.callback(one.close)
        answer = daemon.get(ask)[1]
        assert (answer["verdict"]["rule"], answer["verdict"]["passes"]) == ("the client has subscribed to it", False)
        failed = next(each for each in answer["connections"] if not all(step["passes"] for step in each["steps"]))
        assert (answer["verdict"]["worker"], answer["verdict"]["connection"]) == (failed["worker"], failed["connection"])
        result = CliRunner().invoke(main, ["explain", TOPIC, "--admin", f"http://127.0.0.1:{daemon.admin_port}"])
        assert (result.exit_code, f"connection {failed['connection']} of worker {failed['worker']}" in result.stdout) == (3, True)
    assert daemon.get("/console/explain?topic=nothing")[0] == 400
    assert daemon.get("/console/explain")[0] == 400


def test_sigusr1_ends_no_process(daemon: WorkersDaemon) -> None:
    """`systemctl kill` sends it to the parent and to each worker. None has a log file, and each says so."""
    before = daemon.serving()
    for pid in (daemon.pid, *before):
        os.kill(pid, signal.SIGUSR1)
    line = "SIGUSR1: there is no log file to open again"
    give_up = time.monotonic() + DEADLINE_S
    while daemon.log.read_text().count(line) < 3:
        assert time.monotonic() < give_up, daemon.log.read_text()[-3000:]
        time.sleep(0.02)  # polled: a file can't be awaited
    assert daemon.serving() == before


def test_a_page_of_the_parents_admin_port_may_connect(daemon: WorkersDaemon) -> None:
    """The live page is the parent's, and its websocket a worker's."""
    page = Origin(f"http://127.0.0.1:{daemon.admin_port}")
    with connect(daemon.url, origin=page, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client:
        assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"


@each_row("path", ["/publish", "/workers/1/publish"])
def test_a_wrong_method_names_the_right_one(daemon: WorkersDaemon, path: str) -> None:
    """RFC 9110, 15.5.6: a 405 has `Allow`, also a 405 that a worker answered."""
    with closing(http.client.HTTPConnection("127.0.0.1", daemon.admin_port, timeout=DEADLINE_S)) as connection:
        connection.request("DELETE", path)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Allow"), json.loads(answer.read())["error"]) == (405, "POST", "this path takes POST only")


def test_a_killed_worker_comes_back_and_its_clients_lose_nothing(rabbit: PrivateRabbit, daemon: WorkersDaemon) -> None:
    """The other worker's clients notice nothing. Those of the killed one resume at the other, or at the new process."""
    pids = daemon.serving()
    with ExitStack() as leave:
        clients = [V1Client(daemon.url, {"job_events": [7]}).open() for _ in range(20)]
        for client in clients:
            leave.callback(lambda each: each.close(), client)
        seen = daemon.workers()[0]["status"]["connections"]["present"]
        os.kill(pids[0], signal.SIGKILL)
        daemon.says(f"worker 1: process {pids[0]} ended by signal 9 after")
        publish_all(rabbit.url, [(TOPIC, b'{"n": 1}')], exchange="t.workers")
        lost = 0
        for client in clients:
            try:
                client.until({"n": 1})
            except Exception:  # noqa: BLE001 - however the connection ended
                client.close()
                lost += 1
                client.open()
        assert lost == seen
        daemon.new_process(1, pids[0])
        assert daemon.serving()[1] == pids[1]
        publish_all(rabbit.url, [(TOPIC, b'{"n": 2}')], exchange="t.workers")
        for client in clients:
            client.until({"n": 2})
            assert client.payloads == [{"n": 1}, {"n": 2}]
            assert client.gaps == []
    assert daemon.workers()[0]["last_end"].startswith("ended by signal 9 after")


def test_each_worker_reloads(daemon: WorkersDaemon, notified: ServiceManager) -> None:
    """SIGHUP to the parent reaches each worker, and ends none."""
    before = daemon.serving()
    done = daemon.log.read_text().count("SIGHUP: reloaded: nothing has changed")
    os.kill(daemon.pid, signal.SIGHUP)
    give_up = time.monotonic() + DEADLINE_S
    while daemon.log.read_text().count("SIGHUP: reloaded: nothing has changed") < done + 2:
        assert time.monotonic() < give_up, daemon.log.read_text()[-2000:]
        time.sleep(0.02)  # polled: a file can't be awaited
    assert daemon.serving() == before
    assert [each["status"]["reloads"]["done"] for each in daemon.workers()] == [1, 1]
    notified.until("RELOADING")


def restart_by_post(daemon: WorkersDaemon) -> None:
    """`POST /restart`."""
    status, answer = daemon.ask("POST", "/restart", b"", within_s=RESTART_S)
    assert status == 200, answer
    assert answer["closed"] == {}
    assert answer["moved"] == sum(each["moved"] for each in answer["workers"]) > 0
    assert [each["worker"] for each in answer["workers"]] == [1, 2]


def restart_by_command(daemon: WorkersDaemon) -> None:
    """`towerws restart`."""
    admin = tcp(daemon.admin_port)
    words = ["restart", "--auth=open", "--broker=amqp://localhost", "--workers=2", "--admin", admin]
    done = subprocess.run(
        [Path(sys.executable).with_name("towerws"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=RESTART_S,
        cwd=daemon.log.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Processes \d+, \d+ serve now: \d+ connections moved in \d+\.\d{3} s, 0 not moved\.\n", done.stdout)


def restart_by_signal(daemon: WorkersDaemon) -> None:
    """SIGUSR2 to the parent."""
    before = daemon.log.read_text().count("restart: replaced workers: 1, 2")
    os.kill(daemon.pid, signal.SIGUSR2)
    give_up = time.monotonic() + RESTART_S
    while daemon.log.read_text().count("restart: replaced workers: 1, 2") == before:
        assert time.monotonic() < give_up, daemon.log.read_text()[-2000:]
        time.sleep(0.02)  # polled: a file can't be awaited


@pytest.mark.parametrize("restart", [restart_by_post, restart_by_command, restart_by_signal])
def test_a_restart_closes_no_connection(
    rabbit: PrivateRabbit, daemon: WorkersDaemon, notified: ServiceManager, restart: Callable[[WorkersDaemon], None]
) -> None:
    """Each worker hands over to a new process of the same parent. Clients get every event once and in order."""
    before = daemon.serving()
    clients = [Collector(daemon.url, TOPIC, v1=number % 2 == 0) for number in range(16)]
    publisher = Numbers(rabbit.url, "t.workers", TOPIC)
    publisher.start()
    restart(daemon)
    after = daemon.serving()
    count = publisher.finish()
    assert not set(before) & set(after)
    assert set(after) <= set(children(daemon.pid))
    expected = [*range(count), -1]
    for client in clients:
        numbers, others, ended = client.result()
        assert ended == ""
        assert numbers == expected
        assert others == []
    assert not [each for each in notified.told if each.startswith(("MAINPID", "STOPPING"))]


def test_the_parent_stays_ready_during_a_restart(daemon: WorkersDaemon, monitor: int) -> None:
    """Nobody reads a worker's admin port while its connections move. Handshakes that are not complete make that long.

    The daemon stays ready, at once, and each scrape and each `/status` has all workers.
    """
    daemon.serving()
    seen: list[tuple[float, int]] = []
    late: list[str] = []
    done = threading.Event()

    def watch_readiness() -> None:
        while not done.wait(0.05):
            before = time.monotonic()
            status, _ = daemon.get("/readyz")
            seen.append((time.monotonic() - before, status))

    def watch_figures() -> None:
        while not done.wait(0.05):
            late.extend(str(each["error"]) for each in daemon.workers() if each["status"] is None)
            for port in (daemon.admin_port, monitor):
                text = daemon.text("/metrics", port)
                late.extend(f"worker {each} has no series" for each in (1, 2) if f'towerws_connections{{worker="{each}"}}' not in text)

    watches = [threading.Thread(target=watch) for watch in (watch_readiness, watch_figures)]
    with ExitStack() as leave:
        for _ in range(12):
            leave.enter_context(socket.create_connection(("127.0.0.1", daemon.port))).sendall(b"GET ")
        for each in watches:
            each.start()
        try:
            status, answer = daemon.ask("POST", "/restart", b"", within_s=RESTART_S)
        finally:
            done.set()
            for each in watches:
                each.join(DEADLINE_S)
    assert status == 200, answer
    assert late == []
    assert {status for _, status in seen} == {200}
    assert max(seconds for seconds, _ in seen) < 1.5, "the deadline of a question is 2 s"
    daemon.serving()


def test_one_restart_at_a_time(daemon: WorkersDaemon) -> None:
    """A second one is refused while the first is under way. Each worker is replaced once."""
    before = [each["starts"] for each in daemon.workers()]
    os.kill(daemon.pid, signal.SIGUSR2)
    answer: Any = None
    give_up = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up:
        status, answer = daemon.ask("POST", "/restart", b"", within_s=RESTART_S)
        if status == 503:
            break
    assert answer == {"error": "a restart is under way already"}
    give_up = time.monotonic() + RESTART_S
    while (starts := [each["starts"] for each in daemon.workers()]) != [each + 1 for each in before]:
        assert time.monotonic() < give_up, (before, starts)
        time.sleep(0.05)  # polled, as by a load balancer
    daemon.serving()


def test_a_successor_that_fails_leaves_the_old_worker(daemon: WorkersDaemon) -> None:
    """The reason names the worker, and says which ones were replaced before it."""
    before = daemon.serving()
    os.kill(before[0], signal.SIGUSR2)  # a hand-over is under way in worker 1, asked for by its own id
    daemon.says(f"worker 1: process {before[0]}")
    after = daemon.new_process(1, before[0])
    daemon.says(f"worker 1: process {after} has taken over")
    assert daemon.serving()[1] == before[1]


def diagnosis(daemon: WorkersDaemon, *checks: str) -> list[tuple[str, str]]:
    """What the doctor finds in these checks: texts and levels."""
    arguments = ["doctor", "--json", "--auth", "open", "--admin", tcp(daemon.admin_port), "--broker", "embedded:"]
    found = json.loads(CliRunner().invoke(main, arguments).stdout)["findings"]
    return [(each["text"], each["level"]) for each in found if each["area"] == "daemon" and each["check"] in checks]


def test_a_worker_that_hangs_is_named(daemon: WorkersDaemon) -> None:
    """Questions have deadlines. The parent answers for the other worker, and is not ready: clients may reach the one that hangs."""
    pids = daemon.serving()
    os.kill(pids[1], signal.SIGSTOP)
    try:
        status, answer = daemon.get("/readyz")
        assert (status, answer["reason"]) == (503, "worker 2 did not answer within 2 s")
        assert [each["ready"] for each in answer["workers"]] == [True, False]
        entries = daemon.workers()
        assert entries[0]["status"]["source"]["state"] == "consuming"
        assert (entries[1]["status"], entries[1]["error"]) == (None, "worker 2 did not answer within 2 s")
        assert daemon.ask("POST", "/publish", event(1))[0] == 202
    finally:
        os.kill(pids[1], signal.SIGCONT)
    assert daemon.serving() == pids


def test_many_questions_to_a_busy_worker(daemon: WorkersDaemon) -> None:
    """They wait until it reads them. The kernel refuses none: the queue of its admin port is long enough."""
    pid = daemon.serving()[1]
    answers: list[tuple[int, Any]] = []
    asking = [threading.Thread(target=lambda: answers.append(daemon.get("/workers/2/readyz"))) for _ in range(80)]
    os.kill(pid, signal.SIGSTOP)
    try:
        for each in asking:
            each.start()
        time.sleep(1)
    finally:
        os.kill(pid, signal.SIGCONT)
    for each in asking:
        each.join(DEADLINE_S)
    assert [answer for answer in answers if answer[0] != 200] == []
    assert len(answers) == len(asking)


def test_the_doctor_names_workers_that_hang(daemon: WorkersDaemon) -> None:
    """If none answers, it says so, and judges no figures."""
    pids = daemon.serving()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        found = diagnosis(daemon, "workers", "running")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    texts = [*(f"worker {number} did not answer within 2 s" for number in (1, 2)), "the daemon runs, and none of its workers answers"]
    assert found == [(text, "problem") for text in texts]
    assert daemon.serving() == pids


def test_while_no_worker_serves(daemon: WorkersDaemon) -> None:
    """The parent says so on each path, and is alive. Clients are refused by the kernel, since nobody listens."""
    for pid in daemon.serving():
        os.kill(pid, signal.SIGKILL)
    daemon.says("0 of 2 workers serve")
    assert daemon.get("/healthz")[0] == 200
    status, answer = daemon.get("/readyz")
    assert (status, answer["reason"]) == (503, "no worker accepts clients")
    assert daemon.ask("POST", "/publish", event(1)) == (503, {"error": "no worker accepts clients; try again in a moment"})
    status, answer = daemon.ask("POST", "/disconnect", b'{"user": 7}')
    assert (status, answer["disconnected"], answer["others_told"]) == (503, 0, False)
    assert [each["last_end"].partition(" after ")[0] for each in daemon.workers()] == ["ended by signal 9"] * 2
    assert 'towerws_worker_serving{worker="1"} 0.0' in daemon.text("/metrics")
    daemon.serving()


def test_a_user_is_disconnected_on_all_workers(rabbit: PrivateRabbit, tmp_path: Path, tower: tuple[type[Api], str]) -> None:
    """The parent counts what all workers closed. A revocation from the other port of the broker reaches all of them, too."""
    _, url = tower
    flags = ("--workers=2", "--tower-url", url, "--exchange=t.revoked", "--stream=t.revoked.events")
    with WorkersDaemon(tmp_path, rabbit.url, *flags, auth="tower") as daemon, ExitStack() as leave:
        cookie = f"sessionid={CANARY}; csrftoken={TOKEN}"
        clients = [leave.enter_context(enter(daemon, Cookie=cookie)) for _ in range(20)]
        each = [worker["status"]["connections"]["present"] for worker in daemon.workers()]
        assert min(each) > 0
        assert daemon.ask("POST", "/disconnect", b'{"user": 8}') == (202, {"disconnected": 0, "others_told": True})
        assert daemon.ask("POST", "/disconnect", b'{"user": 7}') == (202, {"disconnected": 20, "others_told": True})
        assert {close_code(client) for client in clients} == {1008}
        assert daemon.ask("POST", "/disconnect", b'{"users": 7}')[0] == 400


def test_the_end_of_all(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """SIGTERM ends the workers in order, and their clients with 1012. The status is 0, and nothing is left."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    names = ("--exchange=t.end", "--stream=t.end.events")
    daemon = WorkersDaemon(tmp_path, rabbit.url, "--workers=2", *names, environment={"RUNTIME_DIRECTORY": str(folder)}).start()
    pids = daemon.serving()
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o700]
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*/admin-*")} == {0o600}
    with connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
        # systemd sends the signal to every process of the service (KillMode=control-group).
        for pid in (*pids, daemon.pid):
            os.kill(pid, signal.SIGTERM)
        assert close_code(client) == 1012
    assert daemon.wait() == 0
    daemon.wait_for_all_to_end(pids)
    assert list(folder.iterdir()) == []
    log = daemon.log.read_text()
    assert "again: ending at once" not in log
    assert "Traceback" not in log


def test_a_worker_that_keeps_dying_is_named(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """Its pause doubles, the log says how often it ended, and the other worker serves."""
    with WorkersDaemon(tmp_path, rabbit.url, "--workers=2", "--exchange=t.dying", "--stream=t.dying.events") as daemon:
        steady, victim = daemon.serving()
        for _ in range(KEEPS_DYING):
            os.kill(victim, signal.SIGKILL)
            victim = daemon.new_process(2, victim)
        log = daemon.log.read_text()
        pauses = re.findall(r"starts again in (\S+) s; 1 of 2 workers serve", log)
        assert pauses == ["0.5", "1", "2"]
        assert f"worker 2 keeps dying, {KEEPS_DYING} times in a row; its log lines say why." in log
        assert "worker 1 keeps dying" not in log
        assert daemon.serving()[0] == steady


def test_a_worker_that_comes_back_with_other_settings_is_named(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """It reads the file as it is now. The others keep what they have, until `towerws restart`."""
    file = tmp_path / "towerws.toml"
    file.write_text("restart_s = 60\n")
    flags = ("--workers=2", "--exchange=t.other", "--stream=t.other.events", "--config", str(file))
    with WorkersDaemon(tmp_path, rabbit.url, *flags) as daemon:
        first = daemon.serving()[0]
        file.write_text("restart_s = 50\n")
        os.kill(first, signal.SIGKILL)
        daemon.new_process(1, first)
        daemon.says("worker 1 has other settings than worker 2: restart_s = 50 instead of 60. `towerws restart` gives all workers")
        daemon.serving()
        restart_by_signal(daemon)
        assert daemon.log.read_text().count("has other settings than") == 1


def test_workers_end_with_their_parent(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """A parent that is killed leaves no worker behind that nobody supervises, and no file. The next one gets the port."""
    (sockets := tmp_path / "sockets").mkdir()
    names = ("--exchange=t.orphans", "--stream=t.orphans.events")
    daemon = WorkersDaemon(tmp_path, rabbit.url, "--workers=2", *names, environment={"TMPDIR": str(sockets)})
    with daemon:
        pids = daemon.serving()
        assert len(list(sockets.iterdir())) == 1
        daemon.kill()
        daemon.wait_for_all_to_end(pids)
        assert list(sockets.iterdir()) == []
        assert "has ended; this worker stops" in daemon.log.read_text()
        daemon.start()


def test_process_1_of_a_container(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """The parent reaps what it inherits, hands over, and ends all with SIGTERM."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this needs the right to make pid namespaces")
    port = free_port()
    process = Process(tmp_path, "--listen", tcp(port), "--broker", rabbit.url, "--workers=2", "--exchange=t.one", "--stream=t.one.events")
    process.start(prefix=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    try:
        process.says("worker 1: process 2 accepts clients").says("worker 2: process 3 accepts clients")
        (parent,) = children(process.pid)
        inside = ("nsenter", "--target", str(parent), "--pid", "--mount")
        subprocess.run([*inside, "sh", "-c", "sleep 0.2 & exit 0"], check=True, timeout=DEADLINE_S)
        give_up = time.monotonic() + DEADLINE_S
        while len(found := children(parent)) != 2 or "Z" in found.values():
            assert time.monotonic() < give_up, found
            time.sleep(0.05)  # polled: only process 1 can wait for an orphan
        client = V1Client(f"ws://127.0.0.1:{port}/websocket/", {"job_events": [7]}).open()
        os.kill(parent, signal.SIGUSR2)
        process.says("restart: replaced workers: 1, 2")
        publish_all(rabbit.url, [(TOPIC, b'{"n": 1}')], exchange="t.one")
        client.until({"n": 1})
        client.close()
        assert len(children(parent)) == 2
        os.kill(parent, signal.SIGTERM)
        assert process.ends() == 0
    finally:
        process.clean_up()


def test_an_address_in_use(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """Another daemon's port is found although it may be shared, and nothing is half started."""
    port = free_port()
    flags = ("--listen", tcp(port), "--broker", rabbit.url, "--workers=2", "--exchange=t.use", "--stream=t.use.events")
    (tmp_path / "other").mkdir()
    first, second = Process(tmp_path, *flags), Process(tmp_path / "other", *flags)
    try:
        first.start().says("accepts clients")
        second.start().says(f"listen = '{tcp(port)}': can't listen there yet: Address already in use")
        second.signal(signal.SIGTERM)
        assert second.ends() == 0
        assert "was started" not in second.output
        first.signal(signal.SIGTERM)
        assert first.ends() == 0
    finally:
        first.clean_up()
        second.clean_up()


BROKER = "--broker=amqp://localhost"
PORT = "--listen=tcp:8051:interface=127.0.0.1"


@each_row(
    ("flags", "before", "said"),
    [
        (("--workers=0", BROKER), ("-n",), "--workers = '0': must be at least 1"),
        (("--workers=-1", BROKER), ("-n",), "--workers = '-1': must be a whole number, or auto"),
        (("--workers=257", BROKER), ("-n",), "--workers = '257': must be at most 256"),
        (("--workers=many", BROKER), ("-n",), "--workers = 'many': must be a whole number, or auto"),
        (("--workers=2",), ("-n",), "--workers = 2: several workers need a broker, which each of them reads; embedded: is one process"),
        (("--workers=auto",), ("-n",), "--workers = 'auto': several workers need a broker, which each of them reads"),
        (("--workers=2", BROKER, "--listen=unix:/run/x"), ("-n",), "several workers can't share a unix: address; let listen be a TCP port"),
        (("--workers=2", BROKER, "--listen=systemd:domain=UNIX:index=0"), ("-n",), "several workers can't share a systemd: address"),
        (("--workers=2", BROKER, "--listen=tcp:0"), ("-n",), "several workers need to know their common port: 0 means any free one"),
        (("--workers=2", BROKER, "--monitor=tcp:9051:interface=127.0.0.1"), ("-n",), "admin and monitor must not be the same"),
        (("--workers=2", BROKER, PORT), (), "--workers = 2: twistd runs it in the background"),
        (("--workers=2", BROKER, PORT), ("-n", "--uid=1"), "--workers = 2: --uid, --gid and --chroot can't be repeated"),
        (("--workers=2", BROKER, PORT), ("-n", "--logfile=x.log"), "--workers = 2: several workers can't rotate one --logfile"),
    ],
)
def test_what_workers_cant_have(tmp_path: Path, flags: tuple[str, ...], before: tuple[str, ...], said: str) -> None:
    """One line says what is wrong, and the status is 2. No process is started."""
    auth = "jwt" if "--listen=tcp:0" in flags else "open"
    more = ("--jwt-algorithms=HS256", "--jwt-secret-file=/dev/null") if auth == "jwt" else ()
    command = [TWISTD, *before, "towerws", "--auth", auth, *more, *flags]
    with (tmp_path / "output").open("w+b") as file:
        status = preloaded.start(command, output=file, cwd=tmp_path, env=os.environ).wait(DEADLINE_S)
    output = (tmp_path / "output").read_text()
    assert status == 2, output
    assert output.startswith("towerws: ")
    assert said in output
    assert output.count("\n") == 1
