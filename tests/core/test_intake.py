from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes import FakePeer
from towerws.core.errors import BadDelivery
from towerws.core.frames import text_frame
from towerws.core.groups import WITHHELD
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.intake import REPORT_EVERY_S, TURN_OCTETS, Intake
from towerws.core.members import Member
from towerws.core.requests import Request
from towerws.core.wire import TOWER, V1, Dialect

MAX_PAYLOAD_OCTETS = 2**20
SAMPLES = json.loads((Path(__file__).parents[1] / "data" / "awx-events.json").read_text())


def _written(octets: int) -> None:
    """Nobody waits for it here."""


class Feed:
    """An intake with all that is behind it, and the part of a source that talks to it."""

    def __init__(self, *, max_octets: int = 10**9, max_age_s: float = 120) -> None:
        self.now = 1000.0
        self.reports: list[BadDelivery] = []
        self.tags = 0
        self.history = History(max_octets, max_age_s)
        self.hub = Hub(self.history)
        self.intake = Intake(
            self.history,
            self.hub,
            max_payload_octets=MAX_PAYLOAD_OCTETS,
            clock=lambda: self.now,
            report=self.reports.append,
            new_tag=self._new_tag,
        )

    def _new_tag(self) -> str:
        self.tags += 1
        return f"mark{self.tags}"

    def start(self, log: str | None = "q") -> Feed:
        """Attach and let deliveries flow."""
        self.intake.attach(log, None)
        self.intake.caught_up()
        return self

    def turn(self, *messages: tuple[str, bytes, int] | tuple[str, bytes, int, str]) -> None:
        """Deliver these as a turn: routing key, body, offset and perhaps a message id."""
        for message in messages:
            key, body, offset, *message_id = message
            self.intake.deliver(key, body, offset, message_id[0] if message_id else None)
        self.intake.end_turn(_written)

    def join(self, dialect: Dialect = V1, *topics: str) -> tuple[Member, FakePeer]:
        """A member that listens to these, or to `a.1`."""
        peer = FakePeer()
        member = self.hub.join(peer, dialect)
        self.hub.subscribe(member, Request(topics or ("a.1",)))
        return member, peer

    def recovered(self, since: str) -> bool:
        """Whether a client that was there misses nothing."""
        member, _ = self.join()
        recovered = self.hub.subscribe(member, Request(("a.1",), since=since)).recovered
        self.hub.leave(member)
        return recovered


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
    ("a.1", b"{" + b" " * (MAX_PAYLOAD_OCTETS - 1) + b"}", "too_large"),
]


