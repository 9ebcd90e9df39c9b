from __future__ import annotations

import gc
import tracemalloc
from typing import Any, SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.collector import only_new_objects
from tests.kit.rows import each_row
from towerws.core.deliveries import BEFORE, MARKER_TOPIC, Delivery, Fingerprint
from towerws.core.history import (
    ENTRY_BYTES,
    FRAME_OVERHEAD_BYTES,
    MAX_EVICTED_TOPICS,
    MAX_FOUND_EVENTS,
    MAX_FOUND_TOPICS,
    MAX_SEARCHED,
    MAX_SEARCHED_BYTES,
    MESSAGE_ID_BYTES,
    TOPIC_BYTES,
    History,
    count_topics,
    find_events,
)

NO_BOUND = 10**9
STREAM = Fingerprint(b"a key")


def weight(held: list[Delivery]) -> int:
    """What deliveries count: their texts, their own weight, and that of their topics."""
    own = sum(len(each.payload) + len(each.topic) + ENTRY_BYTES for each in held)
    ids = sum(len(each.message_id) + MESSAGE_ID_BYTES for each in held if each.message_id is not None)
    return own + ids + TOPIC_BYTES * len({each.topic for each in held})


def bound(count: int, raw: int) -> int:
    """The bound that so many deliveries of `a.1` just fill."""
    return weight([Delivery(0, "a.1", bytes(raw), 0, "q")] * count)


class Log:
    """A history, and what it ought to hold, as the plainest list there is."""

    def __init__(self, max_bytes: int = NO_BOUND, max_age_s: float = NO_BOUND, epoch: str | Fingerprint = "q") -> None:
        self.history = History(max_bytes, max_age_s)
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.epoch = epoch
        self.offset = -1
        self.all: list[Delivery] = []
        self.marks: list[Delivery] = [self.history.head]
        self.dropped = 0  # so many of `all` were dropped, the oldest
        self.now = 0.0

    @property
    def held(self) -> list[Delivery]:
        """What is in history."""
        return self.all[self.dropped :]

    def drop(self) -> None:
        """Drop the oldest that is held."""
        self.dropped += 1

    def append(self, topic: str = "a.1", payload: bytes = b"{}", message_id: str | None = None) -> Delivery:
        """Append to both."""
        self.offset += 1
        delivery = self.history.append(topic, payload, self.offset, self.epoch, message_id, self.now)
        self.all.append(delivery)
        while self.max_bytes < NO_BOUND and weight(self.held) > self.max_bytes:
            self.drop()
        return delivery

    def trim(self) -> None:
        """Drop from both what is too old."""
        self.history.trim(self.now)
        while self.held and self.held[0].arrived < self.now - self.max_age_s:
            self.drop()

    def mark(self, offset: int | None = None) -> Delivery:
        """Mark both."""
        mark = self.history.mark(max(0, self.offset) if offset is None else offset, f"mark{len(self.marks)}")
        self.marks.append(mark)
        return mark

    def clear(self) -> None:
        """Mark and clear both. Offsets begin again."""
        self.mark(0)
        self.offset = -1
        self.history.clear()
        while self.held:
            self.drop()

    def floor(self) -> int:
        """The place behind which everything is held."""
        if self.history.floor in self.marks:
            return self.history.floor.seq
        return self.all[self.dropped - 1].seq if self.dropped else 0

    def after(self, seq: int, topics: dict[str, int], upto: int) -> list[Delivery]:
        """What a reader at `seq` must get."""
        return [one for one in self.held if one.topic in topics and max(seq, topics[one.topic]) < one.seq <= upto]

    def lost(self, seq: int, topics: dict[str, int]) -> set[str]:
        """The topics on which a reader at `seq` can't get everything that it should."""
        gone = self.all[: self.dropped]
        return {one.topic for one in gone if one.topic in topics and one.seq > max(seq, topics[one.topic])}


TOPICS = [f"t.{number}" for number in range(5)]

_operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from(TOPICS), st.integers(0, 300), st.sampled_from([None, "m1", "m2", "m3"])),
        st.tuples(st.just("wait"), st.floats(0, 4)),
        st.tuples(st.just("mark")),
        st.tuples(st.just("clear")),
    ),
    max_size=120,
)


