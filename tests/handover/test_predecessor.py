"""The running process's part in a hand-over, in memory: a clock, a successor that answers as the test says, and connections."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.kit.rows import each_row
from towerws.core.handover_state import MAX_MESSAGE_BYTES, MAX_STATE_BYTES, VERSION, ConnectionState, encode_message
from towerws.handover.predecessor import (
    ANSWER_S,
    BATCH,
    BATCH_BYTES,
    MAX_UNANSWERED,
    REQUEST_WAIT_S,
    Daemon,
    HandOver,
    HandOverCounters,
    HandOverFailed,
)
from towerws.websocket.movable import AT_HANDSHAKE

ANSWERS = {"history": "kept", "begin": "begun", "batch": "adopted", "done": "serving"}


class Connection:
    """A connection with a message of so many bytes that waits. `bound`: why it can't move."""

    def __init__(self, length: int = 0, bound: str | None = None) -> None:
        self.length = length
        self.bound = bound
        self.calls: list[str] = []
        self.is_waiting = False

    def why_not_movable(self) -> str | None:
        """The test's answer."""
        return "moved" if "release" in self.calls else self.bound

    def freeze(self) -> ConnectionState:
        """The state."""
        self.calls.append("freeze")
        return ConnectionState(
            identity={},
            address="",
            subprotocol=None,
            compressed=False,
            position="1-a",
            topics=(),
            inbox=((bytes(self.length), False),),
        )

    def thaw(self, state: ConnectionState) -> None:
        """Note it."""
        self.calls.append("thaw")

    def release(self) -> int:
        """A descriptor."""
        self.calls.append("release")
        return os.open(os.devnull, os.O_RDONLY)


class FakeDaemon:
    """What a hand-over uses of the daemon."""

    class hub:  # noqa: N801 - an attribute of the daemon
        """Its place in the log."""

        position = "1-a"

    def __init__(self) -> None:
        self.all: list[Connection] = []
        self.accepting: list[bool] = []
        self.pid = 0
        self.why: str | None = None
        self.readopted: list[ConnectionState] = []

    def why_no_handover(self) -> str | None:
        """The test's answer."""
        return self.why

    def connections(self) -> Sequence[Connection]:
        """Those that have not moved."""
        return [each for each in self.all if "release" not in each.calls]

    def history(self) -> Iterator[Mapping[str, object]]:
        """None."""
        return iter(())

    def accept(self, accepting: bool) -> None:
        """Note it."""
        self.accepting.append(accepting)

    def readopt(self, state: ConnectionState, descriptor: int, frozen_at: float) -> bool:
        """The connection is here again."""
        os.fstat(descriptor)
        self.readopted.append(state)
        self.all.append(Connection(len(state.inbox[0][0])))
        return True

    def handed_over(self, pid: int) -> None:
        """Note it."""
        self.pid = pid


