from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from tests.kit.ws_kit import edges
from towerws.process import FULL_AFTER, collect_rarely


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


def test_the_daemon_sets_it() -> None:
    """As twistd makes the service, in a process of its own."""
    code = (
        "import gc; from towerws.tap import Options, makeService; options = Options();"
        "options.parseOptions(['--broker', 'embedded:', '--auth', 'open']);"
        "makeService(options); print(gc.get_threshold()[2])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split()[-1] == str(FULL_AFTER)


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
