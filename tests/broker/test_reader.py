"""Where a reader goes on, how an unreadable entry is passed over, and how often a channel is opened again."""

from __future__ import annotations

from twisted.internet.task import Clock

from tests.kit.fake_amqp import RecordingSink
from tests.kit.rows import each_row
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.reader import ANCHOR_REACH, NEAR_SKIPS, RESTARTS, RESTARTS_S, ChannelRestarts, ReadProgress, UnreadableEntry


def progress(*, newest: int | None = None, skip: int = 0, evidence: int | None = 77, **known: object) -> ReadProgress:
    """Return a progress with these values, and a history that ends at `newest`."""
    sink = RecordingSink()
    if newest is not None:
        sink.deliver("jobs.x", b"{}", newest, None)
    return ReadProgress(sink, epoch="", unreadable=UnreadableEntry(skip=skip, evidence=evidence), **known)  # type: ignore[arg-type]


@each_row(
    ("known", "start"),
    [
        (progress(), "first"),
        (progress(by_interval=True), "130s"),
        (progress(by_interval=True, skip=1), "65s"),
        (progress(by_interval=True, skip=8), 77),
        (progress(by_interval=True, skip=8, evidence=None), "next"),
        (progress(read=500), 500),
        (progress(read=500, newest=490), 490),
        (progress(read=500, newest=490, anchor=(495, b"")), 495),
        (progress(read=ANCHOR_REACH + 1, newest=ANCHOR_REACH, anchor=(1, b"")), 1),
        (progress(read=ANCHOR_REACH + 2, newest=ANCHOR_REACH, anchor=(1, b"")), ANCHOR_REACH),
        (progress(read=500, newest=490, anchor=(495, b""), skip=3), 504),
    ],
)
def test_where_a_reader_begins(known: ReadProgress, start: object) -> None:
    """At the anchor, at an interval of the broker's clock, at the first message, or after an entry that can't be read."""
    assert known.start(refill_s=120) == start


def test_an_entry_is_unreadable_with_evidence_only() -> None:
    """541 twice at the same place, and the broker served the stream's end in between."""
    entry = UnreadableEntry()
    assert not entry.connection_ended(5)
    assert not entry.connection_ended(5), "541 has other causes, too"
    entry.evidence = 9
    assert entry.connection_ended(5)
    assert not entry.connection_ended(6), "another place: begin again"
    assert entry == UnreadableEntry(suspected=True, after=6)
    entry.evidence, entry.skip = 9, 1
    entry.goes_on_after(6)
    assert entry == UnreadableEntry(suspected=True, after=6, evidence=9, skip=1)
    entry.goes_on_after(7)
    assert entry == UnreadableEntry(after=7), "what is behind the reader is not suspected any more"


def test_the_distance_doubles() -> None:
    """Offsets are tried one by one at first, then twice as far each time."""
    entry, skips = UnreadableEntry(), []
    for _ in range(NEAR_SKIPS + 2):
        entry.pass_over(nothing_read=False)
        skips.append(entry.skip)
    assert skips == [*range(1, NEAR_SKIPS + 1), 2 * NEAR_SKIPS, 4 * NEAR_SKIPS]


def test_a_channel_is_opened_again_a_few_times() -> None:
    """Never before the reader was live, and not more often than the limit. Then the next connection is tried soon."""
    clock, failure = Clock(), ConnectionFailure("channel closed", RetryPolicy.SLOW)
    restarts = ChannelRestarts(clock)
    assert restarts.refuse(failure) == failure
    restarts.was_live = True
    assert [restarts.refuse(failure) for _ in range(RESTARTS)] == [None] * RESTARTS
    final = restarts.refuse(failure)
    assert final is not None
    assert (final.text, final.retry) == ("channel closed", RetryPolicy.FAST)
    clock.advance(RESTARTS_S)
    assert restarts.refuse(failure) is None
