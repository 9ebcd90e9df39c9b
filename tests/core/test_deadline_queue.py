from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towerws.core.deadline_queue import DeadlineQueue


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
