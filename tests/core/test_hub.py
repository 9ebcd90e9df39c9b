from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.kit.fakes import FakePeer
from tests.kit.rows import each_row
from towerws.core import hub
from towerws.core.batch import WRITE_BYTES
from towerws.core.deliveries import BEFORE, Delivery, Fingerprint
from towerws.core.errors import CloseReason
from towerws.core.frames import text_frame
from towerws.core.history import ENTRY_BYTES, TOPIC_BYTES, History
from towerws.core.hub import PIECE_BYTES, REPLAY_CACHE_BYTES, Hub
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.wire import TOWER, V1, Change, Dialect

NO_BOUND = 10**9
STREAM = Fingerprint(b"a key")


class Log:
    """A history and a hub, and the log that feeds them."""

    def __init__(self, max_bytes: int = NO_BOUND, epoch: str | Fingerprint = "q", together: int = 0) -> None:
        """With `together` at most so many subscribers get a write in one turn of the reactor. `waiting` has the later turns."""
        self.history = History(max_bytes, NO_BOUND)
        self.epoch = epoch
        self.waiting: list[Callable[[], None]] = []
        self.hub = Hub(self.history, self.waiting.append if together else None, part_bytes=together * WRITE_BYTES)
        if isinstance(epoch, str):
            self.history.begin(0, epoch)
        self.hub.flush()
        self.offset = 0 if isinstance(epoch, str) else -1
        self.count = 0

    def publish(self, topic: str, raw: int = 0) -> Delivery:
        """Put a delivery into the open batch; its payload tells it from all others."""
        self.offset += 1
        self.count += 1
        payload = b'{"n": %d, "pad": "%b"}' % (self.count, b"x" * raw)
        delivery = self.history.append(topic, payload, self.offset, self.epoch, None, 0.0)
        self.hub.publish(delivery)
        return delivery

    def send(self, *topics: str, raw: int = 0) -> list[Delivery]:
        """A whole batch."""
        deliveries = [self.publish(topic, raw) for topic in topics]
        self.hub.flush()
        return deliveries

    def join(self, dialect: Dialect, *topics: str) -> tuple[Subscriber, FakePeer]:
        """Add a subscriber of these topics."""
        peer = FakePeer()
        subscriber = self.hub.join(peer, dialect)
        self.hub.subscribe(subscriber, Request(topics))
        return subscriber, peer

    def resume(self, subscriber: Subscriber, request: Request) -> Change:
        """What a session does with a request that brings a position."""
        since = None if request.since is None else self.history.find(request.since)
        return self.hub.subscribe(subscriber, request, since)

    def drain(self, subscriber: Subscriber, peer: FakePeer) -> None:
        """Let what was written leave, again and again, until the hub waits for nothing more."""
        peer.full = False
        while peer.draining:
            peer.draining = False
            self.hub.feed(subscriber)


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    """What a Tower client gets of them."""
    return [delivery.payload for delivery in deliveries]


# -- one batch ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_write_in_the_logs_order() -> None:
    """A connection gets its deliveries of a batch in one write, in the order of the log over all its topics."""
    log = Log()
    _, peer = log.join(TOWER, "a.1", "b.1", "c.1")
    sent = log.send("c.1", "a.1", "other.1", "c.1", "b.1", "a.1")
    assert len(peer.writes) == 1
    assert peer.take() == [one.payload for one in sent if one.topic != "other.1"]


def test_subscribers_that_get_the_same_share_the_very_same_bytes() -> None:
    """There is one object for all with the same dialect and the same topics of a batch, with any other topics besides."""
    log = Log()
    peers = {
        name: log.join(dialect, *topics)[1]
        for name, dialect, topics in [
            ("one", TOWER, ["a.1", "quiet.1"]),
            ("two", TOWER, ["a.1"]),
            ("both", TOWER, ["a.1", "b.1"]),
            ("again", TOWER, ["b.1", "a.1"]),
            ("v1", V1, ["a.1"]),
            ("v1 too", V1, ["a.1", "quiet.1"]),
        ]
    }
    log.send("a.1", "b.1", "a.1")
    (one,), (two,), (both,), (again,), (v1,), (v1_too,) = (peer.writes for peer in peers.values())
    assert one is two
    assert both is again
    assert v1 is v1_too
    assert len({one, both, v1}) == 3


def test_a_single_delivery_is_shared_too() -> None:
    """The most common batch of all, one delivery, is framed once."""
    log = Log()
    peers = [log.join(TOWER, "a.1")[1] for _ in range(3)]
    log.send("a.1")
    assert len({id(peer.writes[0]) for peer in peers}) == 1


def test_a_delivery_without_subscribers_writes_nothing() -> None:
    """It leaves nothing in the batch, writes nothing and counts no batch, though it is held."""
    log = Log()
    _, peer = log.join(V1, "a.1")
    delivery = log.publish("b.1")
    assert log.hub.batch_bytes == 0
    log.hub.flush()
    assert peer.writes == []
    assert log.hub.counters.batches == 0
    assert log.hub.position == delivery.position, "it moves the position all the same"


def test_the_bytes_of_a_batch_are_counted() -> None:
    """The payload bytes of deliveries with a subscriber, from 0 for each batch."""
    log = Log()
    log.join(TOWER, "a.1")
    delivery = log.publish("a.1", 100)
    assert log.hub.batch_bytes == len(delivery.payload)
    log.hub.flush()
    assert log.hub.batch_bytes == 0