@pytest.mark.parametrize(("key", "payload", "reason"), BAD, ids=[f"{number}-{reason}" for number, (_, _, reason) in enumerate(BAD)])
@pytest.mark.parametrize("known", [False, True])
def test_a_bad_message_is_skipped_and_the_next_one_arrives(key: str, payload: bytes, reason: str, known: bool) -> None:
    """It is counted by its reason, changes nothing, and what follows goes out, whether or not its topic was seen before."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    if known:
        feed.turn(("a.1", b"{}", 1))
        peer.take()
    held = len(feed.history)
    feed.turn((key, payload, 2), ("a.1", body(3), 3))
    assert peer.take() == [body(3)]
    assert feed.intake.bad == {reason: 1}
    assert len(feed.history) == held + 1
    assert [bad.reason for bad in feed.reports] == ([] if reason == "withheld" else [reason])


def test_a_report_is_short_and_can_be_printed() -> None:
    """Whatever came, the text for the log is a line, quoted and shortened."""
    feed = Feed().start()
    for number, (key, payload, _) in enumerate([*BAD, ("\x1b[31m" * 1000 + "\n", b"{}", ""), ("a.1", b"\x1b\r\n" * 100_000, "")]):
        feed.now += REPORT_EVERY_S
        feed.turn((key, payload, number + 1))
    assert len(feed.reports) == len(BAD)
    for report in feed.reports:
        assert str(report).isprintable()
        assert len(str(report)) < 400


def test_a_burst_is_reported_once_a_minute_for_each_reason() -> None:
    """The first of each reason, then silence for a minute, while all are counted."""
    feed = Feed().start()
    for _ in range(3):
        feed.turn(("a.1", b"[]", 1), ("a.1", b"[]", 2), ("a.b.c", b"{}", 3))
    assert [bad.reason for bad in feed.reports] == ["not_an_object", "routing_key"]
    feed.now += REPORT_EVERY_S - 1
    feed.turn(("a.1", b"[]", 4))
    assert len(feed.reports) == 2
    feed.now += 1
    feed.turn(("a.1", b"[]", 5))
    assert [bad.reason for bad in feed.reports] == ["not_an_object", "routing_key", "not_an_object"]
    assert feed.intake.bad == {"not_an_object": 8, "routing_key": 3}
    assert feed.intake.received == 11


def test_what_is_withheld_reaches_nobody() -> None:
    """Not even one who should by some mistake have subscribed to it."""
    feed = Feed().start()
    _, peer = feed.join(TOWER, *WITHHELD)
    feed.turn(*[(key, b"{}", number + 1) for number, key in enumerate(sorted(WITHHELD))])
    assert peer.writes == []
    assert feed.intake.bad == {"withheld": 2}
    assert feed.reports == []


@pytest.mark.parametrize(
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
        b'{"a": "' + b"x" * (MAX_PAYLOAD_OCTETS - 9) + b'"}',
        *[json.dumps(sample["payload"]).encode() for sample in SAMPLES if sample["routing_key"] not in WITHHELD],
    ],
    ids=lambda payload: payload[:12].decode("latin-1"),
)
def test_a_payload_passes_untouched(payload: bytes) -> None:
    """Byte for byte, in both dialects: it is checked and never encoded again."""
    feed = Feed().start()
    _, tower = feed.join(TOWER)
    _, v1 = feed.join(V1)
    feed.turn(("a.1", payload, 1))
    assert tower.writes == [text_frame(payload)]
    (event,) = v1.take()
    assert event == b'{"type":"event","position":"1-q","group":"a","event":"1","payload":' + payload + b"}"
    assert not feed.intake.bad


def test_all_of_awxs_events_are_good_but_those_that_are_withheld() -> None:
    """Every sample goes out on its topic; `metrics` and `control.limit_reached` do not."""
    feed = Feed().start()
    _, peer = feed.join(TOWER, *{sample["routing_key"] for sample in SAMPLES})
    feed.turn(*[(sample["routing_key"], json.dumps(sample["payload"]).encode(), at + 1) for at, sample in enumerate(SAMPLES)])
    assert peer.take_json() == [sample["payload"] for sample in SAMPLES if sample["routing_key"] not in WITHHELD]
    assert feed.intake.bad == {"withheld": len(SAMPLES) - sum(sample["routing_key"] not in WITHHELD for sample in SAMPLES)}


# -- once ----------------------------------------------------------------------------------------------------------------


def test_a_message_sent_again_is_dropped() -> None:
    """While the first with its `message_id` is held the second is counted and goes nowhere; ids are not shared with content."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    feed.turn(("a.1", body(1), 1, "m1"), ("a.1", body(1), 2, "m1"), ("a.1", body(1), 3, "m2"), ("a.1", body(1), 4))
    feed.turn(("a.2", body(2), 5, "m1"))
    assert peer.take() == [body(1)] * 3
    assert feed.intake.duplicates == 2


def test_a_message_sent_again_is_dropped_after_a_new_link_too() -> None:
    """What is held, not what came over the present link, decides."""
    feed = Feed().start(None)
    _, peer = feed.join(TOWER)
    feed.turn(("a.1", body(0), 0, "m0"), ("a.1", body(1), 1))
    feed.intake.attach(None, 1)
    feed.turn(("a.1", body(1), 1), ("a.1", body(0), 2, "m0"))
    assert peer.take() == [body(0), body(1)]
    assert feed.intake.duplicates == 1


def test_a_message_id_is_forgotten_with_its_delivery() -> None:
    """Beyond history's reach nobody can say any more."""
    feed = Feed(max_age_s=10).start()
    feed.turn(("a.1", body(1), 1, "m1"))
    feed.now += 11
    feed.turn(("a.1", body(2), 2))
    feed.turn(("a.1", body(1), 3, "m1"))
    assert feed.intake.duplicates == 0


# -- turns ---------------------------------------------------------------------------------------------------------------


