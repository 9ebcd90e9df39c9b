from __future__ import annotations

import json

import pytest

from tests.kit.rows import each_row
from towerws.core.control_messages import (
    MAX_DAEMONS,
    PRESENT_S,
    ControlMarker,
    DaemonName,
    Daemons,
    Done,
    Leaving,
    parse_control,
    revocation_id,
    wants_answer,
)
from towerws.core.identity import MAX_REVOCATION_BYTES, Revocation

ID = "0123456789abcdef"


@each_row(
    "message",
    [
        Revocation(user=7),
        Revocation(session="5e55"),
        ControlMarker(DaemonName(ID, "web1:4711"), "9f"),
        ControlMarker(DaemonName(ID, "\ud800\n"), ""),
        Done(ID, f"{ID}-1"),
        Leaving(ID),
    ],
)
def test_what_is_written_is_read(message: Revocation | ControlMarker | Done | Leaving) -> None:
    """One object in ASCII."""
    assert message.body.isascii()
    assert parse_control(message.body) == message


def test_a_later_version_may_say_more() -> None:
    """Keys that are not known are ignored where a daemon speaks, and nowhere else."""
    assert parse_control(json.dumps({"daemon": ID, "done": "x", "took_ms": 3}).encode()) == Done(ID, "x")
    with pytest.raises(ValueError, match="nothing else"):
        parse_control(b'{"user": 7, "took_ms": 3}')


BAD = [
    '{"daemon": "0123456789ABCDEF", "leaving": true}',
    '{"daemon": "0123", "leaving": true}',
    '{"daemon": 7, "leaving": true}',
    f'{{"daemon": "{ID}"}}',
    f'{{"daemon": "{ID}", "leaving": 1}}',
    f'{{"daemon": "{ID}", "leaving": false}}',
    f'{{"daemon": "{ID}", "marker": "x"}}',
    f'{{"daemon": "{ID}", "marker": 7, "name": "x"}}',
    f'{{"daemon": "{ID}", "marker": "{"x" * 65}", "name": "x"}}',
    f'{{"daemon": "{ID}", "done": "{"x" * 65}"}}',
    f'{{"daemon": "{ID}", "user": 7}}',
    f'["daemon", "{ID}"]',
    "",
    "[" * 8000,
    "\udcff",
]


@each_row("body", BAD)
def test_anything_else_is_nothing(body: str) -> None:
    """What is wrong is said without repeating it."""
    with pytest.raises(ValueError, match=r"\"daemon\"|user") as error:
        parse_control(body.encode("utf-8", "surrogateescape"))
    assert ID not in str(error.value)


def test_it_is_bounded() -> None:
    """What is too long is not even parsed; a long name is cut."""
    with pytest.raises(ValueError, match=str(MAX_REVOCATION_BYTES)):
        parse_control(Leaving(ID).body + b" " * MAX_REVOCATION_BYTES)
    marker = parse_control(ControlMarker(DaemonName(ID, "\U0001f600" * 1000), "x" * 64).body)
    assert isinstance(marker, ControlMarker)
    assert len(marker.daemon.name) == 255


def test_which_messages_are_answered() -> None:
    """A daemon's revocations only: a producer that gives its messages ids of its own waits for nothing."""
    assert wants_answer(revocation_id(ID, 1))
    assert not any(map(wants_answer, (None, "", "m1", ID, f"{ID}-", f"{ID}-x", f"{ID}.1", f"{ID}-{'1' * 11}", f" {ID}-1")))


A, B = DaemonName("a" * 16, "one:1"), DaemonName("b" * 16, "two:2")


def test_a_daemon_is_present_for_a_while_after_its_marker() -> None:
    """Each marker counts from when it came; the first one of a daemon says that it is new."""
    daemons = Daemons()
    assert daemons.present(0) == {}
    assert daemons.heard(A, 0)
    assert daemons.heard(B, 10)
    assert not daemons.heard(A, 20)
    assert daemons.present(10 + PRESENT_S) == {A: 20, B: PRESENT_S}
    assert daemons.present(11 + PRESENT_S) == {A: 21}
    assert daemons.heard(B, 12 + PRESENT_S)


def test_one_that_stops_exists_no_more() -> None:
    """At once; it may come back."""
    daemons = Daemons()
    daemons.heard(A, 0)
    daemons.heard(B, 0)
    daemons.left(A.id)
    daemons.left("c" * 16)
    assert daemons.present(1) == {B: 1}
    assert daemons.heard(A, 2)


def test_time_in_which_nothing_could_be_heard() -> None:
    """It counts against nobody."""
    daemons = Daemons()
    daemons.heard(A, 0)
    daemons.restart_timeouts(1000)
    assert daemons.present(1000 + PRESENT_S) == {A: PRESENT_S}
    assert daemons.present(1001 + PRESENT_S) == {}


def test_a_flood_of_names() -> None:
    """They are bounded, those that are known stay known, and it is said that there were more."""
    daemons = Daemons()
    daemons.heard(A, 0)
    for number in range(10 * MAX_DAEMONS):
        daemons.heard(DaemonName(f"{number:016x}", "x"), 1)
    assert len(daemons.present(2)) == MAX_DAEMONS
    assert A in daemons.present(2)
    assert daemons.too_many(1 + PRESENT_S)
    assert not daemons.too_many(2 + PRESENT_S)
    assert daemons.present(2 + PRESENT_S) == {}
