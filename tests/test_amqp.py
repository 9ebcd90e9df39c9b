from __future__ import annotations

import datetime as dt
import random
import struct
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from pika import frame, spec
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.fake_amqp import FakeBroker, RecordingSink
from towerws.amqp import AmqpSource
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.sources import SourceState

NOON = dt.datetime(2026, 5, 1, 12, 0, 0, tzinfo=dt.UTC)
PASSWORD = "canary-hunter2"


def url(host: str) -> BrokerUrl:
    """A broker of that name."""
    return BrokerUrl(host, 5672, "towerws", Secret(PASSWORD), "/", tls=False)


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """What was logged meanwhile."""
    seen: list[LogEvent] = []
    observe = cast("ILogObserver", seen.append)
    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class House:
    """A source with fake brokers by host name, a recording sink and a clock."""

    def __init__(self, brokers: dict[str, FakeBroker] | None = None, **settings: object) -> None:
        self.clock = Clock()
        self.sink = RecordingSink()
        self.brokers = brokers or {"one": FakeBroker(self.clock)}
        for broker in self.brokers.values():
            broker.clock = self.clock
        urls = tuple(url(host) for host in self.brokers)
        self.settings = BrokerSettings(urls=urls, **settings)  # type: ignore[arg-type]
        self.source = AmqpSource(
            self.settings,
            self.sink,
            self.clock,
            endpoint=lambda broker_url: self.brokers[broker_url.host],
            rng=random.Random(1),
            wall=lambda: NOON,
        )

    @property
    def broker(self) -> FakeBroker:
        """The first of the brokers."""
        return next(iter(self.brokers.values()))

    def state(self) -> SourceState:
        """Where the source stands."""
        return self.source.status().state

    def settle(self) -> None:
        """Let bytes travel; the clock stands still."""
        for broker in self.brokers.values():
            broker.settle()

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass with bytes travelling meanwhile."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.settle()

    def start(self) -> None:
        """Start the source, and let it come as far as it does at once."""
        self.source.start()
        self.settle()

    def consuming(self) -> House:
        """Started, and past the probe of an empty stream."""
        self.start()
        self.advance(0.3)
        assert self.state() is SourceState.CONSUMING
        return self

    def until(self, what: Callable[[], bool], within_s: float) -> float:
        """Advance until it is so; how long it took."""
        start = self.clock.seconds()
        while not what():
            assert self.clock.seconds() - start <= within_s, f"not within {within_s} s: {self.source.status()}"
            self.advance(0.05)
        return self.clock.seconds() - start


def consume_starts(broker: FakeBroker) -> list[object]:
    """The x-stream-offset of every consumer there was."""
    return [method.arguments.get("x-stream-offset") for peer in broker.peers for method in peer.seen(spec.Basic.Consume)]


