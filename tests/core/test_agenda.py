from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towerws.core.agenda import Agenda


def test_the_earliest_time_counts() -> None:
    """A name has one turn, at the earliest time that was asked for it, and none any more once it was taken."""
    agenda = Agenda()
    for at in (5.0, 3.0, 4.0):
        agenda.add("a", at)
    agenda.add("b", 4)
    assert len(agenda) == 2
    assert agenda.take(2.9, 10) == []
    assert agenda.take(3, 10) == ["a"]
    assert agenda.take(10, 10) == ["b"]
    assert agenda.take(10, 10) == []
    agenda.add("a", 12)
    assert agenda.take(11, 10) == []
    assert agenda.take(12, 10) == ["a"]


def test_not_more_than_asked_for() -> None:
    """The rest stays due, the earliest first."""
    agenda = Agenda()
    for number in range(5):
        agenda.add(str(number), 5 - number)
    assert agenda.take(9, 2) == ["4", "3"]
    assert agenda.take(9, 9) == ["2", "1", "0"]


def test_hasten() -> None:
    """What is later than that is due by then; what is earlier stays where it was."""
    agenda = Agenda()
    agenda.add("late", 9)
    agenda.add("late", 8)
    agenda.add("early", 1)
    agenda.hasten(2)
    assert agenda.take(1, 9) == ["early"]
    assert agenda.take(2, 9) == ["late"]
    assert agenda.take(9, 9) == []


@given(st.lists(st.one_of(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), st.integers(0, 20), st.none())))
def test_like_a_naive_one(steps: list[tuple[str, int] | int | None]) -> None:
    """Whatever is added, taken and hastened in whatever order: what is due is what a plain dictionary says."""
    agenda, naive = Agenda(), dict[str, float]()
    for step in steps:
        if step is None:
            agenda.hasten(7)
            naive = {name: min(at, 7) for name, at in naive.items()}
        elif isinstance(step, int):
            due = {name for name, at in naive.items() if at <= step}
            assert set(agenda.take(step, 99)) == due
            naive = {name: at for name, at in naive.items() if name not in due}
        else:
            agenda.add(*step)
            naive[step[0]] = min(step[1], naive.get(step[0], step[1]))
    assert len(agenda) == len(naive)


def test_nothing_is_kept_of_names_that_were_discarded() -> None:
    """After 200,000 names that came and went the heap holds a few dozen entries, and only who stayed has a turn."""
    agenda = Agenda()
    agenda.add("stays", 50)
    for number in range(200_000):
        agenda.add(str(number), 40)
        agenda.discard(str(number))
        agenda.discard(str(number))
    assert len(agenda) == 1
    assert len(agenda._heap) < 100
    assert agenda.take(100, 10) == ["stays"]


def test_a_name_that_was_discarded_and_came_back() -> None:
    """It has one turn, at its new time; also where that is the old one."""
    agenda = Agenda()
    for at in (10, 20, 10, 20):
        agenda.add("a", at)
        agenda.discard("a")
    agenda.add("a", 20)
    assert agenda.take(15, 10) == []
    assert agenda.take(20, 10) == ["a"]
    assert agenda.take(100, 10) == []
