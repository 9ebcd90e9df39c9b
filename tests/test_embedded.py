from __future__ import annotations

from collections.abc import Callable

import pytest

from towerws.core.sources import SourceState
from towerws.embedded import EmbeddedSource


class NotingSink:
    """A `Sink` that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def resume_from(self) -> int | None:
        """Nothing is held."""
        return None

    def attach(self, log: str | None, expect: int | None) -> None:
        """Noted."""
        self.calls.append(("attach", log, expect))

    def caught_up(self) -> None:
        """Noted."""
        self.calls.append(("caught_up",))

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Noted."""
        self.calls.append(("deliver", routing_key, body, offset, message_id))

    def end_turn(self, written: Callable[[int], None]) -> None:
        """Noted."""
        self.calls.append(("end_turn",))
        written(0)

    def gap(self, reason: str) -> None:
        """Noted."""
        self.calls.append(("gap", reason))


@pytest.fixture
def sink() -> NotingSink:
    """What the source feeds."""
    return NotingSink()


def test_start(sink: NotingSink) -> None:
    """A started source is ready at once; its log has a name that no other process has."""
    source = EmbeddedSource(sink)
    assert not source.status().ready
    assert source.status().reason == "the embedded source is idle"
    source.start()
    (attach, caught_up) = sink.calls
    assert (attach[0], attach[2], caught_up) == ("attach", None, ("caught_up",))
    assert source.status().ready
    assert source.status().reason is None
    other = NotingSink()
    EmbeddedSource(other).start()
    assert other.calls[0][1] != attach[1]


def test_publish(sink: NotingSink) -> None:
    """Each publication is a turn of its own; offsets grow by one from 1, and the position names log and offset."""
    source = EmbeddedSource(sink)
    source.start()
    log = sink.calls[0][1]
    del sink.calls[:]
    assert source.publish("a.b", b"{}") == f"1-{log}"
    assert source.publish("a.c", b'{"x":1}') == f"2-{log}"
    assert sink.calls == [("deliver", "a.b", b"{}", 1, None), ("end_turn",), ("deliver", "a.c", b'{"x":1}', 2, None), ("end_turn",)]
    assert source.status().details == {"published": 2}


def test_stop(sink: NotingSink) -> None:
    """Stopping fires at once; the source is then not ready, and says why."""
    source = EmbeddedSource(sink)
    source.start()
    assert source.stop().called
    assert source.status().state is SourceState.STOPPED
    assert source.status().reason == "the embedded source is stopped"
