from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from towerws.config.load import load_all
from towerws.workers import processes
from towerws.workers.processes import State, Worker
from towerws.workers.supervisor import FORWARD_S, Supervisor
from towerws.workers.worker import Membership

FLAGS = {"broker": "amqp://localhost", "auth": "open", "listen": "tcp:8051:interface=127.0.0.1", "workers": "2"}


@pytest.fixture
def reactor() -> MemoryReactorClock:
    """The parent's reactor."""
    return MemoryReactorClock()


@pytest.fixture
def flags() -> dict[str, str]:
    """What the parent, and each process that begins, reads."""
    return dict(FLAGS)


@pytest.fixture
def parent(reactor: MemoryReactorClock, flags: dict[str, str]) -> Supervisor:
    """A parent whose workers serve. The test's clock is in force."""
    made = Supervisor(load_all(flags, {}), lambda: load_all(flags, {}), reactor, count=2, command=[], folder="/")
    del reactor.seconds  # the monotonic clock, which the parent has put in force
    for number in (1, 2):
        worker = Worker(Membership(number, 2, "/run/x", 1, 0))
        worker.pid, worker.state = 100 + number, State.SERVING
        made.processes.workers.append(worker)
    return made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, signal.Signals]]:
    """The signals that processes get, each with the process id."""
    found: list[tuple[int, signal.Signals]] = []

    def send(pid: int, number: int) -> bool:
        found.append((pid, signal.Signals(number)))
        return True

    monkeypatch.setattr(processes, "_send", send)
    return found


@pytest.mark.parametrize("after_s", [None, 0, FORWARD_S / 2, FORWARD_S])
def test_two_signals(
    parent: Supervisor, reactor: MemoryReactorClock, sent: list[tuple[int, signal.Signals]], after_s: float | None
) -> None:
    """Each worker gets two, whenever the second one comes. A third one would end it in the middle of its own end."""
    if after_s is None:
        parent.stop_now()
    parent.stopService()
    if after_s is not None:
        reactor.advance(after_s)
        parent.stop_now()
    reactor.advance(2 * FORWARD_S)
    for pid in (101, 102):
        assert [number for each, number in sent if each == pid] == [signal.SIGTERM, signal.SIGINT]


def test_one_signal(parent: Supervisor, reactor: MemoryReactorClock, sent: list[tuple[int, signal.Signals]]) -> None:
    """It is passed on after a moment, unless the worker has it already."""
    parent.stopService()
    parent.processes.noted(parent.processes.workers[0], {"STOPPING": "1"})
    reactor.advance(FORWARD_S)
    assert sent == [(102, signal.SIGTERM)]


def test_only_the_process_of_a_worker_speaks_for_it(parent: Supervisor, reactor: MemoryReactorClock, tmp_path: Path) -> None:
    """Another process that has the worker's socket may stop. Only the id of a new process may come from any process."""
    worker = Worker(Membership(1, 1, str(tmp_path), 1, 0))
    worker.pid, worker.state = os.getpid(), State.SERVING
    notes = processes._Notes(reactor, worker, parent.processes.noted)
    path = worker.membership.notify_path
    tell = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), sys.argv[1])"

    def told_by_another(note: str) -> State:
        subprocess.run([sys.executable, "-c", tell, path, note], check=True)
        notes.doRead()
        return worker.state

    def told(note: bytes) -> State:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(note, path)
        notes.doRead()
        return worker.state

    try:
        assert told_by_another("STOPPING=1") is State.SERVING
        assert told(b"STOPPING=1") is State.STOPPING
        assert told_by_another("MAINPID=103") is State.SERVING
        assert worker.pid == 103
    finally:
        notes.close()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log's lines about other settings."""
    found: list[str] = []

    def observe(event: LogEvent) -> None:
        if "other settings" in (text := formatEvent(event)):
            found.append(text)

    observer = cast("ILogObserver", observe)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


def crash(parent: Supervisor, reactor: MemoryReactorClock, worker: Worker) -> None:
    """End a worker's process, and start another one."""
    parent.processes._ended(worker, "ended by signal 9")
    reactor.advance(worker.restart.getTime() - reactor.seconds())


ADVICE = "`towerws restart` gives all workers the same ones"


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch, sent: list[tuple[int, signal.Signals]]) -> None:
    """Start no process."""
    pids = itertools.count(200)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=next(pids)))


@pytest.mark.usefixtures("no_process")
def test_a_worker_that_starts_again_with_other_settings(
    parent: Supervisor, reactor: MemoryReactorClock, flags: dict[str, str], lines: list[str]
) -> None:
    """One line names what differs. The worker is on another port than the others, and nobody else would notice."""
    first, second = parent.processes.workers
    first.starts = second.starts = 1
    crash(parent, reactor, first)
    assert lines == []
    flags["listen"] = "tcp:8052:interface=127.0.0.1"
    flags["broker"] = "amqp://me:secret@localhost"
    crash(parent, reactor, first)
    (line,) = lines
    assert line.startswith("worker 1 has other settings than worker 2: ")
    assert "listen = 'tcp:8052:interface=127.0.0.1' instead of 'tcp:8051:interface=127.0.0.1'" in line
    assert "; broker = " in line or ": broker = " in line
    assert "secret" not in line
    assert line.endswith(ADVICE)
    lines.clear()
    crash(parent, reactor, second)
    assert lines == [], "now both have the same"
    flags["limits-per-user"] = "7"
    parent.processes.move_to(second, 300)
    assert lines == [f"worker 2 has other settings than worker 1: limits.per_user = 7 instead of 1000. {ADVICE}"]
    parent.reload("SIGHUP")
    crash(parent, reactor, second)
    flags["auth"] = "nonsense"
    crash(parent, reactor, second)
    assert len(lines) == 1


@pytest.mark.usefixtures("no_process")
def test_a_restart_of_all_workers_with_other_settings(parent: Supervisor, flags: dict[str, str], lines: list[str]) -> None:
    """It is what the operator wants. While it lasts, the workers differ."""
    flags["listen"] = "tcp:8052:interface=127.0.0.1"
    parent.ports.restarting = True
    for worker in parent.processes.workers:
        parent.processes.move_to(worker, worker.pid + 100)
    parent.ports.restarting = False
    parent.processes.move_to(parent.processes.workers[0], 300)
    assert lines == []


@pytest.mark.usefixtures("no_process")
def test_a_reload_keeps_what_needs_a_restart(parent: Supervisor, flags: dict[str, str]) -> None:
    """A worker still has its old `restart_s`. A parent with a shorter one would give up before it. A hand-over brings the new one."""
    assert (parent.ports.restart_s, parent.drain_s) == (60, 5)
    flags |= {"restart-s": "7", "websocket-drain-s": "9", "admin": "tcp:9999:interface=127.0.0.1", "log-level": "warn"}
    settings = parent.reload("SIGHUP")
    assert settings is not None
    assert (settings.log_level, settings.restart_s) == ("warn", 60)
    assert settings.admin == load_all(FLAGS, {}).settings.admin
    assert (parent.ports.restart_s, parent.ports.drain_s, parent.drain_s) == (60, 9, 9)
    for worker, restart_s in zip(parent.processes.workers, (60, 7), strict=True):
        parent.processes.move_to(worker, worker.pid + 100)
        assert parent.ports.restart_s == restart_s, "that of the slowest worker"
    flags["restart-s"] = "none"
    assert parent.reload("SIGHUP") is None
    assert parent.ports.restart_s == 7