class TestStreamStart:
    """The first attach to a stream."""

    def test_an_empty_stream_is_declared_bound_and_consumed(self) -> None:
        """The first start declares everything and consumes with manual acks and the configured prefetch."""
        house = House(prefetch=77).consuming()
        peer = house.broker.peer
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
        assert peer.seen(spec.Basic.Qos)[-1].prefetch_count == 77
        assert not peer.seen(spec.Basic.Consume)[-1].no_ack
        assert consume_starts(house.broker) == ["last", NOON - dt.timedelta(seconds=120)]
        assert house.sink.calls == [("attach", None, None), ("caught_up",)]

    def test_a_stream_that_is_not_there_is_made(self) -> None:
        """404 to the probe costs its channel only; the stream is declared and consumed on the same connection."""
        house = House()
        house.broker.stream_exists = False
        house.start()
        assert house.state() is SourceState.CONSUMING
        assert len(house.broker.peers) == 1

    def test_refill_ends_at_the_head(self) -> None:
        """Until the last chunk at the start has arrived the source is refilling; then it says caught_up and is ready."""
        house = House()
        house.broker.last_chunk = 41
        house.start()
        assert house.state() is SourceState.REFILLING
        house.broker.peer.deliver(b"{}", 40)
        house.settle()
        assert (house.state(), house.sink.named("caught_up")) == (SourceState.REFILLING, [])
        house.broker.peer.deliver(b"{}", 41)
        house.settle()
        assert house.state() is SourceState.CONSUMING
        assert [call[0] for call in house.sink.calls] == ["attach", "deliver", "deliver", "caught_up"]

    def test_an_idle_stream_is_read_from_its_last_chunk(self) -> None:
        """A timestamp behind the last chunk delivers nothing: after 0.5 s the head is fetched by its number."""
        house = House()
        house.broker.last_chunk = 41
        house.start()
        house.advance(0.6)
        assert consume_starts(house.broker) == ["last", NOON - dt.timedelta(seconds=120), 41]
        house.broker.peer.deliver(b"{}", 41)
        house.settle()
        assert house.state() is SourceState.CONSUMING
        assert house.sink.offsets == [41]

    def test_a_refill_without_progress_ends(self) -> None:
        """Refilling has a deadline: attempt_s without one more delivery, and it is taken as done."""
        house = House()
        house.broker.last_chunk = 41
        house.start()
        house.broker.peer.deliver(b"{}", 30)
        house.settle()
        assert house.state() is not SourceState.CONSUMING
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=21)

    def test_passive_declares_nothing(self) -> None:
        """With passive set every declaration only looks, and nothing is bound."""
        house = House(passive=True).consuming()
        assert all(m.passive for m in house.broker.peer.seen(spec.Exchange.Declare) + house.broker.peer.seen(spec.Queue.Declare))
        assert house.broker.peer.seen(spec.Queue.Bind) == []

    def test_passive_says_what_is_missing(self) -> None:
        """A missing exchange in passive mode is an operator's matter: named, with the next step."""
        house = House(passive=True)
        house.broker.answers[spec.Exchange.Declare] = house.broker.close_channel(404, "NOT_FOUND - no exchange 'towerws' in vhost '/'")
        house.start()
        house.advance(0.3)
        reason = house.source.status().reason or ""
        assert reason.startswith("404 NOT_FOUND - no exchange 'towerws'")
        assert "passive = false" in reason


class TestResume:
    """Going on in a stream after a loss."""

    def lose(self, house: House) -> None:
        """The link is lost and found again."""
        house.broker.cut()
        assert house.state() is SourceState.BACKOFF
        house.until(lambda: house.state() is not SourceState.BACKOFF, within_s=0.6)
        house.settle()

    def house(self) -> House:
        """Consuming, with 7 as head."""
        house = House().consuming()
        house.broker.peer.deliver(b"{}", 7)
        house.settle()
        return house

    def test_a_lost_link_goes_on_at_the_head(self) -> None:
        """After a loss the head is asked for once more, and the sink is told to expect it."""
        house = self.house()
        self.lose(house)
        assert consume_starts(house.broker)[-1] == 7
        assert house.sink.calls[-1] == ("attach", None, 7)
        house.broker.peer.deliver(b"{}", 7)
        house.broker.peer.deliver(b"{}", 8)
        house.settle()
        assert house.state() is SourceState.CONSUMING
        assert house.sink.offsets == [7, 7, 8]
        assert house.sink.named("gap") == []

    def test_a_stream_made_anew_by_us_is_read_from_its_first(self) -> None:
        """The passive look says 404: the offsets begin again, so consuming starts at the first, with the check on."""
        house = self.house()
        house.broker.stream_exists = False
        self.lose(house)
        assert consume_starts(house.broker)[-1] == "first"
        assert house.sink.calls[-2:] == [("attach", None, 7), ("caught_up",)]
        assert house.state() is SourceState.CONSUMING

    def test_a_stream_made_anew_by_others_does_not_stay_mute(self) -> None:
        """A number behind the end delivers nothing, ever: after 1 s without the head consuming starts by time."""
        house = self.house()
        self.lose(house)
        assert house.state() is SourceState.REFILLING
        house.advance(1)
        assert consume_starts(house.broker)[-2:] == [7, NOON - dt.timedelta(seconds=120)]
        assert house.sink.calls[-2:] == [("attach", None, 7), ("caught_up",)]
        assert house.state() is SourceState.CONSUMING

    def test_deliveries_of_an_abandoned_start_are_ignored(self) -> None:
        """What the first consumer of a start sends after the second one took over reaches nobody."""
        house = self.house()
        self.lose(house)
        peer = house.broker.peer
        abandoned = peer.channel
        house.clock.advance(1)
        peer.deliver(b"{}", 9, channel=abandoned)
        house.settle()
        assert house.sink.offsets == [7]


