from __future__ import annotations

import random
import secrets
import struct
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from pika import frame, spec
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.kit.fake_amqp import FakeBroker, Peer, Publication, RecordingSink, ack
from tests.kit.rows import each_row
from towerws.amqp import AmqpSource
from towerws.broker.confirmed_publisher import ConfirmedPublisher
from towerws.broker.markers import this_machine
from towerws.core.deliveries import Marker
from towerws.core.measurements import PublishedAt
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.sources import SourceState

PASSWORD = "canary-hunter2"
UPTIME_S = 10_000


def url(host: str) -> BrokerUrl:
    """Return the URL of a broker with this host name."""
    return BrokerUrl(host, 5672, "towerws", Secret(PASSWORD), "/", tls=False)


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """Collect the log events of the test."""
    seen: list[LogEvent] = []
    observe = cast("ILogObserver", seen.append)
    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class SourceRig:
    """A source with fake brokers by host name, a recording sink and a clock. All brokers have one stream.

    Markers go to a separate broker, `side`. So a test can disturb one of the two connections alone.
    """

    def __init__(self, brokers: dict[str, FakeBroker] | None = None, *, sink: RecordingSink | None = None, **settings: object) -> None:
        self.clock = Clock()
        self.sink = sink or RecordingSink()
        self.brokers = brokers or {"one": FakeBroker(self.clock)}
        self.side = FakeBroker(self.clock)
        self.stream = self.side.stream
        for broker in self.brokers.values():
            broker.clock = self.clock
            broker.stream = self.stream
        urls = tuple(url(host) for host in self.brokers)
        self.heartbeats = "silence_s" in settings  # a test of long times sets silence_s itself
        self.settings = BrokerSettings(urls=urls, **settings)  # type: ignore[arg-type]
        self.source = AmqpSource(
            self.settings,
            self.sink,
            self.clock,
            endpoint=lambda broker_url: self.brokers[broker_url.host],
            publisher=ConfirmedPublisher(self.settings, self.clock, prefer=lambda: None, endpoint=lambda _: self.side),
            rng=random.Random(1),
            uptime=lambda: UPTIME_S + self.clock.seconds(),
        )

    @property
    def broker(self) -> FakeBroker:
        """Return the first broker."""
        return next(iter(self.brokers.values()))

    def state(self) -> SourceState:
        """Return the source's state."""
        return self.source.status().state

    def settle(self) -> None:
        """Let bytes travel, without letting time pass."""
        moving = True
        while moving:
            moving = False
            for broker in (*self.brokers.values(), self.side):
                moving = broker.settle() or moving

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, while bytes travel."""
        for number in range(round(seconds / step)):
            if self.heartbeats and not number % round(2 / step):
                for broker in (*self.brokers.values(), self.side):
                    for peer in broker.peers:
                        peer.to_send += frame.Heartbeat().marshal()
            self.clock.advance(step)
            self.settle()

    def start(self) -> None:
        """Start the source, and let it get as far as it does at once."""
        self.source.start()
        self.settle()

    def consuming(self) -> SourceRig:
        """Start the source, and wait until history is proven to be complete."""
        self.start()
        assert self.state() is SourceState.CONSUMING, self.source.status()
        return self

    @property
    def next(self) -> int:
        """Return the offset of the stream's next message."""
        return self.stream.next

    def write(self, *bodies: bytes, **more: str) -> list[int]:
        """A producer publishes these bodies, and they are delivered. Returns their offsets."""
        offsets = [self.stream.write(body, **more) for body in bodies]
        self.settle()
        return offsets

    def hold(self, method: type) -> list[tuple[Peer, int, Any]]:
        """Let the first broker keep its answers to this method. Returns the list of what it was asked."""
        asked: list[tuple[Peer, int, Any]] = []
        self.broker.answers[method] = lambda peer, channel, received: asked.append((peer, channel, received))
        return asked

    def ready(self) -> tuple[bool, str]:
        """Return what `/readyz` answers."""
        status = self.source.status()
        return status.ready, status.reason or ""

    def until(self, what: Callable[[], bool], within_s: float) -> float:
        """Advance until the condition holds. Returns how long that took."""
        start = self.clock.seconds()
        while not what():
            assert self.clock.seconds() - start <= within_s, f"not within {within_s} s: {self.source.status()}"
            self.advance(0.05)
        return self.clock.seconds() - start


def consume_starts(broker: FakeBroker) -> list[object]:
    """Return the x-stream-offset of every consumer so far."""
    return [method.arguments.get("x-stream-offset") for peer in broker.peers for method in peer.seen(spec.Basic.Consume)]


def without_markers(refusal: str) -> SourceRig:
    """Return a rig that consumes. Its daemon can't publish markers: it lacks the permission, or the broker is in an alarm."""
    rig = SourceRig(silence_s=1000)
    rig.side.may_publish = refusal != "permission"
    if refusal == "alarm":
        rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on disk"))
    rig.start()
    rig.advance(6)
    rig.write(b"0")
    rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=30)
    return rig


def marked(daemon: str, *, before_s: int | None, machine: str = "") -> bytes:
    """Return a marker of another daemon, by default on this machine. Its daemon published the one before so many seconds ago."""
    return Marker(secrets.token_hex(8), daemon, None, machine or this_machine(), None if before_s is None else UPTIME_S - before_s).body


class TestStreamStart:
    """The first time that the source attaches to a stream."""

    def test_a_missing_stream_is_declared_bound_and_consumed(self) -> None:
        """The first start declares everything, and consumes with manual acks and the configured prefetch."""
        rig = SourceRig(prefetch=77)
        rig.stream.exists = rig.stream.bound = False
        rig.consuming()
        peer = rig.broker.peer
        assert [m.exchange for m in peer.seen(spec.Exchange.Declare)] == ["towerws"]
        stream = next(m for m in peer.seen(spec.Queue.Declare) if not m.passive)
        assert (stream.queue, stream.durable, stream.exclusive) == ("towerws.events", True, False)
        assert stream.arguments == {
            "x-queue-type": "stream",
            "x-max-age": "3600s",
            "x-max-length-bytes": 1024**3,
            "x-stream-max-segment-size-bytes": 16 * 1024**2,
        }
        assert [(m.queue, m.exchange, m.routing_key) for m in peer.seen(spec.Queue.Bind)] == [("towerws.events", "towerws", "#")]
        assert 77 in [qos.prefetch_count for qos in peer.seen(spec.Basic.Qos)]
        assert not peer.seen(spec.Basic.Consume)[-1].no_ack
        assert consume_starts(rig.broker) == ["first"]
        assert rig.sink.calls == [("caught_up",)]
        assert len(rig.broker.peers) == 1

    def test_history_is_complete_when_our_own_marker_comes_back(self) -> None:
        """The refill begins at an interval of the broker's clock, and ends with a marker that was published after consume-ok."""
        rig = SourceRig()
        for number in range(3):
            rig.stream.write(b"%d" % number)
        rig.start()
        assert consume_starts(rig.broker) == ["130s", "10s"]
        assert rig.state() is SourceState.CONSUMING
        assert [call[0] for call in rig.sink.calls] == ["deliver"] * 3 + ["caught_up"]

    @each_row("silent", [("130s",), ("130s", "10s")])
    def test_silence_is_no_completeness(self, silent: tuple[str, ...]) -> None:
        """However long nothing comes, history is not complete, and no client is told that it is (C3)."""
        rig = SourceRig()
        rig.stream.write(b"{}")
        rig.stream.silent.update(silent)
        rig.start()
        rig.advance(9)
        assert rig.state() is SourceState.REFILLING
        assert rig.sink.calls == []
        assert rig.ready()[0] is False
        rig.stream.silent.clear()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=200)
        assert [call[0] for call in rig.sink.calls] == ["deliver", "caught_up"]

    def test_a_connection_cut_in_the_middle_of_the_refill(self) -> None:
        """What was read is kept, the rest is read, and only then is history complete (C3)."""
        rig = SourceRig()
        rig.side.swallow = True
        rig.stream.write(b"0")
        rig.start()
        rig.broker.cut()
        rig.stream.write(b"1")
        rig.side.swallow = False
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=20)
        assert [call[0] for call in rig.sink.calls] == ["deliver", "deliver", "caught_up"]

    def test_a_node_whose_clock_is_ahead(self, events: list[LogEvent]) -> None:
        """A node whose clock is ahead takes everything for too old. The next message that it delivers shows that, and all is read (C10)."""
        rig = SourceRig()
        rig.stream.write(b"0")
        rig.stream.clock_is_wrong = True
        rig.start()
        assert rig.state() is SourceState.REFILLING
        rig.advance(4)
        assert rig.state() is SourceState.CONSUMING
        assert consume_starts(rig.broker) == ["130s", "10s", "first"]
        assert [call for call in rig.sink.calls if call[0] != "deliver"] == [("restart",), ("caught_up",)]
        assert rig.sink.offsets == [0]
        assert any("clock" in formatEvent(event) for event in events)

    def test_a_node_whose_clock_is_ahead_under_load(self) -> None:
        """The scout gets the next message, which lies behind the marker. That proves the clock wrong, not right (C10)."""
        rig = SourceRig()
        rig.stream.write(b"0")
        rig.stream.clock_is_wrong = True
        rig.start()
        rig.write(b"1")
        assert rig.state() is SourceState.CONSUMING
        assert consume_starts(rig.broker) == ["130s", "10s", "first"]
        assert [call for call in rig.sink.calls if call[0] != "deliver"] == [("restart",), ("caught_up",)]
        assert [call[2] for call in rig.sink.named("deliver")][-2:] == [b"0", b"1"]

    def test_a_broker_whose_clock_was_set_forward(self, events: list[LogEvent]) -> None:
        """The interval leaves out what was written before the clock was set. A marker of this machine shows that, and it is read, too."""
        rig = SourceRig()
        for number in range(3000):
            rig.stream.write(b"%d" % number)
        rig.stream.write(marked("aaaaaaaa", before_s=200), key="towerws.events")
        for number in range(4000):
            rig.stream.write(b"%d" % number)
        rig.stream.young["130s"] = rig.next
        rig.stream.write(b"after")
        rig.stream.write(marked("aaaaaaaa", before_s=13), key="towerws.events")
        rig.consuming()
        by_clock, *steps = (start for start in consume_starts(rig.broker) if start != "10s")
        assert by_clock == "130s"
        assert [round(step, -2) for step in steps if isinstance(step, int)] == [6000, 5000, 3000], "twice as far back each time"
        assert sorted(rig.sink.held) == [*range(cast("int", steps[-1]), rig.next)]
        assert len(rig.sink.named("restart")) == 3
        assert [call for call in rig.sink.calls if call[0] != "deliver"][-1:] == [("caught_up",)]
        assert any("set forward" in formatEvent(event) for event in events)

    @each_row(
        ("first", "last"),
        [
            ({"before_s": 120}, {"before_s": 13}),
            ({"before_s": None}, {"before_s": 3}),
            ({"before_s": 13, "machine": "b" * 16}, {"before_s": 3, "machine": "b" * 16}),
            ({"before_s": -100}, {"before_s": -110}),
        ],
    )
    def test_markers_that_do_not_show_a_clock_set_forward(self, first: dict[str, Any], last: dict[str, Any]) -> None:
        """The one before is too old or there is none, or it is of another machine or another clock: the interval is right."""
        rig = SourceRig()
        for number in range(3000):
            rig.stream.write(b"%d" % number)
        rig.stream.young["130s"] = 2000
        rig.stream.entries[2001] = rig.stream.entries[2001]._replace(key="towerws.events", body=marked("aaaaaaaa", **first))
        rig.stream.write(marked("aaaaaaaa", **last), key="towerws.events")
        rig.consuming()
        assert consume_starts(rig.broker) == ["130s", "10s"]

    def test_a_clock_set_forward_and_a_stream_that_holds_no_more(self) -> None:
        """Retention deleted what the refill should begin with: it begins with what there is, and ends."""
        rig = SourceRig()
        rig.stream.next = 4000
        for number in range(500):
            rig.stream.write(b"%d" % number)
        rig.stream.young["130s"] = rig.next
        rig.stream.write(marked("aaaaaaaa", before_s=13), key="towerws.events")
        rig.consuming()
        starts = [start for start in consume_starts(rig.broker) if start != "10s"]
        assert starts == ["130s", 3500]
        assert min(rig.sink.held) == 4000

    def test_a_node_that_answers_late_has_no_wrong_clock(self) -> None:
        """However long the node takes to deliver the last ten seconds: silence is no proof that its clock is ahead (C3, C10)."""
        rig = SourceRig()
        rig.stream.write(b"0")
        rig.stream.silent.add("10s")
        rig.start()
        rig.advance(20)
        assert rig.state() is SourceState.REFILLING
        assert rig.sink.named("restart") == []
        rig.stream.silent.clear()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=60)
        assert rig.sink.named("restart") == []
        assert "first" not in consume_starts(rig.broker)

    def test_a_marker_that_is_too_old_says_nothing_about_the_clock(self) -> None:
        """A slow connection: ten seconds passed between the marker and the question. Another marker is younger (C10)."""
        rig = SourceRig()
        rig.stream.write(b"0")
        asked: list[tuple[Peer, int, spec.Basic.Consume]] = []

        def late(peer: Peer, channel: int, method: spec.Basic.Consume) -> None:
            if method.arguments.get("x-stream-offset") == "10s" and not asked:
                asked.append((peer, channel, method))
            else:
                rig.broker.consume(peer, channel, method)

        rig.broker.answers[spec.Basic.Consume] = late
        rig.start()
        rig.advance(11)
        rig.stream.clock_is_wrong = True  # everything written so far is too old
        rig.broker.consume(*asked[0])
        rig.stream.clock_is_wrong = False
        rig.advance(1)
        assert rig.state() is SourceState.CONSUMING
        assert consume_starts(rig.broker) == ["130s", "10s", "10s"]
        assert rig.sink.named("restart") == []

    def test_a_late_confirm_is_the_confirm_of_its_own_marker(self) -> None:
        """A client that subscribes before the next marker reached the broker would miss events before that one."""
        rig = SourceRig()
        rig.stream.write(b"0")
        rig.stream.silent.add("10s")

        def only_write(_: Peer, publication: Publication) -> None:
            rig.stream.write(publication.body, publication.method.routing_key)

        rig.side.confirm = only_write
        rig.start()
        rig.advance(1)
        early, first, second = rig.side.markers
        for marker in (early, first):
            ack(rig.side.peer, marker)
        rig.settle()
        assert rig.sink.confirmed_markers == [early.properties.message_id, first.properties.message_id]
        ack(rig.side.peer, second)
        rig.settle()
        assert rig.sink.confirmed_markers[2:] == [second.properties.message_id]

    def test_an_alarm_that_ends_during_the_refill(self) -> None:
        """A marker that could not be published at first is published later, and then history is complete."""
        rig = SourceRig(silence_s=1000)
        rig.stream.write(b"old")
        rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on memory"))
        rig.start()
        rig.advance(6)
        assert rig.state() is SourceState.REFILLING
        rig.side.confirm = rig.side.route
        rig.side.peer.send(0, spec.Connection.Unblocked())
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=10)
        assert rig.sink.named("caught_up") == [("caught_up",)]

    @each_row("refusal", ["permission", "alarm"])
    def test_without_markers_the_first_new_message_takes_their_place(self, refusal: str) -> None:
        """The source is not ready, and gives the reason. The first message that the scout gets shows where the new messages begin."""
        rig = SourceRig(silence_s=1000)
        rig.stream.write(b"old")
        rig.side.may_publish = refusal != "permission"
        if refusal == "alarm":
            rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on memory"))
        rig.start()
        rig.advance(6)
        ready, reason = rig.ready()
        assert not ready
        assert "markers can't be published" in reason
        assert rig.sink.named("caught_up") == []
        rig.write(b"new")
        assert rig.state() is SourceState.CONSUMING
        assert rig.sink.named("caught_up") == [("caught_up",)]
        rig.advance(20)
        assert rig.source.status().ready
        assert len(rig.source.status().unproven) == 1

    def test_nothing_read_and_no_markers_begins_at_first(self) -> None:
        """The clients stayed connected: events written while the broker connection was down are new to them (C2)."""
        rig = SourceRig()
        rig.side.may_publish = False
        rig.start()
        rig.advance(1)
        rig.broker.cut()
        rig.broker.refuse = True
        rig.advance(140, step=1)
        for number in range(5):
            rig.stream.write(b"%d" % number)
        rig.broker.refuse = False
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=20)
        assert consume_starts(rig.broker)[-1] in ("first", "next")
        assert rig.sink.named("caught_up") == [("caught_up", "replay")]
        assert rig.sink.offsets == [0, 1, 2, 3, 4]

    def test_passive_declares_nothing(self) -> None:
        """With passive set, every declaration only checks, and nothing is bound."""
        rig = SourceRig(passive=True).consuming()
        assert all(m.passive for m in rig.broker.peer.seen(spec.Exchange.Declare) + rig.broker.peer.seen(spec.Queue.Declare))
        assert rig.broker.peer.seen(spec.Queue.Bind) == []

    def test_passive_says_what_is_missing(self) -> None:
        """In passive mode an operator has to create a missing exchange. The reason names it, with the next step."""
        rig = SourceRig(passive=True)
        rig.broker.answers[spec.Exchange.Declare] = rig.broker.close_channel(404, "NOT_FOUND - no exchange 'towerws' in vhost '/'")
        rig.start()
        rig.advance(0.3)
        reason = rig.source.status().reason or ""
        assert reason.startswith("404 NOT_FOUND - no exchange 'towerws'")
        assert "passive = false" in reason