def test_each_dialect_gets_its_own_words() -> None:
    """The payload itself in Tower's, with position and topic in v1."""
    log = Log()
    _, tower = log.join(TOWER, "a.1")
    _, v1 = log.join(V1, "a.1")
    (delivery,) = log.send("a.1")
    assert tower.take() == [delivery.payload]
    (event,) = v1.take_json()
    assert event == {
        "type": "event",
        "position": delivery.position,
        "group": "a",
        "event": "1",
        "payload": json.loads(delivery.payload),
    }


# -- subscriptions -------------------------------------------------------------------------------------------------------


def test_a_request_replaces_the_former_set_without_a_gap() -> None:
    """What was held and still is goes on; the answer names the difference, sorted."""
    log = Log()
    subscriber, peer = log.join(TOWER, "b.1", "a.1")
    log.send("a.1")
    change = log.hub.subscribe(subscriber, Request(("c.1", "a.1")))
    assert (change.current, change.joined, change.left) == (("a.1", "c.1"), ("c.1",), ("b.1",))
    assert not change.recovered
    log.send("a.1", "b.1", "c.1")
    assert [message["n"] for message in peer.take_json()] == [1, 2, 4]


def test_the_same_request_again_changes_nothing() -> None:
    """Neither joined nor left, and nothing comes twice."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1")
    change = log.hub.subscribe(subscriber, Request(("a.1",)))
    assert (change.current, change.joined, change.left) == (("a.1",), (), ())
    log.send("a.1")
    assert len(peer.take()) == 1


def test_the_last_subscriber_removes_the_topic() -> None:
    """Nothing is left of a topic with no subscriber, whether its subscribers left or asked for other topics."""
    log = Log()
    first, _ = log.join(TOWER, "a.1", "b.1")
    second, _ = log.join(V1, "a.1")
    assert log.hub.topics == 2
    log.hub.leave(first)
    assert log.hub.topics == 1
    log.hub.subscribe(second, Request(()))
    assert log.hub.topics == 0
    log.hub.leave(second)
    assert not log.hub.subscribers


def test_leaving_twice_and_being_fed_after_it_does_nothing() -> None:
    """A connection that is gone gets nothing, from a batch that was already open or from history."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    peer.full = True
    log.send("a.1")
    log.publish("a.1")
    log.hub.leave(subscriber)
    log.hub.leave(subscriber)
    peer.full = False
    log.hub.flush()
    log.hub.feed(subscriber)
    log.hub.gap(log.history.floor, log.history.head, "broker")
    assert peer.writes == []
    assert peer.drains == 1


# -- behind --------------------------------------------------------------------------------------------------------------


def test_a_full_peer_falls_behind_and_catches_up() -> None:
    """Nothing is queued for it meanwhile; once drained it gets all it missed in order, then goes on live."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1", "b.1")
    peer.full = True
    missed = [one for topics in (["a.1", "b.1"], ["other.1"], ["b.1"]) for one in log.send(*topics)]
    assert peer.drains == 1, "asked for once"
    log.drain(subscriber, peer)
    assert peer.take() == [one.payload for one in missed if one.topic != "other.1"]
    assert not subscriber.behind
    assert peer.take() == []
    live = log.send("a.1")
    assert peer.take() == payloads(live)
    counters = log.hub.counters
    assert (counters.fell_behind, counters.caught_up, counters.deliveries_out) == (1, 1, 4)
    assert 0 < counters.replayed < counters.deliveries_out
    assert counters.replayed_bytes > 0


def test_the_others_do_not_notice_a_full_peer() -> None:
    """A batch goes out to all other subscribers in the same order when one refuses it."""
    log = Log()
    _, full = log.join(TOWER, "a.1")
    _, other = log.join(TOWER, "a.1")
    full.full = True
    sent = log.send("a.1", "a.1")
    assert other.take() == payloads(sent)


def test_history_is_fed_in_pieces() -> None:
    """Each time the buffer has drained, about 64 KiB, frames included."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    peer.full = True
    log.send("a.1", raw=30_000)
    log.send(*["a.1"] * 4, raw=30_000)
    log.send(*["a.1"] * 2000)
    log.drain(subscriber, peer)
    assert len(peer.writes) > 3
    assert max(len(write) for write in peer.writes) <= PIECE_BYTES * 1.25
    assert [message["payload"]["n"] for message in peer.take_json()] == list(range(1, 2006))


def test_a_write_to_a_full_peer_is_retried() -> None:
    """A peer that is fed while it is full keeps its place, and is asked to drain once more."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1")
    peer.full = True
    missed = log.send("a.1", "a.1")
    for _ in range(3):
        peer.draining = False
        log.hub.feed(subscriber)
        assert peer.draining
    log.drain(subscriber, peer)
    assert peer.take() == payloads(missed)


def test_topics_left_while_behind_are_not_fed() -> None:
    """No event of a topic that was left follows the answer, not even an earlier one. The topics that are kept are fed."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1", "b.1")
    peer.full = True
    missed = log.send("a.1", "b.1", "a.1")
    peer.full = False
    log.hub.subscribe(subscriber, Request(("b.1", "c.1")))
    log.drain(subscriber, peer)
    assert peer.take() == [missed[1].payload]


