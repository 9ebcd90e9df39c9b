"""The lists of insides fail with a text that names the next step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.insides import uses
from tests.insides.kit import Inside, check, unlisted
from tests.insides.uses import Place
from tests.kit.rows import each_row

CONNECTION = "pika.connection:Connection"


def example(name: str, **more: Any) -> Inside:
    """An entry for something that the connection's error handling uses."""
    return Inside(**{"owner": CONNECTION, "name": name, "why": "as an example", "through": "_error", **more})


@each_row(
    ("inside", "problem"),
    [
        (example("_no_such"), "Connection._no_such is gone"),
        (example("_remove_heartbeat", signature="(self, now)"), r"takes \(self\) now, no longer \(self, now\)"),
        (example("ON_CONNECTION_CLOSED", value=99), "no longer 99"),
        (example("_terminate_stream", phrases=("self._error = nothing",)), "no longer has 'self._error = nothing'"),
        (example("x", owner="pika.no_such:Connection"), "can't be found"),
        (example("x", owner="pika.connection:NoSuch"), "can't be found"),
    ],
    ids=["gone", "signature", "value", "phrase", "module", "class"],
)
def test_a_change_is_told_with_its_use_and_the_next_step(inside: Inside, problem: str) -> None:
    """The text has the change, the reason for the use, the lines that use it, and the next step."""
    with pytest.raises(AssertionError, match=problem) as failed:
        check(inside, __file__)
    text = str(failed.value)
    assert "pika 1." in text
    assert "Used in towerws/" in text
    assert "tests/insides/test_kit.py" in text
    assert "setup.cfg" in text


def test_order_matters_in_a_source() -> None:
    """If all phrases are there in another order, that is a change."""
    turned = ("self._adapter_disconnect_stream()", "self._error = error")
    with pytest.raises(AssertionError, match="no longer in its place"):
        check(example("_terminate_stream", phrases=turned), __file__)


def test_an_entry_that_nothing_uses_is_told() -> None:
    """A list has no unused entries."""
    with pytest.raises(AssertionError, match="remove the entry"):
        check(Inside(owner=CONNECTION, name="_flush_output", why="for nothing"), __file__)


def test_a_use_without_an_entry_is_told_with_its_lines() -> None:
    """The text has the name and each place."""
    found = {"_listed": [Place("towerws/x.py", 1)], "_new": [Place("towerws/x.py", 2), Place("towerws/y.py", 3)], "documented": []}
    listed = [Inside(owner=CONNECTION, name="_listed", why="")]
    assert unlisted(found, listed, frozenset({"documented"})) == ["_new: towerws/x.py:2, towerws/y.py:3"]


def test_the_scan_sees_every_kind_of_use() -> None:
    """Imports, inherited names, attributes of other objects, and names in strings."""
    assert "pika.adapters.twisted_connection._TwistedConnectionAdapter" in uses.imported_privately("pika")
    assert {"_process_frame", "_error"} <= uses.inherited("pika").keys()  # called, read
    assert {"_on_data_available", "bytes_received"} <= uses.inherited("pika").keys()  # overridden, public
    assert {"_batched_timer", "wasClean"} <= uses.inherited("autobahn").keys()  # set
    assert {"_producer", "_tempDataLen"} <= uses.private_elsewhere().keys()  # on other objects
    assert {"_exitSignal", "_transport"} <= uses.private_elsewhere().keys()  # as strings