class TestQueueMode:
    """The queue of a broker without streams, and the choice between the two."""

    def test_topology(self) -> None:
        """An exclusive, auto-delete queue with the broker's name, bounded on the broker, bound with #."""
        house = House(consume="queue")
        house.start()
        assert house.state() is SourceState.CONSUMING
        peer = house.broker.peer
        (queue,) = peer.seen(spec.Queue.Declare)
        assert (queue.queue, queue.exclusive, queue.auto_delete, queue.durable) == ("", True, True, False)
        assert queue.arguments == {"x-max-length-bytes": 64 * 1024**2, "x-overflow": "drop-head", "x-message-ttl": 30000}
        assert [(m.queue, m.routing_key) for m in peer.seen(spec.Queue.Bind)] == [("", "#")]

    def test_one_gap_per_outage_and_offsets_go_on(self) -> None:
        """Offsets are counted from 1 for the life of the process; each outage is one gap, told once consuming again."""
        house = House(consume="queue")
        house.start()
        house.broker.peer.deliver(b"{}")
        house.settle()
        for _ in range(2):
            house.broker.cut()
            house.broker.refuse = True
            house.advance(3)
            assert house.sink.calls[-1][0] != "gap"
            house.broker.refuse = False
            house.until(lambda: house.state() is SourceState.CONSUMING, within_s=2)
            house.broker.peer.deliver(b"{}")
            house.settle()
        log = house.sink.calls[0][1]
        assert isinstance(log, str)
        assert len(log) == 8
        assert [call[0] for call in house.sink.calls if call[0] != "caught_up"] == [
            "attach",
            "deliver",
            "gap",
            "deliver",
            "gap",
            "deliver",
        ]
        assert house.sink.offsets == [1, 2, 3]

    @pytest.mark.parametrize(
        ("version", "mode"), [("3.10.8", "stream"), ("3.9.0", "stream"), ("4.1.0", "stream"), ("3.8.35", "queue"), ("?", "queue")]
    )
    def test_auto_looks_at_the_version_first(self, version: str, mode: str) -> None:
        """Streams came with 3.9; an older broker, or one that does not say, gets a queue."""
        house = House()
        house.broker.version = version
        house.consuming()
        assert house.source.counters["mode"] == mode
        assert house.source.counters["broker_version"] == version

    def test_a_stream_on_an_old_broker_is_an_error(self) -> None:
        """An old broker would make one queue that the processes share: nothing is declared, the reason is clear."""
        house = House(consume="stream")
        house.broker.version = "3.7.21"
        house.start()
        assert house.state() is SourceState.BACKOFF
        assert "needs RabbitMQ 3.9 or later, this broker is 3.7.21" in (house.source.status().reason or "")
        assert house.broker.peer.seen(spec.Channel.Open) == []
        house.advance(9.9)
        assert house.broker.attempts == 1

    def test_an_upgraded_broker_changes_the_log(self) -> None:
        """From queue to stream: the sink is attached anew without a check, and told of the gap."""
        house = House()
        house.broker.version = "3.8.0"
        house.start()
        house.broker.peer.deliver(b"{}")
        house.settle()
        house.broker.version = "3.10.8"
        house.broker.cut()
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=2)
        assert house.sink.calls[-3:] == [("attach", None, None), ("gap", "broker"), ("caught_up",)]


