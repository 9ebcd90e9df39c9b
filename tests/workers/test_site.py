from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport

from towerws.admin.endpoint import Answer
from towerws.config.load import load_all
from towerws.service_manager import MOVING
from towerws.workers.processes import MOVE_S, Processes, State, Worker
from towerws.workers.site import ASK_S, END_S, LAST_KNOWN_S, ParentPorts
from towerws.workers.worker import Membership

SETTINGS = load_all({"broker": "amqp://localhost", "auth": "open", "listen": "tcp:8051:interface=127.0.0.1", "workers": "2"}, {}).settings
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s"


class Parent:
    """A parent with two workers that serve. A test answers for them."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1000)
        self.processes = Processes(self.reactor, [], "/", lambda: None, lambda: 30.0)
        for number in (1, 2):
            worker = Worker(Membership(number, 2, "/run/x", 1, 0))
            worker.pid, worker.state = 100 + number, State.SERVING
            self.processes.workers.append(worker)
        self.first, self.second = self.processes.workers
        self.ports = ParentPorts(SETTINGS, self.reactor, self.processes, lambda: False)

    def ask(self, path: str) -> Deferred[Answer]:
        """Ask the parent."""
        answer: Deferred[Answer] = {
            "/readyz": self.ports._answer_readiness,
            "/status": self.ports._status,
            "/metrics": self.ports._present_metrics,
        }[path]()
        return answer

    def answer(self, body: bytes, *workers: int) -> None:
        """Answer all new questions to these workers. Those to others get no answer."""
        clients, self.reactor.unixClients = self.reactor.unixClients, []
        for path, factory, *_ in clients:
            exchange: Any = factory.buildProtocol(None)
            exchange.makeConnection(StringTransport())
            if int(path[-1]) in workers:
                exchange.dataReceived(HEAD % (len(body), body))
                exchange.connectionLost()


def result(answer: Deferred[Answer]) -> Any:
    """The status and the object of an answer."""
    found: list[Answer] = []
    answer.addCallback(found.append)
    assert found, "there is no answer yet"
    return found[0].status, json.loads(found[0].body)


@pytest.fixture
def parent() -> Parent:
    """A parent with two workers."""
    return Parent()


def test_ready_during_a_hand_over(parent: Parent) -> None:
    """A worker that moves its connections serves its clients. It is not asked, so the answer comes at once."""
    parent.processes.noted(parent.first, {MOVING: "1"})
    answer = parent.ask("/readyz")
    parent.answer(b'{"ready": true}', 2)
    status, found = result(answer)
    assert status == 200
    assert found["workers"] == [
        {"worker": 1, "ready": True, "process": "serving", "last_known": True},
        {"worker": 2, "ready": True, "process": "serving", "last_known": False},
    ]


def test_ready_if_a_hand_over_begins_after_the_question(parent: Parent) -> None:
    """A deadline that passes then proves nothing, also if the hand-over has ended meanwhile."""
    for after in ({MOVING: "0"}, {"MAINPID": "103"}, {}):
        answer = parent.ask("/readyz")
        parent.answer(b'{"ready": true}', 2)
        parent.reactor.advance(ASK_S / 2)
        parent.processes.noted(parent.first, {MOVING: "1"})
        parent.reactor.advance(ASK_S / 4)
        parent.processes.noted(parent.first, after)
        parent.reactor.advance(ASK_S / 4)
        assert result(answer)[0] == 200


@pytest.mark.parametrize("end", ["it goes on itself", "another process serves", "it ends", "its time is over"])
def test_a_hand_over_excuses_no_worker_that_hangs_later(parent: Parent, end: str) -> None:
    """After the hand-over a worker without an answer is not ready. A hand-over that never ends is one, too."""
    parent.processes.noted(parent.first, {MOVING: "1"})
    if end == "it goes on itself":
        parent.processes.noted(parent.first, {MOVING: "0"})
    elif end == "another process serves":
        parent.processes.noted(parent.first, {"MAINPID": "103"})
    elif end == "it ends":
        parent.processes._ended(parent.first, "ended by signal 9")
        parent.first.pid, parent.first.state = 103, State.SERVING
    else:
        parent.reactor.advance(MOVE_S)
    parent.reactor.advance(0.1)
    answer = parent.ask("/readyz")
    parent.answer(b'{"ready": true}', 2)
    parent.reactor.advance(ASK_S)
    status, found = result(answer)
    assert (status, found["reason"]) == (503, "worker 1 did not answer within 2 s")


def test_a_worker_that_ends_during_its_hand_over_is_not_ready(parent: Parent) -> None:
    """The hand-over does not hide that its process is gone."""
    answer = parent.ask("/readyz")
    parent.answer(b'{"ready": true}', 2)
    parent.processes.noted(parent.first, {MOVING: "1"})
    parent.processes._ended(parent.first, "ended by signal 9")
    parent.reactor.advance(ASK_S)
    assert [each["ready"] for each in result(answer)[1]["workers"]] == [False, True]


def figures(parent: Parent) -> Any:
    """What `/status` has of worker 1, which does not answer."""
    answer = parent.ask("/status")
    parent.answer(b'{"ready": true, "hub": {"gaps": 1}}', 2)
    parent.reactor.advance(ASK_S)
    return result(answer)[1]["workers"][0]


def test_the_last_known_figures_during_a_hand_over(parent: Parent) -> None:
    """`/status` says so. They are used for a while, and only for the process that gave them."""
    answer = parent.ask("/status")
    parent.answer(b'{"ready": true, "hub": {"gaps": 7}}', 1, 2)
    assert [each["last_known"] for each in result(answer)[1]["workers"]] == [False, False]
    entry = figures(parent)
    assert (entry["error"], entry["last_known"], entry["status"]) == ("worker 1 did not answer within 2 s", False, None)
    parent.processes.noted(parent.first, {MOVING: "1"})
    entry = figures(parent)
    assert (entry["error"], entry["last_known"], entry["status"]["hub"]) == (None, True, {"gaps": 7})
    parent.reactor.advance(LAST_KNOWN_S)
    parent.processes.noted(parent.first, {MOVING: "1"})
    assert figures(parent)["status"] is None


def test_a_scrape_during_a_hand_over_has_each_workers_series(parent: Parent) -> None:
    """Otherwise an alert could see a worker's series end."""

    def scrape(*, first_answers: bool) -> str:
        found: list[Answer] = []
        parent.ask("/metrics").addCallback(found.append)
        parent.answer(b"# TYPE towerws_x counter\ntowerws_x_total 5.0\n", 2, *([1] if first_answers else []))
        parent.reactor.advance(ASK_S)
        return found[0].body.decode()

    assert 'worker="1"} 5.0' in scrape(first_answers=True)
    assert 'worker="1"} 5.0' not in scrape(first_answers=False)
    parent.processes.noted(parent.first, {MOVING: "1"})
    assert 'worker="1"} 5.0' in scrape(first_answers=False)
    parent.processes.noted(parent.first, {"MAINPID": "103"})
    parent.reactor.advance(0.1)
    assert 'worker="1"} 5.0' not in scrape(first_answers=False)


def test_an_old_process_that_does_not_end(parent: Parent) -> None:
    """The restart fails with a line that names the process."""
    found: list[Any] = []
    parent.ports.restart().addErrback(lambda failure: found.append(failure.value))
    answer = {"pid": 201, "moved": 3, "seconds": 0.1, "closed": {}, "results": {"done": 1, "failed": 0}}
    parent.answer(json.dumps(answer).encode(), 1)
    parent.reactor.advance(parent.ports.drain_s + END_S + 1)
    text = "worker 1: process 201 took over, but the old process 101 has not ended within 35 s; no worker was replaced before that"
    assert [str(error) for error in found] == [text]
