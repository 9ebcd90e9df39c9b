from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.kit.ws_kit import edges
from towerws.collector import FULL_AFTER, collect_rarely


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Restores the collector's settings."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.enable()


def test_full_collections_are_rare() -> None:
    """Only full collections are rare: young containers are examined as often as before."""
    young, middle, _ = gc.get_threshold()
    collect_rarely()
    assert gc.get_threshold() == (young, middle, FULL_AFTER)
    assert gc.isenabled()


def test_a_closed_connection_needs_no_collector() -> None:
    """A closed connection is no cycle: its memory is freed at once, without a collection."""
    with edges() as make:
        edge = make()
        client = edge.open(v1=True).listen(1)
        edge.publish("job_events.1", {"n": 1})
        client.take()
        gc.collect()
        gc.disable()
        gone = weakref.ref(client.connection)
        client.hang_up()
        edge.advance(1)
        edge.clients.clear()
        client.transport._protocol = None  # the kit's own reference to it
        del client
        assert gone() is None