class TestDeliveries:
    """From the socket to the sink, and the acknowledgements."""

    def test_what_the_sink_gets(self) -> None:
        """Routing key, body, offset and message id arrive; one turn per read."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b'{"a":1}', 0, key="job_events.42", message_id="m-1")
        peer.deliver(b"", 2**40, key="jobs.x")
        house.settle()
        assert house.sink.named("deliver") == [
            ("deliver", "job_events.42", b'{"a":1}', 0, "m-1"),
            ("deliver", "jobs.x", b"", 2**40, None),
        ]
        assert house.sink.turns == 1
        assert (house.source.counters["deliveries"], house.source.counters["octets"]) == (2, 7)

    def test_a_body_in_pieces(self) -> None:
        """Frames cut anywhere, and a body of many frames, come out whole."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b"x" * 100_000, 5)
        peer.deliver(b"y" * 7, 6)
        data, peer.to_send = peer.to_send, b""
        for at in range(0, len(data), 999):
            peer.protocol.dataReceived(data[at : at + 999])
        big = b"z" * 300_000
        method = frame.Method(peer.channel, spec.Basic.Deliver("t", 3, False, "towerws", "jobs.x")).marshal()
        header = frame.Header(peer.channel, len(big), spec.BasicProperties(headers={"x-stream-offset": 7})).marshal()
        bodies = [frame.Body(peer.channel, big[at : at + 131_064]).marshal() for at in range(0, len(big), 131_064)]
        peer.protocol.dataReceived(b"".join([method, header, *bodies]))
        assert [len(call[2]) for call in house.sink.named("deliver")] == [100_000, 7, 300_000]  # type: ignore[arg-type]

    def test_a_turn_ends_after_1024(self) -> None:
        """A read that brings very many small deliveries is cut into turns."""
        house = House().consuming()
        for offset in range(2100):
            house.broker.peer.deliver(b"", offset)
        house.settle()
        assert house.sink.turns == 3

    def test_nothing_is_read_while_a_turn_is_written(self) -> None:
        """What one read brought is written before the next one is begun; deliveries are acknowledged all the same."""
        house = House().consuming()
        peer, house.sink.holding = house.broker.peer, True
        for offset in range(200):
            peer.deliver(b"{}", offset)
        house.settle()
        assert peer.transport.paused
        assert [ack.delivery_tag for ack in peer.seen(spec.Basic.Ack)] == [200]
        (written,) = house.sink.held
        written(1000)
        assert not peer.transport.paused

    def test_a_turn_written_after_the_link_is_lost_does_nothing(self) -> None:
        """Its end comes late, and touches neither the old transport nor the new one."""
        house = House().consuming()
        peer, house.sink.holding = house.broker.peer, True
        peer.deliver(b"{}", 1)
        house.settle()
        house.source.stop()
        house.advance(10)
        assert peer.transport.aborted
        house.sink.held[0](1000)
        assert peer.transport.paused

    def test_a_sink_that_raises_at_the_end_of_a_turn_holds_nothing_up(self, events: list[LogEvent]) -> None:
        """Nobody would say that it is written: reading goes on."""
        house = House().consuming()
        house.sink.broken_turns = True
        house.broker.peer.deliver(b"{}", 1)
        house.settle()
        assert not house.broker.peer.transport.paused
        assert house.source.counters["sink_errors"] == 1
        assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]

    def test_acks_go_in_batches(self) -> None:
        """128 deliveries are acknowledged at once, fewer after 50 ms, and no timer runs when nothing is open."""
        house = House().consuming()
        peer = house.broker.peer
        for offset in range(127):
            peer.deliver(b"{}", offset)
        house.settle()
        assert peer.seen(spec.Basic.Ack) == []
        house.advance(0.05)
        for offset in range(127, 255):
            peer.deliver(b"{}", offset)
        house.settle()
        house.advance(1)
        assert [(ack.delivery_tag, ack.multiple) for ack in peer.seen(spec.Basic.Ack)] == [(127, True), (255, True)]

    def test_a_small_prefetch_is_not_starved(self) -> None:
        """With a prefetch below the batch, acks go at half of it."""
        house = House(prefetch=10).consuming()
        for offset in range(5):
            house.broker.peer.deliver(b"{}", offset)
        house.settle()
        assert [ack.delivery_tag for ack in house.broker.peer.seen(spec.Basic.Ack)] == [5]

    def test_a_sink_that_raises_ends_nothing(self, events: list[LogEvent]) -> None:
        """An exception from the sink is logged once and counted; the connection stands and the next delivery arrives."""
        house = House().consuming()
        house.sink.broken = True
        house.broker.peer.deliver(b"{}", 1)
        house.broker.peer.deliver(b"{}", 2)
        house.settle()
        house.sink.broken = False
        house.broker.peer.deliver(b"{}", 3)
        house.settle()
        assert house.sink.offsets == [3]
        assert house.source.counters["sink_errors"] == 2
        assert house.state() is SourceState.CONSUMING
        assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]

    def test_a_routing_key_that_is_not_utf8_stays_distinct(self) -> None:
        """Octets that are no UTF-8 come escaped, so that the sink can refuse them by name."""
        house = House().consuming()
        house.broker.peer.deliver_raw(stream_properties(b"", 1), b"{}", key=b"jobs.\xff")
        house.settle()
        assert house.sink.named("deliver")[0][1] == "jobs.\\xff"


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    """One entry of a field table."""
    return bytes([len(name)]) + name + kind + value


