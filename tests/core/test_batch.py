from __future__ import annotations

from towerws.core.batch import WRITE_BYTES, Batch
from towerws.core.deliveries import Delivery
from towerws.core.wire import TOWER, V1


def deliveries(*topics: str) -> list[Delivery]:
    """One for each, numbered."""
    return [Delivery(number, topic, b'{"n":%d}' % number, number, "q") for number, topic in enumerate(topics, 1)]


def by_topic(**listeners: str) -> dict[str, dict[str, None]]:
    """Members are letters: `a="xy"` is a topic with two."""
    return {topic: dict.fromkeys(subscribers) for topic, subscribers in listeners.items()}


def frames(*numbers: int) -> bytes:
    """What a client of Tower's dialect gets of those deliveries."""
    return b"".join(b'\x81\x07{"n":%d}' % number for number in numbers)


def test_who_is_due_what() -> None:
    """Each member is given once, and its share has all frames that it is due, in the log's order over its topics."""
    batch = Batch(deliveries("a", "b", "nobody", "a", "c", "b"), TOWER, by_topic(a="xy", b="yz", c="z", silent="w"))
    due = {subscriber: batch.payload(bits) for subscriber, bits in batch.rest}
    assert {subscriber: (data, count) for subscriber, (data, count, _) in due.items()} == {
        "x": (frames(1, 4), 2),
        "y": (frames(1, 2, 4, 6), 4),
        "z": (frames(2, 5, 6), 3),
    }
    assert all(cost == WRITE_BYTES + len(data) for data, _, cost in due.values())


def test_shares_are_made_once() -> None:
    """Who is due the same topics gets the very same bytes, whatever else it listens to."""
    batch = Batch(deliveries("a", "b", "a"), TOWER, by_topic(a="wxy", b="xyz", silent="wz"))
    payloads = {subscriber: batch.payload(bits)[0] for subscriber, bits in batch.rest}
    assert payloads["x"] is payloads["y"]
    assert len({id(data) for data in payloads.values()}) == 3
    assert len(batch.payloads) == 3


def test_a_turn_of_nobodys_topics_is_due_to_nobody() -> None:
    """No frame is made for a dialect that nobody speaks who listens."""
    batch = Batch(deliveries("a", "b"), V1, by_topic(c="x"))
    assert list(batch.rest) == []
    assert batch.pop("x") is None


def test_what_is_taken_is_not_given() -> None:
    """A member takes its share early, once; when its turn comes it is due nothing."""
    batch = Batch(deliveries("a", "b"), TOWER, by_topic(a="xyz", b="y"))
    assert next(batch.rest)[0] == "x"
    payload = batch.pop("y")
    assert payload is not None
    assert payload[0] == frames(1, 2)
    assert batch.pop("y") is None
    assert [(subscriber, bool(bits)) for subscriber, bits in batch.rest] == [("y", False), ("z", True)]


def test_who_was_passed_by_can_take_nothing() -> None:
    """What was written up to a member can't be taken once more; who comes behind it still can."""
    batch = Batch(deliveries("a"), TOWER, by_topic(a="wxyz"))
    first, second = (next(batch.rest)[0] for _ in range(2))
    batch.pass_by(second)
    assert batch.pop(first) is batch.pop(second) is None
    assert batch.pop("y") is not None
    last = [subscriber for subscriber, _ in batch.rest][-1]
    batch.pass_by(last)
    assert batch.pop(last) is None