class TestResume:
    """Going on in a stream after a connection failure."""

    def lose(self, rig: SourceRig) -> None:
        """The connection fails, and the next one works."""
        rig.broker.cut()
        assert rig.state() is SourceState.BACKOFF
        rig.until(lambda: rig.state() is not SourceState.BACKOFF, within_s=0.6)
        rig.settle()

    def test_a_failed_connection_goes_on_where_it_was(self) -> None:
        """Messages read after our newest marker are compared and dropped. Newer messages follow, without a gap."""
        rig = SourceRig().consuming()
        rig.write(b"a", b"b")
        rig.broker.cut()
        rig.stream.write(b"c")
        before = len(rig.sink.calls)
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=0.6)
        assert consume_starts(rig.broker)[-1] == 2
        assert [call[2] for call in rig.sink.calls[before:]] == [b"c"]
        assert rig.sink.is_proven

    def test_the_marker_waits_for_the_scout(self) -> None:
        """A stream that was made again empty shows nothing but our marker, and that only to a scout that is there before it."""
        rig = SourceRig().consuming()
        rig.write(*(b"%d" % number for number in range(20)))
        rig.broker.cut()
        rig.stream.entries, rig.stream.next = [], 0
        late: list[tuple[Peer, int, spec.Basic.Consume]] = []

        def consume(peer: Peer, channel: int, method: spec.Basic.Consume) -> None:
            if method.arguments.get("x-stream-offset") == "next":
                late.append((peer, channel, method))
            else:
                rig.broker.consume(peer, channel, method)

        rig.broker.answers[spec.Basic.Consume] = consume
        rig.until(lambda: bool(late), within_s=2)
        rig.advance(2)
        rig.broker.consume(*late[0])
        rig.advance(2)
        assert rig.state() is SourceState.CONSUMING
        assert rig.sink.named("rewind") == [("rewind", None)]

    @each_row("silent_s", [0.5, 1.5, 8, 50])
    def test_silence_after_a_failure_decides_nothing(self, silent_s: float) -> None:
        """The broker's data is late, by any time: no gap, nothing twice, nothing missing (C1)."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.broker.cut()
        rig.stream.write(b"b")
        rig.stream.silent.update({"2", "next"})
        rig.advance(silent_s)
        assert rig.state() is not SourceState.CONSUMING
        assert not rig.sink.is_proven
        assert rig.ready()[0] is False
        rig.stream.silent.clear()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=80)
        assert [call[2] for call in rig.sink.named("deliver")] == [b"a", b"b"]
        assert [call[0] for call in rig.sink.calls if call[0] != "deliver"] == ["caught_up"]

    def test_an_outage_with_an_empty_stream(self) -> None:
        """Reading goes on at the marker of the start: no event of the outage is missing, however long it was (C2)."""
        rig = SourceRig().consuming()
        rig.broker.cut()
        rig.broker.refuse = True
        for number in range(5):
            rig.stream.write(b"%d" % number)
        rig.advance(140, step=1)
        rig.broker.refuse = False
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=2)
        rig.write(b"5", b"6")
        assert [call[2] for call in rig.sink.named("deliver")] == [b"%d" % number for number in range(7)]

    def test_a_stream_that_was_deleted(self) -> None:
        """The broker answers "no queue": the log is new, declared again and read from its first message, after one gap."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.broker.cut()
        rig.broker.delete_stream()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        rig.write(b"b")
        calls = [call for call in rig.sink.calls if call[0] != "caught_up"]
        assert [call[0] for call in calls] == ["deliver", "rewind", "hole", "deliver"]
        assert calls[1:3] == [("rewind", None), ("hole", 0)]

    def test_a_stream_that_is_being_deleted(self) -> None:
        """The broker cancels the consumer before the stream is gone. The next question waits until it is."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        exists = rig.hold(spec.Queue.Declare)
        rig.broker.delete_stream()
        rig.settle()
        assert (rig.state(), rig.source.counters["channel_failures"]) == (SourceState.TOPOLOGY, 1)
        rig.advance(0.2)
        assert not exists
        rig.advance(0.1)
        assert len(exists) == 1

    @each_row("messages", [0, 1, 2, 3, 4, 50])
    def test_a_stream_that_was_made_again_by_others(self, messages: int) -> None:
        """The new log is shorter, as long, or longer. Our marker at a lower offset, or other content, shows that it is new (C1, C7)."""
        rig = SourceRig().consuming()
        rig.write(b"a", b"b")
        rig.broker.cut()
        rig.stream.entries, rig.stream.next = [], 0
        for number in range(messages):
            rig.stream.write(b"new %d" % number)
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        rig.write(b"c")
        calls = [call for call in rig.sink.calls if call[0] != "caught_up"]
        assert [call[0] for call in calls] == ["deliver"] * 2 + ["rewind", "hole"] + ["deliver"] * (messages + 1)
        assert calls[2:4] == [("rewind", None), ("hole", 0)]

    def test_equal_messages_do_not_deceive(self) -> None:
        """A stream that was made again with the same events: our marker isn't in it."""
        rig = SourceRig().consuming()
        rig.write(b"same", b"same")
        rig.broker.cut()
        rig.stream.entries, rig.stream.next = [], 0
        for _ in range(9):
            rig.stream.write(b"same")
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        assert ("rewind", None) in rig.sink.calls

    def test_a_cut_off_tail(self) -> None:
        """The part that both logs share is kept. Clients are told of the gap before the first delivery that differs."""
        rig = SourceRig().consuming()
        first, second, _, _ = rig.write(b"a", b"b", b"c", b"d")
        rig.broker.cut()
        rig.stream.cut(second)
        rig.stream.write(b"e")
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        calls = [call for call in rig.sink.calls if call[0] != "caught_up"]
        assert [call[0] for call in calls] == ["deliver"] * 4 + ["rewind", "hole", "deliver"]
        assert calls[4:6] == [("rewind", second), ("hole", second + 1)]
        del first

    def test_a_cut_off_tail_that_nothing_follows(self) -> None:
        """Our marker is the first message after the cut: it shows the cut, and ends the gap."""
        rig = SourceRig().consuming()
        _, second, _, _ = rig.write(b"a", b"b", b"c", b"d")
        rig.broker.cut()
        rig.stream.cut(second)
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        assert [call for call in rig.sink.calls if call[0] in {"rewind", "hole"}] == [("rewind", second), ("hole", second + 1)]

    def test_a_trimmed_stream_is_one_gap(self) -> None:
        """Retention deleted unread messages while the connection was down: one gap, before the first message that is left."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.broker.cut()
        for number in range(20):
            rig.stream.write(b"%d" % number)
        rig.stream.trim(rig.next - 5)
        first = rig.stream.entries[0].offset
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        assert [call for call in rig.sink.calls if call[0] in {"rewind", "hole"}] == [("hole", first)]
        assert rig.sink.offsets[-5:] == list(range(first, first + 5))

    def test_a_gap_that_was_not_told_yet_survives_the_connection(self) -> None:
        """The connection fails after the missing messages were found, and before the next delivery. Clients are still told of the gap."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.side.swallow = True
        rig.broker.cut()
        rig.broker.delete_stream()
        rig.until(lambda: bool(rig.sink.named("rewind")), within_s=1)
        rig.settle()
        assert rig.sink.named("hole") == []
        rig.broker.cut()
        rig.side.swallow = False
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=30)
        assert len(rig.sink.named("hole")) == 1

    def test_deliveries_of_an_abandoned_consumer_are_ignored(self) -> None:
        """Deliveries of a start's first consumer go nowhere after the second one took over."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        peer = rig.broker.peer
        abandoned = peer.channel
        peer.deliver(b"jump", rig.next + 7, channel=abandoned)
        peer.deliver(b"late", rig.next + 8, channel=abandoned)
        rig.settle()
        assert [call[2] for call in rig.sink.named("deliver")] == [b"a"]

    def test_an_entry_that_cannot_be_read_is_passed_over(self) -> None:
        """The broker ends each connection that reads it (541). It is passed over by its offset, with one gap, and within a bounded time."""
        rig = SourceRig().consuming()
        (offset,) = rig.write(b"a")
        rig.stream.skip()
        rig.stream.unreadable = {offset + 1}
        rig.stream.write(b"b")
        rig.settle()
        rig.advance(30)
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=60)
        rig.write(b"c")
        calls = [call for call in rig.sink.calls if call[0] not in {"caught_up", "hole_told"}]
        assert [call[0] for call in calls] == ["deliver", "hole", "deliver", "deliver"]
        assert rig.source.status().ready

    def test_a_new_stream_that_begins_with_an_entry_that_cannot_be_read(self) -> None:
        """The stream was deleted, and nothing of the new one was read yet. The entry is passed over, and clients are told of the gap."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.broker.delete_stream()
        rig.stream.unreadable = {rig.next}
        rig.stream.skip()
        rig.stream.write(b"b")
        rig.until(lambda: rig.stream.exists and rig.source.status().ready, within_s=120)
        rig.write(b"c")
        calls = [call[0] for call in rig.sink.calls if call[0] not in {"caught_up", "hole_told"}]
        assert calls[:3] == ["deliver", "rewind", "hole"]
        assert "hole" not in calls[3:]

    @pytest.mark.parametrize(("young", "held"), [({"32s": 1}, [1]), ({}, [])], ids=["some seconds ago", "just now"])
    def test_history_is_refilled_from_behind_an_entry_that_cannot_be_read(
        self, young: dict[str, int], held: list[int], events: list[LogEvent]
    ) -> None:
        """A daemon that starts goes half as far back each time, until the broker serves it. At worst it begins with its own marker."""
        rig = SourceRig()
        rig.stream.skip()
        rig.stream.unreadable = {0}
        rig.stream.write(b"1")
        rig.stream.young = young
        rig.start()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=120)
        assert rig.sink.offsets == held
        tried = [start for start in consume_starts(rig.broker) if str(start).endswith("s")]
        assert tried[:3] == ["130s", "130s", "65s"]
        rig.write(b"new")
        assert rig.sink.named("deliver")[-1][2] == b"new"
        assert rig.sink.named("hole") == []
        assert rig.source.status().ready
        assert any("can't be read" in formatEvent(event) for event in events)

    @each_row("refusal", ["permission", "alarm"])
    @each_row("busy", [True, False])
    def test_one_541_without_markers_passes(self, refusal: str, busy: bool) -> None:
        """The stream is sound, and no marker can show it. The reader goes on, reads every event, and tells of no gap."""
        rig = without_markers(refusal)
        rig.write(b"a")
        before = len(rig.sink.named("deliver"))
        rig.broker.peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
        rig.settle()
        if busy:
            for number in range(60):
                rig.write(b"n%d" % number)
                rig.advance(1)
            assert len(rig.sink.named("deliver")) - before == 60
        rig.until(lambda: rig.source.status().ready, within_s=30)
        assert rig.sink.named("hole") == []
        # Nothing new came. So a second 541 at the same place, much later, is no evidence either.
        rig.broker.peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
        rig.settle()
        rig.write(b"last")
        rig.until(lambda: rig.sink.named("deliver")[-1][2] == b"last", within_s=30)
        assert rig.sink.named("hole") == []

    def test_old_messages_are_no_evidence(self) -> None:
        """A replica that catches up delivers old messages at its end. They don't show that it serves what was not read yet."""
        rig = without_markers("permission")
        (offset,) = rig.write(b"a")
        rig.stream.skip()
        rig.stream.unreadable = {offset + 1}
        rig.stream.write(b"b")
        rig.settle()
        rig.until(lambda: consume_starts(rig.broker)[-1] == "next", within_s=10)
        rig.settle()
        rig.broker.peer.deliver(b"a", offset)
        rig.settle()
        assert consume_starts(rig.broker)[-1] == "next"
        rig.advance(100)
        assert rig.sink.named("hole") == []
        assert not rig.source.status().ready

    @each_row("entries", [{0}, {0, 1, 2}, {0, 4}])
    def test_entries_that_cannot_be_read_are_passed_over_without_markers(self, entries: set[int]) -> None:
        """The first new message that a scout reads takes the marker's place. Clients get one gap. All events after the last entry come."""
        rig = without_markers("permission")
        for _ in range(2):
            (offset,) = rig.write(b"a")
            readable = []
            rig.stream.unreadable = {offset + 1 + entry for entry in entries}
            for number in range(8):
                if number in entries:
                    rig.stream.skip()
                else:
                    readable.append(rig.stream.write(b"n%d" % number))
            rig.settle()
            for _ in range(200):
                readable += rig.write(b"later")
                rig.advance(1)
            readable = [written for written in readable if written > max(rig.stream.unreadable)]
            assert rig.sink.offsets[-len(readable) - 1 :] == [offset, *readable]
            assert rig.source.status().ready
        assert len(rig.sink.named("hole")) == 2

    def test_an_entry_that_cannot_be_read_and_a_permission_that_comes_back(self) -> None:
        """Nothing new comes, so nothing shows that the broker serves the rest. Then the daemon's marker shows it."""
        rig = without_markers("permission")
        (offset,) = rig.write(b"a")
        rig.stream.skip()
        rig.stream.unreadable = {offset + 1}
        rig.stream.write(b"b")
        rig.settle()
        rig.advance(60)
        assert rig.sink.named("hole") == []
        rig.side.may_publish = True
        rig.until(lambda: rig.source.status().ready, within_s=60)
        assert len(rig.sink.named("hole")) == 1
        assert rig.sink.named("deliver")[-1][2] == b"b"

    def test_a_daemon_without_markers_starts_before_an_entry_that_cannot_be_read(self) -> None:
        """Nothing was read yet. A new message shows that the broker serves the end. At worst history begins with it."""
        rig = SourceRig()
        rig.stream.skip()
        rig.stream.unreadable = {0}
        rig.stream.write(b"1")
        rig.side.may_publish = False
        rig.start()
        written = []
        for _ in range(150):
            written += rig.write(b"later")
            rig.advance(1)
        assert rig.source.status().ready
        assert rig.sink.offsets == written[-len(rig.sink.offsets) :]
        assert len(rig.sink.offsets) > 80

    @each_row("may_publish", [True, False])
    def test_a_daemon_starts_while_entries_that_cannot_be_read_are_written(self, may_publish: bool) -> None:
        """Nothing was read yet. After the message at the stream's end that the broker served, there is another such entry."""
        rig = SourceRig(silence_s=1000)
        rig.stream.skip()
        rig.stream.unreadable = {0}
        rig.side.may_publish = may_publish
        rig.start()
        for _ in range(60):
            for _ in range(4):
                rig.advance(0.2)
                rig.write(b"new")
            rig.stream.unreadable = {rig.next}
            rig.stream.skip()
            rig.settle()
        assert any(isinstance(start, int) for start in consume_starts(rig.broker))
        for _ in range(60):
            rig.write(b"later")
            rig.advance(1)
        assert rig.source.status().ready
        assert b"later" in [call[2] for call in rig.sink.named("deliver")]

    def test_one_541_while_the_binding_is_missing(self) -> None:
        """The user may write to the events exchange only, so its markers need the binding. The reader makes it again, and goes on."""
        rig = SourceRig()
        rig.side.confirm = lambda peer, publication: only_exchange(rig, peer, publication)
        rig.consuming()
        rig.write(b"a")
        rig.stream.bound = False
        rig.broker.peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
        rig.settle()
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=30)
        rig.advance(12)
        assert len(set(rig.sink.named("hole_told"))) == 1, "the sink tells the same hole once"