def stream_properties(fields: bytes, offset: int) -> bytes:
    """Property flags and headers: the given fields, then the stream's offset."""
    table = fields + field(b"x-stream-offset", b"l", struct.pack(">q", offset))
    return struct.pack(">HI", 0x2000, len(table)) + table


def nested(depth: int) -> bytes:
    """An array in an array in an array."""
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

    @pytest.mark.parametrize("name", HARMLESS)
    def test_what_pika_cannot_decode_is_no_harm(self, name: str) -> None:
        """A header that ends pika's connection is not decoded at all: the message and its neighbours arrive."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b"{}", 1)
        peer.deliver_raw(stream_properties(HARMLESS[name], 2), b"{}")
        peer.deliver(b"{}", 3)
        house.settle()
        assert house.sink.offsets == [1, 2, 3]
        assert house.source.counters["losses"] == 0

    @pytest.mark.parametrize("name", DAMAGED)
    def test_a_damaged_header_costs_its_own_message(self, name: str) -> None:
        """A header whose offset can't be found is counted, skipped and acknowledged; nothing is fetched again."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b"{}", 1)
        peer.deliver_raw(stream_properties(DAMAGED[name], 2), b"{}")
        peer.deliver(b"{}", 3)
        house.settle()
        house.advance(0.05)
        assert house.sink.offsets == [1, 3]
        assert (house.source.counters["poison_headers"], house.source.counters["losses"]) == (1, 0)
        assert peer.seen(spec.Basic.Ack)[-1].delivery_tag == 3

    def test_a_queue_needs_no_header(self) -> None:
        """In queue mode a damaged header is counted, and the message arrives."""
        house = House(consume="queue")
        house.start()
        house.broker.peer.deliver_raw(stream_properties(DAMAGED["unknown type"], 2), b"{}")
        house.settle()
        assert house.sink.offsets == [1]
        assert house.source.counters["poison_headers"] == 1


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

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("consume", ["queue", "stream"])
    def test_a_mute_broker_costs_one_deadline(self, step: str, consume: str) -> None:
        """Silence at any step ends the attempt within attempt_s, aborts the transport, and the other host is tried."""
        clock = Clock()
        mute, good = FakeBroker(clock), FakeBroker(clock)
        house = House({"mute": mute, "good": good}, consume=consume)
        mute.mute = STEPS[step]
        good.mute = STEPS[step]
        house.start()
        first = mute if mute.attempts else good
        other = good if first is mute else mute
        other.mute = None
        house.advance(9.9)
        assert other.attempts == 0
        house.until(lambda: other.attempts == 1, within_s=0.7)
        assert first.peer.transport.aborted
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=1)

    def test_tcp_silence_counts_too(self) -> None:
        """A SYN that is never answered ends at the same deadline; what comes of it later is aborted."""
        house = House()
        house.broker.connecting = []
        house.start()
        house.advance(10)
        assert house.state() is SourceState.BACKOFF
        assert "no answer from the broker within 10 s" in (house.source.status().reason or "")
        house.broker.accept()
        assert house.broker.peer.transport.aborted
        assert house.state() is SourceState.BACKOFF

    def test_the_backoff_grows_to_its_cap(self) -> None:
        """Attempts against a mute broker come at growing distances, never more than backoff_max_s apart, for ever."""
        house = House()
        house.broker.mute = frame.ProtocolHeader
        house.start()
        delays = []
        for _ in range(12):
            house.until(lambda: house.state() is SourceState.BACKOFF, within_s=10.1)
            delays.append(house.until(lambda: house.state() is not SourceState.BACKOFF, within_s=10.1))
        assert max(delays[:2]) <= 1.1
        assert max(delays[5:]) > 5
        house.broker.mute = None
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=21)

    def test_nothing_received_aborts(self) -> None:
        """A black hole is noticed after silence_s although unsent octets are queued; the close is an abort."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b"{}", 1)
        house.settle()
        peer.receive = lambda: None  # type: ignore[method-assign]  # our heartbeats and acks pile up unsent
        start = house.clock.seconds()
        while house.state() is SourceState.CONSUMING and house.clock.seconds() - start < 30:
            house.clock.advance(0.5)
        assert house.clock.seconds() - start <= 20.5
        assert peer.transport.aborted
        assert house.source.status().reason is not None

    def test_a_broker_that_is_heard_is_kept(self) -> None:
        """Heartbeats are enough to keep an idle connection."""
        house = House().consuming()
        for _ in range(20):
            house.broker.peer.to_send += frame.Heartbeat().marshal()
            house.advance(5, step=1)
        assert house.state() is SourceState.CONSUMING
        assert house.broker.attempts == 1


class TestLosses:
    """Pitfalls F11 and F13."""

    @pytest.mark.parametrize(
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
        """The broker's code and text are kept, with the next step; retried at the slow end, and no password is shown."""
        house = House()
        house.broker.answers[step] = house.broker.close_connection(code, text)
        house.start()
        status = house.source.status()
        assert status.state is SourceState.BACKOFF
        assert (status.reason or "").startswith(f"{code} {text}")
        assert hint in (status.reason or "")
        assert status.details["last_code"] == code
        assert PASSWORD not in repr(status)
        house.advance(9.9)
        assert house.broker.attempts == 1
        house.advance(1)
        assert house.broker.attempts == 2

    def test_a_forced_close_is_named_and_short(self) -> None:
        """320 while consuming: kept with its text, and the next attempt comes within backoff_min_s."""
        house = House().consuming()
        house.broker.peer.send(0, spec.Connection.Close(320, "CONNECTION_FORCED - Closed via management", 0, 0))
        house.settle()
        assert house.source.status().reason == "320 CONNECTION_FORCED - Closed via management"
        house.until(lambda: house.broker.attempts == 2, within_s=0.55)

    def test_where_nobody_listens_is_asked_often(self) -> None:
        """A refused connection is retried about every second at most, so that the return of the broker is noticed soon."""
        house = House()
        house.broker.refuse = True
        house.start()
        house.advance(60)
        assert house.broker.attempts >= 60
        assert "connection refused (nothing listens there" in (house.source.status().reason or "")
        house.broker.refuse = False
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=1.5)

    def test_one_log_line_per_reason_and_minute(self, events: list[LogEvent]) -> None:
        """A reason that repeats is said once a minute; the state always tells it."""
        house = House()
        house.broker.refuse = True
        house.start()
        house.advance(59)
        assert len([event for event in events if "connection refused" in formatEvent(event)]) == 1
        house.advance(3)
        assert len([event for event in events if "connection refused" in formatEvent(event)]) == 2

    def test_406_says_which_argument_differs(self) -> None:
        """An existing stream with other arguments: which one, what was asked, what is there, and what to do."""
        what = "inequivalent arg 'x-max-age' for queue 'towerws.events' in vhost '/': received '3600s' but current is '7200s'"
        text = f"PRECONDITION_FAILED - {what}"
        house = House()
        house.broker.answers[spec.Queue.Declare] = house.broker.close_channel(406, text)
        house.start()
        house.advance(0.3)
        reason = house.source.status().reason or ""
        assert "queue 'towerws.events' exists with x-max-age '7200s', we asked for '3600s': set stream_max_age_s" in reason

    def test_a_node_without_a_replica_is_left_for_the_next(self) -> None:
        """406 for want of a local replica is cured by another node, at once."""
        clock = Clock()
        house = House({"a": FakeBroker(clock), "b": FakeBroker(clock)})
        text = "PRECONDITION_FAILED - stream queue 'towerws.events' in vhost '/' does not have a replica on the local node"
        for broker in house.brokers.values():
            broker.answers[spec.Basic.Consume] = broker.close_channel(406, text)
        house.start()
        first = next(broker for broker in house.brokers.values() if broker.attempts)
        other = next(broker for broker in house.brokers.values() if not broker.attempts)
        other.answers.clear()
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=1.5)
        assert (first.attempts, other.attempts) == (1, 1)

    def test_what_is_not_amqp_is_said(self) -> None:
        """A web server on that port is recognised by its first octets, not by the deadline."""
        house = House()
        house.broker.mute = frame.ProtocolHeader
        house.start()
        house.broker.peer.to_send = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        house.settle()
        assert "not AMQP 0-9-1" in (house.source.status().reason or "")

    def test_steady_consuming_forgives(self) -> None:
        """After 30 s of consuming the backoff starts over."""
        house = House()
        house.broker.mute = frame.ProtocolHeader
        house.start()
        house.advance(90, step=0.5)
        house.broker.mute = None
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=21)
        for _ in range(7):
            house.broker.peer.to_send += frame.Heartbeat().marshal()
            house.advance(5, step=0.5)
        house.broker.cut()
        house.broker.mute = frame.ProtocolHeader
        house.until(lambda: house.state() is SourceState.HANDSHAKE, within_s=0.55)
        house.until(lambda: house.state() is SourceState.BACKOFF, within_s=10.1)
        house.until(lambda: house.state() is SourceState.HANDSHAKE, within_s=0.55)