def test_a_turn_goes_out_when_it_ends() -> None:
    """Not before, and then in one write."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    for number in (1, 2, 3):
        feed.intake.deliver("a.1", body(number), number, None)
    assert peer.writes == []
    feed.intake.end_turn(_written)
    assert len(peer.writes) == 1
    assert peer.take() == [body(1), body(2), body(3)]


def test_a_large_turn_is_split() -> None:
    """Beyond 256 KiB it goes out in parts, none much larger than that, in order."""
    feed = Feed().start()
    _, peer = feed.join(TOWER)
    payloads = [b'{"n": %d, "pad": "%b"}' % (number, b"x" * 10_000) for number in range(100)]
    feed.turn(*[("a.1", payload, number + 1) for number, payload in enumerate(payloads)])
    assert len(peer.writes) == 4
    assert all(len(write) <= TURN_OCTETS + 2 * 10_100 for write in peer.writes)
    assert peer.take() == payloads


def test_the_clock_is_asked_once_a_turn_and_old_deliveries_go() -> None:
    """What a turn brought has one age; each end of a turn lets go of what is too old, busy or not."""
    feed = Feed(max_age_s=120).start()
    feed.turn(("a.1", body(1), 1), ("a.1", body(2), 2))
    feed.now += 120
    feed.turn()
    assert len(feed.history) == 2
    feed.now += 1
    feed.turn()
    assert len(feed.history) == 0


# -- filling and flowing -------------------------------------------------------------------------------------------------


def test_nothing_goes_out_before_history_is_refilled() -> None:
    """Deliveries only fill history; whoever was let in before is then told of one gap, and goes on live."""
    feed = Feed()
    _, v1 = feed.join(V1)
    _, idle = feed.join(V1, "b.1")
    _, tower = feed.join(TOWER)
    feed.intake.attach(None, None)
    feed.turn(*stream(5, 6, 7))
    before = feed.intake.flowing
    assert v1.writes == tower.writes == []
    feed.intake.caught_up()
    assert (before, feed.intake.flowing) == (False, True)
    (gap,) = v1.take_json()
    assert (gap["type"], gap["topics"], gap["reason"], gap["to"]) == ("gap", ["a.1"], "broker", feed.history.head.position)
    assert len(idle.take()) == 1
    assert tower.writes == []
    feed.turn(*stream(8))
    assert [event["payload"]["n"] for event in v1.take_json()] == [8]
    assert tower.take() == [body(8)]


def test_what_history_was_refilled_with_can_be_resumed() -> None:
    """A client of the daemon before this one goes on where it was."""
    before, after = Feed().start(None), Feed()
    before.turn(*stream(5, 6, 7))
    since = before.hub.position
    after.intake.attach(None, None)
    after.turn(*stream(4, 5, 6, 7, 8, 9))
    after.intake.caught_up()
    member, peer = after.join()
    assert after.hub.subscribe(member, Request(("a.1",), since=since)).recovered
    after.hub.feed(member)
    assert [event["payload"]["n"] for event in peer.take_json()] == [8, 9]


def test_those_who_wait_are_called_once() -> None:
    """In their order, at the first `caught_up` and at no other; who took it back is not."""
    feed = Feed()
    called: list[str] = []
    feed.intake.when_flowing(lambda: called.append("first"))
    forget = feed.intake.when_flowing(lambda: called.append("forgotten"))
    feed.intake.when_flowing(lambda: called.append("second"))
    forget()
    forget()
    feed.intake.attach(None, None)
    assert called == []
    feed.intake.caught_up()
    feed.intake.caught_up()
    assert called == ["first", "second"]


def test_caught_up_again_changes_nothing() -> None:
    """A source that comes back says it again; nobody hears of it."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.turn(*stream(0))
    peer.take()
    feed.intake.attach(None, 0)
    feed.intake.caught_up()
    assert peer.writes == []


# -- the link is lost ----------------------------------------------------------------------------------------------------


def test_resume_from_is_the_newest_offset() -> None:
    """None before the first; a bad message is not one; a mark is where the delivery before it was."""
    feed = Feed().start(None)
    assert feed.intake.resume_from() is None
    feed.turn(*stream(0, 1), ("a.1", b"[]", 2))
    assert feed.intake.resume_from() == 1
    feed.intake.gap("broker")
    assert feed.intake.resume_from() == 1


