from __future__ import annotations

import signal

import pytest
from twisted.internet.testing import MemoryReactorClock

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
def parent(reactor: MemoryReactorClock) -> Supervisor:
    """A parent whose workers serve. The test's clock is in force."""
    made = Supervisor(load_all(FLAGS, {}).settings, reactor, count=2, command=[], folder="/")
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