@given(_operations, st.sampled_from([900, 3000, 40_000]), st.sampled_from([3.0, 30.0]), st.sampled_from([STREAM, "q"]), st.data())
@settings(max_examples=100)
def test_history_agrees_with_a_plain_list(
    operations: list[tuple[Any, ...]], max_bytes: int, max_age_s: float, epoch: str | Fingerprint, data: st.DataObject
) -> None:
    """After any appends, drops by bytes or age, marks and clears every index says what a plain list would."""
    log = Log(max_bytes, max_age_s, epoch)
    history = log.history
    for name, *arguments in operations:
        if name == "append":
            topic, raw, message_id = arguments
            log.append(topic, b"x" * raw, None if message_id and history.has_message(topic, message_id) else message_id)
        elif name == "wait":
            log.now += arguments[0]
            log.trim()
        elif name == "mark":
            log.mark()
        else:
            log.clear()
        held = log.held
        assert len(history) == len(held)
        assert history.weight_bytes == weight(held) <= max_bytes
        assert {topic for topic in TOPICS if topic in history.topics} == {one.topic for one in held}
        ids = {(topic, name) for topic in TOPICS for name in ("m1", "m2", "m3") if history.has_message(topic, name)}
        assert ids == {(one.topic, one.message_id) for one in held if one.message_id is not None}
        assert history.floor.seq == log.floor()

    barrier = log.marks[-1].seq
    for delivery in log.all + log.marks:
        found = history.find(delivery.position)
        if not delivery.position:
            assert found is None
        elif delivery.seq >= max(log.floor(), barrier):
            assert found is delivery
        elif found is not None:
            assert found.position == delivery.position, "the same message at the same place of another log"
        if found is not None:
            assert found.seq >= max(log.floor(), barrier)

    last = history.head.seq
    for _ in range(5):
        seq = data.draw(st.integers(0, last))
        upto = data.draw(st.integers(seq, last))
        topics = data.draw(st.dictionaries(st.sampled_from(TOPICS), st.integers(0, last), max_size=5))
        assert history.after(seq, topics, upto, NO_BOUND) == log.after(seq, topics, upto)
        assert set(history.lost(seq, topics)) == log.lost(seq, topics)


def test_the_bound_in_bytes_counts_each_delivery_with_its_own_weight() -> None:
    """So many bytes are held and not one more; the oldest goes first."""
    log = Log(max_bytes=bound(3, 10))
    deliveries = [log.append(payload=b"x" * 10) for _ in range(3)]
    assert len(log.history) == 3
    assert log.history.floor.seq == 0
    log.append(payload=b"x" * 10)
    assert len(log.history) == 3
    assert log.history.floor is deliveries[0]


def test_one_delivery_above_the_bound_is_not_held() -> None:
    """A delivery that is larger than all of history empties it, and readers that are behind are told."""
    log = Log(max_bytes=1000)
    small, large = log.append(), log.append(payload=b"x" * 2000)
    assert len(log.history) == log.history.weight_bytes == 0
    assert log.history.floor is log.history.head is large
    assert log.history.lost(small.seq, {"a.1": 0}) == ["a.1"]
    assert log.history.find(large.position) is large


def test_the_bound_in_age_drops_what_is_older_and_keeps_what_is_as_old() -> None:
    """120 seconds are held; the next trim after that drops."""
    log = Log(max_age_s=120)
    log.append()
    log.now = 120.0
    log.trim()
    assert len(log.history) == 1
    log.now = 120.001
    log.trim()
    assert len(log.history) == 0
    assert log.history.find(log.all[0].position) is log.all[0], "everything behind it is held: nothing"


def test_dropped_payloads_are_let_go_of_at_once() -> None:
    """What the bound in bytes drops is really gone, however the indexes are tidied up."""
    log = Log(max_bytes=10_000 + bound(10, 0))
    for number in range(200):
        log.append(f"t.{number % 5}", b"x" * 1000)
        kept = sum(len(one.payload) for of_topic in log.history._topics.values() for one in of_topic.deliveries)
        assert kept <= 10_000


def test_a_topics_log_is_compacted() -> None:
    """A topic's log does not grow with what went through it, only with what is held."""
    log = Log(max_bytes=bound(50, 2))
    for _ in range(10_000):
        log.append()
    assert len(log.history) == 50
    assert len(log.history._topics["a.1"].deliveries) <= 2 * 50 + 1