class TestJumps:
    """Offsets that are left out on an open channel (C6)."""

    def test_a_step_of_two_is_nothing(self) -> None:
        """An internal entry opens each later segment: no scout, no gap."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.stream.skip()
        rig.write(b"b")
        assert consume_starts(rig.broker)[-1] != "first"
        assert [call[2] for call in rig.sink.named("deliver")] == [b"a", b"b"]
        assert rig.sink.named("hole") == []

    @each_row("left_out", [2, 7, 1000])
    def test_a_jump_with_nothing_lost_stays_silent(self, left_out: int) -> None:
        """The stream begins at a lower offset: nothing was trimmed, for any size of the jump."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.stream.skip(left_out)
        rig.write(b"b", b"c")
        assert "first" in consume_starts(rig.broker)
        assert [call[2] for call in rig.sink.named("deliver")] == [b"a", b"b", b"c"]
        assert rig.sink.named("hole") == []
        assert rig.source.status().ready

    def test_retention_that_overtakes_a_reader_is_one_gap(self) -> None:
        """The broker went on at a later place: clients are told of the gap before any later event."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.stream.skip(500)
        rig.stream.write(b"b")
        rig.stream.write(b"c")
        rig.stream.trim(rig.next - 2)
        first = rig.stream.entries[0].offset
        rig.settle()
        calls = [call[0] for call in rig.sink.calls if call[0] != "caught_up"]
        assert calls == ["deliver", "hole", "deliver", "deliver"]
        assert rig.sink.named("hole") == [("hole", first)]

    def test_a_jump_that_nothing_explains_is_tried_again(self) -> None:
        """The scout gets no answer: no verdict, not ready, and the connection is given up. The next one judges what was left out."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.write(b"a")
        rig.stream.silent.add("first")
        rig.stream.skip(5)
        rig.stream.write(b"b")
        rig.settle()
        rig.advance(20)
        assert rig.state() is SourceState.PROVING
        assert rig.ready()[0] is False
        assert rig.sink.named("hole") == []
        rig.stream.silent.clear()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=60)
        assert [call[2] for call in rig.sink.named("deliver")] == [b"a", b"b"]
        assert rig.sink.named("hole") == []


