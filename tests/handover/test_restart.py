"""What a daemon says and does around its hand-overs, in memory. Whole hand-overs are in `tests/integration/test_handover.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ReactorNotRunning
from twisted.internet.selectreactor import SelectReactor

from tests.kit.rows import each_row
from tests.test_clock import close
from towerws.core.handover_state import VERSION
from towerws.core.identity import Disconnection, Revocation
from towerws.core.publication import Outcome, Publication, Published
from towerws.core.settings import Settings
from towerws.core.topics import parse_routing_key
from towerws.handover import restart
from towerws.handover.ports import Inheritance
from towerws.handover.predecessor import HandOverCounters, HandOverFailed
from towerws.handover.restart import Restarts
from towerws.handover.successor import Successor
from towerws.process import Signals
from towerws.service import TowerwsService


@contextmanager
def running(**settings: Any) -> Iterator[TowerwsService]:
    """A service whose source is ready, and that may hand over."""
    reactor = SelectReactor()
    made = TowerwsService(Settings(broker=None, auth=("open",), **settings), reactor)
    made.source.start()
    made.restarts.enable(["towerws"], ".", "")
    yield made
    for call in reactor.getDelayedCalls():
        call.cancel()
    close(reactor)


@pytest.fixture
def service() -> Iterator[TowerwsService]:
    """One of them."""
    with running() as made:
        yield made


def successor(reactor: Any = None) -> Successor:
    """A process that has not taken over yet, without a channel."""
    return Successor(Inheritance(VERSION, -1, {}), reactor, HandOverCounters())


class EndingReactor:
    """One that stops already."""

    running = True

    def stop(self) -> None:
        """What Twisted does then."""
        raise ReactorNotRunning


def publish(service: TowerwsService, topic: str, message_id: str | None, payload: bytes = b"{}") -> Outcome:
    """What becomes of an event of `POST /publish`."""
    answers: list[Published] = []
    service._publish(Publication(parse_routing_key(topic), payload, message_id)).addCallback(answers.append)
    return answers[0].outcome


@each_row(
    ("name", "refused"),
    [
        ("tini", True),
        ("tini-static", True),
        ("docker-init", True),
        ("dumb-init", True),
        ("catatonit", True),
        ("systemd", False),
        ("bash", False),
        (None, False),
    ],
    monkeypatch=pytest.MonkeyPatch.context,
)
def test_an_init_that_ends_with_its_child_is_refused(
    service: TowerwsService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, refused: bool
) -> None:
    """Its container would end in the middle of a hand-over, with all connections. The reason names it."""
    comm = tmp_path / "comm"
    if name is not None:
        comm.write_text(f"{name}\n")
    monkeypatch.setattr(restart, "PROCESS_1", comm)
    assert service.restarts.why_no_handover() is None  # another parent
    monkeypatch.setattr(os, "getppid", lambda: 1)
    why = service.restarts.why_no_handover()
    assert (why is not None) == refused
    if why is not None:
        assert why.startswith(f"process 1 is {name}, which ends with its first child")


def test_a_process_that_has_not_taken_over_yet_or_stops_hands_nothing_over(service: TowerwsService) -> None:
    """Not before it has all connections of its predecessor, and not when it ends itself."""
    service.restarts.successor = made = successor()
    made.began = True
    assert service.restarts.why_no_handover() == "this process has not taken over from its predecessor yet"
    made.serving = True
    assert service.restarts.why_no_handover() is None
    service.restarts.stop()
    failures: list[Any] = []
    service.restarts.restart().addErrback(failures.append)
    failures[0].trap(HandOverFailed)
    assert str(failures[0].value) == "a successor is not needed: this process stops"


@each_row("serving", [False, True])
def test_a_successor_that_stops_leaves_the_sockets_of_its_predecessor(tmp_path: Path, serving: bool) -> None:
    """The old process goes on, and its clients find the files of its UNIX sockets."""
    files = [tmp_path / "listen.sock", tmp_path / "admin.sock"]
    with running(listen=f"unix:{files[0]}", admin=f"unix:{files[1]}") as service:
        service.privilegedStartService()
        service.restarts.successor = made = successor()
        made.began, made.serving = True, serving
        ports = list(service._ports.values())
        done: list[None] = []
        service.stopService().addCallback(done.append)
        reactor: Any = service._reactor
        while not done:
            reactor.iterate(0.05)
        assert [file.exists() for file in files] == [not serving] * 2
        assert not any(port in reactor.getReaders() for port in ports)
        for port in () if serving else ports:  # the end of the process does that
            left: Any = port
            left.factory.doStop()
            left.socket.close()


def test_a_repeated_event_is_recognized_by_the_successor(service: TowerwsService, monkeypatch: pytest.MonkeyPatch) -> None:
    """`message_id` moves with history. Its pieces are bounded by all of their bytes, however small the payloads are."""
    monkeypatch.setattr(restart, "BATCH_BYTES", 2000)
    assert publish(service, "jobs.1", "once") is Outcome.CONFIRMED
    for number in range(100):
        assert publish(service, f"jobs.{number}", None) is Outcome.CONFIRMED
    pieces = [json.dumps(piece) for piece in service.restarts.history()]
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 4000
    with running() as other:
        for piece in pieces:
            other.restarts._keep(json.loads(piece))
        assert len(other.history) == 101
        assert publish(other, "jobs.1", "once") is Outcome.DUPLICATE
        assert publish(other, "jobs.2", "once") is Outcome.CONFIRMED


def test_an_event_that_is_larger_than_a_message_moves(service: TowerwsService, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves in parts. The messages stay bounded, and history is the same in the other process."""
    monkeypatch.setattr(restart, "BATCH_BYTES", 2000)
    for pad in (10, 1990, 1991, 1992, 20_000, 10, 3000):
        assert publish(service, "jobs.1", None, b'{"a": "%b"}' % (b"x" * pad)) is Outcome.CONFIRMED
    pieces = [json.dumps(piece) for piece in service.restarts.history()]
    assert max(map(len, pieces)) < 6000
    with running() as other:
        for piece in pieces:
            other.restarts._keep(json.loads(piece))
        held = [[(each.topic, each.payload, each.position) for each in made.history.entries()] for made in (service, other)]
        assert held[0] == held[1]


def test_a_revocation_while_connections_move(service: TowerwsService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a broker nobody can tell the successor, which may have the connection already. The caller hears that, and repeats it."""
    answers: list[Disconnection] = []
    service._disconnect(Revocation(user=7)).addCallback(answers.append)
    monkeypatch.setattr(Restarts, "moving", True)
    service._disconnect(Revocation(user=7)).addCallback(answers.append)
    reason = "the daemon is being restarted; disconnect again in a moment"
    assert answers == [Disconnection(0), Disconnection(0, told=False, reason=reason)]


STOPS: dict[str, Callable[[Any], None]] = {
    "a signal": lambda reactor: Signals(reactor, _nothing, lambda by: None)._stop("SIGTERM"),
    "the end of the channel": lambda reactor: successor(reactor)._lost(),
}


def _nothing() -> None:
    """Not called."""


@each_row("who", [*STOPS, "the end of a hand-over"])
def test_a_second_stop_is_no_error(service: TowerwsService, who: str) -> None:
    """A signal and a hand-over may end the process at the same time."""
    if who in STOPS:
        STOPS[who](EndingReactor())
    else:
        service.restarts._reactor = EndingReactor()
        service.restarts._stop()