def test_a_topic_joined_while_behind_begins_there() -> None:
    """A subscriber gets nothing of a new topic from before its request, though its other topics are fed from before that."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1")
    peer.full = True
    before = log.send("a.1", "b.1")
    log.hub.subscribe(subscriber, Request(("a.1", "b.1")))
    after = log.send("b.1", "a.1")
    log.drain(subscriber, peer)
    assert peer.take() == payloads([before[0], *after])


def test_a_topic_left_and_joined_again_while_behind_begins_again() -> None:
    """Its deliveries from before it was left are not fed."""
    log = Log()
    subscriber, peer = log.join(TOWER, "a.1")
    peer.full = True
    log.send("a.1")
    log.hub.subscribe(subscriber, Request(()))
    log.hub.subscribe(subscriber, Request(("a.1",)))
    after = log.send("a.1")
    log.drain(subscriber, peer)
    assert peer.take() == payloads(after)


def test_the_answer_to_a_member_that_is_behind_says_how_far_it_is() -> None:
    """A client that keeps the answer's position and comes back with it misses nothing of what it had not been fed yet."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    (seen,) = log.send("a.1")
    peer.full = True
    log.send("a.1")
    change = log.hub.subscribe(subscriber, Request(("a.1", "b.1")))
    assert change.position == seen.position
    log.hub.leave(subscriber)
    again, new = log.join(V1)
    assert log.resume(again, Request(("a.1",), since=change.position)).recovered
    log.hub.feed(again)
    assert [message["payload"]["n"] for message in new.take_json()] == [2]


# -- resume --------------------------------------------------------------------------------------------------------------


def test_a_resume_brings_what_was_missed_and_nothing_else() -> None:
    """Exactly the deliveries after the position on the topics now held, in order, before anything newer."""
    log = Log()
    (seen,) = log.send("a.1")
    missed = log.send("a.1", "c.1", "b.1", "a.1")
    peer = FakePeer()
    subscriber = log.hub.join(peer, V1)
    change = log.resume(subscriber, Request(("a.1", "b.1"), since=seen.position))
    assert change.recovered
    assert change.position == seen.position
    assert peer.writes == [], "the answer goes first"
    later = log.send("a.1")
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    expected = [missed[0], *missed[2:], *later]
    assert [message["position"] for message in peer.take_json()] == [one.position for one in expected]


def test_a_resume_from_the_newest_position_is_live_at_once() -> None:
    """Nothing was missed: nothing is replayed, and the next batch goes straight out."""
    log = Log()
    subscriber, peer = log.join(V1)
    change = log.resume(subscriber, Request(("a.1",), since=log.hub.position))
    log.hub.feed(subscriber)
    assert change.recovered
    assert not subscriber.behind
    log.send("a.1")
    assert len(peer.take()) == 1


def test_an_unknown_position_replays_nothing() -> None:
    """The subscription is still in force, and the answer says that nothing was recovered."""
    log = Log()
    log.send("a.1")
    subscriber, peer = log.join(V1)
    change = log.resume(subscriber, Request(("a.1",), since="1-other"))
    log.hub.feed(subscriber)
    assert not change.recovered
    assert change.position == log.hub.position
    assert peer.take() == []
    assert (log.hub.counters.resumed, log.hub.counters.not_recovered) == (0, 1)


def test_a_position_while_behind_repeats_nothing_of_what_was_held() -> None:
    """From any position that a client sends: of the topics that it keeps it gets what it has not got, once."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    first, *_ = log.send("a.1", "a.1", "b.1")
    peer.take()
    peer.full = True
    fourth, fifth = log.send("a.1", "b.1")
    peer.full = False
    assert log.resume(subscriber, Request(("a.1", "b.1"), since=first.position)).recovered
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    positions = [message["position"] for message in peer.take_json()]
    assert positions == [log.history.at(3).position, fourth.position, fifth.position]  # type: ignore[union-attr]


# -- what can't be had ---------------------------------------------------------------------------------------------------


def test_what_left_history_is_announced_in_v1() -> None:
    """One gap names the topics that lost something and the place from which all is there again, and this follows."""
    log = Log(max_bytes=3 * (28 + ENTRY_BYTES) + 2 * TOPIC_BYTES)
    subscriber, peer = log.join(V1, "a.1", "b.1", "quiet.1")
    (seen,) = log.send("a.1")
    peer.take()
    peer.full = True
    sent = log.send("a.1", "c.1", "a.1", "b.1", "a.1")
    log.drain(subscriber, peer)
    gap, *events = peer.take_json()
    assert gap == {"type": "gap", "topics": ["a.1"], "from": seen.position, "to": sent[1].position, "reason": "history"}
    assert [event["position"] for event in events] == [one.position for one in sent[2:]]
    assert log.hub.counters.gaps == 1
    assert log.history.find(gap["to"]) is not None


def test_a_tower_client_that_fell_out_of_history_is_closed() -> None:
    """The Tower dialect has no word for a gap."""
    log = Log(max_bytes=2 * (28 + ENTRY_BYTES) + TOPIC_BYTES)
    subscriber, peer = log.join(TOWER, "a.1")
    peer.full = True
    log.send(*["a.1"] * 4)
    log.drain(subscriber, peer)
    assert peer.ended == [CloseReason.HISTORY]
    assert peer.take() == []
    log.send("a.1")
    assert peer.take() == []


def test_a_tower_client_that_lost_nothing_is_not_closed() -> None:
    """Others' deliveries may have left history, and a topic that never had any is not a loss: the socket stays."""
    log = Log(max_bytes=2 * (28 + ENTRY_BYTES) + TOPIC_BYTES)
    subscriber, peer = log.join(TOWER, "a.1", "control.limit_reached_1")
    log.send("a.1")
    peer.full = True
    log.send(*["busy.1"] * 5)
    kept = log.send("a.1")
    log.drain(subscriber, peer)
    assert peer.ended == []
    assert peer.take()[1:] == payloads(kept)


