from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

from tests.kit.fakes import FakePeer
from tests.kit.rows import each_row
from towerws.core.deliveries import MARKER_TOPIC, Delivery, Marker, OversizedBody
from towerws.core.errors import BadDelivery
from towerws.core.frames import text_frame
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.ingest import BATCH_BYTES, REPORT_EVERY_S, Ingest
from towerws.core.measurements import SECONDS, Histogram, PublishedAt
from towerws.core.positions import Pending
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.topics import WITHHELD
from towerws.core.wire import TOWER, V1, Dialect

MAX_PAYLOAD_BYTES = 2**20
SAMPLES = json.loads((Path(__file__).parents[1] / "data" / "awx-events.json").read_text())


def _written(raw: int) -> None:
    """Nobody waits for it here."""


class Feed:
    """An `Ingest` with its history and hub, and the part of a source that calls it."""

    def __init__(self, *, max_bytes: int = 10**9, max_age_s: float = 120) -> None:
        self.now = 1000.0
        self.today = 1_800_000_000.25
        self.reports: list[BadDelivery] = []
        self.tags = 0
        self.history = History(max_bytes, max_age_s)
        self.hub = Hub(self.history)
        self.ingest = Ingest(
            self.history,
            self.hub,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            clock=lambda: self.now,
            wall_clock=lambda: self.today,
            report=self.reports.append,
            new_epoch=self._new_tag,
        )

    def _new_tag(self) -> str:
        self.tags += 1
        return f"mark{self.tags}"

    def start(self, log: str | None = "q") -> Feed:
        """Attach, to a log of that name or to a stream, and let deliveries flow."""
        if log is None:
            self.ingest.proven(True)
        else:
            self.ingest.begin(log)
        self.ingest.caught_up()
        return self

    def marker(self, text: str, offset: int, *, hole: int | None = None, through_exchange: bool = True) -> str:
        """A marker comes, in a batch of its own; its position."""
        marker = Marker(text * 8, "d" * 16, hole)
        self.ingest.marker(marker, marker.body, offset, marker.text, through_exchange=through_exchange)
        self.ingest.end_batch(_written)
        return self.history.head.position

    def judged(self, since: str) -> Any:
        """What a position comes to: "found", "unknown" or "pending"."""
        found = self.ingest.judge_position(since)
        return "pending" if isinstance(found, Pending) else "unknown" if found is None else "found"

    def batch(self, *messages: tuple[str, bytes, int] | tuple[str, bytes, int, str]) -> None:
        """Deliver these as a batch: routing key, body, offset and perhaps a message id."""
        for message in messages:
            key, body, offset, *message_id = message
            self.ingest.deliver(key, body, offset, message_id[0] if message_id else None)
        self.ingest.end_batch(_written)

    def join(self, dialect: Dialect = V1, *topics: str) -> tuple[Subscriber, FakePeer]:
        """Add a subscriber of these topics, or of `a.1`."""
        peer = FakePeer()
        subscriber = self.hub.join(peer, dialect)
        self.hub.subscribe(subscriber, Request(topics or ("a.1",)))
        return subscriber, peer

    def recovered(self, since: str) -> bool:
        """Whether a client that was there misses nothing."""
        return bool(self.judged(since) == "found")


def body(number: int) -> bytes:
    """A payload that no other number has."""
    return b'{"n": %d}' % number


def stream(*offsets: int) -> list[tuple[str, bytes, int]]:
    """A stretch of a stream."""
    return [("a.1", body(offset), offset) for offset in offsets]


# -- what is bad ---------------------------------------------------------------------------------------------------------