class _CountingList(list[Delivery]):
    """Counts how many of its items were looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Any:
        for item in super().__iter__():
            self.looks += 1
            yield item

    def __contains__(self, key: object) -> bool:
        raise AssertionError("a search through everything")

    def index(self, value: Any, start: SupportsIndex = 0, stop: SupportsIndex = 0) -> int:
        raise AssertionError("a search through everything")


def test_a_resume_costs_what_was_missed() -> None:
    """Of 20,000 held deliveries a reader that missed ten looks at these, and at what a bisection needs."""
    log = Log()
    for _ in range(20_000):
        log.append()
    counting = _CountingList(log.all)
    log.history._topics["a.1"].deliveries = counting
    found = log.history.after(log.all[-11].seq, {"a.1": 0}, log.history.head.seq, NO_BOUND)
    assert found == log.all[-10:]
    assert counting.looks <= 10 + 20


def test_recent_topics() -> None:
    """The topics of the newest deliveries, the newest first, each once."""
    log = Log()
    assert log.history.recent_topics(10) == []
    for topic in ("a.1", "b.1", "a.1", "c.1", "c.1"):
        log.append(topic)
    assert log.history.recent_topics(10) == ["c.1", "a.1", "b.1"]
    assert log.history.recent_topics(3) == ["c.1", "a.1"]


def test_a_piece_costs_its_size() -> None:
    """A reader that missed all of 20,000 deliveries gets a piece of them without looking at the others."""
    log = Log()
    for _ in range(20_000):
        log.append(payload=b"x" * 1000)
    counting = _CountingList(log.all)
    log.history._topics["a.1"].deliveries = counting
    found = log.history.after(0, {"a.1": 0}, log.history.head.seq, 10_000)
    assert found == log.all[: len(found)]
    assert 0 < len(found) < 10
    assert counting.looks <= 10 + 20


def test_a_topic_that_nobody_asked_for_costs_nothing() -> None:
    """A resume looks at its own topics only."""
    log = Log()
    for _ in range(1000):
        log.append("busy.1")
    mine = log.append("quiet.1")
    counting = _CountingList(log.all[:-1])
    log.history._topics["busy.1"].deliveries = counting
    assert log.history.after(0, {"quiet.1": 0}, mine.seq, NO_BOUND) == [mine]
    assert counting.looks == 0


def test_a_piece_ends_where_its_bytes_are_reached() -> None:
    """A piece has at most so many bytes, with its frames' own. But it is never empty while something is left."""
    log = Log()
    deliveries = [log.append(f"t.{number % 2}", b"x" * 100) for number in range(6)]
    topics = {"t.0": 0, "t.1": 0}
    last = deliveries[-1].seq
    each = 100 + FRAME_OVERHEAD_BYTES
    assert log.history.after(0, topics, last, 3 * each) == deliveries[:3]
    assert log.history.after(0, topics, last, 3 * each - 1) == deliveries[:2]
    assert log.history.after(0, topics, last, 1) == deliveries[:1]
    assert log.history.after(deliveries[2].seq, topics, last, NO_BOUND) == deliveries[3:]
    assert log.history.after(0, topics, deliveries[3].seq, NO_BOUND) == deliveries[:4]
    assert log.history.after(0, {"t.0": deliveries[2].seq, "t.1": 0}, last, NO_BOUND) == [deliveries[1], *deliveries[3:]]


def test_a_topic_that_was_dropped_and_came_back_still_counts_as_lost() -> None:
    """A reader learns of what it lost on a topic though the topic has deliveries again that are held."""
    log = Log(max_bytes=bound(2, 2) + TOPIC_BYTES + len("other.1mine.1"))
    start = log.append("other.1")
    for topic in ("mine.1", "other.1", "other.1", "mine.1"):
        log.append(topic)
    assert [one.topic for one in log.held] == ["other.1", "mine.1"]
    assert log.history.lost(start.seq, {"mine.1": 0}) == ["mine.1"]
    assert log.history.lost(start.seq, {"mine.1": log.all[1].seq}) == []


def test_a_quiet_topic_is_not_lost() -> None:
    """A topic that never had a delivery lost none, however much of other topics was dropped."""
    log = Log(max_bytes=bound(2, 2))
    start = log.append("busy.1")
    for _ in range(10):
        log.append("busy.1")
    assert log.history.lost(start.seq, {"control.limit_reached_1": 0, "busy.1": 0}) == ["busy.1"]
    assert log.history.lost(log.history.floor.seq, {"busy.1": 0}) == []


