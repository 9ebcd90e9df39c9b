from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.kit.ws_kit import Client, SlowMethod, edges
from tests.websocket.test_movable import adopted
from towerws.auth.transfer import pack_identity
from towerws.core.handover_state import VERSION, ConnectionState, state_to_json
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.identity import Identity, Revocation
from towerws.core.ingest import Ingest
from towerws.handover import successor as module
from towerws.handover.ports import Inheritance
from towerws.handover.predecessor import HandOverCounters
from towerws.handover.successor import NO_DESCRIPTOR, REACH_S, Adopter, Successor
from towerws.protocol import WebSocketConnection
from towerws.websocket.movable import Adoption


class ReadingProcess:
    """An `Adopter` and the `Ingest` that it asks, which has not read the log yet."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = History(10**6, 60)
        self.ingest = Ingest(
            self.history,
            Hub(self.history),
            max_payload_bytes=1000,
            clock=self.clock.seconds,
            wall_clock=lambda: 1_800_000_000.0,
            report=lambda _: None,
            new_epoch=lambda: "a" * 8,
        )
        websockets: Any = SimpleNamespace(context=SimpleNamespace(ingest=self.ingest))
        self.adopter = Adopter(self.clock, websockets, ["open"])
        self.judged: list[str] = []

    def ask(self, name: str, offset: int = 5) -> None:
        """Ask for a place that the log may still reach."""
        self.adopter.when_judged(f"{offset}-{'b' * 8}", lambda: self.judged.append(name))

    def read(self, offset: int = 5) -> None:
        """The log has been read up to this offset."""
        self.ingest.proven(True)
        self.ingest.caught_up()
        self.ingest.deliver("jobs.summary", b"{}", offset, None)
        self.ingest.end_batch(lambda _: None)


@pytest.fixture
def successor() -> ReadingProcess:
    """A process that takes connections over, and has read nothing yet."""
    return ReadingProcess()


def test_a_place_is_judged_once_the_log_has_been_read(successor: ReadingProcess) -> None:
    """Then no timer is left."""
    successor.ask("first")
    assert successor.judged == []
    successor.read()
    assert successor.judged == ["first"]
    assert not successor.clock.getDelayedCalls()
    assert successor.ingest.waiting == 0


def test_a_wait_ends_at_its_deadline(successor: ReadingProcess) -> None:
    """Both batches that are on their way wait equally long."""
    successor.ask("first")
    successor.ask("second")
    successor.clock.advance(REACH_S - 1)
    assert successor.judged == []
    successor.clock.advance(1)
    assert successor.judged == ["first", "second"]
    assert successor.ingest.waiting == 0


def test_without_a_broker_only_the_first_batches_wait(successor: ReadingProcess) -> None:
    """Forty batches that wait 10 s each would stop the connections for minutes."""
    successor.ask("first")
    successor.clock.advance(REACH_S)
    for name in ("second", "third"):
        successor.ask(name)
    assert successor.judged == ["first", "second", "third"]


def test_after_the_log_has_been_read_batches_wait_again(successor: ReadingProcess) -> None:
    """The broker was away for a while only."""
    successor.ask("first")
    successor.clock.advance(REACH_S)
    successor.read()
    successor.ask("second")
    assert successor.judged == ["first", "second"]
    successor.ask("third", offset=9)
    assert successor.judged == ["first", "second"]
    successor.read(9)
    assert successor.judged == ["first", "second", "third"]


def test_why_a_place_is_not_here(successor: ReadingProcess) -> None:
    """A log that could not be read in time may be the right one."""
    position = f"5-{'b' * 8}"
    successor.ask("first")
    successor.clock.advance(REACH_S)
    assert "could not read the log" in (successor.adopter.why_unknown(position) or "")
    successor.read(9)
    successor.ask("second")
    assert "does not hold the place" in (successor.adopter.why_unknown(position) or "")
    assert "does not hold the place" in (successor.adopter.why_unknown("") or "")
    assert successor.adopter.why_unknown(successor.history.head.position) is None


def state(position: str, **more: Any) -> ConnectionState:
    """What a connection brings along."""
    fields = {"identity": {}, "address": "192.0.2.1", "subprotocol": "towerws.v1", "compressed": False, "topics": ()}
    return ConnectionState(**{**fields, **more}, position=position)


def test_batches_are_answered_in_their_order(successor: ReadingProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch could be adopted at once, as its place has been read. The predecessor tells the answers by their order."""
    successor.read()
    known = successor.history.head.position
    told: list[dict[str, Any]] = []
    process = Successor(Inheritance(VERSION, 3, {}), successor.clock, HandOverCounters())
    monkeypatch.setattr(process, "_channel", SimpleNamespace(tell=lambda kind, **content: told.append(content)))
    monkeypatch.setattr(process, "_adopter", successor.adopter)
    monkeypatch.setattr(successor.adopter, "adopt", lambda *_: NO_DESCRIPTOR)
    process._received({"kind": "batch", "states": [state_to_json(state(f"9-{'b' * 8}"))] * 2}, [None, os.open(os.devnull, os.O_RDONLY)])
    process._received({"kind": "batch", "states": [state_to_json(state(known))]}, [None])
    assert told == []
    successor.read(9)
    assert told == [{"failed": {}, "missing": [0, 1]}, {"failed": {}, "missing": [0]}]


def test_a_credential_that_is_revoked_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends, also in the process that takes it back. A user who was disconnected earlier and came back stays."""
    with edges() as make:
        edge = make(SlowMethod(), ping_s=3600)
        clients: list[Client] = []

        def adopt(reactor: object, factory: object, descriptor: int, adoption: Adoption) -> WebSocketConnection:
            clients.append(adopted(edge, adoption))
            return clients[-1].connection

        monkeypatch.setattr(module, "adopt", adopt)
        adopter = Adopter(edge.clock, edge.factory, ["tower"])
        moved = state(edge.hub.position, identity=pack_identity(Identity(7, "tower", "s1")), topics=("chat.a",))
        edge.advance(100)
        edge.context.credential_monitor.disconnect(Revocation(user=7))
        revoked_at = edge.clock.seconds()
        edge.advance(1)
        assert adopter.adopt(moved, -1, revoked_at - 1) is None
        assert clients[0].close_code() == 1008
        assert adopter.adopt(moved, -1, revoked_at + 0.5) is None
        assert clients[1].close_code() is None


def test_a_topic_without_a_place_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told that events may be missing. It gets no event twice, and what comes later."""
    with edges() as make:
        edge = make(ping_s=3600)
        start = edge.hub.position
        clients: list[Client] = []

        def adopt(reactor: object, factory: object, descriptor: int, adoption: Adoption) -> WebSocketConnection:
            clients.append(adopted(edge, adoption))
            return clients[-1].connection

        monkeypatch.setattr(module, "adopt", adopt)
        edge.publish("chat.a", {"n": 1})
        identity = pack_identity(Identity(7, "tower", "s1"))
        moved = state(start, identity=identity, topics=("chat.a", "chat.b"), joined_later={"chat.a": ""})
        assert Adopter(edge.clock, edge.factory, ["tower"]).adopt(moved, -1, 0.0) is None
        edge.publish("chat.a", {"n": 2})
        edge.clock.advance(0)
        gap, event = clients[0].take()
        assert (gap["type"], gap["topics"], gap["from"]) == ("gap", ["chat.a", "chat.b"], start)
        assert event["payload"] == {"n": 2}