class FakeChannel:
    """A successor that answers at once, except to the questions in `silent`."""

    def __init__(self, received: Callable[[dict[str, Any], list[int]], None]) -> None:
        self._received = received
        self.silent: set[str] = set()
        self.sizes: dict[str, list[int]] = {}
        self.closed = False
        self.missing: list[int] = []
        """The connections of the next batch for which it has no descriptor."""

    def tell(self, kind: str, descriptors: Sequence[int] = (), states: Sequence[str] | None = None, **content: Any) -> None:
        """Answer."""
        self.sizes.setdefault(kind, []).append(len(encode_message(kind, states, descriptors=list(descriptors), **content)))
        missing, self.missing = ([], self.missing) if kind != "batch" else (self.missing, [])
        if kind not in self.silent:
            self.clock_call(lambda: self._received({"kind": ANSWERS[kind], "failed": {}, "missing": missing}, []))

    clock_call: Callable[[Callable[[], None]], object]

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Memory(HandOver):
    """A hand-over without a process."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fake = FakeDaemon()
        self.lines: list[str] = []
        super().__init__(cast("Daemon", self.fake), self.clock, HandOverCounters(), ready_s=5, command=["towerws"], folder=".")
        self.end: FakeChannel | None = None
        self.silent: set[str] = set()

    def _spawn(self) -> None:
        self.end = FakeChannel(self._received)
        self.end.silent = self.silent
        self.end.clock_call = lambda call: self.clock.callLater(0, call)
        self._channel = cast("Any", self.end)

    def begin(self) -> list[Any]:
        """Hand over, up to the first wait of the moving. Returns a list that gets the result or the error."""
        result: list[Any] = []
        answer: Deferred[Any] = self.restart()
        answer.addCallbacks(result.append, lambda failure: result.append(failure.value))
        self._received({"kind": "starting", "reason": "history is being refilled"}, [])
        self._received({"kind": "ready", "version": VERSION, "pid": 77}, [])
        self.clock.pump([0] * 10)
        return result

    def note(self, event: LogEvent) -> None:
        """Keep a line of the log."""
        self.lines.append(formatEvent(event))


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A hand-over, with its log."""
    made = Memory()
    observer = cast("ILogObserver", made.note)
    globalLogPublisher.addObserver(observer)
    yield made
    globalLogPublisher.removeObserver(observer)


def test_a_stop_ends_a_hand_over_that_waits_for_a_client(memory: Memory) -> None:
    """A handshake is under way, and the successor is asked nothing meanwhile. The stop ends the hand-over, and begins no other."""
    memory.fake.all = [Connection(bound=AT_HANDSHAKE)]
    result = memory.begin()
    assert memory.under_way
    memory.cancel()
    memory.clock.advance(REQUEST_WAIT_S + 1)
    (error,) = result
    assert isinstance(error, HandOverFailed)
    assert str(error) == "the successor is not needed: this process stops"
    assert memory.lines[-1] == "hand-over failed: the successor is not needed: this process stops, and no connection is lost"
    assert (memory.under_way, memory.complete, memory.fake.pid) == (False, False, 0)
    assert memory.end is not None
    assert memory.end.closed
    (again,) = memory.begin()
    assert str(again) == "a successor is not needed: this process stops"
    assert memory.clock.getDelayedCalls() == []


def test_a_second_hand_over_that_fails_reports_its_own_connections(memory: Memory) -> None:
    """The first one came to nothing after it had moved two. The second one fails before it moves any."""
    memory.fake.all = [Connection(), Connection()]
    memory.silent = {"done"}
    memory.begin()
    memory.clock.advance(60)
    assert memory.lines[-1].endswith("2 connections had moved already and are lost with the successor")
    memory.silent = {"begin"}
    (error,) = memory.begin() or [None]
    assert error is None
    memory.clock.advance(60)
    assert memory.lines[-1].endswith("this process goes on, and no connection is lost")
    assert memory.counters.moved == 0


def test_what_the_successor_has_no_descriptor_for_is_sent_again(memory: Memory) -> None:
    """It goes on in the old process meanwhile, and does not count as moved twice."""
    memory.fake.all = [Connection(number) for number in range(4)]
    memory.silent = {"begin"}
    result = memory.begin()
    assert memory.end is not None
    memory.end.missing = [1, 3]
    memory._received({"kind": "begun"}, [])
    memory.clock.pump([0.01] * 40)
    assert [len(state.inbox[0][0]) for state in memory.fake.readopted] == [1, 3]
    assert len(memory.end.sizes["batch"]) == 2
    assert memory.fake.pid == 77
    assert (result[0]["moved"], result[0]["closed"]) == (4, {})