def test_beyond_the_topics_it_can_remember_a_loss_is_assumed() -> None:
    """What was dropped of very many topics is remembered for a bounded number; a reader from before that is told of a loss."""
    log = Log(max_bytes=1)
    start = log.history.append("t.start", b"{}", 0, "q", None, 0.0)
    for number in range(MAX_EVICTED_TOPICS + 1):
        log.history.append(f"t.{number}", b"{}", number + 1, "q", None, 0.0)
    history = log.history
    assert history.lost(start.seq, {"t.0": 0, "never.1": 0}) == ["t.0", "never.1"]
    assert history.lost(start.seq + 1, {"t.0": 0, "never.1": 0, "t.5": 0}) == ["t.5"]
    assert len(history._evicted_topics) == MAX_EVICTED_TOPICS


@each_row(
    "position",
    [
        "",
        "-",
        "1",
        "1-",
        "0-",
        "41-",
        "-q",
        "1-other",
        "2-Q",
        "01-q",
        "+1-q",
        " 1-q",
        "1-q ",
        "1-q\n",
        "1_0-q",
        "\u0661-q",
        "\uff11-q",
        "1\u2010q",
        "1-\u0071\u0301",
        "99-q",
        "9" * 19 + "-q",
        "9" * 5000 + "-q",
        "1-" + "q" * 5000,
        "-1-q",
        "-1-start",
        "1.0-q",
        "1e0-q",
        "1-q\0",
        "\ud800-q",
    ],
)
def test_an_unknown_position_is_unknown(position: str) -> None:
    """Only the very text of a position that is held finds anything; nothing else does, and nothing raises."""
    history = History(NO_BOUND, NO_BOUND)
    history.begin(0, "q")
    history.append("a.1", b"{}", 1, "q", None, 0.0)
    history.append("a.1", b"{}", 2, "q", None, 0.0)
    assert history.find(position) is None
    assert history.find("1-q") is not None
    assert history.find("0-q") is not None, "the beginning of a log of our own can be resumed from"


def test_a_stream_that_began_earlier_has_no_beginning() -> None:
    """A daemon that joins a stream at offset 42 can't be asked for what follows a delivery it never saw."""
    history = History(NO_BOUND, NO_BOUND)
    before = history.head.position
    history.append("a.1", b"{}", 42, STREAM, None, 0.0)
    assert history.find(before) is None
    assert history.find("41-") is None
    assert history.find("42-") is None
    assert history.find(history.head.position) is history.head


def test_the_place_before_the_first_delivery_is_no_position() -> None:
    """A constant text for every empty stream would name one that was deleted as well: an empty stream is named by its first marker."""
    history = History(NO_BOUND, NO_BOUND)
    assert history.head.position == ""
    assert history.find("") is None
    history.append("a.1", b"{}", 0, STREAM, None, 0.0)
    assert history.find("") is None


def test_the_place_before_a_delivery_can_be_resumed_from_on_every_daemon() -> None:
    """It is how the end of a gap is named: the delivery itself is still to come, and what another log holds there is another position."""
    here, there = History(NO_BOUND, NO_BOUND), History(NO_BOUND, NO_BOUND)
    for number in range(3):
        first = here.append("a.1", b"%d" % number, number, STREAM, None, 0.0)
        there.append("a.1", b"%d" % (number + (number == 1)), number, STREAM, None, 0.0)
    found = here.find(first.position + BEFORE)
    assert found is not None
    assert (found.seq, found.position) == (first.seq - 1, first.position + BEFORE)
    assert here.after(found.seq, {"a.1": 0}, first.seq, NO_BOUND) == [first]
    assert there.find(first.position + BEFORE) is not None
    middle = here.at(1)
    assert middle is not None
    assert there.find(middle.position + BEFORE) is None
    assert here.find("7-" + "0" * 12 + BEFORE) is None