def test_a_gap_notice_to_a_full_peer_is_retried() -> None:
    """A gap is announced before anything that follows it, or not yet, and counted once."""
    log = Log(max_bytes=2 * (28 + ENTRY_BYTES) + TOPIC_BYTES)
    subscriber, peer = log.join(V1, "a.1")
    peer.full = True
    log.send(*["a.1"] * 4)
    for _ in range(3):
        peer.draining = False
        log.hub.feed(subscriber)
        assert peer.draining
    log.drain(subscriber, peer)
    assert [message["type"] for message in peer.take_json()] == ["gap", "event", "event"]
    assert log.hub.counters.gaps == 1


def test_a_broken_link_is_told_once_to_everyone_who_listens() -> None:
    """v1 clients with topics get one notice with all of them; Tower clients, and those who listen to nothing, hear nothing."""
    log = Log()
    _, v1 = log.join(V1, "b.1", "a.1")
    _, idle = log.join(V1)
    _, tower = log.join(TOWER, "a.1")
    (start,) = log.send("c.1")
    end = log.history.mark(start.offset, "mark")
    log.hub.flush()
    log.hub.gap(start, end, "broker")
    assert v1.take_json() == [{"type": "gap", "topics": ["a.1", "b.1"], "from": start.position, "to": end.position, "reason": "broker"}]
    assert idle.writes == tower.writes == []
    assert tower.ended == idle.ended == []
    log.send("a.1")
    assert len(v1.take()) == len(tower.take()) == 1


def test_a_broken_link_does_not_repeat_a_loss_and_does_not_hide_it() -> None:
    """A subscriber that also fell out of history is told of that first, from its real place, and then of the lost connection."""
    log = Log(max_bytes=2 * (28 + ENTRY_BYTES) + TOPIC_BYTES)
    subscriber, peer = log.join(V1, "a.1")
    (seen,) = log.send("a.1")
    peer.take()
    peer.full = True
    sent = log.send(*["a.1"] * 4)
    peer.full = False
    end = log.history.mark(sent[-1].offset, "mark")
    log.hub.flush()
    log.hub.gap(sent[-1], end, "broker")
    log.drain(subscriber, peer)
    gap, *events, link = peer.take_json()
    assert gap == {"type": "gap", "topics": ["a.1"], "from": seen.position, "to": sent[1].position, "reason": "history"}
    assert [event["position"] for event in events] == [one.position for one in sent[2:]]
    assert link == {"type": "gap", "topics": ["a.1"], "from": sent[-1].position, "to": end.position, "reason": "broker"}


def test_a_broken_link_that_history_has_forgotten_is_told_for_every_topic() -> None:
    """A subscriber that is behind has two topics. History lost events of one. Before these, a gap of the broker lies for both."""
    log = Log(max_bytes=2 * (28 + ENTRY_BYTES) + 2 * TOPIC_BYTES)
    subscriber, peer = log.join(V1, "a.1", "b.1")
    (seen,) = log.send("b.1")
    peer.take()
    peer.full = True
    (start,) = log.send("a.1")
    end = log.history.mark(start.offset, "mark")
    log.hub.flush()
    log.hub.gap(start, end, "broker")
    sent = log.send(*["a.1"] * 3, "b.1")
    assert log.history.floor.seq > end.seq
    log.drain(subscriber, peer)
    gap, *events = peer.take_json()
    assert gap == {"type": "gap", "topics": ["a.1", "b.1"], "from": seen.position, "to": log.history.floor.position, "reason": "broker"}
    assert [event["position"] for event in events] == [one.position for one in sent[-len(events) :]]
    assert events[-1]["group"] == "b"
    assert (subscriber.behind, log.hub.counters.gaps) == (False, 1)


def test_a_notice_of_a_broken_link_that_finds_no_room_is_told_once_there_is_some() -> None:
    """It must not be lost in silence, and a full buffer is no reason to close a connection: the client falls behind, and is told first."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    (seen,) = log.send("a.1")
    peer.take()
    peer.full = True
    end = log.history.mark(seen.offset, "mark")
    log.hub.flush()
    log.hub.gap(seen, end, "broker")
    (after,) = log.send("a.1")
    assert peer.ended == []
    log.drain(subscriber, peer)
    gap, event = peer.take_json()
    assert (gap["from"], gap["to"], event["position"]) == (seen.position, end.position, after.position)
    assert not subscriber.behind


def test_a_position_does_not_skip_a_gap_that_was_not_told_yet() -> None:
    """A client whose buffer is full when a gap is told gets a position from before the gap, so that a resume brings the gap up."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    (seen,) = log.send("a.1")
    peer.take()
    peer.full = True
    end = log.history.mark(seen.offset, "mark")
    log.hub.flush()
    log.hub.gap(seen, end, "broker")
    change = log.resume(subscriber, Request(("a.1",)))
    assert change.position == seen.position
    log.drain(subscriber, peer)
    assert [(gap["type"], gap["from"], gap["to"]) for gap in peer.take_json()] == [("gap", seen.position, end.position)]
    assert not subscriber.behind


