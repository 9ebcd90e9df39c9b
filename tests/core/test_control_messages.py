from __future__ import annotations

import json

import pytest

from towerws.core.control_messages import DaemonName, Done, Leaving, Marker, parse_control, revocation_id, wants_answer
from towerws.core.revocation import MAX_REVOCATION_BYTES, Revocation

ID = "0123456789abcdef"


@pytest.mark.parametrize(
    "message",
    [
        Revocation(user=7),
        Revocation(session="5e55"),
        Marker(DaemonName(ID, "web1:4711"), "9f"),
        Marker(DaemonName(ID, "\ud800\n"), ""),
        Done(ID, f"{ID}-1"),
        Leaving(ID),
    ],
)
def test_what_is_written_is_read(message: Revocation | Marker | Done | Leaving) -> None:
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


@pytest.mark.parametrize("body", BAD)
def test_anything_else_is_nothing(body: str) -> None:
    """What is wrong is said without repeating it."""
    with pytest.raises(ValueError, match=r"\"daemon\"|user") as error:
        parse_control(body.encode("utf-8", "surrogateescape"))
    assert ID not in str(error.value)


def test_it_is_bounded() -> None:
    """What is too long is not even parsed; a long name is cut."""
    with pytest.raises(ValueError, match=str(MAX_REVOCATION_BYTES)):
        parse_control(Leaving(ID).body + b" " * MAX_REVOCATION_BYTES)
    marker = parse_control(Marker(DaemonName(ID, "\U0001f600" * 1000), "x" * 64).body)
    assert isinstance(marker, Marker)
    assert len(marker.daemon.name) == 255


def test_who_is_answered() -> None:
    """A daemon's revocations only: a producer that gives its messages ids of its own waits for nothing."""
    assert wants_answer(revocation_id(ID, 1))
    assert not any(map(wants_answer, (None, "", "m1", ID, f"{ID}-", f"{ID}-x", f"{ID}.1", f"{ID}-{'1' * 11}", f" {ID}-1")))