class TestBinding:
    """Events that producers publish reach us, or the daemon reports that they don't (C5, C13)."""

    def test_a_binding_that_is_gone_is_made_again(self, events: list[LogEvent]) -> None:
        """A returned marker shows it: not ready with the reason, bound again, and the next marker tells of the hole."""
        rig = SourceRig().consuming()
        rig.write(b"a")
        rig.stream.bound = False
        asked = rig.hold(spec.Queue.Bind)
        rig.advance(10.5)
        ready, reason = rig.ready()
        assert not ready
        assert "no queue is bound to exchange towerws" in reason
        rig.broker.queue_bind(*asked[0])
        rig.until(lambda: rig.source.status().ready, within_s=15)
        assert rig.stream.bound
        assert rig.sink.named("hole_told") == [("hole_told", 2)]
        assert len([event for event in events if "events don't reach us" in formatEvent(event)]) == 1

    @pytest.mark.parametrize("consume", ["stream", "queue"])
    def test_a_broker_that_does_not_answer_the_binding(self, consume: str, events: list[LogEvent]) -> None:
        """One channel waits for the answer, however long that takes. The reason says so. A late answer is used."""
        rig = SourceRig(consume=consume, silence_s=1000)
        if consume == "queue":
            rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.consuming()
        peer, before = rig.broker.peer, len(rig.broker.peer.seen(spec.Channel.Open))
        rig.stream.bound = False
        asked = rig.hold(spec.Exchange.Declare)
        rig.advance(50, step=0.5)
        assert (len(asked), len(peer.seen(spec.Channel.Open)) - before) == (1, 1)
        assert "can't be bound again: the broker has not answered yet" in rig.ready()[1]
        assert len([event for event in events if "has not answered yet" in formatEvent(event)]) == 1
        rig.broker.answers.clear()
        rig.broker.exchange_declare(*asked[0])
        rig.until(lambda: rig.source.status().ready, within_s=3)
        assert len(rig.broker.peers) == 1
        assert len(peer.seen(spec.Channel.Close)) == len(peer.seen(spec.Channel.Open)) - 1, "the consumer's channel is left"

    def test_a_host_that_never_answers_the_binding(self) -> None:
        """The next host is tried, as after any time without a marker."""
        clock = Clock()
        rig = SourceRig({host: FakeBroker(clock) for host in ("one", "two")}, silence_s=1000).consuming()
        first = next(broker for broker in rig.brokers.values() if broker.peers)
        other = next(broker for broker in rig.brokers.values() if broker is not first)
        rig.stream.bound = False
        first.mute = spec.Exchange.Declare
        rig.until(lambda: bool(other.readers), within_s=45)
        rig.until(lambda: rig.source.status().ready, within_s=15)
        assert len(first.peers) == 1
        assert len(rig.sink.named("hole_told")) == 1

    def test_markers_are_refused_and_no_binding_is_answered(self) -> None:
        """Nothing is known against the binding: the connection is kept. One channel waits for the answer."""
        rig = SourceRig(silence_s=1000).consuming()
        before = len(rig.broker.peer.seen(spec.Channel.Open))
        rig.side.may_publish = False
        rig.broker.mute = spec.Exchange.Declare
        rig.advance(300, step=0.5)
        assert rig.source.status().ready
        assert (len(rig.broker.peers), len(rig.broker.peer.seen(spec.Channel.Open)) - before) == (1, 1)

    def test_the_hole_is_told_before_what_follows_it_however_late_the_broker_says_that_it_is_bound(self) -> None:
        """Events come through the new binding before its bind-ok does. Markers straight to the stream are no end of the hole."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.stream.bound = False
        asked: list[tuple[Peer, int, spec.Queue.Bind]] = []

        def bind(peer: Peer, channel: int, method: spec.Queue.Bind) -> None:
            asked.append((peer, channel, method))
            rig.stream.write(Marker("e" * 8, "dddddddd").body, key="towerws.events")  # another daemon's
            rig.stream.write(b"behind")

        rig.broker.answers[spec.Queue.Bind] = bind
        rig.until(lambda: bool(asked), within_s=15)
        rig.advance(0.5)
        assert [call[0] for call in rig.sink.calls if call[0] != "caught_up"] == ["deliver", "hole", "deliver"]
        rig.broker.queue_bind(*asked[0])
        rig.until(lambda: rig.source.status().ready, within_s=5)
        rig.write(b"later")
        assert [call[0] for call in rig.sink.calls if call[0] != "caught_up"] == ["deliver", "hole", "deliver", "hole_told", "deliver"]

    @each_row("how", ["cut", "consume again"])
    def test_a_hole_stays_open_over_connections_until_the_binding_is_back(self, how: str) -> None:
        """The broker refuses to bind, and the consumer is lost meanwhile. A marker straight to the stream is no end of the hole."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.stream.bound = False
        rig.broker.answers[spec.Queue.Bind] = rig.broker.close_channel(403, "ACCESS_REFUSED - write access refused")
        rig.until(lambda: not rig.source.status().ready, within_s=15)
        rig.advance(5)
        if how == "cut":
            rig.broker.cut()
        else:
            rig.broker.peer.send(rig.broker.peer.channel, spec.Channel.Close(541, "INTERNAL_ERROR", 0, 0))
        rig.advance(5)
        assert rig.state() is SourceState.CONSUMING
        rig.write(Marker("e" * 8, "dddddddd").body, key="towerws.events")  # another daemon's
        rig.advance(20)
        assert rig.sink.named("hole") == rig.sink.named("hole_told") == [], "the hole still goes on"
        del rig.broker.answers[spec.Queue.Bind]
        rig.until(lambda: rig.stream.bound, within_s=60)
        rig.write(b"behind")
        rig.until(lambda: rig.source.status().ready, within_s=5)
        assert len(rig.sink.named("hole")) == len(rig.sink.named("hole_told")) == 1
        assert rig.sink.marker_follows == [True], "the sink tells it once"

    @each_row("told", [True, False])
    def test_a_daemon_that_may_not_bind_sees_that_another_hand_did(self, told: bool) -> None:
        """The daemon's own marker comes back then. Another daemon's that tells of a hole which began earlier proves too little."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.write(b"before")
        rig.write(Marker("e" * 8, "dddddddd").body, key="towerws.marker")
        rig.stream.bound = False
        rig.broker.answers[spec.Queue.Bind] = rig.broker.close_channel(403, "ACCESS_REFUSED - write access refused")
        rig.until(lambda: not rig.source.status().ready, within_s=15)
        rig.advance(30)
        assert "can't be bound again: " in rig.ready()[1]
        assert "ACCESS_REFUSED" in rig.ready()[1]
        assert rig.sink.named("hole_told") == []
        rig.stream.bound = True
        if told:
            rig.write(Marker("e" * 8, "dddddddd", 0).body, key="towerws.marker")
        rig.until(lambda: rig.source.status().ready, within_s=5)
        rig.advance(60, step=0.5)
        assert rig.source.status().ready
        assert rig.source.counters["markers"]["unbound"] == 1  # type: ignore[index]

    def test_a_binding_that_is_lost_again_before_it_is_proven(self) -> None:
        """The first event behind the hole came, and then the binding was lost once more: the next event has a gap before it, too."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.stream.bound = False

        def bind(peer: Peer, channel: int, method: spec.Queue.Bind) -> None:
            rig.stream.write(b"behind")
            del rig.broker.answers[spec.Queue.Bind]
            peer.send(channel, spec.Queue.BindOk())  # and another hand has unbound it already

        rig.broker.answers[spec.Queue.Bind] = bind
        rig.until(lambda: rig.stream.bound, within_s=30)
        rig.write(b"later")
        rig.until(lambda: rig.source.status().ready, within_s=5)
        calls = [call[0] for call in rig.sink.calls if call[0] not in {"caught_up", "hole_told"}]
        assert calls in (["deliver", "hole", "deliver", "hole", "deliver"], ["deliver", "hole", "deliver", "deliver", "hole"])

    def test_a_hole_of_another_kind_does_not_stay_open(self) -> None:
        """While the binding is missing the stream is deleted: what is new is told at its first message, whichever way that came."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.stream.bound = False
        rig.broker.answers[spec.Queue.Bind] = rig.broker.close_channel(403, "ACCESS_REFUSED - write access refused")
        rig.until(lambda: not rig.source.status().ready, within_s=15)
        rig.advance(3)
        rig.broker.answers.clear()
        rig.broker.delete_stream()
        rig.until(lambda: rig.source.status().ready, within_s=15)
        assert [call[0] for call in rig.sink.calls][:4] == ["caught_up", "deliver", "rewind", "hole"]
        assert rig.sink.marker_follows[0] is False

    @each_row("lost", [False, True])
    def test_a_binding_that_is_missing_while_offsets_that_were_left_out_are_checked(self, lost: bool) -> None:
        """Both holes are told, each before the first event behind it. What the check finds is no answer about the binding."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.advance(9)
        rig.stream.bound = False
        asked = rig.hold(spec.Basic.Consume)
        rig.stream.skip(5)
        rig.stream.write(b"left")
        if lost:
            rig.stream.trim(rig.next - 1)
        rig.settle()
        bind = FakeBroker.queue_bind

        def bound(peer: Peer, channel: int, method: spec.Queue.Bind) -> None:
            del rig.broker.answers[spec.Queue.Bind]
            bind(rig.broker, peer, channel, method)
            rig.stream.write(b"behind")

        rig.broker.answers[spec.Queue.Bind] = bound
        rig.advance(6)
        assert rig.state() is SourceState.PROVING
        del rig.broker.answers[spec.Basic.Consume]
        rig.broker.consume(*asked[0])
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=15)
        calls = [call[0] for call in rig.sink.calls if call[0] != "caught_up"]
        assert calls == ["deliver", *(["hole"] if lost else []), "deliver", "hole", "deliver", "hole_told"]
        assert rig.sink.marker_follows == ([False, True] if lost else [True])

    def test_a_consumer_that_the_broker_forgot(self, events: list[LogEvent]) -> None:
        """The broker confirms our markers, and delivers nothing: the reader consumes again, on the same connection. No client is told."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.broker.readers.clear()
        rig.write(b"behind")
        rig.until(lambda: b"behind" in [call[2] for call in rig.sink.named("deliver")], within_s=20)
        rig.until(lambda: rig.source.status().ready, within_s=2)
        assert len(rig.broker.peers) == 1
        assert [call[2] for call in rig.sink.named("deliver")] == [b"before", b"behind"]
        assert rig.sink.named("gap") == rig.sink.named("hole") == []
        assert rig.source.counters["markers"]["stalls"] == 1  # type: ignore[index]
        assert len([event for event in events if "consuming again" in formatEvent(event)]) == 1
        rig.advance(60)
        assert rig.source.counters["markers"]["stalls"] == 1  # type: ignore[index]

    def test_a_host_whose_consumers_stall(self) -> None:
        """Consuming again does not help: the next host is tried, as after any time without a marker."""
        clock = Clock()
        rig = SourceRig({host: FakeBroker(clock) for host in ("one", "two")}).consuming()
        first = next(broker for broker in rig.brokers.values() if broker.peers)
        other = next(broker for broker in rig.brokers.values() if broker is not first)
        serve = first.serve
        old = rig.next

        def only_old() -> bool:
            for reader in first.readers:
                if reader.next >= old:
                    reader.next = 10**6  # what was written since is never delivered
            return serve()

        first.serve = only_old  # type: ignore[method-assign]
        rig.until(lambda: bool(other.readers), within_s=90)
        rig.until(lambda: rig.source.status().ready, within_s=5)
        assert rig.source.counters["markers"]["stalls"] >= 1  # type: ignore[index]

    def test_a_queue_that_stalls(self, events: list[LogEvent]) -> None:
        """A new consumer gets a new queue, so nothing is consumed again on this connection. It ends at once, and the reason is true.

        The queue drops messages after `queue_ttl_s`. Clients are told of the gap.
        """
        rig = SourceRig(consume="queue", silence_s=1000)
        rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.consuming()
        rig.advance(3)
        rig.side.confirm = ack
        rig.until(lambda: rig.source.counters["failures"] == 1, within_s=20)
        reason = "nothing was read for 5 s after a marker was confirmed"
        assert rig.source.counters["last_failure"] == reason
        assert rig.source.counters["markers"]["stalls"] == 1  # type: ignore[index]
        assert any(reason in formatEvent(event) for event in events)
        assert not any("consuming again" in formatEvent(event) for event in events)
        rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.until(lambda: rig.source.status().ready, within_s=15)
        rig.advance(60)
        assert (len(rig.broker.peers), rig.sink.named("gap")) == (2, [("gap", "broker")])

    @pytest.mark.parametrize("written_after_s", [10, 18])
    def test_a_reader_that_pauses_is_not_replaced(self, written_after_s: float) -> None:
        """Nothing is read while a batch is still being written, and just after it: this says nothing about the consumer."""
        rig = SourceRig(silence_s=60).consuming()
        rig.advance(9)
        rig.sink.holding = True
        rig.write(b"before")
        assert rig.broker.peer.transport.paused
        rig.broker.readers.clear()  # what the broker sends now stays in the socket
        rig.advance(written_after_s)
        rig.sink.holding = False
        rig.sink.writing.pop(0)(1000)
        rig.advance(4.5)
        assert rig.source.counters["markers"]["stalls"] == 0  # type: ignore[index]
        rig.until(lambda: rig.source.counters["markers"]["stalls"] == 1, within_s=15)  # type: ignore[index]

    def test_a_slow_consumer_is_not_replaced(self) -> None:
        """Messages come, if slowly, and the markers come behind them: the consumer stays."""
        rig = SourceRig().consuming()
        rig.broker.readers.clear()
        channel = rig.broker.peer.channel
        for number in range(300):
            rig.broker.peer.deliver(b"x", rig.next + number, channel=channel)
            rig.advance(0.1)
        assert rig.source.counters["markers"]["stalls"] == 0  # type: ignore[index]

    def test_an_exchange_that_is_gone_is_declared_again(self) -> None:
        """The marker gets a 404: the exchange and the binding are made again, within one interval."""
        rig = SourceRig().consuming()
        rig.side.exchange_exists = rig.stream.bound = False

        def declare(peer: Peer, channel: int, method: object) -> None:
            rig.side.exchange_exists = True
            FakeBroker.exchange_declare(rig.broker, peer, channel, method)

        rig.broker.answers[spec.Exchange.Declare] = declare
        rig.advance(10.5)
        rig.until(lambda: rig.source.status().ready, within_s=5)
        assert len(rig.sink.named("hole_told")) == 1

    def test_a_binding_that_is_gone_while_others_are_bound(self) -> None:
        """The marker is confirmed, since another queue took it, and does not arrive. A marker straight to the stream does."""
        rig = SourceRig().consuming()
        rig.stream.bound = False
        route = rig.side.route

        def taken_by_others(peer: Peer, publication: Publication) -> None:
            if publication.method.exchange and not rig.stream.bound:
                ack(peer, publication)
            else:
                route(peer, publication)

        rig.side.confirm = taken_by_others
        rig.advance(10.5)
        assert rig.source.status().ready, "late or lost: that is not known yet"
        rig.advance(2)
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=5)
        assert len(rig.sink.named("hole_told")) == 1

    def test_under_passive_it_is_reported_and_the_hole_told_when_it_is_mended(self) -> None:
        """The daemon binds nothing. It answers 503 with the reason until an operator binds the stream."""
        rig = SourceRig(passive=True).consuming()
        rig.stream.bound = False
        rig.advance(60, step=0.5)
        assert not rig.stream.bound
        assert "no queue is bound" in rig.ready()[1]
        rig.stream.bound = True
        rig.until(lambda: rig.source.status().ready, within_s=5)
        assert len(rig.sink.named("hole_told")) == 1

    @each_row("passive", [False, True])
    def test_a_binding_that_is_missing_before_any_marker_came_through_it(self, passive: bool) -> None:
        """The daemon has read no marker that came through the exchange. So all that it knows of may have lost events."""
        rig = SourceRig(passive=passive)
        rig.stream.write(b"before")
        rig.stream.bound = False
        if not passive:
            rig.broker.answers[spec.Queue.Bind] = rig.broker.close_channel(403, "ACCESS_REFUSED - write access refused")
        rig.start()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=5)
        rig.advance(20)
        assert not rig.source.status().ready
        assert rig.sink.named("hole") == rig.sink.named("hole_told") == []
        if passive:
            rig.stream.bound = True
        else:
            rig.broker.answers.clear()
        rig.until(lambda: rig.source.status().ready, within_s=15)
        assert rig.sink.named("hole_told") == [("hole_told", 0)]
        assert len(rig.sink.named("hole")) == (0 if passive else 1), "with passive the marker alone tells of it"
        rig.advance(30)
        assert len(rig.sink.named("hole_told")) == 1

    @each_row("exchange_exists", [True, False])
    def test_a_binding_that_is_missing_at_the_start_and_only_the_exchange_takes_markers(self, exchange_exists: bool) -> None:
        """The user may not write to amq.default. The first marker is returned: the next one tells of the hole, during the refill."""
        rig = SourceRig()
        rig.stream.write(Marker("e" * 8, "dddddddd").body, key="towerws.marker")  # of the daemon before
        rig.stream.write(b"before")
        rig.stream.bound = False
        rig.side.confirm = lambda peer, publication: only_exchange(rig, peer, publication)
        if not exchange_exists:

            def consume(peer: Peer, channel: int, method: object) -> None:
                rig.side.exchange_exists = False  # deleted just after it was declared
                del rig.broker.answers[spec.Basic.Consume]
                FakeBroker.consume(rig.broker, peer, channel, method)

            def declare(peer: Peer, channel: int, method: object) -> None:
                rig.side.exchange_exists = True
                FakeBroker.exchange_declare(rig.broker, peer, channel, method)

            rig.broker.answers |= {spec.Basic.Consume: consume, spec.Exchange.Declare: declare}
        rig.start()
        assert rig.state() is SourceState.REFILLING
        rig.until(lambda: rig.source.status().ready, within_s=5)
        assert rig.source.counters["markers"]["unbound"] == 1  # type: ignore[index]
        assert [call[0] for call in rig.sink.calls] == ["deliver", "hole_told", "caught_up"]
        rig.write(b"behind")
        rig.advance(30)
        assert len(rig.sink.named("hole_told")) == 1

    @each_row("anchor_s", [0.5, 3])
    def test_a_binding_that_is_missing_after_a_reconnect_and_only_the_exchange_takes_markers(self, anchor_s: float) -> None:
        """The place in the log is proven before or after the next marker. The hole is told once."""
        rig = SourceRig()
        rig.side.confirm = lambda peer, publication: only_exchange(rig, peer, publication)
        rig.consuming()
        (before,) = rig.write(b"before")
        serve = rig.broker.serve
        rig.broker.serve = lambda: False  # type: ignore[method-assign]  # what the broker sends comes late
        rig.stream.bound = False
        rig.broker.cut()
        rig.until(lambda: rig.stream.bound, within_s=10)
        assert rig.state() is SourceState.PROVING
        rig.advance(anchor_s)
        rig.broker.serve = serve  # type: ignore[method-assign]
        rig.until(lambda: rig.source.status().ready, within_s=10)
        assert rig.source.counters["markers"]["unbound"] == 1  # type: ignore[index]
        told = rig.sink.named("hole_told")
        assert told
        assert set(told) == {("hole_told", before - 1)}, "the same hole: the sink tells it once"
        rig.advance(30)
        assert rig.sink.named("hole_told") == told

    def test_a_stream_that_is_missing_is_no_missing_binding(self) -> None:
        """Markers go straight to the stream, which was deleted: it is another log. Clients are told of that, once."""
        rig = SourceRig().consuming()
        rig.write(b"before")
        rig.broker.cut()
        rig.broker.delete_stream()
        rig.until(lambda: rig.source.status().ready, within_s=15)
        rig.advance(15)
        assert rig.source.counters["markers"]["unbound"] == 0  # type: ignore[index]
        assert (len(rig.sink.named("hole")), rig.sink.named("hole_told")) == (1, [])

    def test_an_exchange_of_another_type_is_named(self) -> None:
        """Declaring again gets a 406: the reason names both types."""
        rig = SourceRig().consuming()
        rig.stream.bound = False
        what = "inequivalent arg 'type' for exchange 'towerws' in vhost '/': received 'topic' but current is 'direct'"
        rig.broker.answers[spec.Exchange.Declare] = rig.broker.close_channel(406, f"PRECONDITION_FAILED - {what}")
        rig.advance(11)
        assert "exchange 'towerws' exists with type 'direct', we asked for 'topic'" in rig.ready()[1]

    def test_markers_that_do_not_come_back_are_no_verdict_but_no_readiness_either(self) -> None:
        """503 with the reason after 15 s without a marker. The consumer is kept. After a minute the next connection is tried (C13)."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.side.swallow = True
        rig.advance(14.5)
        assert rig.source.status().ready
        rig.advance(1)
        assert rig.ready() == (False, rig.ready()[1])
        assert "no marker came back for 1" in rig.ready()[1]
        assert (rig.broker.attempts, rig.sink.calls) == (1, [("caught_up",)])
        rig.until(lambda: rig.broker.attempts == 2, within_s=80)
        rig.side.swallow = False
        rig.until(lambda: rig.source.status().ready, within_s=30)
        assert rig.sink.calls == [("caught_up",)]

    @each_row("hosts", [("one",), ("one", "two")], ids=["one host", "two hosts"])
    def test_a_new_connection_is_no_proof_that_anything_is_heard(self, hosts: tuple[str, ...]) -> None:
        """A daemon that gets no markers tries again. It stays at 503 however often it connects, until a marker comes back (C13)."""
        clock = Clock()
        rig = SourceRig({host: FakeBroker(clock) for host in hosts}, silence_s=1000).consuming()
        rig.side.swallow = True
        rig.advance(15.5)
        before = sum(broker.attempts for broker in rig.brokers.values())
        for _ in range(400):
            assert not rig.source.status().ready
            rig.advance(0.5, step=0.5)
        # Each connection is kept for a while, though: a live consumer is worth more than a new one.
        assert 2 <= sum(broker.attempts for broker in rig.brokers.values()) - before <= 8
        rig.side.swallow = False
        rig.until(lambda: rig.source.status().ready, within_s=30)

    def test_another_daemons_marker_proves_the_binding_as_well(self) -> None:
        """Two daemons send no more markers than one."""
        rig = SourceRig(silence_s=1000).consuming()
        sent = rig.source.counters["markers"]["sent"]  # type: ignore[index]
        for number in range(5):
            rig.advance(5)
            body = Marker(f"{number:08d}", "dddddddd").body
            rig.write(body, key="towerws.marker")
        assert rig.source.counters["markers"]["sent"] == sent  # type: ignore[index]
        rig.advance(45, step=0.5)
        assert rig.source.counters["markers"]["sent"] > sent  # type: ignore[index]

    def test_a_user_who_may_not_publish(self) -> None:
        """Ready once something was read, with a line about what is not proven. It is bound again at intervals."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.side.may_publish = False
        rig.advance(12)
        status = rig.source.status()
        assert status.ready
        assert "markers are refused" in status.unproven[0]
        bound = len(rig.broker.peer.seen(spec.Queue.Bind))
        rig.advance(130, step=0.5)
        assert len(rig.broker.peer.seen(spec.Queue.Bind)) > bound
        assert (rig.broker.attempts, rig.source.status().ready) == (1, True)

    def test_an_alarm_is_said_and_waited_for(self) -> None:
        """Nobody can publish, including us: ready as before, with what is not proven, and proven again after the alarm."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on disk"))
        rig.advance(100, step=0.5)
        status = rig.source.status()
        assert status.ready
        assert "alarm" in status.unproven[0]
        assert rig.broker.attempts == 1
        rig.side.confirm = rig.side.route
        rig.side.peer.send(0, spec.Connection.Unblocked())
        rig.advance(12)
        assert rig.source.status().unproven == ()

    @each_row("why", ["alarm", "refused"])
    def test_a_binding_that_is_lost_after_markers_could_not_be_published(self, why: str) -> None:
        """Markers could not be published at a reconnect, and can be again. A later reconnect must not bind without telling of the hole."""
        rig = SourceRig(silence_s=1000)
        rig.stream.write(b"before")
        rig.consuming()
        if why == "alarm":
            rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on disk"))
        else:
            rig.side.may_publish = False
        serve = rig.broker.serve
        rig.broker.serve = lambda: False  # type: ignore[method-assign]
        rig.broker.cut()
        rig.advance(12)
        rig.broker.serve = serve  # type: ignore[method-assign]
        rig.advance(2)
        assert rig.source.status().unproven or why == "refused"
        rig.side.confirm = rig.side.route
        rig.side.may_publish = True
        if why == "alarm":
            rig.side.peer.send(0, spec.Connection.Unblocked())
        rig.advance(130, step=0.5)
        assert (rig.source.status().ready, rig.source.status().unproven) == (True, ())
        rig.stream.bound = False
        rig.broker.cut()
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=20)
        rig.write(b"behind")
        rig.advance(12)
        assert len(rig.sink.named("hole_told")) == 1

    def test_an_alarm_does_not_make_a_reader_bind(self) -> None:
        """The binding is missing, and a reader comes in an alarm. After the alarm a marker shows that it is missing."""
        rig = SourceRig(silence_s=1000).consuming()
        rig.write(b"before")
        rig.stream.bound = False
        rig.side.confirm = lambda peer, _: peer.send(0, spec.Connection.Blocked("low on disk"))
        serve = rig.broker.serve
        rig.broker.serve = lambda: False  # type: ignore[method-assign]
        rig.broker.cut()
        rig.advance(12)
        rig.broker.serve = serve  # type: ignore[method-assign]
        rig.broker.cut()
        rig.advance(5)
        assert rig.state() is SourceState.CONSUMING
        rig.side.confirm = rig.side.route
        rig.side.peer.send(0, spec.Connection.Unblocked())
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=30)
        rig.advance(12)
        assert len(rig.sink.named("hole_told")) == 1

    def test_a_queue_that_is_unbound_is_bound_again_and_told_of(self) -> None:
        """Queue mode has the same watch. Events that were published without the binding are one gap."""
        rig = SourceRig(consume="queue", silence_s=1000)
        rig.stream.bound = False
        rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.start()
        rig.advance(1)
        assert rig.source.status().ready
        rig.stream.bound = False
        rig.advance(12)
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=5)
        assert rig.sink.named("gap") == [("gap", "broker")]

    def test_under_passive_a_queue_is_bound_again(self, events: list[LogEvent]) -> None:
        """The queue is exclusive: nobody else can bind it. A missing exchange is waited for, and not declared."""
        rig = SourceRig(consume="queue", passive=True, silence_s=1000)
        rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.start()
        rig.advance(1)
        rig.stream.bound = False
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=17)
        assert any(formatEvent(event).endswith("towerws binds it again") for event in events)
        rig.stream.bound = rig.broker.exchange_exists = False
        rig.until(lambda: not rig.source.status().ready, within_s=15)
        rig.advance(120, step=0.5)
        assert not rig.broker.exchange_exists
        assert "no exchange 'towerws'" in rig.ready()[1]
        rig.broker.exchange_exists = True
        rig.until(lambda: rig.source.status().ready and rig.stream.bound, within_s=15)
        assert rig.sink.named("gap") == [("gap", "broker")] * 2
        assert len(rig.broker.peers) == 1

    def test_under_passive_a_queue_is_bound_again_while_markers_are_refused(self) -> None:
        """Nothing can show that the binding is missing. It is made once a minute, as without passive."""
        rig = SourceRig(consume="queue", passive=True, silence_s=1000)
        rig.side.may_publish = False
        rig.start()
        rig.stream.bound = False
        rig.advance(130, step=0.5)
        assert rig.stream.bound

    def test_another_daemons_hole_says_nothing_about_our_queue(self) -> None:
        """Two daemons with queues of their own found their bindings missing. The other one's marker comes first: clients are still told."""
        rig = SourceRig(consume="queue", silence_s=1000)
        rig.side.confirm = lambda peer, publication: queue_route(rig, peer, publication)
        rig.start()
        rig.advance(1)
        rig.stream.bound = False
        asked = rig.hold(spec.Queue.Bind)
        rig.until(lambda: bool(asked), within_s=15)
        rig.broker.peer.deliver(Marker("e" * 8, "dddddddd", 10**6).body, key="towerws.marker")
        rig.settle()
        rig.broker.queue_bind(*asked[0])
        rig.until(lambda: rig.source.status().ready, within_s=15)
        assert rig.sink.named("gap") == [("gap", "broker")]

    def test_a_client_that_waits_for_a_position_has_a_marker_sent(self) -> None:
        """One marker at a time, repeated while a client waits, and at most a few per second."""
        rig = SourceRig(silence_s=1000).consuming()
        sent = len(rig.side.markers)
        rig.sink.waiting = 3
        rig.sink.on_position_asked()
        rig.sink.on_position_asked()
        rig.settle()
        assert sent < len(rig.side.markers) <= sent + 3
        rig.sink.waiting = 0
        rig.advance(5)
        settled = len(rig.side.markers)
        assert settled <= sent + 8


