"""The swarm's clients report correctly what they receive. A test server sends them what a broken daemon would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.faults.client import Spec
from tests.faults.publisher import Journal
from tests.faults.swarm import Report, Swarm
from tests.kit.daemon import Daemon

Talk = Callable[[ServerConnection, dict[str, Any], int], None]
"""The server's part after a client's request: its socket, its request, and the number of connections before."""


@contextmanager
def server(talk: Talk, *, v1: bool = True) -> Iterator[int]:
    """The port of a server that greets, reads the request, and calls `talk`."""
    count = iter(range(1000))

    def handle(socket: ServerConnection) -> None:
        socket.send(json.dumps({"type": "welcome", "user": None, "position": "p0", "ping_s": 20} if v1 else {"accept": True, "user": 0}))
        talk(socket, json.loads(socket.recv(20)), next(count))

    with serve(handle, "127.0.0.1", 0, subprotocols=["towerws.v1"] if v1 else None) as running:  # type: ignore[list-item]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.socket.getsockname()[1]
        running.shutdown()
        thread.join()


def subscribed(socket: ServerConnection, recovered: bool | None = None, position: str = "p0") -> None:
    """Answer a request."""
    socket.send(json.dumps({"type": "subscribed", "id": None, "groups_current": [], "position": position, "recovered": recovered}))


def event(socket: ServerConnection, number: int, *, v1: bool = True) -> None:
    """Send one event."""
    payload = {"n": number, "k": 0, "t": time.monotonic_ns(), "x": ""}
    frame = {"type": "event", "position": f"p{number}", "group": "jobs", "event": "status_changed", "payload": payload}
    socket.send(json.dumps(frame if v1 else payload))


def journal(count: int) -> Journal:
    """Numbers that are published from now on. A subscribed client must get all of them."""
    made = Journal(["jobs.status_changed"])
    for number in range(count):
        made.read_line(f"p {number} 0 {time.monotonic_ns() + 3600 * 10**9 + number}")
        made.read_line(f"c {number}")
    return made


def told(talk: Talk, *, last: int, v1: bool = True, clients: int = 1) -> Report:
    """The swarm's report of clients of this server, once they have the last number."""
    with server(talk, v1=v1) as port, Swarm() as swarm:
        spec = Spec((("127.0.0.1", port),), ("jobs.status_changed",), frozenset({0}), v1)
        assert swarm.open([spec] * clients) == clients
        made = journal(last + 1)
        assert swarm.wait_for(made) == 0
        return swarm.report(made)[""]


def stay(socket: ServerConnection) -> None:
    """Keep the connection open until the client leaves."""
    for _ in socket:
        pass


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "tower"])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        pytest.param([0, 1, 2, 3], (0, 0, 0), id="perfect"),
        pytest.param([0, 1, 3], (1, 0, 0), id="lost"),
        pytest.param([0, 1, 1, 2, 3], (0, 1, 0), id="repeated"),
        pytest.param([0, 2, 1, 3], (0, 0, 1), id="reordered"),
    ],
)
def test_a_planted_fault_is_noticed(numbers: list[int], expected: tuple[int, int, int], v1: bool) -> None:
    """Each of several clients notices it, in both dialects."""

    def talk(socket: ServerConnection, request: dict[str, Any], count: int) -> None:
        if v1:
            subscribed(socket)
        else:
            socket.send(json.dumps({"groups_current": [], "groups_joined": [], "groups_left": []}))
        for number in numbers:
            event(socket, number, v1=v1)
        stay(socket)

    tally = told(talk, last=3, v1=v1, clients=3).tally
    assert (tally.lost, tally.repeated, tally.reordered) == tuple(3 * each for each in expected)
    assert tally.events == 3 * len(numbers)