class TestChannelLosses:
    """What the broker takes away while the connection stands."""

    def cancel(self, house: House) -> None:
        """The broker cancels the newest consumer."""
        peer = house.broker.peer
        peer.send(peer.channel, spec.Basic.Cancel(peer.consumers[peer.channel], True))
        house.settle()

    def test_a_cancelled_consumer_costs_its_channel_only(self) -> None:
        """The queue was deleted: a new channel on the same connection, with the whole topology, and one gap."""
        house = House(consume="queue")
        house.start()
        self.cancel(house)
        house.settle()
        assert house.state() is SourceState.CONSUMING
        assert len(house.broker.peers) == 1
        assert len(house.broker.peer.seen(spec.Queue.Declare)) == 2
        assert house.sink.named("gap") == [("gap", "broker")]
        assert len(house.broker.peer.seen(spec.Channel.Close)) == 1

    def test_a_closed_channel_is_opened_again(self) -> None:
        """406 on the consuming channel (an unknown delivery tag, an ack timeout) is healed on the same connection."""
        house = House(consume="queue")
        house.start()
        peer = house.broker.peer
        peer.send(peer.channel, spec.Channel.Close(406, "PRECONDITION_FAILED - unknown delivery tag 5", 60, 80))
        house.settle()
        assert house.state() is SourceState.CONSUMING
        assert len(house.broker.peers) == 1
        assert house.source.counters["last_code"] == 406

    def test_too_many_are_a_lost_link(self) -> None:
        """The fourth loss of a channel within 60 s ends the connection; the next attempt comes soon."""
        house = House(consume="queue")
        house.start()
        for _ in range(3):
            self.cancel(house)
        assert (house.state(), len(house.broker.peers)) == (SourceState.CONSUMING, 1)
        self.cancel(house)
        assert house.state() is SourceState.BACKOFF
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=1)
        assert len(house.broker.peers) == 2

    def test_silence_after_a_channel_loss_has_a_deadline(self) -> None:
        """A topology that is not answered the second time ends the attempt as well."""
        house = House(consume="queue")
        house.start()
        house.broker.mute = spec.Channel.Open
        self.cancel(house)
        assert house.state() is SourceState.TOPOLOGY
        for _ in range(20):
            house.broker.peer.to_send += frame.Heartbeat().marshal()
            house.advance(0.5, step=0.5)
        assert house.state() is SourceState.BACKOFF