def only_exchange(rig: SourceRig, peer: Peer, publication: Publication) -> None:
    """What a broker does with a marker of a user who may not write to `amq.default`."""
    if publication.method.exchange:
        rig.side.route(peer, publication)
    else:
        text = "ACCESS_REFUSED - write access to exchange 'amq.default' refused"
        peer.send(publication.channel, spec.Channel.Close(403, text, 60, 40))


def queue_route(rig: SourceRig, peer: Peer, publication: Publication) -> None:
    """What a broker does with a marker for a queue: it delivers it to our consumer, or returns it."""
    if rig.stream.bound or not publication.method.exchange:
        method = publication.method
        rig.broker.peer.deliver(publication.body, key=method.routing_key, message_id=publication.properties.message_id)
    else:
        peer.give_back(publication)
    ack(peer, publication)


class TestQueueMode:
    """The queue of a broker without streams, and the choice between stream and queue."""

    def test_topology(self) -> None:
        """An exclusive, auto-delete queue with the broker's name, bounded on the broker, bound with #."""
        rig = SourceRig(consume="queue")
        rig.start()
        assert rig.state() is SourceState.CONSUMING
        peer = rig.broker.peer
        (queue,) = peer.seen(spec.Queue.Declare)
        assert (queue.queue, queue.exclusive, queue.auto_delete, queue.durable) == ("", True, True, False)
        assert queue.arguments == {"x-max-length-bytes": 64 * 1024**2, "x-overflow": "drop-head", "x-message-ttl": 30000}
        assert [(m.queue, m.routing_key) for m in peer.seen(spec.Queue.Bind)] == [("", "#")]

    def test_one_gap_per_outage_and_offsets_go_on(self) -> None:
        """Offsets are counted from 1 for the life of the process. Each outage is one gap, which clients are told of afterwards."""
        rig = SourceRig(consume="queue")
        rig.start()
        rig.broker.peer.deliver(b"{}")
        rig.settle()
        for _ in range(2):
            rig.broker.cut()
            rig.broker.refuse = True
            rig.advance(3)
            assert rig.sink.calls[-1][0] != "gap"
            rig.broker.refuse = False
            rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=2)
            rig.broker.peer.deliver(b"{}")
            rig.settle()
        log = rig.sink.calls[0][1]
        assert isinstance(log, str)
        assert len(log) == 8
        assert [call[0] for call in rig.sink.calls if call[0] != "caught_up"] == [
            "begin",
            "deliver",
            "gap",
            "deliver",
            "gap",
            "deliver",
        ]
        assert rig.sink.offsets == [1, 2, 3]

    @each_row(("version", "mode"), [("3.10.8", "stream"), ("3.9.0", "stream"), ("4.1.0", "stream"), ("3.8.35", "queue"), ("?", "queue")])
    def test_auto_looks_at_the_version_first(self, version: str, mode: str) -> None:
        """Streams came with 3.9. An older broker, or one that names no version, gets a queue."""
        rig = SourceRig()
        rig.broker.version = version
        rig.consuming()
        assert rig.source.counters["mode"] == mode
        assert rig.source.counters["broker_version"] == version

    def test_a_stream_on_an_old_broker_is_an_error(self) -> None:
        """An old broker would make one queue that the processes share: nothing is declared, and the reason is clear."""
        rig = SourceRig(consume="stream")
        rig.broker.version = "3.7.21"
        rig.start()
        assert rig.state() is SourceState.BACKOFF
        assert "needs RabbitMQ 3.9 or later, this broker is 3.7.21" in (rig.source.status().reason or "")
        assert rig.broker.peer.seen(spec.Channel.Open) == []
        rig.advance(9.9)
        assert rig.broker.attempts == 1

    def test_an_upgraded_broker_changes_the_log(self) -> None:
        """From queue to stream: the sink is attached again without a comparison, and told of the gap."""
        rig = SourceRig()
        rig.broker.version = "3.8.0"
        rig.start()
        rig.broker.peer.deliver(b"{}")
        rig.settle()
        rig.broker.version = "3.10.8"
        rig.broker.cut()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=2)
        assert rig.sink.calls[-2:] == [("rewind", None), ("hole", 0)]