def test_a_member_that_is_behind_is_told_of_a_gap_in_its_place() -> None:
    """A client may resume from the end of a gap: it must have been told all that comes before it."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    peer.full = True
    before = log.send(*["a.1"] * 3)
    start = log.history.head
    end = log.history.mark(start.offset, "mark")
    log.hub.flush()
    log.hub.gap(start, end, "broker")
    after = log.send("a.1")
    log.drain(subscriber, peer)
    messages = peer.take_json()
    assert [message["type"] for message in messages] == ["event", "event", "event", "gap", "event"]
    assert [message["position"] for message in messages if "position" in message] == [one.position for one in [*before, *after]]


def test_a_client_that_resumes_from_before_a_cut_is_told_of_it_in_its_place() -> None:
    """The log lost its tail. What came before that is replayed, then the gap, then what replaced the tail."""
    log = Log(epoch=STREAM)
    kept = log.send("a.1", "a.1")
    log.send("a.1", "a.1")
    log.history.rewind(kept[-1].offset)
    log.history.head = kept[-1]
    end = log.history.mark(2, "0123.b", barrier=False)
    log.hub.flush()
    log.hub.gap(kept[-1], end, "broker", resumable=True)
    log.offset = 1
    new = log.send("a.1")
    subscriber, peer = log.join(V1)
    assert log.resume(subscriber, Request(("a.1",), since=kept[0].position)).recovered
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    messages = peer.take_json()
    assert [message["type"] for message in messages] == ["event", "gap", "event"]
    assert messages[0]["position"] == kept[1].position
    assert (messages[1]["from"], messages[1]["to"]) == (kept[1].position, end.position)
    assert messages[2]["position"] == new[0].position


@each_row("forgotten", [False, True])
def test_a_gap_is_told_once_for_each_topic(forgotten: bool) -> None:
    """A topic that is added from before a gap is told of it. The client knows of it already for the others, also if history drops it."""
    log = Log(max_bytes=20 * (ENTRY_BYTES + 30 + TOPIC_BYTES), epoch=STREAM)
    subscriber, peer = log.join(V1, "a.1")
    kept = log.send("a.1", "b.1")
    log.send("b.1")
    log.history.rewind(kept[-1].offset)
    log.history.head = kept[-1]
    end = log.history.mark(2, "0123.b", barrier=False)
    log.hub.flush()
    log.hub.gap(kept[-1], end, "broker", resumable=True)
    assert peer.take_json()[-1]["topics"] == ["a.1"]
    log.resume(subscriber, Request(("a.1", "b.1"), since=kept[0].position))
    log.resume(subscriber, Request(("a.1", "b.1", "c.1")))
    if forgotten:
        log.send(*["b.1"] * 40)
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    gaps = [message for message in peer.take_json() if message["type"] == "gap"]
    assert [gap["topics"] for gap in gaps] == [["b.1"]]


def test_topics_that_are_kept_are_not_repeated_by_since() -> None:
    """`since` on a connection that has these events already (C12): only what is joined is caught up on."""
    log = Log()
    subscriber, peer = log.join(V1, "a.1")
    (first, *_) = log.send("a.1", "b.1", "a.1")
    peer.take()
    assert log.resume(subscriber, Request(("a.1", "b.1"), since=first.position)).recovered
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    assert [f"{message['group']}.{message['event']}" for message in peer.take_json()] == ["b.1"]
    log.send("a.1", "b.1")
    assert len(peer.take()) == 2


# -- a model of it all ---------------------------------------------------------------------------------------------------

TOPICS = [f"t.{number}" for number in range(4)]


@dataclass(eq=False)
class DueGap:
    """A gap that a client must be told of, in its place; `seq` is where it ends."""

    seq: int
    topics: set[str]
    topic: str = ""


@dataclass(eq=False)
class Client:
    """What a client must have been told: `due` is what it has still to get, in this order."""

    dialect: Dialect
    peer: FakePeer
    subscriber: Subscriber
    topics: set[str] = field(default_factory=set)
    due: list[Delivery | DueGap] = field(default_factory=list)

    def lose(self, topics: set[str]) -> None:
        """The client left these topics."""
        for one in self.due:
            if isinstance(one, DueGap):
                one.topics -= topics
        self.due = [one for one in self.due if (one.topics if isinstance(one, DueGap) else one.topic not in topics)]

    def tell(self, topics: set[str], ends: set[int]) -> None:
        """The client must be told that these topics have the gaps with these ends."""
        gaps = {one.seq: one for one in self.due if isinstance(one, DueGap)}
        for end in ends if topics and self.dialect is V1 else ():
            if end not in gaps:
                self.due.append(gaps.setdefault(end, DueGap(end, set())))
            gaps[end].topics |= topics


class HubMachine(RuleBasedStateMachine):
    """Random clients, topics, floods, stalls and broken links, against a model that only knows what each client must get."""

    @initialize(
        max_bytes=st.sampled_from([1300, 4000, 150_000]),
        epoch=st.sampled_from([STREAM, "q"]),
        together=st.sampled_from([0, 1, 2]),
        first=st.lists(st.tuples(st.sampled_from([TOWER, V1]), st.lists(st.sampled_from(TOPICS), min_size=1, unique=True)), max_size=6),
    )
    def begin(self, max_bytes: int, epoch: str | Fingerprint, together: int, first: list[tuple[Dialect, list[str]]]) -> None:
        """A fresh log, of a stream or of a queue; batches are written at once, or in parts."""
        self.together = together
        self.log = Log(max_bytes, epoch, together)
        self.all: list[Delivery] = [self.log.history.head]
        self.batch: list[Delivery] = []
        self.clients: list[Client] = []
        self.marks = 0
        self.barrier = 0
        self.cuts: set[int] = set()
        for dialect, topics in first:
            self.join(dialect)
            self.log.hub.subscribe(self.clients[-1].subscriber, Request(tuple(topics)))
            self.clients[-1].topics = set(topics)

    def client(self, number: int) -> Client | None:
        """One of the clients."""
        return self.clients[number % len(self.clients)] if self.clients else None

    def read(self, client: Client) -> None:
        """Read what a client got: its next deliveries, or a gap that names exactly what it can no longer get."""
        history = self.log.history
        for payload in client.peer.take():
            if client.dialect is TOWER:
                due = client.due.pop(0)
                assert isinstance(due, Delivery)
                assert payload == due.payload
                continue
            message = json.loads(payload)
            if message["type"] == "event":
                delivery = client.due.pop(0)
                assert isinstance(delivery, Delivery)
                assert message["position"] == delivery.position
                assert message["payload"] == json.loads(delivery.payload)
                assert f"{message['group']}.{message['event']}" == delivery.topic
                continue
            assert message["type"] == "gap"
            if message["reason"] == "history":
                dropped = [one for one in client.due if one.seq <= history.floor.seq]
                client.due = client.due[len(dropped) :]
                assert not any(isinstance(one, DueGap) for one in dropped)
                assert set(message["topics"]) == {one.topic for one in dropped if isinstance(one, Delivery)} != set()
                assert (message["to"] or "") == history.floor.position
            else:
                end = next(one.seq for one in reversed(self.all) if one.position == message["to"])
                covered = [one for one in client.due if one.seq <= end]
                client.due = client.due[len(covered) :]
                ends = [one.seq for one in covered if isinstance(one, DueGap)]
                assert end in (ends[-1], history.floor.seq)
                assert all(isinstance(one, DueGap) or one.seq <= history.floor.seq for one in covered)
                named = [one.topics if isinstance(one, DueGap) else {one.topic} for one in covered]
                assert set(message["topics"]) == set().union(*named)
        if client.peer.ended:
            assert client.peer.ended == [CloseReason.HISTORY]
            assert client.dialect is TOWER
            assert any(one.seq <= history.floor.seq for one in client.due), "closed for nothing"
            self.log.hub.leave(client.subscriber)
            self.clients.remove(client)

    def read_all(self) -> None:
        """Read what every client got."""
        for client in list(self.clients):
            self.read(client)

    @rule(dialect=st.sampled_from([TOWER, V1]))
    def join(self, dialect: Dialect) -> None:
        """A client connects."""
        peer = FakePeer()
        self.clients.append(Client(dialect, peer, self.log.hub.join(peer, dialect)))

    @rule(number=st.integers(0, 99))
    def leave(self, number: int) -> None:
        """A client goes, perhaps in the middle of a batch."""
        if client := self.client(number):
            self.log.hub.leave(client.subscriber)
            self.log.hub.feed(client.subscriber)
            assert client.peer.writes == []
            self.clients.remove(client)  # an open batch may hold deliveries for it

    @rule(topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=8), raw=st.sampled_from([0, 0, 0, 30_000]))
    def publish(self, topics: list[str], raw: int) -> None:
        """Deliveries come into the open batch."""
        for topic in topics:
            delivery = self.log.publish(topic, raw)
            self.all.append(delivery)
            self.batch.append(delivery)

    @rule(topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=4))
    def send(self, topics: list[str]) -> None:
        """A whole batch."""
        self.publish(topics, 0)
        self.flush()

    @rule()
    def part(self) -> None:
        """The next part of a batch is written."""
        for call in [self.log.waiting.pop() for _ in self.log.waiting[:1]]:
            call()
        self.read_all()

    @rule(end_of_read=st.booleans())
    def flush(self, end_of_read: bool = False) -> None:
        """The batch ends: one write, of everything due, to each client that is live; none to any other."""
        if self.together:
            for client in self.clients:
                client.due += [one for one in self.batch if one.topic in client.topics]
            self.batch.clear()
            self.log.hub.flush((lambda: None) if end_of_read else None)
            assert len(self.log.waiting) <= 1
            self.read_all()
            return
        shared: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)
        before = []
        for client in self.clients:
            due = [one for one in self.batch if one.topic in client.topics]
            client.due += due
            before.append((client, due, not client.subscriber.behind))
        self.batch.clear()
        self.log.hub.flush()
        for client, due, live in before:
            assert len(client.peer.writes) == (1 if due and live and not client.peer.full else 0)
            assert client.subscriber.behind == (not live or bool(due and client.peer.full))
            for write in client.peer.writes:
                shared[client.dialect.name, tuple(one.seq for one in due)].add(id(write))
        assert all(len(objects) == 1 for objects in shared.values())
        self.read_all()

    @rule(
        number=st.integers(0, 99),
        topics=st.lists(st.sampled_from(TOPICS), unique=True),
        since=st.none() | st.integers(0, 40) | st.sampled_from(["", "1-q", "0-", "3-other", "999-q"]),
    )
    def subscribe(self, number: int, topics: list[str], since: int | str | None) -> None:
        """A client asks for topics, perhaps from one of the latest positions on, known or not."""
        if self.batch:
            self.flush()
        client = self.client(number)
        if client is None:
            return
        named = self.all[max(0, len(self.all) - 1 - since)] if isinstance(since, int) else None
        text = named.position if named else since if isinstance(since, str) else None
        if named is None and text is not None:
            named = next((one for one in self.all if one.position == text and one.seq >= self.barrier), None)
        # A position before a delivery counts once that delivery is held, and no delivery of this model begins a hole.
        recovered = (
            named is not None
            and bool(text)
            and not str(text).endswith(BEFORE)
            and named.seq >= max(self.log.history.floor.seq, self.barrier)
        )
        subscriber = client.subscriber
        stood = subscriber.cursor.seq if subscriber.behind else None
        change = self.log.resume(subscriber, Request(tuple(topics), since=text))
        if self.together:
            self.read(client)  # its part of a batch that is only partly written
        assert client.peer.writes == []
        assert change.recovered == (None if text is None else recovered)
        joined = set(topics) - client.topics
        assert (set(change.joined), set(change.left)) == (joined, client.topics - set(topics))
        assert list(change.current) == sorted(topics)
        client.topics = set(topics)
        client.lose(set(change.left))
        if recovered and named is not None:
            client.due += [one for one in self.all if one.topic in joined and one.seq > named.seq]
            if stood is None or named.seq < stood:
                assert change.position == named.position
                client.tell(joined, {seq for seq in self.cuts if seq > named.seq})
            else:
                client.tell(joined, {one.seq for one in client.due if isinstance(one, DueGap) and one.seq > named.seq})
            client.due.sort(key=lambda one: one.seq)
            self.log.hub.feed(subscriber)
        elif not subscriber.behind:
            assert change.position == self.log.history.head.position
        elif client.due and (held := self.log.history.find(change.position)):
            assert held.seq < client.due[0].seq, "a resume from there would skip what it is still due"
        self.read(client)

    @rule(number=st.integers(0, 99))
    def stall(self, number: int) -> None:
        """A client stops reading."""
        if client := self.client(number):
            client.peer.full = True

    @rule(number=st.integers(0, 99))
    def drain(self, number: int) -> None:
        """A client reads what was written. A batch that is open ends first: none spans two turns of the reactor."""
        if self.batch:
            self.flush()
        if client := self.client(number):
            client.peer.full = False
            if client.peer.draining:
                client.peer.draining = False
                self.log.hub.feed(client.subscriber)
                self.read(client)

    @rule(number=st.integers(0, 99))
    def feed(self, number: int) -> None:
        """A client is fed though nobody asked for it; as with `drain`, never within a batch."""
        if self.batch:
            self.flush()
        if client := self.client(number):
            self.log.hub.feed(client.subscriber)
            self.read(client)

    def tell(self, start: Delivery, *, resumable: bool = False) -> None:
        """Announce a gap to all: each v1 client that listens is to get it, once for each topic, behind what it is still due of before."""
        end = self.log.history.head
        for client in self.clients:
            if client.dialect is V1 and client.topics:
                client.due.append(DueGap(end.seq, set(client.topics)))
        self.log.hub.gap(start, end, "broker", resumable=resumable)
        self.read_all()

    def mark(self, offset: int, *, barrier: bool = True) -> None:
        """Mark the log."""
        self.marks += 1
        mark = self.log.history.mark(offset, f"mark{self.marks}" + ("" if barrier else BEFORE), barrier=barrier)
        self.all.append(mark)
        if barrier:
            self.barrier = mark.seq

    @rule()
    def lose(self) -> None:
        """The connection to the broker was down, and the deliveries of that time are lost."""
        self.flush()
        start = self.log.history.head
        self.mark(max(0, start.offset))
        self.log.hub.flush()
        self.tell(start)

    @rule()
    def recreate(self) -> None:
        """The stream was deleted and declared again. A log of this process never is: it would have another name."""
        if isinstance(self.log.epoch, str):
            return
        self.flush()
        start = self.log.history.head
        self.mark(0)
        self.log.history.clear()
        self.log.offset = -1
        self.tell(start)
        self.log.hub.flush()

    @rule(number=st.integers(0, 5))
    def cut(self, number: int) -> None:
        """The log lost its newest deliveries: what is before them is still there, and can be resumed from."""
        self.flush()
        while self.log.waiting:
            self.part()
        held = list(self.log.history._log)
        if isinstance(self.log.epoch, str) or len(held) <= number or held[-1 - number].seq < self.barrier:
            return
        kept = held[-1 - number]
        lost = set(held[len(held) - number :])
        self.log.history.rewind(kept.offset)
        self.log.history.head = kept
        self.all = [one for one in self.all if one not in lost]
        for client in self.clients:
            client.due = [one for one in client.due if one not in lost]
        self.log.hub.flush()
        self.log.offset = kept.offset
        self.mark(kept.offset + 1, barrier=False)
        self.cuts.add(self.all[-1].seq)
        self.log.hub.flush()
        self.tell(kept, resumable=True)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """A live subscriber has got everything, and one that is behind will be fed. Topics have exactly the subscribers that asked."""
        if not hasattr(self, "log"):
            return
        assert list(self.log.hub.subscribers) == [client.subscriber for client in self.clients]
        for client in self.clients:
            assert client.peer.draining if client.subscriber.behind else not client.due or self.log.waiting
            assert set(client.subscriber.topics) == client.topics
        assert self.log.hub.topics == len({topic for client in self.clients for topic in client.topics})

    def teardown(self) -> None:
        """Every client reads everything. Then each has got all its deliveries, and is live."""
        if not hasattr(self, "log"):
            return
        self.flush()
        while self.log.waiting:
            self.part()
        for client in list(self.clients):
            client.peer.full = False
            while client in self.clients and client.peer.draining:
                client.peer.draining = False
                self.log.hub.feed(client.subscriber)
                self.read(client)
        assert not any(client.due or client.subscriber.behind for client in self.clients)
        for client in self.clients:
            self.log.hub.leave(client.subscriber)
        assert self.log.hub.topics == 0


TestHubMachine = pytest.mark.timeout(300)(HubMachine.TestCase)
HubMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)


@each_row("dialect", [TOWER, V1])
def test_readers_that_are_behind_share_their_frames(dialect: Dialect) -> None:
    """What was framed for one that resumes is there for the next; each dialect has its own."""
    log = Log()
    log.send("a.1")
    since = log.hub.position
    (missed,) = log.send("a.1")
    pieces = []
    for _ in range(2):
        subscriber, peer = log.join(dialect)
        assert log.resume(subscriber, Request(("a.1",), since=since)).recovered
        log.hub.feed(subscriber)
        pieces.append(peer.writes[-1])
        assert missed.payload in pieces[-1]
    assert pieces[0] is pieces[1]
    assert pieces[0] == text_frame(dialect.event(missed))


def test_frames_kept_for_readers_that_are_behind_are_bounded() -> None:
    """However much is replayed, no more is kept than the bound and what was framed last."""
    log = Log()
    log.send("b.1")
    since = log.hub.position
    log.send(*["a.1"] * 10, raw=REPLAY_CACHE_BYTES // 3)
    subscriber, peer = log.join(V1)
    log.resume(subscriber, Request(("a.1",), since=since))
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    assert len(peer.take()) == 10
    assert sum(map(len, log.hub._replay_cache.values())) < 2 * REPLAY_CACHE_BYTES


def test_the_bound_of_kept_frames_counts_what_each_entry_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small frame takes three times its own bytes. As tracemalloc counts them, all stay within the bound and a resize."""
    bound = 100_000
    monkeypatch.setattr(hub, "REPLAY_CACHE_BYTES", bound)
    log = Log()
    log.send("b.1")
    since = log.hub.position
    log.send(*["a.1"] * 1000)
    subscriber, peer = log.join(V1)
    log.resume(subscriber, Request(("a.1",), since=since))
    log.hub.feed(subscriber)
    log.drain(subscriber, peer)
    assert len(peer.take()) == 1000
    kept = log.hub._replay_cache
    assert sys.getsizeof(kept) + sum(sys.getsizeof(key) + sys.getsizeof(frame) for key, frame in kept.items()) < 1.2 * bound


