from __future__ import annotations

import pytest

from tests.kit.fake_amqp import RecordingSink
from towerws.core.sources import SourceState
from towerws.embedded import EmbeddedSource


@pytest.fixture
def sink() -> RecordingSink:
    """The sink of the source."""
    return RecordingSink()


def test_start(sink: RecordingSink) -> None:
    """A started source is ready at once. Its log has a name that no other process has."""
    source = EmbeddedSource(sink)
    assert not source.status().ready
    assert source.status().reason == "the embedded source is idle"
    source.start()
    (begin, caught_up) = sink.calls
    assert (begin[0], caught_up) == ("begin", ("caught_up",))
    assert source.status().ready
    assert source.status().reason is None
    other = RecordingSink()
    EmbeddedSource(other).start()
    assert other.calls[0][1] != begin[1]


def test_publish(sink: RecordingSink) -> None:
    """Publications are one batch until `flush`. Offsets grow by one from 1, and the position names log and offset."""
    source = EmbeddedSource(sink)
    source.start()
    log = sink.calls[0][1]
    del sink.calls[:]
    assert source.publish("a.b", b"{}") == f"1-{log}"
    assert source.publish("a.c", b'{"x":1}') == f"2-{log}"
    assert sink.calls == [("deliver", "a.b", b"{}", 1, None), ("deliver", "a.c", b'{"x":1}', 2, None)]
    assert sink.batches == 0
    source.flush()
    assert sink.batches == 1
    assert source.status().details == {"published": 2}


def test_stop(sink: RecordingSink) -> None:
    """Stopping fires at once. After that the source is not ready, and names the reason."""
    source = EmbeddedSource(sink)
    source.start()
    assert source.stop().called
    assert source.status().state is SourceState.STOPPED
    assert source.status().reason == "the embedded source is stopped"


def test_the_log_of_another_process_goes_on(sink: RecordingSink) -> None:
    """After a hand-over the log keeps its name, and offsets go on."""
    source = EmbeddedSource(sink)
    source.start()
    del sink.calls[:]
    source.continue_log("other", 5)
    source.keep([("a.b", b"{}", 6, "id")], 7)
    assert source.place == ("other", 7)
    assert source.publish("a.b", b"{}") == "8-other"
    assert sink.calls == [("continue_log", "other", 5), ("deliver", "a.b", b"{}", 6, "id"), ("deliver", "a.b", b"{}", 8, None)]