class TestDeliveries:
    """The way from the socket to the sink, and the acknowledgements."""

    def test_what_the_sink_gets(self) -> None:
        """Routing key, body, offset and message id arrive, in one batch per read."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        first, batches, before = rig.next, rig.sink.batches, dict(rig.source.counters)
        peer.deliver(b'{"a":1}', first, key="job_events.42", message_id="m-1")
        peer.deliver(b"", first + 1, key="jobs.x")
        rig.settle()
        assert rig.sink.named("deliver") == [
            ("deliver", "job_events.42", b'{"a":1}', first, "m-1"),
            ("deliver", "jobs.x", b"", first + 1, None),
        ]
        assert rig.sink.batches == batches + 1
        counters = rig.source.counters
        assert [counters[name] - before[name] for name in ("deliveries", "bytes")] == [2, 7]  # type: ignore[operator]

    def test_an_offset_has_64_bits(self) -> None:
        """A stream that is very old."""
        rig = SourceRig()
        rig.stream.next = 2**40
        rig.consuming()
        assert rig.write(b"{}") == rig.sink.offsets
        assert rig.sink.offsets[0] > 2**40

    def test_a_body_in_pieces(self) -> None:
        """Frames that are cut at any place, and a body of many frames, arrive complete."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        peer.deliver(b"x" * 100_000, rig.next)
        peer.deliver(b"y" * 7, rig.next + 1)
        data, peer.to_send = peer.to_send, b""
        for at in range(0, len(data), 999):
            peer.protocol.dataReceived(data[at : at + 999])
        big = b"z" * 300_000
        method = frame.Method(peer.channel, spec.Basic.Deliver("t", 3, False, "towerws", "jobs.x")).marshal()
        header = frame.Header(peer.channel, len(big), spec.BasicProperties(headers={"x-stream-offset": rig.next + 2})).marshal()
        bodies = [frame.Body(peer.channel, big[at : at + 131_064]).marshal() for at in range(0, len(big), 131_064)]
        peer.protocol.dataReceived(b"".join([method, header, *bodies]))
        assert [len(call[2]) for call in rig.sink.named("deliver")] == [100_000, 7, 300_000]  # type: ignore[arg-type]

    def test_a_turn_ends_after_1024(self) -> None:
        """A read with very many small deliveries is cut into batches."""
        rig = SourceRig().consuming()
        batches = rig.sink.batches
        for number in range(2100):
            rig.broker.peer.deliver(b"", rig.next + number)
        rig.settle()
        assert rig.sink.batches == batches + 3

    def test_nothing_is_read_while_a_turn_is_written(self) -> None:
        """The deliveries of one read are written before the next read begins. They are acknowledged without waiting for that."""
        rig = SourceRig().consuming()
        peer, rig.sink.holding = rig.broker.peer, True
        for number in range(200):
            peer.deliver(b"{}", rig.next + number)
        rig.settle()
        assert peer.transport.paused
        assert [ack.delivery_tag for ack in peer.seen(spec.Basic.Ack)] == [203]  # three markers came before
        (written,) = rig.sink.writing
        written(1000)
        assert not peer.transport.paused

    def test_a_batch_written_after_the_connection_failed_does_nothing(self) -> None:
        """The end of a batch comes late. It affects neither the old transport nor the new one."""
        rig = SourceRig().consuming()
        peer, rig.sink.holding = rig.broker.peer, True
        peer.deliver(b"{}", rig.next)
        rig.settle()
        rig.source.stop()
        rig.advance(10)
        assert peer.transport.aborted
        rig.sink.writing[0](1000)
        assert peer.transport.paused

    def test_a_sink_that_raises_at_the_end_of_a_turn_holds_nothing_up(self, events: list[LogEvent]) -> None:
        """No call would report that the batch is written: reading goes on."""
        rig = SourceRig().consuming()
        rig.sink.broken_batches = True
        rig.broker.peer.deliver(b"{}", rig.next)
        rig.settle()
        assert not rig.broker.peer.transport.paused
        assert rig.source.counters["sink_errors"] == 1
        assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]

    def test_a_sink_that_raises_while_an_earlier_batch_is_written_holds_nothing_up(self) -> None:
        """Reading goes on then, too. The end of the earlier batch changes nothing."""
        rig = SourceRig().consuming()
        peer, rig.sink.holding = rig.broker.peer, True
        peer.deliver(b"{}", rig.next)
        rig.settle()
        paused = [peer.transport.paused]
        rig.sink.broken_batches = True
        peer.deliver(b"{}", rig.next + 1)  # with TLS bytes may come after the pause
        rig.settle()
        paused.append(peer.transport.paused)
        rig.sink.writing[0](1000)
        paused.append(peer.transport.paused)
        assert paused == [True, False, False]

    def test_acks_go_in_batches(self) -> None:
        """128 deliveries are acknowledged at once, fewer after 50 ms, and no timer runs when none is open."""
        rig = SourceRig().consuming()
        rig.advance(0.05)
        peer = rig.broker.peer
        before = len(peer.seen(spec.Basic.Ack))
        for number in range(127):
            peer.deliver(b"{}", rig.next + number)
        rig.settle()
        assert len(peer.seen(spec.Basic.Ack)) == before
        rig.advance(0.05)
        for number in range(127, 255):
            peer.deliver(b"{}", rig.next + number)
        rig.settle()
        rig.advance(1)
        acks = [(ack.delivery_tag - 3, ack.multiple) for ack in peer.seen(spec.Basic.Ack)[before:]]  # three markers came before
        assert acks == [(127, True), (255, True)]

    def test_a_small_prefetch_is_not_starved(self) -> None:
        """With a prefetch below the batch, deliveries are acknowledged at half of it."""
        rig = SourceRig(prefetch=10).consuming()
        for number in range(2):
            rig.broker.peer.deliver(b"{}", rig.next + number)
        rig.settle()
        assert [ack.delivery_tag for ack in rig.broker.peer.seen(spec.Basic.Ack)] == [5]  # three markers came before

    def test_a_sink_that_raises_ends_nothing(self, events: list[LogEvent]) -> None:
        """An exception from the sink is logged once and counted. The connection stays, and the next delivery arrives."""
        rig = SourceRig().consuming()
        rig.sink.broken = True
        rig.write(b"{}", b"{}")
        rig.sink.broken = False
        (third,) = rig.write(b"{}")
        assert rig.sink.offsets == [third]
        assert rig.source.counters["sink_errors"] == 2
        assert rig.state() is SourceState.CONSUMING
        assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]

    def test_the_first_message_of_a_read_says_when_it_was_published(self) -> None:
        """One time for each batch: that of the read's first message, None if that one has none. The next read begins again."""
        rig = SourceRig().consuming()
        del rig.sink.published[:]
        peer, first = rig.broker.peer, rig.next
        for number, moment in enumerate([1_800_000_000_123, 1_800_000_000_456]):
            peer.deliver_raw(stream_properties(field(b"timestamp_in_ms", b"l", struct.pack(">q", moment)), first + number), b"{}")
        rig.settle()
        peer.deliver(b"{}", first + 2)
        rig.settle()
        assert rig.sink.published == [PublishedAt(1_800_000_000.123, "millisecond"), None]

    def test_a_routing_key_that_is_not_utf8_stays_distinct(self) -> None:
        """Bytes that are not UTF-8 arrive escaped, so that the sink can refuse them by name."""
        rig = SourceRig().consuming()
        rig.broker.peer.deliver_raw(stream_properties(b"", rig.next), b"{}", key=b"jobs.\xff")
        rig.settle()
        assert rig.sink.named("deliver")[0][1] == "jobs.\\xff"


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    """Return one entry of a field table."""
    return bytes([len(name)]) + name + kind + value