def test_the_same_head_again_is_skipped_in_silence() -> None:
    """The link was down and nothing is missing: no gap, nothing twice, positions stay good."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.turn(*stream(3, 4))
    since = feed.hub.position
    for _ in range(3):
        feed.intake.attach(None, feed.intake.resume_from())
        feed.turn(*stream(4))
    feed.intake.attach(None, 4)
    feed.turn(*stream(4, 5))
    assert [event["payload"]["n"] for event in peer.take_json()] == [3, 4, 5]
    assert feed.recovered(since)
    assert feed.hub.counters.gaps == 0


def test_a_bad_message_behind_the_head_is_bad_again() -> None:
    """It is counted a second time and nothing else: what follows arrives."""
    feed = Feed().start(None)
    _, peer = feed.join(TOWER)
    bad = ("a.1", b"[]", 5)
    feed.turn(*stream(4), bad)
    feed.intake.attach(None, 4)
    feed.turn(*stream(4), bad, *stream(6))
    assert peer.take() == [body(4), body(6)]
    assert feed.intake.bad == {"not_an_object": 2}


def test_a_later_offset_is_one_gap() -> None:
    """The stream was trimmed meanwhile: everyone is told once, nobody resumes from before it, what was kept still is read."""
    feed = Feed().start(None)
    _, peer = feed.join()
    _, tower = feed.join(TOWER)
    feed.turn(*stream(3, 4))
    since = feed.hub.position
    peer.take()
    feed.intake.attach(None, 4)
    feed.turn(*stream(9, 10))
    gap, *events = peer.take_json()
    assert (gap["type"], gap["topics"], gap["reason"], gap["from"]) == ("gap", ["a.1"], "broker", since)
    assert [event["payload"]["n"] for event in events] == [9, 10]
    assert tower.take() == [body(number) for number in (3, 4, 9, 10)]
    assert not feed.recovered(since)
    assert feed.recovered(gap["to"])
    assert feed.recovered(events[0]["position"])
    assert len(feed.history) == 4


@pytest.mark.parametrize(
    ("expect", "again"),
    [
        pytest.param(4, [("a.1", b'{"other": 4}', 4)], id="other content where the head was"),
        pytest.param(4, [("a.2", body(4), 4), ("a.1", b'{"other": 5}', 5)], id="other topic where the head was"),
        pytest.param(4, [("a.1", b'{"other": 0}', 0)], id="an earlier offset"),
        pytest.param(4, [("a.1", body(3), 3)], id="an earlier offset that was held"),
        pytest.param(None, [("a.1", b'{"other": 4}', 4)], id="unasked, where the head was"),
        pytest.param(None, [("a.1", b'{"other": 0}', 0)], id="unasked, earlier"),
    ],
)
def test_another_log_under_the_same_name_is_noticed(expect: int | None, again: list[tuple[str, bytes, int]]) -> None:
    """The stream was deleted and made anew: history is forgotten, one gap is told, old positions are unknown, new ones good."""
    feed = Feed().start(None)
    _, peer = feed.join(V1, "a.1", "a.2")
    _, tower = feed.join(TOWER, "a.1", "a.2")
    feed.turn(*[(*message, f"m{message[2]}") for message in stream(2, 3, 4)])
    old = [event["position"] for event in peer.take_json()]
    tower.take()
    feed.intake.attach(None, expect)
    feed.turn(*again)
    gap, *events = peer.take_json()
    assert (gap["type"], gap["topics"], gap["from"]) == ("gap", ["a.1", "a.2"], old[-1])
    assert len(events) == len(again)
    assert tower.take() == [payload for _, payload, _ in again]
    assert tower.ended == []
    assert len(feed.history) == len(again)
    assert not feed.history.has_message("m4")
    fresh = {event["position"] for event in events}
    assert all(not feed.recovered(position) for position in old if position not in fresh)
    assert feed.recovered(gap["to"])
    assert all(feed.recovered(position) for position in fresh)
    feed.intake.attach(None, feed.intake.resume_from())
    feed.turn(again[-1], ("a.1", b'{"next": 1}', again[-1][2] + 1))
    assert [event["type"] for event in peer.take_json()] == ["event"]


def test_a_member_that_is_behind_while_the_log_is_made_anew_is_told_or_closed() -> None:
    """What it had still to get is gone: v1 hears of one gap, from where it stands; Tower's are closed, as far as they lost anything."""
    feed = Feed().start(None)
    v1_member, v1 = feed.join()
    tower_member, tower = feed.join(TOWER)
    feed.turn(*stream(0))
    seen = v1.take_json()[0]["position"]
    tower.take()
    v1.full = tower.full = True
    feed.turn(*stream(1))
    v1.full = tower.full = False
    feed.intake.attach(None, 1)
    feed.turn(("a.1", b'{"other": 0}', 0))
    for member in (v1_member, tower_member):
        feed.hub.feed(member)
    gap, event = v1.take_json()
    assert (gap["type"], gap["from"], event["payload"]) == ("gap", seen, {"other": 0})
    assert tower.take() == []
    assert [reason.name for reason in tower.ended] == ["HISTORY"]