def test_a_connection_of_another_process_goes_on_at_its_places() -> None:
    """It gets what follows its place, and of a topic that it joined later only what follows that. Then it is live."""
    old, new = Log(epoch=STREAM), Log(epoch=STREAM)
    peer = FakePeer()
    subscriber = old.hub.join(peer, V1)
    old.hub.subscribe(subscriber, Request(("a.b",)))
    for log in (old, new):
        log.publish("a.b")
        log.hub.flush()
    peer.full = True
    for log in (old, new):
        log.publish("a.b")
        log.hub.flush()
        log.publish("a.c")
        log.hub.flush()
    old.hub.subscribe(subscriber, Request(("a.b", "a.c")))
    for log in (old, new):
        log.publish("a.c")
        log.hub.flush()
    position, later = old.hub.flush_to_place(subscriber)
    assert subscriber.behind
    since, joined = new.history.find(position), new.history.find(later["a.c"])
    assert since is not None
    assert joined is not None
    successor = FakePeer()
    adopted = new.hub.join(successor, V1)
    new.hub.adopt(adopted, since, {"a.b": since.seq, "a.c": joined.seq})
    while adopted.behind:
        new.hub.feed(adopted)
    assert [event["payload"]["n"] for event in successor.take_json()] == [2, 4]
    new.publish("a.c")
    new.hub.flush()
    assert [event["payload"]["n"] for event in successor.take_json()] == [5]
    assert new.hub.flush_to_place(adopted) == (new.hub.position, {})


def test_a_topic_is_not_repeated_where_history_reaches_further_back() -> None:
    """History has dropped the place of a topic that the client joined later. The successor may still hold what came before it."""
    old, new = Log(max_bytes=20 * (ENTRY_BYTES + TOPIC_BYTES), epoch=STREAM), Log(epoch=STREAM)
    subscriber, peer = old.join(V1, "a.b")
    for log in (old, new):
        since, *_ = log.send("x.1", "a.b", "a.c")
    old.resume(subscriber, Request(("a.b", "a.c"), since=since.position))
    peer.full = True
    for log in (old, new):
        log.send(*["x.1"] * 50)
    position, later = old.hub.flush_to_place(subscriber)
    assert (position, later) == (since.position, {"a.b": old.history.floor.position})
    place = new.history.find(later["a.b"])
    assert place is not None
    successor = FakePeer()
    adopted = new.hub.join(successor, V1)
    new.hub.adopt(adopted, since, {"a.b": place.seq, "a.c": since.seq})
    new.hub.feed(adopted)
    assert [(event["group"], event["event"]) for event in successor.take_json()] == [("a", "c")]
    old.send(*["a.b"] * 50)
    assert old.hub.flush_to_place(subscriber) == (since.position, {"a.b": ""})