def stream_properties(fields: bytes, offset: int) -> bytes:
    """Return property flags and headers: the given fields, then the stream's offset."""
    table = fields + field(b"x-stream-offset", b"l", struct.pack(">q", offset))
    return struct.pack(">HI", 0x2000, len(table)) + table


def nested(depth: int) -> bytes:
    """Return an array in an array in an array."""
    value = b""
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


HARMLESS = {
    "nan": field(b"h", b"d", struct.pack(">d", float("nan"))),
    "infinity": field(b"h", b"f", struct.pack(">f", float("inf"))),
    "timestamp 2^62": field(b"h", b"T", struct.pack(">Q", 2**62)),
    "depth 2000": field(b"h", b"", nested(2000)),
    "100 kB": field(b"h", b"S", struct.pack(">I", 100_000) + b"x" * 100_000),
}
DAMAGED = {
    "unknown type": field(b"h", b"?", b"1234"),
    "a length out of the frame": field(b"h", b"S", struct.pack(">I", 2**31)),
}


class TestPoisonHeaders:
    """Pitfall F10."""

    @each_row("name", HARMLESS)
    def test_what_pika_cannot_decode_is_no_harm(self, name: str) -> None:
        """A header that would end pika's connection is not decoded: the message and its neighbours arrive."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        first = rig.next
        peer.deliver(b"{}", first)
        peer.deliver_raw(stream_properties(HARMLESS[name], first + 1), b"{}")
        peer.deliver(b"{}", first + 2)
        rig.settle()
        assert rig.sink.offsets == [first, first + 1, first + 2]
        assert rig.source.counters["failures"] == 0

    @each_row("name", DAMAGED)
    def test_a_damaged_header_costs_its_own_message(self, name: str) -> None:
        """A delivery whose header has no readable offset is counted, skipped and acknowledged. Nothing is fetched again."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        first = rig.next
        peer.deliver(b"{}", first)
        peer.deliver_raw(stream_properties(DAMAGED[name], first + 1), b"{}")
        peer.deliver(b"{}", first + 2)
        rig.settle()
        rig.advance(0.05)
        assert rig.sink.offsets == [first, first + 2]
        assert (rig.source.counters["poison_headers"], rig.source.counters["failures"]) == (1, 0)
        assert peer.seen(spec.Basic.Ack)[-1].delivery_tag == 6

    def test_a_queue_needs_no_header(self) -> None:
        """In queue mode a damaged header is counted, and the message arrives."""
        rig = SourceRig(consume="queue")
        rig.start()
        rig.broker.peer.deliver_raw(stream_properties(DAMAGED["unknown type"], 2), b"{}")
        rig.settle()
        assert rig.sink.offsets == [1]
        assert rig.source.counters["poison_headers"] == 1


STEPS = {
    "protocol header": frame.ProtocolHeader,
    "start-ok": spec.Connection.StartOk,
    "open": spec.Connection.Open,
    "channel": spec.Channel.Open,
    "exchange": spec.Exchange.Declare,
    "queue": spec.Queue.Declare,
    "bind": spec.Queue.Bind,
    "qos": spec.Basic.Qos,
    "consume": spec.Basic.Consume,
}


