from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.identity import (
    MAX_NAME_CHARACTERS,
    MAX_REVOCATION_BYTES,
    DeadlineQueue,
    Identity,
    RecentRevocations,
    Registry,
    Revocation,
    parse_revocation,
)
from towerws.core.settings import Secret

TOKEN = "9t8Fq0csrf"


@each_row(
    ("csrftoken", "told", "vouched"),
    [
        (TOKEN, TOKEN, True),
        (TOKEN, TOKEN + "x", False),
        (TOKEN, "", False),
        (TOKEN, None, False),
        (TOKEN, [TOKEN], False),
        ("é", "é", True),
        ("", "", False),
        (None, "", False),
        (None, None, False),
    ],
)
def test_what_proves_the_origin_of_a_page(csrftoken: str | None, told: object, vouched: bool) -> None:
    """With a cookie, only who can read the other cookie; without one nobody has to."""
    secret = None if csrftoken is None else Secret(csrftoken)
    assert Identity(7, cookie=True, csrftoken=secret).accepts_xrftoken(told) is vouched
    assert Identity(7, csrftoken=secret).accepts_xrftoken(told)


def test_what_is_never_shown() -> None:
    """Neither the token nor what the method keeps for itself is in an identity's text."""
    assert "canary" not in repr(Identity(7, csrftoken=Secret("canary"), private="canary"))


def test_by_user_and_session() -> None:
    """A connection is found by its user, whether the id is written as a number or as text, and by its credential's hash."""
    registry: Registry[str] = Registry()
    registry.add("a", Identity(7, session="5e55"))
    registry.add("b", Identity("7", session="5e56"))
    registry.add("c", Identity())
    assert registry.of_user(7) == registry.of_user("7") == ["a", "b"]
    assert registry.of_session("5e55") == ["a"]
    assert registry.of_user("") == registry.of_user(70) == registry.of_session("") == []
    assert len(registry) == 3


def test_nothing_is_kept_of_a_user_that_left() -> None:
    """The last out of each user is told; in the end nothing is held."""
    registry: Registry[int] = Registry()
    chance = random.Random(4)
    present: dict[int, Identity] = {}
    for number in range(3000):
        if present and chance.random() < 0.5:
            connection = chance.choice(list(present))
            user = present.pop(connection).user_id
            last = user is not None and all(each.user_id != user for each in present.values())
            assert registry.remove(connection)[0] == (str(user) if last else None)
            assert registry.remove(connection) == (None, ())
        else:
            identity = Identity(chance.choice([None, 7, 8]), session=chance.choice([None, "5e55"]))
            registry.add(number, identity)
            present[number] = identity
        assert set(registry.of_user(7)) == {number for number, identity in present.items() if identity.user_id == 7}
    for connection in present:
        registry.remove(connection)
    assert len(registry) == 0
    assert registry._users == registry._sessions == {}


@each_row("named", ["5e55", "5e56", "5e57"])
def test_every_session_cookie_that_came(named: str) -> None:
    """Only AWX knows which of several cookies is its own: the connection is found by each, and gone from each when it leaves."""
    registry: Registry[str] = Registry()
    registry.add("a", Identity(7, session="5e55", also=("5e56", "5e57")))
    assert registry.of_session(named) == ["a"]
    assert registry.remove("a") == ("7", ("5e55", "5e56", "5e57"))
    assert registry.of_session(named) == []


def test_a_session_cookie_that_another_connection_brought_too() -> None:
    """The credential is still in use when the first of them leaves: its checks go on until the last one has left."""
    registry: Registry[str] = Registry()
    registry.add("a", Identity(7, session="5e55", also=("5e56",)))
    registry.add("b", Identity(7, session="5e56"))
    assert registry.remove("a") == (None, ("5e55",))
    assert registry.remove("b") == ("7", ("5e56",))


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


def test_the_earliest_time_counts() -> None:
    """A name has one turn, at the earliest time that was asked for it, and none any more once it was taken."""
    deadlines = DeadlineQueue()
    for at in (5.0, 3.0, 4.0):
        deadlines.add("a", at)
    deadlines.add("b", 4)
    assert len(deadlines) == 2
    assert deadlines.pop_due(2.9, 10) == []
    assert deadlines.pop_due(3, 10) == ["a"]
    assert deadlines.pop_due(10, 10) == ["b"]
    assert deadlines.pop_due(10, 10) == []
    deadlines.add("a", 12)
    assert deadlines.pop_due(11, 10) == []
    assert deadlines.pop_due(12, 10) == ["a"]


def test_not_more_than_asked_for() -> None:
    """The rest stays due, the earliest first."""
    deadlines = DeadlineQueue()
    for number in range(5):
        deadlines.add(str(number), 5 - number)
    assert deadlines.pop_due(9, 2) == ["4", "3"]
    assert deadlines.pop_due(9, 9) == ["2", "1", "0"]


def test_bring_forward() -> None:
    """Later deadlines become this one. Earlier ones stay."""
    deadlines = DeadlineQueue()
    deadlines.add("late", 9)
    deadlines.add("late", 8)
    deadlines.add("early", 1)
    deadlines.bring_forward(2)
    assert deadlines.pop_due(1, 9) == ["early"]
    assert deadlines.pop_due(2, 9) == ["late"]
    assert deadlines.pop_due(9, 9) == []


@given(st.lists(st.one_of(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), st.integers(0, 20), st.none())))
def test_like_a_naive_one(steps: list[tuple[str, int] | int | None]) -> None:
    """After any steps in any order the popped names are those of a plain dictionary."""
    deadlines, naive = DeadlineQueue(), dict[str, float]()
    for step in steps:
        if step is None:
            deadlines.bring_forward(7)
            naive = {name: min(at, 7) for name, at in naive.items()}
        elif isinstance(step, int):
            due = {name for name, at in naive.items() if at <= step}
            assert set(deadlines.pop_due(step, 99)) == due
            naive = {name: at for name, at in naive.items() if name not in due}
        else:
            deadlines.add(*step)
            naive[step[0]] = min(step[1], naive.get(step[0], step[1]))
    assert len(deadlines) == len(naive)


def test_nothing_is_kept_of_names_that_were_discarded() -> None:
    """After 200,000 names that came and went the heap holds a few dozen entries, and only who stayed has a turn."""
    deadlines = DeadlineQueue()
    deadlines.add("stays", 50)
    for number in range(200_000):
        deadlines.add(str(number), 40)
        deadlines.discard(str(number))
        deadlines.discard(str(number))
    assert len(deadlines) == 1
    assert len(deadlines._heap) < 100
    assert deadlines.pop_due(100, 10) == ["stays"]


def test_a_name_that_was_discarded_and_came_back() -> None:
    """It has one turn, at its new time; also where that is the old one."""
    deadlines = DeadlineQueue()
    for at in (10, 20, 10, 20):
        deadlines.add("a", at)
        deadlines.discard("a")
    deadlines.add("a", 20)
    assert deadlines.pop_due(15, 10) == []
    assert deadlines.pop_due(20, 10) == ["a"]
    assert deadlines.pop_due(100, 10) == []


def test_how_late_the_earliest_is() -> None:
    """Names that were discarded count no more."""
    deadlines = DeadlineQueue()
    assert deadlines.late(100) == 0
    deadlines.add("a", 10)
    deadlines.add("b", 20)
    assert deadlines.late(5) == 0
    assert deadlines.late(15) == 5
    deadlines.discard("a")
    assert deadlines.late(15) == 0
    assert deadlines.late(23) == 3
    assert deadlines.pop_due(23, 9) == ["b"]
