from __future__ import annotations

from towerws.core.deliveries import Delivery
from towerws.core.turn import WRITE_OCTETS, Turn
from towerws.core.wire import TOWER, V1


def deliveries(*topics: str) -> list[Delivery]:
    """One for each, numbered."""
    return [Delivery(number, topic, b'{"n":%d}' % number, number, "q") for number, topic in enumerate(topics, 1)]


def audience(**listeners: str) -> dict[str, dict[str, None]]:
    """Members are letters: `a="xy"` is a topic with two."""
    return {topic: dict.fromkeys(members) for topic, members in listeners.items()}


def frames(*numbers: int) -> bytes:
    """What a client of Tower's dialect gets of those deliveries."""
    return b"".join(b'\x81\x07{"n":%d}' % number for number in numbers)


def test_who_is_due_what() -> None:
    """Each member is given once, and its share has all frames that it is due, in the log's order over its topics."""
    turn = Turn(deliveries("a", "b", "nobody", "a", "c", "b"), TOWER, audience(a="xy", b="yz", c="z", silent="w"))
    due = {member: turn.share(bits) for member, bits in turn.rest}
    assert {member: (data, count) for member, (data, count, _) in due.items()} == {
        "x": (frames(1, 4), 2),
        "y": (frames(1, 2, 4, 6), 4),
        "z": (frames(2, 5, 6), 3),
    }
    assert all(cost == WRITE_OCTETS + len(data) for data, _, cost in due.values())


def test_shares_are_made_once() -> None:
    """Who is due the same topics gets the very same bytes, whatever else it listens to."""
    turn = Turn(deliveries("a", "b", "a"), TOWER, audience(a="wxy", b="xyz", silent="wz"))
    shares = {member: turn.share(bits)[0] for member, bits in turn.rest}
    assert shares["x"] is shares["y"]
    assert len({id(data) for data in shares.values()}) == 3
    assert len(turn.shares) == 3


def test_a_turn_of_nobodys_topics_is_due_to_nobody() -> None:
    """No frame is made for a dialect that nobody speaks who listens."""
    turn = Turn(deliveries("a", "b"), V1, audience(c="x"))
    assert list(turn.rest) == []
    assert turn.take("x") is None


def test_what_is_taken_is_not_given() -> None:
    """A member takes its share early, once; when its turn comes it is due nothing."""
    turn = Turn(deliveries("a", "b"), TOWER, audience(a="xyz", b="y"))
    assert next(turn.rest)[0] == "x"
    share = turn.take("y")
    assert share is not None
    assert share[0] == frames(1, 2)
    assert turn.take("y") is None
    assert [(member, bool(bits)) for member, bits in turn.rest] == [("y", False), ("z", True)]


def test_who_was_passed_by_can_take_nothing() -> None:
    """What was written up to a member can't be taken once more; who comes behind it still can."""
    turn = Turn(deliveries("a"), TOWER, audience(a="wxyz"))
    first, second = (next(turn.rest)[0] for _ in range(2))
    turn.pass_by(second)
    assert turn.take(first) is turn.take(second) is None
    assert turn.take("y") is not None
    last = [member for member, _ in turn.rest][-1]
    turn.pass_by(last)
    assert turn.take(last) is None