def test_a_gap_marks_the_log() -> None:
    """A queue's link was down: one notice to all v1 clients, nobody resumes from before, everything after it is good."""
    feed = Feed().start("q")
    _, peer = feed.join()
    _, tower = feed.join(TOWER)
    feed.turn(("a.1", body(1), 1))
    since = feed.hub.position
    peer.take()
    feed.intake.gap("broker")
    (gap,) = peer.take_json()
    assert (gap["from"], gap["reason"]) == (since, "broker")
    assert feed.hub.position == gap["to"]
    assert not feed.recovered(since)
    assert feed.recovered(gap["to"])
    feed.intake.attach("q", None)
    feed.turn(("a.1", body(2), 2))
    assert [event["payload"]["n"] for event in peer.take_json()] == [2]
    assert tower.take() == [body(1), body(2)]
    assert feed.recovered(gap["to"])


def test_a_gap_ends_the_turn_before_it() -> None:
    """What came before the gap goes out before the notice."""
    feed = Feed().start()
    _, peer = feed.join()
    feed.intake.deliver("a.1", body(1), 1, None)
    feed.intake.gap("broker")
    assert [message["type"] for message in peer.take_json()] == ["event", "gap"]


def test_a_link_lost_while_history_is_refilled_is_told_once() -> None:
    """Whatever happens before deliveries flow, those who were let in hear of one gap, when they do."""
    feed = Feed()
    _, peer = feed.join()
    feed.intake.attach(None, None)
    feed.turn(*stream(5, 6))
    feed.intake.gap("broker")
    feed.intake.attach(None, 6)
    feed.turn(*stream(1, 2))
    feed.intake.caught_up()
    assert [message["type"] for message in peer.take_json()] == ["gap"]
    feed.turn(*stream(3))
    assert [message["payload"]["n"] for message in peer.take_json()] == [3]


def test_a_log_of_our_own_can_be_resumed_from_its_beginning() -> None:
    """The position before the first delivery is good at once, and names this log."""
    feed = Feed().start("q")
    assert feed.hub.position == "0-q"
    feed.turn(("a.1", body(1), 1))
    assert feed.recovered("0-q")
    assert not feed.recovered("0-other")


def test_from_a_stream_to_a_queue_is_another_log() -> None:
    """The broker was replaced by one without streams: its offsets mean something else."""
    feed = Feed().start(None)
    _, peer = feed.join()
    feed.turn(*stream(5))
    since = feed.hub.position
    peer.take()
    feed.intake.attach("q", None)
    feed.intake.gap("broker")
    feed.turn(("a.1", body(1), 1), ("a.1", body(2), 2))
    messages = peer.take_json()
    assert {message["type"] for message in messages[:-2]} == {"gap"}
    assert [message["position"] for message in messages[-2:]] == ["1-q", "2-q"]
    assert not feed.recovered(since)


def test_a_turn_tells_what_it_wrote() -> None:
    """The end of a turn gives the octets of frames that went to connections since the last end, for all of them together."""
    feed = Feed().start()
    peers = [feed.join(TOWER)[1] for _ in range(3)]
    for number in (1, 2):
        feed.intake.deliver("a.1", body(number), number, None)
    written: list[int] = []
    feed.intake.end_turn(written.append)
    assert written == [sum(len(data) for peer in peers for data in peer.writes)] == [3 * 2 * 10]
    feed.intake.end_turn(written.append)
    assert written == [60, 0]


def test_a_turn_before_the_log_flows_is_written_at_once() -> None:
    """While history is being refilled nothing is written, and the source is told so at once: it must not wait for ever."""
    feed = Feed()
    feed.intake.attach("q", None)
    feed.intake.deliver("a.1", body(1), 1, None)
    written: list[int] = []
    feed.intake.end_turn(written.append)
    assert written == [0]
