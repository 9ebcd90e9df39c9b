from __future__ import annotations

import threading
from collections.abc import Iterator

from tests.kit.rows import each_row
from towerws.doctor.examination import Area, Check, Doing, Finding, Level, Step, examine, exit_code

AREA = Area("area")
FINE = AREA.ok("check", "text")


def _check(*steps: Step) -> Check:
    return Check("area", lambda: iter(steps))


def test_findings_come_in_order_and_at_once() -> None:
    """Each finding is told when it is made, and all are returned."""
    told: list[Finding] = []
    shown: list[str] = []
    second = AREA.skipped("other", "why")
    assert examine([_check(Doing("asking", 5), FINE), _check(second)], told.append, shown.append) == [FINE, second] == told
    assert shown == ["area: asking"]


def test_a_check_that_hangs_is_left_behind() -> None:
    """At its deadline it is reported as not made, its later findings count no more, and the next check runs."""
    release = threading.Event()

    def hang() -> Iterator[Step]:
        yield Doing("asking a stone", 0.2)
        release.wait()
        yield FINE

    shown: list[str] = []
    after = AREA.ok("after", "text")
    first, second = examine([Check("area", hang), _check(after)], lambda finding: None, shown.append)
    release.set()
    assert (first.level, first.text) == (Level.UNKNOWN, "asking a stone: no answer within 0.2 s, so the check ends here")
    assert second == after
    assert "area: asking a stone" in shown


def test_a_check_that_is_broken_hides_no_other() -> None:
    """An exception is a finding, without its text, which may hold anything."""

    def broken() -> Iterator[Step]:
        yield FINE
        raise ValueError("canary")

    first, second, third = examine([Check("area", broken), _check(FINE)], lambda finding: None, lambda text: None)
    assert (first, third) == (FINE, FINE)
    assert second.level is Level.UNKNOWN
    assert "ValueError" in second.text
    assert "canary" not in second.text


@each_row(
    ("levels", "code"),
    [
        ([], 0),
        ([Level.OK, Level.SKIPPED], 0),
        ([Level.OK, Level.WARNING], 3),
        ([Level.OK, Level.UNKNOWN], 3),
        ([Level.PROBLEM, Level.WARNING, Level.OK], 1),
    ],
)
def test_exit_codes(levels: list[Level], code: int) -> None:
    """A check that could not be made is never a success, and a skipped one is no failure."""
    assert exit_code([Finding(level, "area", "check", "text") for level in levels]) == code