class TestSilence:
    """Pitfalls F1 and F12."""

    @each_row("step", STEPS)
    @each_row("consume", ["queue", "stream"])
    def test_a_mute_broker_costs_one_deadline(self, step: str, consume: str) -> None:
        """Silence at any step ends the attempt within attempt_s and aborts the transport, and the other host is tried."""
        clock = Clock()
        mute, good = FakeBroker(clock), FakeBroker(clock)
        rig = SourceRig({"mute": mute, "good": good}, consume=consume)
        rig.stream.exists = rig.stream.bound = False
        mute.mute = STEPS[step]
        good.mute = STEPS[step]
        rig.start()
        first = mute if mute.attempts else good
        other = good if first is mute else mute
        other.mute = None
        rig.advance(9.9)
        assert other.attempts == 0
        rig.until(lambda: other.attempts == 1, within_s=0.7)
        assert first.peer.transport.aborted
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)

    def test_tcp_silence_counts_too(self) -> None:
        """A SYN that is never answered ends at the same deadline. A later answer is aborted."""
        rig = SourceRig()
        rig.broker.connecting = []
        rig.start()
        rig.advance(10)
        assert rig.state() is SourceState.BACKOFF
        assert "no answer from the broker within 10 s" in (rig.source.status().reason or "")
        rig.broker.accept()
        assert rig.broker.peer.transport.aborted
        assert rig.state() is SourceState.BACKOFF

    def test_the_backoff_grows_to_its_cap(self) -> None:
        """Attempts at a mute broker come at growing intervals, never more than backoff_max_s apart, without end."""
        rig = SourceRig()
        rig.broker.mute = frame.ProtocolHeader
        rig.start()
        delays = []
        for _ in range(12):
            rig.until(lambda: rig.state() is SourceState.BACKOFF, within_s=10.1)
            delays.append(rig.until(lambda: rig.state() is not SourceState.BACKOFF, within_s=10.1))
        assert max(delays[:2]) <= 1.1
        assert max(delays[5:]) > 5
        rig.broker.mute = None
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=21)

    def test_nothing_received_aborts(self) -> None:
        """A dead network is noticed after silence_s although unsent bytes are queued. The connection is aborted."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        rig.write(b"{}")
        peer.receive = lambda: None  # type: ignore[method-assign]  # our heartbeats and acks pile up unsent
        start = rig.clock.seconds()
        while rig.state() is SourceState.CONSUMING and rig.clock.seconds() - start < 30:
            rig.clock.advance(0.5)
        assert rig.clock.seconds() - start <= 20.5
        assert peer.transport.aborted
        assert rig.source.status().reason is not None

    def test_a_broker_that_is_heard_is_kept(self) -> None:
        """Heartbeats are enough to keep an idle connection."""
        rig = SourceRig().consuming()
        for _ in range(20):
            rig.broker.peer.to_send += frame.Heartbeat().marshal()
            rig.advance(5, step=1)
        assert rig.state() is SourceState.CONSUMING
        assert rig.broker.attempts == 1


class TestFailures:
    """Pitfalls F11 and F13."""

    @each_row(
        ("step", "code", "text", "hint"),
        [
            (
                spec.Connection.StartOk,
                403,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.",
                "check user and password",
            ),
            (spec.Connection.Open, 530, "NOT_ALLOWED - vhost nope not found", "vhost at the end of the broker URL"),
            (spec.Connection.Open, 530, "NOT_ALLOWED - access to vhost '/' refused for user 'towerws'", "rabbitmqctl set_permissions"),
        ],
    )
    def test_a_refusal_is_explained(self, step: type, code: int, text: str, hint: str) -> None:
        """The broker's code and text are kept, with the next step. It is retried slowly, and no password is shown."""
        rig = SourceRig()
        rig.broker.answers[step] = rig.broker.close_connection(code, text)
        rig.start()
        status = rig.source.status()
        assert status.state is SourceState.BACKOFF
        assert (status.reason or "").startswith(f"{code} {text}")
        assert hint in (status.reason or "")
        assert status.details["last_code"] == code
        assert PASSWORD not in repr(status)
        rig.advance(9.9)
        assert rig.broker.attempts == 1
        rig.advance(1)
        assert rig.broker.attempts == 2

    def test_a_forced_close_is_named_and_short(self) -> None:
        """320 while consuming: its text is kept, and the next attempt comes within backoff_min_s."""
        rig = SourceRig().consuming()
        rig.broker.peer.send(0, spec.Connection.Close(320, "CONNECTION_FORCED - Closed via management", 0, 0))
        rig.settle()
        assert rig.source.status().reason == "320 CONNECTION_FORCED - Closed via management"
        rig.until(lambda: rig.broker.attempts == 2, within_s=0.55)

    def test_a_refused_connection_is_retried_about_every_second(self) -> None:
        """A refused connection is retried about every second at most, so that a broker that returns is found soon."""
        rig = SourceRig()
        rig.broker.refuse = True
        rig.start()
        rig.advance(60)
        assert rig.broker.attempts >= 60
        assert "connection refused (nothing listens there" in (rig.source.status().reason or "")
        rig.broker.refuse = False
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1.5)

    def test_one_log_line_per_reason_and_minute(self, events: list[LogEvent]) -> None:
        """A repeated reason is logged once a minute. The status always has it."""
        rig = SourceRig()
        rig.broker.refuse = True
        rig.start()
        rig.advance(59)
        assert len([event for event in events if "connection refused" in formatEvent(event)]) == 1
        rig.advance(3)
        assert len([event for event in events if "connection refused" in formatEvent(event)]) == 2

    def test_the_name_of_a_queue_makes_no_other_reason(self, events: list[LogEvent]) -> None:
        """Each attempt gets a queue of another name. The same refusal is still logged once a minute."""
        rig = SourceRig(consume="queue")
        refused: list[str] = []

        def consume(peer: Peer, channel: int, _: object) -> None:
            refused.append(f"amq.gen-{len(refused):02d}_x-Y")
            text = f"ACCESS_REFUSED - read access to queue '{refused[-1]}' in vhost '/' refused for user 'towerws'"
            peer.send(channel, spec.Channel.Close(403, text, 60, 20))

        rig.broker.answers[spec.Basic.Consume] = consume
        rig.start()
        rig.advance(55)
        assert len(refused) >= 5
        assert refused[-1] in rig.ready()[1]
        assert len([event for event in events if "ACCESS_REFUSED" in formatEvent(event)]) == 1

    def test_406_says_which_argument_differs(self) -> None:
        """A stream that exists with other arguments: the reason names the argument, both values, and the next step."""
        what = "inequivalent arg 'x-max-age' for queue 'towerws.events' in vhost '/': received '3600s' but current is '7200s'"
        text = f"PRECONDITION_FAILED - {what}"
        rig = SourceRig()
        rig.broker.answers[spec.Queue.Declare] = rig.broker.close_channel(406, text)
        rig.start()
        rig.advance(0.3)
        reason = rig.source.status().reason or ""
        assert "queue 'towerws.events' exists with x-max-age '7200s', we asked for '3600s': set stream_max_age_s" in reason

    def test_a_node_without_a_replica_is_left_for_the_next(self) -> None:
        """406 for a missing local replica: another node is tried at once."""
        clock = Clock()
        rig = SourceRig({"a": FakeBroker(clock), "b": FakeBroker(clock)})
        text = "PRECONDITION_FAILED - stream queue 'towerws.events' in vhost '/' does not have a replica on the local node"
        for broker in rig.brokers.values():
            broker.answers[spec.Basic.Consume] = broker.close_channel(406, text)
        rig.start()
        first = next(broker for broker in rig.brokers.values() if broker.attempts)
        other = next(broker for broker in rig.brokers.values() if not broker.attempts)
        other.answers.clear()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1.5)
        assert (first.attempts, other.attempts) == (1, 1)

    def test_what_is_not_amqp_is_said(self) -> None:
        """A web server on that port is recognized by its first bytes, not by the deadline."""
        rig = SourceRig()
        rig.broker.mute = frame.ProtocolHeader
        rig.start()
        rig.broker.peer.to_send = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        rig.settle()
        assert "not AMQP 0-9-1" in (rig.source.status().reason or "")

    def test_steady_consuming_forgives(self) -> None:
        """After 30 s of consuming the backoff starts over."""
        rig = SourceRig()
        rig.broker.mute = frame.ProtocolHeader
        rig.start()
        rig.advance(90, step=0.5)
        rig.broker.mute = None
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=21)
        for _ in range(7):
            rig.broker.peer.to_send += frame.Heartbeat().marshal()
            rig.advance(5, step=0.5)
        rig.broker.cut()
        rig.broker.mute = frame.ProtocolHeader
        assert rig.until(lambda: rig.state() is SourceState.HANDSHAKE, within_s=10) <= 0.55
        assert rig.until(lambda: rig.state() is SourceState.BACKOFF, within_s=20) <= 10.1
        assert rig.until(lambda: rig.state() is SourceState.HANDSHAKE, within_s=20) <= 0.55


class TestChannelFailures:
    """What the broker takes away while the connection is open."""

    def cancel(self, rig: SourceRig) -> None:
        """The broker cancels the newest consumer."""
        peer = rig.broker.peer
        peer.send(peer.channel, spec.Basic.Cancel(peer.consumers[peer.channel], True))
        rig.settle()

    def test_a_cancelled_consumer_costs_its_channel_only(self) -> None:
        """The queue was deleted: a new channel on the same connection, with the whole topology, and one gap."""
        rig = SourceRig(consume="queue")
        rig.start()
        self.cancel(rig)
        rig.settle()
        assert rig.state() is SourceState.CONSUMING
        assert len(rig.broker.peers) == 1
        assert len(rig.broker.peer.seen(spec.Queue.Declare)) == 2
        assert rig.sink.named("gap") == [("gap", "broker")]
        assert len(rig.broker.peer.seen(spec.Channel.Close)) == 1

    def test_a_closed_channel_is_opened_again(self) -> None:
        """406 on the consuming channel (an unknown delivery tag, an ack timeout): a new channel on the same connection."""
        rig = SourceRig(consume="queue")
        rig.start()
        peer = rig.broker.peer
        peer.send(peer.channel, spec.Channel.Close(406, "PRECONDITION_FAILED - unknown delivery tag 5", 60, 80))
        rig.settle()
        assert rig.state() is SourceState.CONSUMING
        assert len(rig.broker.peers) == 1
        assert rig.source.counters["last_code"] == 406

    def test_too_many_end_the_connection(self) -> None:
        """The fourth channel failure within 60 s ends the connection. The next attempt comes soon."""
        rig = SourceRig(consume="queue")
        rig.start()
        for _ in range(3):
            self.cancel(rig)
        assert (rig.state(), len(rig.broker.peers)) == (SourceState.CONSUMING, 1)
        self.cancel(rig)
        assert rig.state() is SourceState.BACKOFF
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        assert len(rig.broker.peers) == 2

    def test_silence_after_a_channel_failure_has_a_deadline(self) -> None:
        """A topology that is not answered the second time ends the attempt, too."""
        rig = SourceRig(consume="queue")
        rig.start()
        rig.broker.mute = spec.Channel.Open
        self.cancel(rig)
        assert rig.state() is SourceState.TOPOLOGY
        for _ in range(20):
            rig.broker.peer.to_send += frame.Heartbeat().marshal()
            rig.advance(0.5, step=0.5)
        assert rig.state() is SourceState.BACKOFF


class TestLate:
    """Events of attempts that have ended."""

    def test_an_old_attempt_is_not_heard(self) -> None:
        """Late events of an ended attempt's transport change nothing."""
        rig = SourceRig(consume="queue")
        rig.start()
        old = rig.broker.peer
        old.send(0, spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0))
        old.deliver(b"{}")
        rig.settle()
        rig.until(lambda: rig.state() is SourceState.CONSUMING, within_s=1)
        before = list(rig.sink.calls)
        old.deliver(b"{}")
        old.protocol.dataReceived(old.to_send)
        old.protocol.connectionLost()
        assert rig.sink.calls == before
        assert rig.state() is SourceState.CONSUMING
        assert rig.source.counters["failures"] == 1


class TestStop:
    """Stopping the source."""

    def test_an_orderly_end(self) -> None:
        """Everything is acknowledged, the channel and the connection are closed, and no timer is left."""
        rig = SourceRig().consuming()
        peer = rig.broker.peer
        peer.deliver(b"{}", 1)
        rig.settle()
        done: list[None] = []
        rig.source.stop().addCallback(done.append)
        rig.settle()
        assert done == [None]
        assert [type(m).__name__ for _, m in peer.methods[-4:]] == ["Ack", "Cancel", "Close", "Close"]
        assert rig.state() is SourceState.STOPPED
        assert rig.clock.getDelayedCalls() == []

    def test_a_black_hole_does_not_hold_it_up(self) -> None:
        """A stop ends within 2 s, always."""
        rig = SourceRig().consuming()
        rig.broker.mute = object
        done: list[None] = []
        rig.source.stop().addCallback(done.append)
        rig.source.stop().addCallback(done.append)
        rig.advance(1.9)
        assert done == []
        rig.advance(0.2)
        assert done == [None, None]
        assert rig.broker.peer.transport.aborted
        assert rig.clock.getDelayedCalls() == []

    @each_row("when", ["idle", "connecting", "handshake", "topology", "backoff", "stopped"])
    def test_from_every_state(self, when: str) -> None:
        """stop fires in every state. After it nothing is attempted, and start has no effect."""
        rig = SourceRig(consume="queue")
        if when == "connecting":
            rig.broker.connecting = []
        rig.broker.mute = {"handshake": frame.ProtocolHeader, "topology": spec.Channel.Open}.get(when)
        rig.broker.refuse = when == "backoff"
        if when != "idle":
            rig.start()
        if when == "stopped":
            rig.source.stop()
            rig.advance(2)
        done: list[None] = []
        rig.source.stop().addCallback(done.append)
        rig.advance(2.1)
        assert done == [None]
        attempts = rig.broker.attempts
        rig.source.start()
        rig.advance(60, step=1)
        assert rig.broker.attempts == attempts
        assert rig.clock.getDelayedCalls() == []

    def test_nothing_is_delivered_after_it(self) -> None:
        """Deliveries on the way go nowhere after stop was called."""
        rig = SourceRig().consuming()
        rig.broker.peer.deliver(b"{}", 1)
        rig.source.stop()
        rig.settle()
        assert rig.sink.offsets == []
