from __future__ import annotations

import random

from tests.kit.rows import each_row
from towerws.core.identity import Identity, Registry
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
