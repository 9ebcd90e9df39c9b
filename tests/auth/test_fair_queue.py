from __future__ import annotations

import random
from collections import Counter

import pytest

from towerws.auth.fair_queue import FairQueue


def test_first_in_first_out_for_each_owner() -> None:
    """Owners take turns; each one's own entries keep their order."""
    queue: FairQueue[str] = FairQueue(100)
    for entry in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.push(entry[0], entry) is None
    assert [queue.pop({}) for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not queue


@pytest.mark.parametrize(
    ("under_way", "first"),
    [({}, "a"), ({"a": 1}, "b"), ({"a": 1, "b": 1}, "c"), ({"a": 2, "b": 1, "c": 1}, "b"), ({"a": 1, "b": 1, "c": 1}, "a")],
)
def test_whoever_has_least_goes_first(under_way: dict[str, int], first: str) -> None:
    """What an owner has under way counts; among equals the one that waits longest is next."""
    queue: FairQueue[str] = FairQueue(100)
    for owner in "abc":
        queue.push(owner, owner)
    assert queue.pop(under_way) == first


@pytest.mark.parametrize(
    ("entries", "pushed", "dropped"),
    [
        (["a1", "a2", "a3"], "b1", "a3"),
        (["a1", "a2", "b1"], "b2", "b2"),
        (["a1", "b1", "c1"], "d1", "d1"),
        (["a1", "a2", "b1"], "c1", "a2"),
        (["a1", "a2", "a3"], "a4", "a4"),
        ([], "a1", None),
    ],
)
def test_what_has_no_room(entries: list[str], pushed: str, dropped: str | None) -> None:
    """It is the newest of the owner with the most, and never one of an owner that has no more than the one who pushes."""
    queue: FairQueue[str] = FairQueue(3)
    for entry in entries:
        queue.push(entry[0], entry)
    assert queue.push(pushed[0], pushed) == dropped
    assert len(queue) == min(3, len(entries) + 1)


def test_against_a_plain_model() -> None:
    """Under random operations nothing is lost, doubled or left behind, and the bound holds."""
    queue: FairQueue[int] = FairQueue(20)
    chance = random.Random(3)
    waiting: dict[int, str] = {}
    for number in range(5000):
        match chance.randrange(3):
            case 0:
                owner = chance.choice("abcd")
                waiting[number] = owner
                dropped = queue.push(owner, number)
                if dropped is not None:
                    del waiting[dropped]
            case 1 if waiting:
                gone = chance.choice(list(waiting))
                queue.remove(waiting.pop(gone), gone)
                queue.remove("a", gone)
            case 2 if waiting:
                del waiting[queue.pop(Counter())]
        assert len(queue) == len(waiting) <= 20
    assert queue._waiting.keys() == set(waiting.values())