def test_rewind_forgets_what_the_log_lost_and_nothing_else() -> None:
    """Every index is as if the newer deliveries had never come; what is appended then is found, and read by those who were behind."""
    log = Log(epoch=STREAM)
    for number in range(40):
        log.append(f"t.{number % 3}", b"%d" % number, f"m{number}")
    history = log.history
    lost = log.all[30:]
    assert history.rewind(29) is log.all[29]
    assert (len(history), history.weight_bytes) == (30, weight(log.all[:30]))
    assert all(history.find(one.position) is None and history.at(one.offset) is None for one in lost)
    assert not any(history.has_message(one.topic, one.message_id or "") for one in lost)
    history.mark(30, "0123.b", barrier=False)
    new = history.append("t.1", b"new", 30, STREAM, None, 0.0)
    assert history.find(log.all[20].position) is log.all[20]
    assert history.after(log.all[26].seq, {"t.1": 0}, new.seq, NO_BOUND) == [log.all[28], new]
    assert history.lost(log.all[0].seq, {"t.0": 0, "t.1": 0, "t.2": 0}) == []


def test_rewind_to_before_all_leaves_nothing() -> None:
    """Nothing is held, nothing is newest, and topics that are gone are not taken for lost."""
    log = Log(epoch=STREAM)
    for number in range(5):
        log.append(f"t.{number}")
    assert log.history.rewind(-1) is None
    assert len(log.history) == log.history.weight_bytes == 0
    assert log.history.newest is log.history.oldest is None
    assert log.history.lost(0, {f"t.{number}": 0 for number in range(5)}) == []


def test_what_was_dropped_is_remembered_through_a_rewind() -> None:
    """A reader from before the floor still learns of the topics that lost something there."""
    log = Log(max_bytes=3 * (2 + ENTRY_BYTES), epoch=STREAM)
    start = log.append("other.1")
    for _ in range(5):
        log.append("mine.1")
    log.history.rewind(4)
    log.history.rewind(-1)
    assert log.history.lost(start.seq, {"mine.1": 0, "never.1": 0}) == ["mine.1"]


def test_the_newest_is_known_when_it_is_no_longer_held() -> None:
    """After a long outage there is still something to compare the log with."""
    log = Log(max_age_s=10, epoch=STREAM)
    newest = log.append()
    log.now = 100.0
    log.trim()
    assert len(log.history) == 0
    assert log.history.newest is log.history.oldest is log.history.at(0) is newest


def test_the_same_id_on_another_topic_is_another_message() -> None:
    """Producers number their messages by topic, too."""
    log = Log()
    log.append("a.1", message_id="m")
    assert log.history.has_message("a.1", "m")
    assert not log.history.has_message("a.2", "m")


def test_another_message_at_the_same_offset_is_another_position() -> None:
    """A position from a stream that was deleted and declared again does not match, though its offset is held."""
    old, new = History(NO_BOUND, NO_BOUND), History(NO_BOUND, NO_BOUND)
    for number in range(3):
        old.append("a.1", b'{"old": %d}' % number, number, STREAM, None, 0.0)
        new.append("a.1", b'{"new": %d}' % number, number, STREAM, None, 0.0)
    assert new.find(old.head.position) is None
    assert new.find(new.head.position) is new.head


def test_two_processes_agree_on_the_positions_of_a_stream() -> None:
    """A daemon that joined later gives the same delivery the same position."""
    early, late = History(NO_BOUND, NO_BOUND), History(NO_BOUND, NO_BOUND)
    for number in range(5):
        seen = early.append("a.1", b"{}", number, STREAM, "id", 0.0)
    assert late.append("a.1", b"{}", 4, STREAM, "id", 99.0).position == seen.position


def test_positions_from_before_a_mark_are_unknown() -> None:
    """A mark makes all earlier positions unknown; the mark itself and what follows it are known, and earlier ones stay readable."""
    log = Log()
    before = log.append()
    first = log.mark()
    second = log.mark()
    after = log.append()
    assert [log.history.find(one.position) for one in (before, first, second, after)] == [None, None, second, after]
    assert log.history.after(0, {"a.1": 0}, after.seq, NO_BOUND) == [before, after]
    assert log.history.lost(0, {"a.1": 0}) == []


def test_a_mark_is_lost_once_something_behind_it_was_dropped() -> None:
    """A mark is no better than any other position that history has left behind."""
    log = Log(max_bytes=bound(1, 2))
    mark = log.mark()
    log.append()
    assert log.history.find(mark.position) is mark
    log.append()
    assert log.history.find(mark.position) is None


