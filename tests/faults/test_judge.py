"""Does the judge notice what it is there for? Each story is about numbers 0 to 9, published a second apart on one topic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.judge import Gap, Judge, Lost, Note, Story, Subscribed, Tally, total
from tests.faults.publisher import Journal

S = 1_000_000_000
START = Subscribed(0, None)
RESUMED = Subscribed(5 * S, recovered=True)
FORGOTTEN = Subscribed(6 * S + 1, recovered=False)
GAP = Gap(7 * S + 1)
CUT = Lost(1006)


def journal(count: int = 10) -> Journal:
    """Numbers that are all confirmed."""
    made = Journal(["jobs.a", "jobs.b"])
    for number in range(count):
        made.read_line(f"p {number} 0 {(number + 1) * S}")
        made.read_line(f"c {number}")
    return made


def judge(*items: int | Note, v1: bool = True, roams: bool = False, of: Journal | None = None) -> Tally:
    """What is counted for a client that was told this, in this order."""
    story = Story(frozenset({0}), v1, roams=roams)
    for item in items:
        if isinstance(item, int):
            story.event(item)
        else:
            story.note(item)
    return Judge(of or journal()).judge(story)


def figures(tally: Tally) -> tuple[int, ...]:
    """lost, repeated, reordered, gaps, gaps of nothing, recovered: false."""
    return tally.lost, tally.repeated, tally.reordered, tally.gaps, tally.gaps_of_nothing, tally.recovered_false


ALL = range(10)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param([START, *ALL], (0, 0, 0, 0, 0, 0), id="perfect"),
        pytest.param([START, *range(5), CUT, RESUMED, *range(5, 10)], (0, 0, 0, 0, 0, 0), id="resumed"),
        pytest.param([START, *range(3), *range(4, 10)], (1, 0, 0, 0, 0, 0), id="one lost"),
        pytest.param([START, *range(5)], (5, 0, 0, 0, 0, 0), id="the end lost"),
        pytest.param([START, *range(2, 10)], (2, 0, 0, 0, 0, 0), id="the first two lost"),
        pytest.param([START], (10, 0, 0, 0, 0, 0), id="all lost"),
        pytest.param([START, *range(5), CUT, RESUMED, *range(7, 10)], (2, 0, 0, 0, 0, 0), id="lost though recovered"),
        pytest.param([START, *range(5), 4, *range(5, 10)], (0, 1, 0, 0, 0, 0), id="one repeated"),
        pytest.param([START, *ALL, *ALL], (0, 10, 0, 0, 0, 0), id="all repeated"),
        pytest.param([START, 0, 1, 3, 2, *range(4, 10)], (0, 0, 1, 0, 0, 0), id="two swapped"),
        pytest.param([START, *range(1, 10), 0], (0, 0, 1, 0, 0, 0), id="the first one late"),
        pytest.param([START, *range(3), GAP, *range(7, 10)], (0, 0, 0, 1, 0, 0), id="a gap covers a hole"),
        pytest.param([START, *range(3), GAP, *range(3, 10)], (0, 0, 0, 1, 1, 0), id="a gap covers nothing"),
        pytest.param([START, *range(3), *range(7, 10), GAP], (4, 0, 0, 1, 1, 0), id="a gap comes too late"),
        pytest.param([START, *range(3), GAP, 7, 9], (1, 0, 0, 1, 0, 0), id="lost behind a gap"),
        pytest.param([START, *range(3), GAP, GAP, *range(7, 10)], (0, 0, 0, 2, 0, 0), id="told twice"),
        pytest.param([START, *range(3), CUT, FORGOTTEN, *range(6, 10)], (0, 0, 0, 0, 0, 1), id="recovered false"),
        pytest.param([START, *range(3), CUT, FORGOTTEN, *range(10)], (0, 3, 0, 0, 0, 1), id="forgotten, then all of history again"),
        pytest.param([START, *range(3), GAP], (3, 0, 0, 1, 0, 0), id="nothing after a gap"),
    ],
)
def test_a_client_with_positions(story: list[int | Note], expected: tuple[int, ...]) -> None:
    """What a v1 client was told is judged from its first answer to the last number."""
    assert figures(judge(*story)) == expected


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param([START, *ALL], (0, 0, 0, 0, 0, 0), id="perfect"),
        pytest.param([START, *range(3), CUT, Subscribed(7 * S + 1, None), *range(7, 10)], (0, 0, 0, 0, 0, 0), id="away for a while"),
        pytest.param([START, *range(3), *range(4, 10)], (1, 0, 0, 0, 0, 0), id="lost while connected"),
        pytest.param([START, *range(3), CUT, Subscribed(5 * S, None), *range(6, 10)], (2, 0, 0, 0, 0, 0), id="lost after the answer"),
        pytest.param([START, *range(3), CUT, Subscribed(5 * S, None), *range(2, 10)], (0, 1, 0, 0, 0, 0), id="repeated"),
        pytest.param([START, 0, 1, 3, CUT, Subscribed(5 * S, None), *range(2, 10)], (1, 1, 0, 0, 0, 0), id="lost on the first connection"),
        pytest.param([START, *range(3), CUT], (0, 0, 0, 0, 0, 0), id="left for good"),
        pytest.param([START, *range(3)], (7, 0, 0, 0, 0, 0), id="connected and deaf"),
    ],
)
def test_a_client_without_positions(story: list[int | Note], expected: tuple[int, ...]) -> None:
    """What a Tower client was told is judged within each of its connections."""
    assert figures(judge(*story, v1=False)) == expected


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param([START, *range(5), CUT, Subscribed(5 * S, None), *range(2, 10)], (0, 0, 0, 0, 0, 0), id="had before"),
        pytest.param([START, *range(5), CUT, Subscribed(5 * S, None), 2, 3, 3, *range(4, 10)], (0, 1, 0, 0, 0, 0), id="twice on one"),
        pytest.param([START, *range(5), CUT, Subscribed(5 * S, None), 2, 4, 3, *range(5, 10)], (0, 0, 1, 0, 0, 0), id="swapped on one"),
        pytest.param([START, *range(5), CUT, Subscribed(5 * S, None), 2, *range(4, 10)], (1, 0, 0, 0, 0, 0), id="lost, though had before"),
        pytest.param([START, 0, 1, 3, CUT, Subscribed(5 * S, None), *range(2, 10)], (1, 0, 0, 0, 0, 0), id="lost, though had afterwards"),
        pytest.param([START, *range(5), CUT, Subscribed(5 * S, None), *range(6, 10)], (2, 0, 0, 0, 0, 0), id="lost after the answer"),
    ],
)
def test_a_client_without_positions_that_changes_daemons(story: list[int | Note], expected: tuple[int, ...]) -> None:
    """The other daemon may be behind: what comes again there is no repetition, but within each connection nothing may be wrong."""
    assert figures(judge(*story, v1=False, roams=True)) == expected


def test_what_was_sent_twice_may_change_places() -> None:
    """After a lost confirm the log may hold 3 before 2; anything else out of order still counts."""
    made = journal()
    made.read_line("w 2 4")
    assert figures(judge(START, 0, 1, 3, 2, *range(4, 10), of=made)) == (0, 0, 0, 0, 0, 0)
    assert figures(judge(START, 0, 1, 2, 3, 4, 6, 5, 7, 8, 9, of=made)) == (0, 0, 1, 0, 0, 0)


def test_what_the_broker_lost_must_be_told_where_it_can_be() -> None:
    """A returned message is missed by a v1 client without a gap, and never by a Tower client."""
    made = journal()
    made.read_line("r 5")
    made.gone.add(6)
    without = [START, *range(5), *range(7, 10)]
    assert judge(*without, of=made).lost == 2
    assert judge(*without, v1=False, of=made).lost == 0
    told = judge(START, *range(5), GAP, *range(7, 10), of=made)
    assert (told.lost, told.hidden) == (0, 0)
    assert judge(START, *range(4), GAP, *range(7, 10), of=made).hidden == 1


def test_unconfirmed_numbers_and_other_topics_are_not_missed() -> None:
    """Only what was confirmed on a client's own topics must come."""
    made = journal()
    made.confirmed.remove(3)
    made.topic_of[4] = 1
    assert judge(START, *range(3), *range(5, 10), of=made).lost == 0


def test_the_short_way_and_the_long_way_agree() -> None:
    """A perfect story is judged without a walk through it: the figures are the same as those of the walk."""
    perfect: Sequence[int | Note] = [START, *range(5), CUT, RESUMED, *range(5, 10)]
    walked = [START, *range(5), CUT, RESUMED, CUT, RESUMED, *range(5, 10), 9]
    short, long = judge(*perfect), judge(*walked)
    assert (short.events, short.least_told, short.most_told, short.clients) == (10, 0, 0, 1)
    assert (long.events, long.repeated, long.lost) == (11, 1, 0)


def test_the_sum_keeps_the_extremes() -> None:
    """Of many clients the fewest and the most tellings are kept; a Tower client has none."""
    once = judge(START, *range(3), GAP, *range(7, 10))
    twice = judge(START, *range(3), GAP, GAP, *range(7, 10))
    summed = total([judge(START, *ALL, v1=False), once, twice])
    assert (summed.clients, summed.gaps, summed.least_told, summed.most_told) == (3, 3, 1, 2)