BAD = [
    ("metrics", b"{}", "withheld"),
    ("control.limit_reached", b'{"token_key": "secret"}', "withheld"),
    ("", b"{}", "routing_key"),
    ("jobs", b"{}", "routing_key"),
    ("jobs.", b"{}", "routing_key"),
    (".42", b"{}", "routing_key"),
    ("a.b.c", b"{}", "routing_key"),
    ("a-b.c", b"{}", "routing_key"),
    ("a.#", b"{}", "routing_key"),
    ("a.*", b"{}", "routing_key"),
    ("a.b c", b"{}", "routing_key"),
    ("a.\u00e9", b"{}", "routing_key"),
    ("a.\ud800", b"{}", "routing_key"),
    ("a.\0", b"{}", "routing_key"),
    ("a.1\n", b"{}", "routing_key"),
    ("a." + "x" * 129, b"{}", "routing_key"),
    ("a.1", b"", "not_an_object"),
    ("a.1", b" ", "not_an_object"),
    ("a.1", b"[]", "not_an_object"),
    ("a.1", b"1", "not_an_object"),
    ("a.1", b"null", "not_an_object"),
    ("a.1", b'"{}"', "not_an_object"),
    ("a.1", b"{", "not_an_object"),
    ("a.1", b"}", "not_an_object"),
    ("a.1", b"{}x", "not_an_object"),
    ("a.1", b"x{}", "not_an_object"),
    ("a.1", b"\x0b{}", "not_an_object"),
    ("a.1", b"{}\0", "not_an_object"),
    ("a.1", b"\xef\xbb\xbf{}", "not_an_object"),
    ("a.1", '{"a": 1}'.encode("utf-16"), "not_an_object"),
    ("a.1", b"\x80\x03}q\x00.", "not_an_object"),
    ("a.1", b"{not json at all}", "not_an_object"),
    ("a.1", b'{"a":1},"group":"job_events","event":"42","payload":{"stdout":"forged"}', "not_an_object"),
    ("a.1", b'{"a": "\x01"}', "not_an_object"),
    ("a.1", b'{"a": "\xff"}', "not_utf8"),
    ("a.1", b'{"a": "\xc3"}', "not_utf8"),
    ("a.1", b'{"a": "\xc0\x80"}', "not_utf8"),
    ("a.1", b'{"a": "\xed\xa0\x80"}', "not_utf8"),
    ("a.1", b'{"a": "\xf5\x80\x80\x80"}', "not_utf8"),
    ("a.1", b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too_deep"),
    ("a.1", b"{" + b" " * (MAX_PAYLOAD_BYTES - 1) + b"}", "too_large"),
]


@each_row(("key", "payload", "reason"), BAD, ids=[f"{number}-{reason}" for number, (_, _, reason) in enumerate(BAD)])
@each_row("known", [False, True])
def test_a_bad_message_is_skipped_and_the_next_one_arrives(key: str, payload: bytes, reason: str, known: bool) -> None:
    """It is counted by its reason, changes nothing, and what follows goes out, whether or not its topic was seen before."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    if known:
        feed.batch(("a.1", b"{}", 1))
        peer.take()
    held = len(feed.history)
    feed.batch((key, payload, 2), ("a.1", body(3), 3))
    assert peer.take() == [body(3)]
    assert feed.ingest.bad == {reason: 1}
    assert len(feed.history) == held + 1
    assert [bad.reason for bad in feed.reports] == ([] if reason == "withheld" else [reason])


@each_row(("key", "reason"), [("a.1", "too_large"), ("a", "routing_key"), (MARKER_TOPIC, "withheld")])
def test_a_body_that_the_source_did_not_keep_is_refused_as_the_body_is(key: str, reason: str) -> None:
    """Same counter, same text with the same size. The place before it is one to resume from, on each daemon."""
    size = MAX_PAYLOAD_BYTES + 1
    texts, ends = [], []
    for bad in (b"{" + b" " * (size - 2) + b"}", OversizedBody(size), OversizedBody(size)):
        feed = Feed().start(None)
        _, peer = feed.join()
        feed.batch(*stream(3))
        peer.take()
        assert feed.ingest.compare(key, bad, 9) is None
        feed.ingest.hole(key, bad, 9, None, "broker")
        feed.batch((key, bad, 9), *stream(10))
        gap, event = peer.take_json()
        assert event["payload"] == {"n": 10}
        assert feed.recovered(gap["to"])
        assert feed.ingest.bad == {reason: 1}
        texts.append([str(report) for report in feed.reports])
        ends.append(gap["to"])
    assert texts[0] == texts[1]
    assert ends[1] == ends[2]


def test_a_report_is_short_and_can_be_printed() -> None:
    """For any input the text for the log is one line, quoted and shortened."""
    feed = Feed().start()
    for number, (key, payload, _) in enumerate([*BAD, ("\x1b[31m" * 1000 + "\n", b"{}", ""), ("a.1", b"\x1b\r\n" * 100_000, "")]):
        feed.now += REPORT_EVERY_S
        feed.batch((key, payload, number + 1))
    assert len(feed.reports) == len(BAD)
    for report in feed.reports:
        assert str(report).isprintable()
        assert len(str(report)) < 400


def test_a_burst_is_reported_once_a_minute_for_each_reason() -> None:
    """The first of each reason, then silence for a minute, while all are counted."""
    feed = Feed().start()
    for _ in range(3):
        feed.batch(("a.1", b"[]", 1), ("a.1", b"[]", 2), ("a.b.c", b"{}", 3))
    assert [bad.reason for bad in feed.reports] == ["not_an_object", "routing_key"]
    feed.now += REPORT_EVERY_S - 1
    feed.batch(("a.1", b"[]", 4))
    assert len(feed.reports) == 2
    feed.now += 1
    feed.batch(("a.1", b"[]", 5))
    assert [bad.reason for bad in feed.reports] == ["not_an_object", "routing_key", "not_an_object"]
    assert feed.ingest.bad == {"not_an_object": 8, "routing_key": 3}
    assert feed.ingest.received == 11


def test_withheld_topics_are_never_delivered() -> None:
    """Not even one who should by some mistake have subscribed to it."""
    feed = Feed().start()
    _, peer = feed.join(TOWER, *WITHHELD)
    feed.batch(*[(key, b"{}", number + 1) for number, key in enumerate(sorted(WITHHELD))])
    assert peer.writes == []
    assert feed.ingest.bad == {"withheld": len(WITHHELD)}
    assert feed.reports == []


@each_row(
    "payload",
    [
        b"{}",
        b' \t\r\n{"a": 1}\n',
        b'{"a": "\\ud800", "b": "\\udc00\\ud83d"}',
        b'{"a": NaN, "b": Infinity, "c": -Infinity}',
        b'{"a": "\\u0000"}',
        b'{"a": "\x7f"}',
        b'{"a":1,   "a":2}',
        b'{"a": 1e999, "b": ' + b"9" * 5000 + b"}",
        '{"a": "\u20ac \u202e \U0001f680 \ufeff"}'.encode(),
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a": "' + b"x" * (MAX_PAYLOAD_BYTES - 9) + b'"}',
        *[json.dumps(sample["payload"]).encode() for sample in SAMPLES if sample["routing_key"] not in WITHHELD],
    ],
    ids=lambda payload: payload[:12].decode("latin-1"),
)
def test_a_payload_passes_untouched(payload: bytes) -> None:
    """Byte for byte, in both dialects: it is checked and never encoded again."""
    feed = Feed().start()
    _, tower = feed.join(TOWER)
    _, v1 = feed.join(V1)
    feed.batch(("a.1", payload, 1))
    assert tower.writes == [text_frame(payload)]
    (event,) = v1.take()
    assert event == b'{"type":"event","position":"1-q","group":"a","event":"1","payload":' + payload + b"}"
    assert not feed.ingest.bad


def test_all_of_awxs_events_are_good_but_those_that_are_withheld() -> None:
    """Every sample goes out on its topic; `metrics` and `control.limit_reached` do not."""
    feed = Feed().start()
    _, peer = feed.join(TOWER, *{sample["routing_key"] for sample in SAMPLES})
    feed.batch(*[(sample["routing_key"], json.dumps(sample["payload"]).encode(), at + 1) for at, sample in enumerate(SAMPLES)])
    assert peer.take_json() == [sample["payload"] for sample in SAMPLES if sample["routing_key"] not in WITHHELD]
    assert feed.ingest.bad == {"withheld": len(SAMPLES) - sum(sample["routing_key"] not in WITHHELD for sample in SAMPLES)}


# -- once ----------------------------------------------------------------------------------------------------------------


def test_a_message_sent_again_is_dropped() -> None:
    """While the first with its `message_id` is held the second is counted and goes nowhere; ids are not shared with content."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    feed.batch(("a.1", body(1), 1, "m1"), ("a.1", body(1), 2, "m1"), ("a.1", body(1), 3, "m2"), ("a.1", body(1), 4))
    assert peer.take() == [body(1)] * 3
    assert feed.ingest.duplicates == 1


def test_the_same_id_on_two_topics_is_two_messages() -> None:
    """Producers that number their messages per topic lose none (C8); the second of each topic is dropped."""
    feed = Feed().start()
    _, peer = feed.join(TOWER, "a.1", "a.2")
    feed.batch(("a.1", body(1), 1, "m1"), ("a.2", body(2), 2, "m1"), ("a.1", body(1), 3, "m1"), ("a.2", body(2), 4, "m1"))
    assert peer.take() == [body(1), body(2)]
    assert feed.ingest.duplicates == 2


def test_a_message_id_is_forgotten_with_its_delivery() -> None:
    """Beyond history's reach nobody can say any more."""
    feed = Feed(max_age_s=10).start()
    feed.batch(("a.1", body(1), 1, "m1"))
    feed.now += 11
    feed.batch(("a.1", body(2), 2))
    feed.batch(("a.1", body(1), 3, "m1"))
    assert feed.ingest.duplicates == 0


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_goes_out_when_it_ends() -> None:
    """Not before, and then in one write."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    for number in (1, 2, 3):
        feed.ingest.deliver("a.1", body(number), number, None)
    assert peer.writes == []
    feed.ingest.end_batch(_written)
    assert len(peer.writes) == 1
    assert peer.take() == [body(1), body(2), body(3)]


def test_a_large_batch_is_split() -> None:
    """Beyond 256 KiB it goes out in parts, none much larger than that, in order."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    payloads = [b'{"n": %d, "pad": "%b"}' % (number, b"x" * 10_000) for number in range(100)]
    feed.batch(*[("a.1", payload, number + 1) for number, payload in enumerate(payloads)])
    assert len(peer.writes) == 4
    assert all(len(write) <= BATCH_BYTES + 2 * 10_100 for write in peer.writes)
    assert peer.take() == payloads


def test_the_clock_is_asked_once_a_batch_and_old_deliveries_go() -> None:
    """What a batch brought has one age; each end of a batch lets go of what is too old, busy or not."""
    feed = Feed(max_age_s=120).start()
    feed.batch(("a.1", body(1), 1), ("a.1", body(2), 2))
    feed.now += 120
    feed.batch()
    assert len(feed.history) == 2
    feed.now += 1
    feed.batch()
    assert len(feed.history) == 0


# -- filling and flowing -------------------------------------------------------------------------------------------------


def test_nothing_goes_out_before_history_is_refilled() -> None:
    """Deliveries only fill history; a client that was let in before is then told of one gap, and goes on live."""
    feed = Feed()
    _, v1 = feed.join(V1)
    _, idle = feed.join(V1, "b.1")
    _, tower = feed.join(TOWER)
    feed.ingest.proven(True)
    feed.batch(*stream(5, 6, 7))
    before = feed.ingest.history_complete
    assert v1.writes == tower.writes == []
    feed.ingest.caught_up()
    assert (before, feed.ingest.history_complete) == (False, True)
    (gap,) = v1.take_json()
    assert (gap["type"], gap["topics"], gap["reason"], gap["to"]) == ("gap", ["a.1"], "broker", feed.history.head.position)
    assert len(idle.take()) == 1
    assert tower.writes == []
    feed.batch(*stream(8))
    assert [event["payload"]["n"] for event in v1.take_json()] == [8]
    assert tower.take() == [body(8)]


def test_clients_that_subscribe_during_the_refill_get_what_was_published_since() -> None:
    """It lies behind the newest marker that was confirmed before: they miss nothing, in both dialects, and are told of no gap.

    A client from before the first such marker can't know what it missed: v1 is told.
    """
    feed = Feed()
    _, early = feed.join()
    feed.ingest.proven(True)
    feed.ingest.marker_confirmed("a" * 8)
    late = {dialect: feed.join(dialect) for dialect in (V1, TOWER)}
    feed.batch(*stream(4))
    feed.marker("a", 5)
    feed.batch(*stream(6))
    feed.ingest.marker_confirmed("b" * 8)
    _, last = feed.join()
    feed.marker("b", 7)
    feed.ingest.caught_up()
    feed.batch(*stream(8))
    for subscriber in list(feed.hub.subscribers):
        while subscriber.behind:
            feed.hub.feed(subscriber)
    assert [message.get("payload") for message in early.take_json()] == [None, {"n": 6}, {"n": 8}]
    assert [message["payload"]["n"] for message in late[V1][1].take_json()] == [6, 8]
    assert late[TOWER][1].take() == [body(6), body(8)]
    assert [message["payload"]["n"] for message in last.take_json()] == [8]


def test_a_connection_that_ended_during_the_refill_is_forgotten() -> None:
    """However long the refill lasts, and however many markers the broker confirms meanwhile."""
    feed = Feed()
    feed.ingest.proven(True)
    subscriber, peer = feed.join()
    gone = weakref.ref(peer)
    feed.ingest.marker_confirmed("a" * 8)
    feed.hub.leave(subscriber)
    del subscriber, peer
    feed.ingest.marker_confirmed("b" * 8)
    assert gone() is None


def test_a_hole_of_the_refill_is_told_to_clients_that_subscribed_before_it() -> None:
    """Their replay ends at the hole, and goes on behind it. A later client does not hear of it."""
    feed = Feed()
    feed.ingest.proven(True)
    feed.ingest.marker_confirmed("a" * 8)
    clients = [feed.join()[1]]
    feed.marker("a", 1)
    feed.batch(*stream(2))
    feed.marker("z", 4, hole=2)
    feed.batch(*stream(5))
    feed.ingest.hole(*stream(7)[0], None, "broker")
    feed.batch(*stream(7))
    feed.ingest.marker_confirmed("b" * 8)
    clients.append(feed.join()[1])
    feed.marker("b", 8)
    feed.ingest.caught_up()
    feed.batch(*stream(9))
    for subscriber in list(feed.hub.subscribers):
        while subscriber.behind:
            feed.hub.feed(subscriber)
    told = [[message.get("payload", {}).get("n", message["type"]) for message in client.take_json()] for client in clients]
    assert told == [[2, "gap", 5, "gap", 7, 9], [9]]


def test_a_hole_of_the_refill_without_markers_is_told() -> None:
    """All that was read is fed, and the hole in it is told."""
    feed = Feed()
    subscriber, client = feed.join()
    feed.ingest.proven(True)
    feed.batch(*stream(0))
    feed.ingest.hole(*stream(2)[0], None, "broker")
    feed.batch(*stream(2))
    feed.ingest.caught_up(replay=True)
    while subscriber.behind:
        feed.hub.feed(subscriber)
    assert [message.get("payload", {}).get("n", message["type"]) for message in client.take_json()] == [0, "gap", 2]


def test_who_joins_is_told_of_when_nothing_can_be_missed_any_more() -> None:
    """From the first marker that the broker has confirmed on; or from when deliveries flow, where there is none."""
    told: list[str] = []
    feed = Feed()
    feed.ingest.on_joinable = lambda: told.append("joinable")
    feed.ingest.proven(True)
    feed.ingest.marker_sent("a" * 8)
    assert told == []
    feed.ingest.marker_confirmed("a" * 8)
    assert told == ["joinable"]
    without = Feed()
    without.ingest.on_joinable = lambda: told.append("flowing")
    without.ingest.caught_up()
    assert told == ["joinable", "flowing"]


def test_all_that_was_read_may_be_new_to_those_who_wait() -> None:
    """Where no marker can tell old from new, and clients have been there all the time, they get everything, and no gap (C2)."""
    feed = Feed()
    _, v1 = feed.join()
    _, tower = feed.join(TOWER)
    feed.ingest.proven(True)
    feed.batch(*stream(0, 1, 2))
    feed.ingest.caught_up(replay=True)
    feed.batch(*stream(3))
    for subscriber, peer in zip(list(feed.hub.subscribers), (v1, tower), strict=True):
        while subscriber.behind:
            feed.hub.feed(subscriber)
        assert len(peer.take()) == 4


def test_what_history_was_refilled_with_can_be_resumed() -> None:
    """A client of the daemon before this one goes on where it was."""
    before, after = Feed().start(None), Feed()
    before.batch(*stream(5, 6, 7))
    since = before.hub.position
    after.ingest.proven(True)
    after.batch(*stream(4, 5, 6, 7, 8, 9))
    after.ingest.caught_up()
    peer = FakePeer()
    subscriber = after.hub.join(peer, V1)
    found = after.ingest.judge_position(since)
    assert isinstance(found, Delivery)
    assert after.hub.subscribe(subscriber, Request(("a.1",), since=since), found).recovered
    after.hub.feed(subscriber)
    assert [event["payload"]["n"] for event in peer.take_json()] == [8, 9]


def test_caught_up_again_changes_nothing() -> None:
    """A source that comes back says it again; nobody hears of it."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.batch(*stream(0))
    peer.take()
    feed.ingest.proven(False)
    feed.ingest.proven(True)
    feed.ingest.caught_up()
    assert peer.writes == []


def test_an_empty_stream_has_no_position_until_its_first_marker() -> None:
    """The marker names this stream and no other (C7)."""
    one, other = Feed().start(None), Feed().start(None)
    assert one.hub.position == ""
    position = one.marker("a", 0)
    assert one.hub.position == position != ""
    other.marker("b", 0)
    assert (one.judged(position), other.judged(position)) == ("found", "unknown")


# -- whether a position can be judged ------------------------------------------------------------------------------------


def test_a_position_waits_for_the_refill() -> None:
    """Found or not: until history is complete there is no verdict (C3). Text that is no position has one at once."""
    feed = Feed()
    feed.ingest.proven(True)
    feed.batch(*stream(5, 6))
    held, unknown = feed.history.head.position, "5-000000000000"
    assert [feed.judged(position) for position in (held, unknown, "nonsense", "")] == ["pending", "pending", "unknown", "unknown"]
    feed.ingest.caught_up()
    assert [feed.judged(position) for position in (held, unknown)] == ["found", "unknown"]


def test_a_position_waits_while_the_log_is_not_proven() -> None:
    """The link is down, or has just come back: what history holds is found, what it does not hold may be in the log that is there now."""
    feed = Feed().start(None)
    feed.batch(*stream(5, 6))
    held = feed.history.head.position
    feed.ingest.proven(False)
    assert [feed.judged(position) for position in (held, "5-000000000000", "9-000000000000")] == ["found", "pending", "pending"]
    feed.ingest.proven(True)
    assert [feed.judged(position) for position in (held, "5-000000000000", "9-000000000000")] == ["found", "unknown", "pending"]


def test_in_a_log_of_this_process_every_position_is_judged_at_once() -> None:
    """What it does not hold nobody will ever bring."""
    feed = Feed().start("q")
    feed.batch(("a.1", body(1), 1))
    assert [feed.judged(position) for position in ("1-q", "0-q", "2-q", "1-other")] == ["found", "found", "unknown", "unknown"]


class Wait:
    """A client that waits, and the verdicts that it was told: offsets, or None."""

    def __init__(self, feed: Feed, position: str) -> None:
        self.verdicts: list[int | None] = []
        self.forget = feed.ingest.wait_for_position(position, lambda found: self.verdicts.append(None if found is None else found.offset))


def test_a_client_that_is_ahead_is_answered_when_the_log_gets_there() -> None:
    """It comes from a daemon with a faster link (C4)."""
    ahead, feed = Feed().start(None), Feed().start(None)
    asked: list[int] = []
    feed.ingest.on_position_asked = lambda: asked.append(1)
    ahead.batch(*stream(3, 4, 5))
    feed.batch(*stream(3))
    wait = Wait(feed, ahead.hub.position)
    feed.batch(*stream(4))
    assert (wait.verdicts, feed.ingest.waiting, asked) == ([], 1, [1])
    feed.batch(*stream(5))
    assert (wait.verdicts, feed.ingest.waiting) == ([5], 0)


def test_a_marker_that_was_sent_before_the_question_answers_nothing() -> None:
    """It may have been written before the delivery that the position names."""
    feed = Feed().start(None)
    feed.batch(*stream(3))
    feed.ingest.marker_sent("a" * 8)
    wait = Wait(feed, "9-000000000000")
    feed.ingest.marker_sent("b" * 8)
    feed.marker("a", 4)
    assert wait.verdicts == []
    feed.marker("b", 5)
    assert wait.verdicts == [None]


def test_another_daemons_marker_answers_nothing() -> None:
    """It was not published after the question."""
    feed = Feed().start(None)
    feed.batch(*stream(3))
    wait = Wait(feed, "9-000000000000")
    feed.ingest.marker_sent("b" * 8)
    feed.marker("c", 4)
    assert wait.verdicts == []


def test_a_marker_proves_nothing_about_a_log_that_is_not_proven() -> None:
    """It came over the link, but whether history is of this log is still to be seen; the verdict follows then."""
    feed = Feed().start(None)
    feed.batch(*stream(3))
    feed.ingest.proven(False)
    wait = Wait(feed, "9-000000000000")
    feed.ingest.marker_sent("a" * 8)
    feed.marker("a", 4)
    assert wait.verdicts == []
    feed.ingest.proven(True)
    assert wait.verdicts == [None]


def test_a_client_that_has_gone_is_told_nothing() -> None:
    """Its request is taken back, once or twice."""
    feed = Feed().start(None)
    wait, other = Wait(feed, "9-000000000000"), Wait(feed, "9-000000000001")
    wait.forget()
    wait.forget()
    feed.ingest.marker_sent("a" * 8)
    feed.marker("a", 4)
    assert (wait.verdicts, other.verdicts, feed.ingest.waiting) == ([], [None], 0)


def test_many_who_wait_are_answered_each_by_its_own_position() -> None:
    """In one batch, and in any order of their requests."""
    ahead, feed = Feed().start(None), Feed().start(None)
    feed.batch(*stream(0))
    positions = {}
    for offset in range(1, 50):
        ahead.batch(*stream(offset))
        positions[offset] = ahead.hub.position
    waits = {offset: Wait(feed, positions[offset]) for offset in sorted(positions, key=lambda offset: offset * 37 % 50)}
    feed.batch(*stream(*range(1, 25)))
    assert {offset: wait.verdicts for offset, wait in waits.items()} == {offset: [offset] if offset < 25 else [] for offset in positions}


# -- another log, a shorter one, and what is lost ------------------------------------------------------------------------


def test_what_was_read_is_compared() -> None:
    """Topic and payload count; what is not held can't be compared."""
    feed = Feed().start(None)
    feed.batch(*stream(3, 4), ("a.1", b"[]", 5))
    feed.marker("a", 6)
    compare = feed.ingest.compare
    assert compare("a.1", body(4), 4)
    assert compare("a.2", body(4), 4) is False
    assert compare("a.1", body(3), 4) is False
    assert compare("a.1", b"[]", 5) is None
    assert compare("a.1", body(4), 9) is None
    assert compare("any.key", Marker("a" * 8, "d" * 16).body, 6), "a marker is known by its text, whichever way it came"
    assert (feed.ingest.oldest, feed.ingest.newest) == (3, 6)


def test_a_hole_is_one_gap() -> None:
    """The stream was trimmed meanwhile: everyone is told once, nobody resumes from before it, its end can be resumed from (C9)."""
    feed, other = Feed().start(None), Feed().start(None)
    _, peer = feed.join()
    _, tower = feed.join(TOWER)
    feed.batch(*stream(3, 4))
    since = feed.hub.position
    peer.take()
    feed.ingest.hole(*stream(9)[0], None, "broker")
    feed.batch(*stream(9, 10))
    gap, *events = peer.take_json()
    assert (gap["type"], gap["topics"], gap["reason"], gap["from"]) == ("gap", ["a.1"], "broker", since)
    assert [event["payload"]["n"] for event in events] == [9, 10]
    assert tower.take() == [body(number) for number in (3, 4, 9, 10)]
    assert not feed.recovered(since)
    assert feed.recovered(gap["to"])
    assert feed.recovered(events[0]["position"])
    other.batch(*stream(8, 9, 10))
    assert other.recovered(gap["to"]), "on another daemon, that read it all, too"


def test_another_log_is_one_gap_and_old_positions_are_unknown() -> None:
    """The stream was deleted and declared again: history is forgotten, the end of the gap and all that follows are good."""
    feed = Feed().start(None)
    _, peer = feed.join(V1, "a.1")
    _, tower = feed.join(TOWER, "a.1")
    feed.batch(*[(*message, f"m{message[2]}") for message in stream(2, 3, 4)])
    old = [event["position"] for event in peer.take_json()]
    tower.take()
    feed.ingest.rewind(None)
    assert feed.hub.position == "", "nothing that could be resumed from"
    feed.ingest.hole("a.1", b'{"other": 0}', 0, None, "broker")
    feed.batch(("a.1", b'{"other": 0}', 0), ("a.1", b'{"other": 1}', 1))
    gap, *events = peer.take_json()
    assert (gap["type"], gap["topics"], gap["from"]) == ("gap", ["a.1"], old[-1])
    assert [event["payload"] for event in events] == [{"other": 0}, {"other": 1}]
    assert tower.take() == [b'{"other": 0}', b'{"other": 1}']
    assert tower.ended == []
    assert not feed.history.has_message("a.1", "m4")
    assert not any(feed.recovered(position) for position in old)
    assert all(feed.recovered(position) for position in (gap["to"], *(event["position"] for event in events)))


def test_a_cut_off_tail_keeps_what_is_shared() -> None:
    """The gap begins at the last delivery that both logs have, and a client that stood there resumes without losing what came since."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.batch(*stream(2, 3, 4, 5))
    positions = [event["position"] for event in peer.take_json()]
    feed.ingest.rewind(3)
    assert feed.hub.position == positions[1]
    feed.ingest.hole("a.1", b'{"other": 4}', 4, None, "broker")
    feed.batch(("a.1", b'{"other": 4}', 4))
    gap, event = peer.take_json()
    assert (gap["from"], event["payload"]) == (positions[1], {"other": 4})
    assert [feed.recovered(position) for position in positions] == [True, True, False, False]
    assert feed.recovered(gap["to"])
    assert feed.recovered(event["position"])


def test_a_member_that_is_behind_while_the_log_is_made_again_is_told_or_closed() -> None:
    """What it had still to get is gone: v1 hears of one gap, from where it stands; Tower's are closed, as far as they lost anything."""
    feed = Feed().start(None)
    v1_subscriber, v1 = feed.join()
    tower_subscriber, tower = feed.join(TOWER)
    feed.batch(*stream(0))
    seen = v1.take_json()[0]["position"]
    tower.take()
    v1.full = tower.full = True
    feed.batch(*stream(1))
    v1.full = tower.full = False
    feed.ingest.rewind(None)
    feed.ingest.hole("a.1", b'{"other": 0}', 0, None, "broker")
    feed.batch(("a.1", b'{"other": 0}', 0))
    for subscriber in (v1_subscriber, tower_subscriber):
        feed.hub.feed(subscriber)
    gap, event = v1.take_json()
    assert (gap["type"], gap["from"], event["payload"]) == ("gap", seen, {"other": 0})
    assert tower.take() == []
    assert [reason.name for reason in tower.ended] == ["HISTORY"]


def test_a_refill_that_starts_over_forgets_in_silence() -> None:
    """Nothing had gone out: nobody is told, and what comes again is not twice there."""
    feed = Feed()
    feed.ingest.proven(True)
    feed.batch(*stream(5, 6))
    feed.ingest.restart()
    feed.batch(*stream(2, 3, 4, 5, 6))
    feed.ingest.caught_up()
    assert len(feed.history) == 5
    assert feed.recovered(feed.history.oldest.position)  # type: ignore[union-attr]
    assert feed.ingest.newest == 6


# -- markers -------------------------------------------------------------------------------------------------------------


def test_a_marker_is_not_delivered_and_its_position_is_valid() -> None:
    """It is the log's newest place, and survives no other log."""
    feed = Feed().start(None)
    _, peer = feed.join(TOWER, MARKER_TOPIC, "a.1")
    position = feed.marker("a", 7)
    assert peer.writes == []
    assert feed.recovered(position)
    assert feed.ingest.markers == 1


def test_other_messages_on_the_topic_of_markers_are_withheld() -> None:
    """Any other message on that topic is withheld."""
    feed = Feed().start(None)
    _, peer = feed.join(TOWER, MARKER_TOPIC)
    feed.batch((MARKER_TOPIC, b'{"marker": "mine"}', 1))
    assert peer.writes == []
    assert feed.ingest.bad == {"withheld": 1}


def test_a_marker_that_tells_of_a_hole_is_one_gap_on_every_daemon() -> None:
    """Two daemons found it and tell of it: the second marker says nothing new, and a later hole does (C5)."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.batch(*stream(0))
    start = feed.marker("a", 1)
    end = feed.marker("b", 2, hole=1)
    feed.marker("c", 3, hole=1)
    feed.batch(*stream(4))
    later = feed.marker("e", 6, hole=4)
    first, gap, event, again = peer.take_json()
    assert (first["type"], gap["type"], gap["from"], gap["to"]) == ("event", "gap", start, end)
    assert (event["payload"], again["type"], again["from"], again["to"]) == ({"n": 4}, "gap", event["position"], later)
    assert [feed.recovered(position) for position in (start, end, event["position"], later)] == [False, False, False, True]


def test_a_later_hole_that_a_daemon_found_which_knows_little_of_the_log() -> None:
    """It has just started, or lags: its hole begins early. A marker since then had proven the binding, so this is another hole."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.marker("a", 1)
    end = feed.marker("b", 2, hole=1)
    feed.marker("c", 3, through_exchange=False)
    feed.marker("d", 4, hole=0)
    (gap,) = peer.take_json()
    assert gap["to"] == end, "a marker straight to the stream proves no binding"
    feed.marker("e", 5)
    feed.batch(*stream(6))
    later = feed.marker("f", 7, hole=0)
    event, again = peer.take_json()
    assert (event["type"], again["type"], again["from"], again["to"]) == ("event", "gap", end, later)


def test_a_marker_between_an_early_notice_and_the_end_of_the_hole() -> None:
    """The reader told of the hole. Another daemon's marker comes before ours, which moves the bar and tells nobody twice."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.marker("a", 1)
    feed.ingest.hole(*stream(2)[0], None, "broker", marker_follows=True)
    feed.batch(*stream(2))
    feed.marker("b", 3)
    end = feed.marker("c", 4, hole=1)
    gap, event = peer.take_json()
    assert [feed.recovered(position) for position in (gap["to"], event["position"], end)] == [False, False, True]
    feed.marker("d", 5)
    feed.marker("e", 6, hole=1)
    assert [message["type"] for message in peer.take_json()] == ["gap"]


def test_a_hole_that_is_read_during_the_refill_is_told_to_nobody_and_bars_the_way() -> None:
    """A client from before it can't be told that all was recovered."""
    feed = Feed()
    feed.ingest.proven(True)
    feed.batch(*stream(0))
    before = feed.history.head.position
    feed.marker("a", 1)
    end = feed.marker("b", 2, hole=1)
    feed.ingest.caught_up()
    assert [feed.recovered(position) for position in (before, end)] == [False, True]


def test_a_hole_that_was_told_before_its_end_was_known_is_told_once() -> None:
    """The daemon that bound again told its clients before the next event. The marker that follows moves the bar, and tells nobody twice."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.marker("a", 1)
    feed.ingest.hole(*stream(2)[0], None, "broker", marker_follows=True)
    feed.batch(*stream(2))
    end = feed.marker("b", 3, hole=1)
    gap, event = peer.take_json()
    assert (gap["type"], event["payload"]) == ("gap", {"n": 2})
    assert [feed.recovered(position) for position in (gap["to"], event["position"], end)] == [False, False, True]


def test_a_hole_of_another_kind_is_not_the_one_that_a_marker_tells_of() -> None:
    """A daemon that lags tells what retention took. Then it reads another daemon's marker, whose hole began before that and goes on."""
    feed = Feed().start(None)
    feed.batch(*stream(1))
    feed.marker("a", 2)
    _, peer = feed.join()
    feed.ingest.hole(*stream(20)[0], None, "broker")
    feed.batch(*stream(20, 21))
    end = feed.marker("b", 23, hole=2)
    first, *events, second = peer.take_json()
    assert [message["type"] for message in (first, second)] == ["gap", "gap"]
    assert (second["from"], second["to"]) == (first["to"], end)
    assert [feed.recovered(position) for position in (first["to"], events[-1]["position"], end)] == [False, False, True]
    feed.marker("c", 24, hole=2)
    assert peer.writes == [], "another daemon's marker about the same hole"


def test_a_client_that_is_behind_gets_both_holes() -> None:
    """One notice for what retention took, and one for the missing binding. The second begins where the first ended."""
    feed = Feed().start(None)
    feed.batch(*stream(1))
    feed.marker("a", 2)
    subscriber, peer = feed.join()
    peer.full = True
    feed.batch(*stream(3))
    peer.full = False
    feed.ingest.hole(*stream(20)[0], None, "broker")
    feed.batch(*stream(20))
    end = feed.marker("b", 23, hole=2)
    feed.batch(*stream(24))
    while subscriber.behind:
        feed.hub.feed(subscriber)
    event, first, second, last = peer.take_json()
    assert [message["type"] for message in (event, first, second, last)] == ["event", "gap", "gap", "event"]
    assert (first["from"], second["from"], second["to"]) == (event["position"], first["to"], end)


def test_a_cut_log_and_a_missing_binding_are_two_holes() -> None:
    """The log was cut off behind 3, and a marker tells of a hole that began before that."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.marker("a", 1)
    feed.batch(*stream(2, 3, 4))
    peer.take()
    feed.ingest.rewind(3)
    feed.ingest.hole("a.1", b'{"other": 4}', 4, None, "broker")
    feed.batch(("a.1", b'{"other": 4}', 4))
    feed.marker("b", 5, hole=1)
    assert [message["type"] for message in peer.take_json()] == ["gap", "event", "gap"]


# -- a log of this process -----------------------------------------------------------------------------------------------


def test_a_gap_marks_the_log() -> None:
    """A queue's link was down: one notice to all v1 clients, nobody resumes from before, everything after it is good."""
    feed = Feed().start("q")
    _, peer = feed.join()
    _, tower = feed.join(TOWER)
    feed.batch(("a.1", body(1), 1))
    since = feed.hub.position
    peer.take()
    feed.ingest.gap("broker")
    (gap,) = peer.take_json()
    assert (gap["from"], gap["reason"]) == (since, "broker")
    assert feed.hub.position == gap["to"]
    assert not feed.recovered(since)
    assert feed.recovered(gap["to"])
    feed.batch(("a.1", body(2), 2))
    assert [event["payload"]["n"] for event in peer.take_json()] == [2]
    assert tower.take() == [body(1), body(2)]
    assert feed.recovered(gap["to"])


def test_a_log_of_our_own_has_no_holes_of_others() -> None:
    """Another daemon's binding was missing, and it counts its own offsets: our queue got everything."""
    feed = Feed().start("q")
    _, peer = feed.join()
    feed.batch(("a.1", body(1), 1))
    since = feed.hub.position
    feed.marker("a", 2, hole=1)
    assert [message["type"] for message in peer.take_json()] == ["event"]
    assert feed.recovered(since)


def test_a_gap_ends_the_batch_before_it() -> None:
    """What came before the gap goes out before the notice."""
    feed = Feed().start()
    _, peer = feed.join()
    feed.ingest.deliver("a.1", body(1), 1, None)
    feed.ingest.gap("broker")
    assert [message["type"] for message in peer.take_json()] == ["event", "gap"]


def test_a_log_of_our_own_can_be_resumed_from_its_beginning() -> None:
    """The position before the first delivery is good at once, and names this log."""
    feed = Feed().start("q")
    assert feed.hub.position == "0-q"
    feed.batch(("a.1", body(1), 1))
    assert feed.recovered("0-q")
    assert not feed.recovered("0-other")


def test_from_a_stream_to_a_queue_is_another_log() -> None:
    """The broker was replaced by one without streams: its offsets mean something else."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.batch(*stream(5))
    since = feed.hub.position
    peer.take()
    feed.ingest.begin("q")
    feed.ingest.gap("broker")
    feed.batch(("a.1", body(1), 1), ("a.1", body(2), 2))
    messages = peer.take_json()
    assert {message["type"] for message in messages[:-2]} == {"gap"}
    assert [message["position"] for message in messages[-2:]] == ["1-q", "2-q"]
    assert not feed.recovered(since)


def test_a_batch_tells_what_it_wrote() -> None:
    """The end of a batch gives the bytes of frames that went to connections since the last end, for all of them together."""
    feed = Feed().start()
    peers = [feed.join(TOWER)[1] for _ in range(3)]
    for number in (1, 2):
        feed.ingest.deliver("a.1", body(number), number, None)
    written: list[int] = []
    feed.ingest.end_batch(written.append)
    assert written == [sum(len(data) for peer in peers for data in peer.writes)] == [3 * 2 * 10]
    feed.ingest.end_batch(written.append)
    assert written == [60, 0]


def test_a_batch_before_the_log_flows_is_written_at_once() -> None:
    """While history is being refilled nothing is written, and the source is told so at once: it must not wait for ever."""
    feed = Feed()
    feed.ingest.begin("q")
    feed.ingest.deliver("a.1", body(1), 1, None)
    written: list[int] = []
    feed.ingest.end_batch(written.append)
    assert written == [0]


def test_how_long_a_batch_took_is_measured_once_it_is_written() -> None:
    """From the first message of the read, and from the end of the read. A batch for no client is not counted: it would hide the others."""
    feed = Feed().start()
    _, peer = feed.join(V1, "jobs.a")
    feed.ingest.deliver("jobs.a", b"{}", 1, None)
    feed.now += 0.02
    feed.ingest.deliver("jobs.a", b"{}", 2, None)
    feed.now += 0.02
    feed.ingest.end_batch(_written)
    feed.ingest.deliver("jobs.b", b"{}", 3, None)
    feed.ingest.end_batch(_written)
    feed.ingest.end_batch(_written)
    assert len(peer.writes) == 1
    delivery, write = feed.ingest.delivery_s.figures(), feed.ingest.write_s.figures()
    assert (delivery["sum"], write["sum"]) == (0.04, 0.0)
    assert delivery["buckets"] == {f"{bound:g}": int(bound >= 0.05) for bound in SECONDS} | {"+Inf": 1}
    assert feed.hub.batch_sizes.figures()["sum"] == 2


def test_the_time_from_publishing_is_measured_for_batches_that_are_written() -> None:
    """By the first message's time, when the batch is written. A batch for no client, or without a time, is not counted."""
    feed = Feed().start()
    feed.join(V1, "jobs.a")
    published = PublishedAt(feed.today - 0.02, "millisecond")
    for offset, (topic, at) in enumerate([("jobs.a", published), ("jobs.b", published), ("jobs.a", None)]):
        feed.ingest.deliver(topic, b"{}", offset, None)
        feed.ingest.end_batch(_written, at)
    fine = feed.ingest.publish_times.figures()["millisecond"]
    assert fine == {"sum": 0.02, "buckets": {f"{bound:g}": int(bound >= 0.025) for bound in SECONDS} | {"+Inf": 1}}


def test_old_events_of_the_refill_are_not_measured() -> None:
    """They were published long before this daemon ran, and go to nobody."""
    feed = Feed()
    feed.ingest.begin("q")
    feed.join(V1, "jobs.a")
    feed.ingest.deliver("jobs.a", b"{}", 1, None)
    feed.ingest.end_batch(_written, PublishedAt(feed.today - 60, "millisecond"))
    feed.ingest.caught_up()
    assert feed.ingest.publish_times.figures()["millisecond"] == Histogram(SECONDS).figures()
