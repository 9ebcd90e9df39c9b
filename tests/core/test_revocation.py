from __future__ import annotations

from math import inf

import pytest

from tests.kit.rows import each_row
from towerws.core.revocation import MAX_NAME_CHARACTERS, MAX_REVOCATION_BYTES, RecentRevocations, Revocation, parse_revocation


@each_row(
    ("body", "revocation"),
    [
        (b'{"user": 7}', Revocation(user=7)),
        (b'{"user": "ada"}', Revocation(user="ada")),
        (b' {"session": "5e55"} ', Revocation(session="5e55")),
    ],
)
def test_revocations(body: bytes, revocation: Revocation) -> None:
    """A user, by number or by name, or a credential's hash."""
    assert parse_revocation(body) == revocation


BAD = [
    "",
    "{}",
    "[]",
    "7",
    "null",
    '{"user": null}',
    '{"user": true}',
    '{"user": 7.5}',
    '{"user": ""}',
    '{"session": ""}',
    '{"session": 7}',
]
BAD += ['{"user": 7, "session": "x"}', '{"user": 7, "more": 1}', '{"user": [7]}', "[" * 8000, f'{{"user": "{"x" * 513}"}}', "\udcff"]
BAD += ['{"user": 7, "user": 8}', '{"user": 1' + "0" * 513 + "}", '{"user": 1' + "0" * 5000 + "}", '\ufeff{"user": 7}']


@each_row("body", BAD)
def test_incomplete_revocations_are_refused(body: str) -> None:
    """Half a revocation is none: the sender is told what one looks like."""
    with pytest.raises(ValueError, match="user"):
        parse_revocation(body.encode("utf-8", "surrogateescape"))


def test_a_body_is_bounded() -> None:
    """What is too long is not even parsed; the longest name fits however it is written."""
    with pytest.raises(ValueError, match=str(MAX_REVOCATION_BYTES)):
        parse_revocation(b'{"user": 7}' + b" " * MAX_REVOCATION_BYTES)
    longest = Revocation(user="\U0001f600" * MAX_NAME_CHARACTERS)
    assert parse_revocation(longest.body) == longest


@each_row("revocation", [Revocation(user=7), Revocation(user='"\ud800é\n'), Revocation(session="5e55")])
def test_what_is_written_is_read(revocation: Revocation) -> None:
    """What one daemon tells the others means the same to them."""
    assert parse_revocation(revocation.body) == revocation
    assert revocation.body.isascii()


def test_the_latest_revocation_of_each() -> None:
    """A user is known by its id as text. Of user and session the later one counts. Other users are not touched."""
    recent = RecentRevocations(300)
    assert recent.latest(7, "a") == -inf
    recent.add(Revocation(user=7), 10)
    recent.add(Revocation(session="b"), 11)
    recent.add(Revocation(session="7"), 12)
    assert recent.latest(7, "a") == recent.latest("7") == 10
    assert recent.latest(7, "b") == recent.latest(8, "b") == recent.latest(None, "b") == 11
    assert recent.latest(8, "a") == -inf
    assert recent.latest(None) == -inf
    recent.add(Revocation(user="7"), 13)
    assert recent.latest(7, "a") == 13
    assert recent.count == 4


def test_revoking_everybody() -> None:
    """None revokes every user and credential that has a name. Later revocations count as well."""
    recent = RecentRevocations(300)
    recent.add(Revocation(user=7), 10)
    recent.add(None, 20)
    recent.add(Revocation(user=8), 30)
    assert [recent.latest(user) for user in (7, 8, 9)] == [20, 30, 20]
    assert recent.latest(None) == -inf


def test_old_ones_are_forgotten() -> None:
    """After `kept_s` nothing is left of a revocation: no memory, and nothing that counts for anybody."""
    recent = RecentRevocations(300, names=3)
    for number in range(1000):
        recent.add(Revocation(user=number), 301.0 * number)
        assert len(recent._at) == 1
    assert recent.latest(0) == -inf


def test_a_flood_lets_nobody_through() -> None:
    """Beyond the bound the oldest name is forgotten, and from then on everybody counts as revoked at that time."""
    recent = RecentRevocations(300, names=3)
    for number in range(10):
        recent.add(Revocation(user=number), number)
        assert len(recent._at) <= 3
    assert recent.latest(0) == recent.latest(99, "x") == 6
    assert recent.latest(9) == 9
    recent.add(Revocation(user=7), 10)
    assert recent.latest(7) == 10


def test_any_of_several_credentials() -> None:
    """The latest revocation of any of a connection's names counts."""
    recent = RecentRevocations(300)
    recent.add(Revocation(session="b"), 11)
    recent.add(Revocation(session="c"), 12)
    assert recent.latest(7, "a", "b") == 11
    assert recent.latest(7, "a", "b", "c") == recent.latest(None, "c", "b") == 12
    assert recent.latest(7, "a") == -inf