def test_a_successor_that_never_has_descriptors(memory: Memory) -> None:
    """Then the other connections are closed as any that can't move, at the end of the time for slow clients."""
    memory.fake.all = [Connection(number) for number in range(4)]
    memory.silent = {"begin"}
    result = memory.begin()
    assert memory.end is not None
    memory.end.missing = [0]
    memory._received({"kind": "begun"}, [])
    for _ in range(200):
        memory.end.missing = [0]
        memory.clock.pump([0, REQUEST_WAIT_S / 100])
    assert (result[0]["moved"], result[0]["closed"]) == (3, {"not moved": 1})


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """The reason names it. Nothing was started, and clients are accepted as before."""
    fake = FakeDaemon()
    hand_over = HandOver(cast("Daemon", fake), Clock(), HandOverCounters(), ready_s=5, command=["towerws"], folder=str(tmp_path / "gone"))
    result: list[Any] = []
    hand_over.restart().addErrback(lambda failure: result.append(failure.value))
    (error,) = result
    assert isinstance(error, HandOverFailed)
    assert str(error) == f"the successor can't be started: {tmp_path}/gone does not exist any more"
    assert (fake.accepting, fake.pid, hand_over.under_way, hand_over.counters.failed) == ([], 0, False, 1)


def test_two_batches_are_on_their_way(memory: Memory) -> None:
    """The third one is not taken before the first one is adopted, so its clients are still served here."""
    memory.fake.all = [Connection() for _ in range(3 * BATCH)]
    memory.silent = {"batch"}
    result = memory.begin()
    assert memory.end is not None
    assert len(memory.end.sizes["batch"]) == MAX_UNANSWERED == 2
    assert [each.calls for each in memory.fake.all] == [["freeze", "release"]] * (2 * BATCH) + [[]] * BATCH
    memory.silent.clear()
    memory._received({"kind": "adopted", "failed": {}}, [])
    assert len(memory.end.sizes["batch"]) == 3
    memory._received({"kind": "adopted", "failed": {"the client left": 1}}, [])
    memory.clock.pump([0] * 10)
    (answer,) = result
    assert (answer["moved"], answer["closed"]) == (3 * BATCH - 1, {"the client left": 1})


def test_a_successor_that_ends_with_two_batches(memory: Memory) -> None:
    """The answer and the log say how many connections are lost. The others were never touched, and no error goes unhandled."""
    memory.fake.all = [Connection() for _ in range(3 * BATCH)]
    memory.silent = {"batch"}
    result = memory.begin()
    memory.clock.advance(ANSWER_S)
    (error,) = result
    assert str(error) == (
        "the successor did not say 'adopted' within 15 s; 100 connections had moved already and are lost with the successor"
    )
    assert memory.lines[-1] == (
        "hand-over failed: the successor did not say 'adopted' within 15 s; this process goes on; "
        "100 connections had moved already and are lost with the successor"
    )
    assert [each.calls for each in memory.fake.all] == [["freeze", "release"]] * (2 * BATCH) + [[]] * BATCH
    assert memory.clock.getDelayedCalls() == []
    gc.collect()
    assert not [line for line in memory.lines if "Unhandled" in line]


@each_row("length", [MAX_STATE_BYTES, 0])
def test_a_connection_with_too_much_state_stays(length: int) -> None:
    """It goes on until the stop closes it, and is counted with its reason. The others move."""
    memory = Memory()
    memory.fake.all = first, second = [Connection(length), Connection()]
    (answer,) = memory.begin()
    assert answer["moved"] == (1 if length else 2)
    assert answer["closed"] == ({"too much state": 1} if length else {})
    assert first.calls == (["freeze", "thaw"] if length else ["freeze", "release"])
    assert second.calls == ["freeze", "release"]


def test_a_batch_is_bounded_by_all_of_its_bytes(memory: Memory) -> None:
    """Each message fits into the channel, also with the longest states that move."""
    memory.fake.all = [Connection(MAX_STATE_BYTES * 3 // 4 - 1000) for _ in range(3)] + [Connection(BATCH_BYTES // 4) for _ in range(9)]
    (answer,) = memory.begin()
    assert answer["moved"] == 12
    assert memory.end is not None
    assert max(memory.end.sizes["batch"]) < MAX_MESSAGE_BYTES
    assert len(memory.end.sizes["batch"]) == 3 + 3