class TestLate:
    """Events of attempts that are over."""

    def test_an_old_attempt_is_not_heard(self) -> None:
        """Whatever the transport of an ended attempt still brings changes nothing."""
        house = House(consume="queue")
        house.start()
        old = house.broker.peer
        old.send(0, spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0))
        old.deliver(b"{}")
        house.settle()
        house.until(lambda: house.state() is SourceState.CONSUMING, within_s=1)
        before = list(house.sink.calls)
        old.deliver(b"{}")
        old.protocol.dataReceived(old.to_send)
        old.protocol.connectionLost()
        assert house.sink.calls == before
        assert house.state() is SourceState.CONSUMING
        assert house.source.counters["losses"] == 1


class TestStop:
    """The end."""

    def test_an_orderly_end(self) -> None:
        """Everything is acknowledged, the channel and the connection are closed, and no timer is left."""
        house = House().consuming()
        peer = house.broker.peer
        peer.deliver(b"{}", 1)
        house.settle()
        done: list[None] = []
        house.source.stop().addCallback(done.append)
        house.settle()
        assert done == [None]
        assert [type(m).__name__ for _, m in peer.methods[-4:]] == ["Ack", "Cancel", "Close", "Close"]
        assert house.state() is SourceState.STOPPED
        assert house.clock.getDelayedCalls() == []

    def test_a_black_hole_does_not_hold_it_up(self) -> None:
        """Within 2 s, always."""
        house = House().consuming()
        house.broker.mute = object
        done: list[None] = []
        house.source.stop().addCallback(done.append)
        house.source.stop().addCallback(done.append)
        house.advance(1.9)
        assert done == []
        house.advance(0.2)
        assert done == [None, None]
        assert house.broker.peer.transport.aborted
        assert house.clock.getDelayedCalls() == []

    @pytest.mark.parametrize("when", ["idle", "connecting", "handshake", "topology", "backoff", "stopped"])
    def test_from_every_state(self, when: str) -> None:
        """stop fires from wherever the source stands, nothing is attempted after it, and start is then without effect."""
        house = House(consume="queue")
        if when == "connecting":
            house.broker.connecting = []
        house.broker.mute = {"handshake": frame.ProtocolHeader, "topology": spec.Channel.Open}.get(when)
        house.broker.refuse = when == "backoff"
        if when != "idle":
            house.start()
        if when == "stopped":
            house.source.stop()
            house.advance(2)
        done: list[None] = []
        house.source.stop().addCallback(done.append)
        house.advance(2.1)
        assert done == [None]
        attempts = house.broker.attempts
        house.source.start()
        house.advance(60, step=1)
        assert house.broker.attempts == attempts
        assert house.clock.getDelayedCalls() == []

    def test_nothing_is_delivered_after_it(self) -> None:
        """Deliveries on the way when stop is called reach nobody."""
        house = House().consuming()
        house.broker.peer.deliver(b"{}", 1)
        house.source.stop()
        house.settle()
        assert house.sink.offsets == []