def test_it_resumes_from_where_it_stands_and_notes_the_answers() -> None:
    """A client resumes from the newest frame's position: that of an event, of a gap's end, and again after a 1013."""
    asked: list[str | None] = []

    def talk(socket: ServerConnection, request: dict[str, Any], count: int) -> None:
        asked.append(request.get("since"))
        if count == 0:
            subscribed(socket)
            event(socket, 0)
            socket.close(1012)
        elif count == 1:
            subscribed(socket, recovered=True, position="p0")
            socket.send(json.dumps({"type": "gap", "topics": ["jobs.status_changed"], "from": "p0", "to": "g1", "reason": "broker"}))
            socket.close(1012)
        elif count == 2:
            socket.send(json.dumps({"type": "bye", "reconnect_after_ms": 10, "reason": "can't be judged yet", "action": "reconnect"}))
            socket.close(1013)
        else:
            subscribed(socket, recovered=False, position="p1")
            event(socket, 2)
            stay(socket)

    report = told(talk, last=2)
    assert asked == [None, "p0", "g1", "g1"]
    assert (report.tally.gaps, report.tally.recovered_false, report.tally.closes_1013) == (1, 1, 1)
    assert dict(report.codes) == {1012: 2, 1013: 1}
    assert report.tally.most_told == 2


def test_an_event_of_a_topic_that_was_not_asked_for_is_a_violation() -> None:
    """A frame that is not JSON is one, too."""

    def talk(socket: ServerConnection, request: dict[str, Any], count: int) -> None:
        subscribed(socket)
        socket.send(json.dumps({"type": "event", "position": "p", "group": "x", "event": "y", "payload": {"n": 0, "k": 7, "t": 0}}))
        socket.send("{not json")
        event(socket, 1)
        stay(socket)

    violations = told(talk, last=1).violations
    assert violations == ["0 on a topic that was not asked for", "not JSON: b'{not json'"]


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "tower"])
def test_compressed_clients_and_messages_in_fragments(tmp_path: Path, v1: bool) -> None:
    """Clients of a real daemon read compressed events. A message that was sent in parts is answered once it is whole."""
    with Daemon(tmp_path, "embedded:", "--websocket-compression") as daemon, Swarm() as swarm:
        specs = [
            Spec((("127.0.0.1", daemon.port),), ("jobs.status_changed",), frozenset({0}), v1, compressed=True, timed=timed)
            for timed in (True, False)
        ]
        assert swarm.open(specs) == 2
        swarm.begin_messages("")
        assert swarm.finish_messages("") == 0
        swarm.begin_messages("")
        made = Journal(["jobs.status_changed"])
        for number in range(3):
            sent_ns = time.monotonic_ns()
            made.read_line(f"p {number} 0 {sent_ns}")
            made.read_line(f"c {number}")
            daemon.publish("jobs.status_changed", {"n": number, "k": 0, "t": sent_ns, "x": "x" * 500})
        assert swarm.wait_for(made) == 0
        assert swarm.finish_messages("") == 0
        assert swarm.worst() > 0
        assert swarm.worst() == 0
        assert swarm.late() >= 0
        report = swarm.report(made)[""]
        assert daemon.get("/status")[1]["compression"]["frames"] == 3
    assert (report.tally.events, report.tally.lost, report.tally.repeated, report.tally.reordered) == (6, 0, 0, 0)
    assert (report.codes, report.violations) == ({}, [])


def test_a_client_that_asks_for_compression_accepts_nothing_else(tmp_path: Path) -> None:
    """Otherwise a scenario with compressed clients would show nothing."""
    with Daemon(tmp_path, "embedded:") as daemon, Swarm() as swarm:
        spec = Spec((("127.0.0.1", daemon.port),), ("jobs.status_changed",), frozenset({0}), compressed=True, returns=False)
        assert swarm.open([spec], wait=False) == 0
        give_up = time.monotonic() + 20
        while swarm.states() != {"down": 1} and time.monotonic() < give_up:
            time.sleep(0.02)  # polled: the swarm's process has no events for its parent
        assert swarm.report(journal(1))[""].refused == 1