def test_clear_forgets_the_deliveries_and_keeps_the_mark() -> None:
    """After `clear` no delivery of the old log is found by any key. The mark before it is where the new log begins."""
    log = Log(epoch=STREAM)
    old = [log.append(message_id=f"m{number}", payload=b"%d" % number) for number in range(3)]
    log.clear()
    history = log.history
    mark = history.head
    assert len(history) == history.weight_bytes == 0
    assert not history.has_message("a.1", "m0")
    assert "a.1" not in history.topics
    assert all(history.find(one.position) is None for one in old)
    new = history.append("a.1", b"{}", 0, STREAM, "m0", 0.0)
    assert history.find(mark.position) is mark
    assert history.after(old[0].seq, {"a.1": 0}, new.seq, NO_BOUND) == [new]
    assert history.lost(old[0].seq, {"a.1": 0}) == ["a.1"]
    assert history.lost(old[2].seq, {"a.1": 0}) == []


@each_row("message_id", [False, True])
@each_row(
    ("count", "topics", "raw"),
    [
        *((2_500, 1, 40), (2_500, 50, 40), (2_500, 2_500, 40), (2_500, 1 << 30, 40), (2_500, 1 << 30, 2), (2_500, 10, 400)),
        *((1_000, 50, 4_000), (5_000, 50, 40)),
    ],
)
def test_what_is_counted_is_what_it_weighs(topics: int, raw: int, count: int, message_id: bool) -> None:
    """Within 15 %, for few topics and many, small payloads and large ones, with `message_id` and without."""
    with only_new_objects():
        tracemalloc.start()
        try:
            history = History(1 << 40, 120)
            for number in range(count):
                name = f"{number:032x}" if message_id else None
                payload = bytes(raw)
                history.append(f"job_events.{number % topics}", payload, 100_000 + number, STREAM, name, float(number))
            gc.collect()
            weight, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert history.weight_bytes == pytest.approx(weight, rel=0.15)
    history.clear()
    assert history.weight_bytes == 0


def held(*events: tuple[str, bytes], max_bytes: int = 64 * 1024**2) -> History:
    """A history with these events, one a second."""
    history = History(max_bytes, 1e9)
    for number, (topic, payload) in enumerate(events):
        history.append(topic, payload, number, "log", None, float(number))
    return history


ORDERS = held(("orders.1", b'{"a": "x"}'), ("jobs.summary", b"{}"), ("orders.2", b'{"b": 1}'), (MARKER_TOPIC, b"{}"), ("metrics", b"{}"))


@each_row(
    "asked,topics",
    [
        ({}, ["orders.2", "jobs.summary", "orders.1"]),
        ({"after": 2}, ["orders.2"]),
        ({"after": 5}, []),
        ({"group": "orders"}, ["orders.2", "orders.1"]),
        ({"group": "order"}, []),
        ({"text": "orders.1"}, ["orders.1"]),
        ({"text": '"x"'}, ["orders.1"]),
        ({"text": "nothing"}, []),
        ({"text": "summary", "group": "orders"}, []),
    ],
)
def test_find(asked: dict[str, str], topics: list[str]) -> None:
    """The newest comes first. A text is found in topics and payloads. Markers and withheld topics are never shown."""
    found = find_events(ORDERS, **asked)  # type: ignore[arg-type]  # rows have both kinds
    assert ([delivery.topic for delivery in found.events], found.complete) == (topics, True)


def test_bounds() -> None:
    """A search ends at its bounds in events, in deliveries and in bytes, and says so."""
    many = held(*[("a.b", b"{}")] * (MAX_SEARCHED + 10))
    found = find_events(many)
    assert (len(found.events), found.complete) == (MAX_FOUND_EVENTS, False)
    assert find_events(many, text="no such text") == ([], False)
    large = held(*[("a.b", b"x" * 1024**2)] * (MAX_SEARCHED_BYTES // 1024**2 + 5))
    assert find_events(large, text="no such text") == ([], False)
    assert find_events(large, after=large.head.seq - 3, text="no such text") == ([], True)


def test_count_topics() -> None:
    """Each topic is counted once, the newest first, with its newest event. The number of topics is bounded."""
    found = count_topics(held(("a.b", b"{}"), ("a.c", b"{}"), ("a.b", b'{"n": 2}'), (MARKER_TOPIC, b"{}")))
    assert [(topic, count, newest.payload) for topic, count, newest in found] == [("a.b", 2, b'{"n": 2}'), ("a.c", 1, b"{}")]
    assert len(count_topics(held(*[(f"a.{number}", b"{}") for number in range(MAX_FOUND_TOPICS + 5)]))) == MAX_FOUND_TOPICS
    assert count_topics(held()) == []
