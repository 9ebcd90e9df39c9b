"""What the stream reader concludes from what it read: the same log or another one, and the node's clock."""

from __future__ import annotations

from tests.kit.fake_amqp import RecordingSink
from tests.kit.rows import each_row
from towerws.broker.log_checks import (
    CLOCK_CHECKS,
    CLOCK_MARKER_S,
    MAX_DAEMONS,
    ClockCheck,
    ClockVerdict,
    LogComparison,
    RefillReach,
    SameLog,
)
from towerws.broker.reader import ReadProgress
from towerws.core.deliveries import Marker

KEY = "jobs.x"


def comparison(*, anchor: tuple[int, bytes] | None = None, upto: int = 12) -> LogComparison:
    """Return a comparison with history from offset 10 on, where each body is its offset."""
    sink = RecordingSink()
    for offset in range(10, upto + 1):
        sink.deliver(KEY, b"%d" % offset, offset, None)
    return LogComparison(ReadProgress(sink, epoch="", read=upto, anchor=anchor))


@each_row(
    ("offset", "body", "same"),
    [
        (10, b"10", SameLog.UNDECIDED),
        (12, b"12", SameLog.YES),
        (12, b"other", SameLog.NO),
        (10, b"other", SameLog.NO),
        (9, b"9", SameLog.UNDECIDED),
    ],
)
def test_the_newest_delivery_decides(offset: int, body: bytes, same: SameLog) -> None:
    """An older delivery that is equal decides nothing. One that differs means another log."""
    assert comparison().judge_from_anchor(KEY, body, offset) is same


@each_row(("body", "same"), [(b"marker", SameLog.YES), (b"other", SameLog.NO)])
def test_the_anchor_is_compared_by_its_body(body: bytes, same: SameLog) -> None:
    """History does not hold the anchor if it is newer than all deliveries."""
    assert comparison(anchor=(13, b"marker")).judge_from_anchor("towerws.marker", body, 13) is same


def test_the_shared_part_ends_before_the_first_difference() -> None:
    """Reading from the oldest delivery, `shared` moves on with each equal delivery."""
    compare = comparison()
    judged = [
        compare.judge_from_oldest(KEY, body, offset, is_proof=lambda _: False) for offset, body in ((10, b"10"), (11, b"11"), (12, b"new"))
    ]
    assert judged == [SameLog.UNDECIDED, SameLog.UNDECIDED, SameLog.NO]
    assert compare.shared == 11


def test_a_log_that_ends_early_is_another_one() -> None:
    """Our new marker comes where history has nothing: the log was cut off there. Nothing at all is left in the other case."""
    compare = comparison()
    assert compare.judge_from_oldest(KEY, b"marker", 9, is_proof=lambda body: body == b"marker") is SameLog.NO
    assert compare.judge_from_oldest(KEY, b"13", 13, is_proof=lambda _: False) is SameLog.NO
    assert compare.shared is None


@each_row(
    ("offset", "age_s", "clock"),
    [
        (99, 0.0, ClockVerdict.RIGHT),
        (100, 60.0, ClockVerdict.RIGHT),
        (101, CLOCK_MARKER_S, ClockVerdict.NOT_PROVEN),
        (101, CLOCK_MARKER_S + 0.1, ClockVerdict.ASK_AGAIN),
    ],
)
def test_the_node_shows_its_clock(offset: int, age_s: float, clock: ClockVerdict) -> None:
    """A node that delivers our marker or an older message is right. A marker that was too old when it was asked proves nothing."""
    check = ClockCheck()
    check.begin(100, sent_at=1000.0)
    check.asked(1000.0 + age_s)
    assert check.judge(offset) is clock
    assert not check.running


def test_the_node_is_asked_a_few_times_only() -> None:
    """On a very slow connection each marker is too old. Then everything is read."""
    check, judged = ClockCheck(), []
    for _ in range(CLOCK_CHECKS):
        check.begin(100, sent_at=0.0)
        check.asked(60.0)
        judged.append(check.judge(101))
    assert judged == [ClockVerdict.ASK_AGAIN] * (CLOCK_CHECKS - 1) + [ClockVerdict.NOT_PROVEN]


def reach(*markers: Marker, first: int = 5000, start: int | None = None) -> RefillReach:
    """Return what a refill has read that began at the offset `first`, on the machine "m" that has run for 1,000 s."""
    made = RefillReach()
    made.reset(start)
    made.begins(first)
    for marker in markers:
        made.marker(marker, "m", 1000)
    return made


def young(daemon: str = "a", before_s: int | None = 5) -> Marker:
    """Return a marker of the machine "m", whose daemon published the one before so many seconds ago."""
    return Marker("x", daemon, None, "m", None if before_s is None else 1000 - before_s)


@each_row(
    ("refill", "oldest", "newest", "start"),
    [
        (reach(young()), 5000, 5100, 4000),
        (reach(young()), 5000, 9000, 1000),
        (reach(young()), 5000, 20_000, 0),
        (reach(young("a", 200), young("b")), 5000, 5100, 4000),
        (reach(young(), start=4999), 5000, 5100, 4000),
        (reach(young(), start=4998), 5000, 5100, 4000),
        (reach(young(), start=4997), 5000, 5100, None),
        (reach(young(), first=2), 2, 5100, None),
        (reach(young()), 6000, 6100, 3900),
        (reach(young()), 6001, 6100, None),
        (reach(young()), None, 5100, None),
        (reach(), 5000, 5100, None),
        (reach(young(before_s=None)), 5000, 5100, None),
        (reach(young(before_s=None), young()), 5000, 5100, None),
        (reach(young(before_s=120)), 5000, 5100, None),
        (reach(young(before_s=119)), 5000, 5100, 4000),
        (reach(young(before_s=-1)), 5000, 5100, None),
        (reach(young()._replace(machine="other")), 5000, 5100, None),
        (reach(young()._replace(machine="")), 5000, 5100, None),
        (reach(*(young(f"{number}", 200) for number in range(MAX_DAEMONS)), young()), 5000, 5100, None),
    ],
)
def test_a_refill_that_began_too_late(refill: RefillReach, oldest: int | None, newest: int, start: int | None) -> None:
    """A daemon published a marker before its first one that was read, and that is less than history's 120 s ago."""
    assert refill.earlier_start(120, oldest, newest) == start


def test_a_refill_that_read_nothing_yet() -> None:
    """Nothing was read: nothing is known."""
    made = RefillReach()
    made.marker(young(), "m", 1000)
    assert made.earlier_start(120, 0, 10) is None
