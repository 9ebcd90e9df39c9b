"""The AMQP source against a real RabbitMQ: promises that a fake peer can't show."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
import secrets
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pika
import pytest
import pytest_twisted
from pika import exceptions as pika_exceptions
from private_rabbitmq import PrivateRabbit, free_port, rabbitmq_bin
from twisted.internet import reactor as _reactor
from twisted.internet import task
from twisted.internet.threads import deferToThread

from tests.faults.stream_protocol import PLUGINS, StreamProducer, listener
from tests.integration.conftest import NO_BROKER, require
from tests.kit.fake_amqp import RecordingSink
from towerws.amqp import AmqpSource
from towerws.broker.topology import stream_arguments
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.ingest import Ingest
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.sources import SourceState

reactor: Any = _reactor
SOON_S = 20  # timeout for one step on a shared machine; promises in seconds have their own assertion


async def until(what: Callable[[], bool], within_s: float = SOON_S) -> float:
    """Wait until the condition holds. Returns the seconds it took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < within_s, f"not within {within_s} s"
        await task.deferLater(reactor, 0.01)
    return time.monotonic() - start


def settings_for(node: PrivateRabbit, **changes: Any) -> BrokerSettings:
    """Settings for that node, with names of the test's own."""
    name = f"t{secrets.token_hex(4)}"
    url = BrokerUrl("127.0.0.1", node.port, "guest", Secret("guest"), "/", tls=False)
    return replace(BrokerSettings(urls=(url,), exchange=f"{name}.x", stream=f"{name}.s"), **changes)


@contextlib.asynccontextmanager
async def consuming(settings: BrokerSettings, sink: RecordingSink | None = None) -> AsyncIterator[tuple[AmqpSource, RecordingSink]]:
    """A source that consumes. It is stopped at the end."""
    sink = sink or RecordingSink()
    source = AmqpSource(settings, sink, reactor)
    source.start()
    try:
        await until(lambda: source.status().ready)
        yield source, sink
    finally:
        await source.stop()


@contextlib.contextmanager
def channel_to(node: PrivateRabbit) -> Iterator[Any]:
    """A channel of an independent client."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    try:
        yield connection.channel()
    finally:
        with contextlib.suppress(pika_exceptions.AMQPError):
            connection.close()


def publish(node: PrivateRabbit, exchange: str, *bodies: bytes, key: str = "jobs.x") -> None:
    """Publish, and wait for the broker's confirmation of each. Raises `UnroutableError` if no queue takes one."""
    with channel_to(node) as channel:
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish(exchange, key, body, mandatory=True)


class Load(threading.Thread):
    """A producer that numbers its messages. It repeats each one, with the same message id, until the broker confirms it.

    It looks for the stream first. While a node has not started its streams, it confirms messages and loses them, or
    never confirms them (RabbitMQ 3.10.8).
    """

    def __init__(self, node: PrivateRabbit, settings: BrokerSettings) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._settings = settings
        self._ended = threading.Event()
        self.confirmed = 0

    def run(self) -> None:
        """Publish until `end`."""
        while not self._ended.is_set():
            try:
                with channel_to(self._node) as channel:
                    if self._settings.consume != "queue":
                        channel.queue_declare(self._settings.stream, passive=True)
                    channel.confirm_delivery()
                    while not self._ended.is_set():
                        properties = pika.BasicProperties(message_id=f"m{self.confirmed}", delivery_mode=2)
                        channel.basic_publish(self._settings.exchange, "job_events.42", b'{"n":%d}' % self.confirmed, properties)
                        self.confirmed += 1
                        self._ended.wait(0.002)
            except (pika_exceptions.AMQPError, OSError):
                self._ended.wait(0.1)

    async def end(self) -> int:
        """Stop. Returns how many messages were confirmed."""
        self._ended.set()
        await deferToThread(self.join)
        return self.confirmed


def once_each(sink: RecordingSink) -> list[bytes]:
    """The bodies in order of arrival, without those whose offset or message id the sink knows already."""
    seen: dict[object, bytes] = {}
    for _, _, body, _, message_id in sink.named("deliver"):
        assert isinstance(body, bytes)
        seen.setdefault(message_id or body, body)
    return list(seen.values())


def numbered(count: int) -> list[bytes]:
    """The bodies of a complete load of `count` messages."""
    return [b'{"n":%d}' % number for number in range(count)]


async def ctl(node: PrivateRabbit, *args: str) -> str:
    """Run rabbitmqctl while the reactor runs."""
    output: str = await deferToThread(node.ctl, *args)
    return output


async def delete_queue(node: PrivateRabbit, name: str) -> None:
    """Delete a queue while it is consumed."""
    await ctl(node, "delete_queue", name)


async def queues(node: PrivateRabbit) -> list[str]:
    """The names of all queues."""
    return (await ctl(node, "list_queues", "name", "--no-table-headers")).split()


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Run a test in the reactor."""
    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(test))


logging.getLogger("pika").setLevel(logging.CRITICAL)  # the producer's pika logs much while the broker is down
pytestmark = pytest.mark.timeout(180)


@run
async def test_stream_deliveries(rabbit: PrivateRabbit) -> None:
    """On this broker auto mode uses the stream. Messages arrive in order, with their routing keys."""
    settings = settings_for(rabbit)
    async with consuming(settings) as (source, sink):
        await deferToThread(publish, rabbit, settings.exchange, b'{"a":1}', b'{"a":2}', key="job_events.42")
        await until(lambda: len(sink.offsets) == 2)
        first = sink.offsets[0]
        assert sink.named("deliver") == [
            ("deliver", "job_events.42", b'{"a":1}', first, None),
            ("deliver", "job_events.42", b'{"a":2}', first + 1, None),
        ]
        assert source.counters["mode"] == "stream"
        assert re.fullmatch(r"[0-9]+\.[0-9.]+", str(source.counters["broker_version"]))


@run
async def test_two_processes_see_the_same_offsets(rabbit: PrivateRabbit) -> None:
    """Each process reads the whole stream, with the same offsets."""
    settings = settings_for(rabbit)
    async with consuming(settings) as (_, one), consuming(settings) as (_, two):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(50))
        await until(lambda: len(one.offsets) == len(two.offsets) == 50)
        assert one.named("deliver") == two.named("deliver")


@run
async def test_queue_mode(rabbit: PrivateRabbit) -> None:
    """In queue mode each process has its own queue. Offsets grow, and the queue is deleted at the stop."""
    settings = settings_for(rabbit, consume="queue")
    async with consuming(settings) as (_, sink):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(300))
        await until(lambda: len(sink.offsets) == 300)
        assert sink.offsets == sorted(set(sink.offsets))
        assert once_each(sink) == numbered(300)


@run
async def test_restart_refills(rabbit: PrivateRabbit) -> None:
    """A restarted process gets the messages of the last refill_s, then it is live."""
    settings = settings_for(rabbit)
    async with consuming(settings):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(200))
    async with consuming(settings) as (_, sink):
        await until(lambda: len(sink.offsets) == 200)
        await deferToThread(publish, rabbit, settings.exchange, b'{"live":1}')
        await until(lambda: len(sink.offsets) == 201)
        assert sink.offsets == sorted(set(sink.offsets))
        assert [call[0] for call in sink.calls if call[0] != "deliver"] == ["caught_up"]


@run
async def test_restart_on_an_idle_stream_knows_its_head(rabbit: PrivateRabbit) -> None:
    """With no message within refill_s the newest ones are still fetched, and the source is ready soon."""
    settings = settings_for(rabbit)
    async with consuming(settings):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(3))
    await task.deferLater(reactor, 2.1)  # the one wait for plain time: refill_s passes, in whole seconds
    async with consuming(replace(settings, refill_s=1)) as (_, sink):
        assert len(sink.offsets) == 3


@run
async def test_kill_under_load_loses_nothing_in_stream_mode(rabbit_to_kill: PrivateRabbit) -> None:
    """The broker is killed and restarted under a numbered load. Each confirmed message arrives once, in order, without a gap."""
    node = rabbit_to_kill
    settings = settings_for(node)
    async with consuming(settings) as (source, sink):
        node.save()
        load = Load(node, settings)
        load.start()
        for count in (100, 300):
            await until(lambda: load.confirmed > count)  # noqa: B023 - called at once
            node.kill()
            await until(lambda: source.status().state is SourceState.BACKOFF)
            node.start()
            assert await until(lambda: source.status().ready) < 5
        confirmed = await load.end()
        await until(lambda: b'{"n":%d}' % (confirmed - 1) in once_each(sink))
        assert once_each(sink)[:confirmed] == numbered(confirmed)
        assert sink.named("gap") == []
        assert sink.named("hole") == sink.named("rewind") == []
        assert sink.offsets == sorted(set(sink.offsets))


@run
async def test_kill_under_load_is_one_gap_in_queue_mode(rabbit_to_kill: PrivateRabbit) -> None:
    """In queue mode an outage is exactly one gap. The messages after it are in order and not repeated."""
    node = rabbit_to_kill
    settings = settings_for(node, consume="queue")
    async with consuming(settings) as (source, sink):
        load = Load(node, settings)
        load.start()
        await until(lambda: load.confirmed > 100)
        node.kill()
        await until(lambda: source.status().state is SourceState.BACKOFF)
        node.start()
        assert await until(lambda: source.status().ready) < 5
        before = len(sink.offsets)
        await until(lambda: len(sink.offsets) > before + 50)
        await load.end()
        assert sink.named("gap") == [("gap", "broker")]
        numbers = [int(body[5:-1]) for body in once_each(sink)]
        assert numbers == sorted(numbers)
        assert sink.offsets == sorted(set(sink.offsets))


@run
@pytest.mark.parametrize("consume", ["stream", "queue"])
async def test_a_forced_close_is_named_and_short(rabbit: PrivateRabbit, consume: str) -> None:
    """close_all_connections: code 320 and its text are kept, and consuming resumes within 2 s."""
    settings = settings_for(rabbit, consume=consume)
    async with consuming(settings) as (source, sink):
        await deferToThread(publish, rabbit, settings.exchange, b'{"n":0}')
        await until(lambda: len(sink.offsets) == 1)
        await ctl(rabbit, "close_all_connections", "the test says so")
        await until(lambda: source.counters["failures"] == 1)
        assert await until(lambda: source.status().ready) < 2
        assert str(source.counters["last_failure"]).startswith("320 CONNECTION_FORCED")
        await deferToThread(publish, rabbit, settings.exchange, b'{"n":1}')
        await until(lambda: once_each(sink)[-1] == b'{"n":1}')
        assert len(sink.named("gap")) == (1 if consume == "queue" else 0)


@run
async def test_a_deleted_queue_heals_on_its_connection(rabbit: PrivateRabbit) -> None:
    """After each of three deletions consuming resumes within 2 s, on the same connection, with one gap and one channel."""
    settings = settings_for(rabbit, consume="queue")
    before = set(await queues(rabbit))
    async with consuming(settings) as (source, sink):
        for count in range(1, 4):
            (name,) = set(await queues(rabbit)) - before
            await delete_queue(rabbit, name)
            await until(lambda: source.counters["channel_failures"] == count)  # noqa: B023 - called at once
            assert await until(lambda: source.status().ready) < 2
        assert source.counters["connects"] == 1
        assert len(sink.named("gap")) == 3
        assert set((await ctl(rabbit, "list_connections", "channels", "--no-table-headers")).split()) == {"1"}


@run
async def test_a_stream_that_was_declared_again_is_noticed(rabbit: PrivateRabbit) -> None:
    """A deleted stream is declared again and read from its first message, and the sink is told of the gap."""
    settings = settings_for(rabbit)
    async with consuming(settings) as (source, sink):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(10))
        await until(lambda: len(sink.offsets) == 10)
        await delete_queue(rabbit, settings.stream)
        await until(lambda: source.counters["channel_failures"] == 1 and source.status().ready)
        await deferToThread(publish, rabbit, settings.exchange, b'{"new":1}')
        await until(lambda: len(sink.offsets) == 11)
        assert [call[0] for call in sink.calls[-3:]] == ["rewind", "hole", "deliver"]
        assert sink.calls[-1][2] == b'{"new":1}'
        assert source.counters["connects"] == 1


@run
async def test_a_stream_made_again_by_another_does_not_stay_mute(rabbit: PrivateRabbit) -> None:
    """If the stream is deleted and made again, shorter, during an outage, its messages are read after one gap."""
    settings = settings_for(rabbit)
    sink = RecordingSink()
    async with consuming(settings, sink) as (source, _), consuming(settings) as (other, _):
        await deferToThread(publish, rabbit, settings.exchange, *numbered(10))
        await until(lambda: len(sink.offsets) == 10)
        session = source._session
        assert session is not None
        endpoint, source._endpoint = source._endpoint, lambda url: (_ for _ in ()).throw(OSError("the link is down"))
        assert session.connection is not None
        session.connection.transport.abortConnection()  # type: ignore[union-attr]
        await delete_queue(rabbit, settings.stream)
        await until(lambda: other.counters["channel_failures"] == 1 and other.status().ready)
        await deferToThread(publish, rabbit, settings.exchange, b'{"new":1}')
        source._endpoint = endpoint
        await until(lambda: source.status().ready and len(sink.offsets) == 11)
        assert sink.named("deliver")[-1][2] == b'{"new":1}'
        assert [call[0] for call in sink.calls if call[0] in {"rewind", "hole"}] == ["rewind", "hole"]


@run
@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"password": Secret("canary-hunter2")}, 403, "check user and password"),
        ({"vhost": "nowhere"}, 530, "vhost"),
        ({"port": 1}, None, "connection refused"),
    ],
)
async def test_a_refusal_is_explained(rabbit: PrivateRabbit, change: dict[str, Any], code: int | None, text: str) -> None:
    """For a wrong password, vhost or port the reason is known within 5 s, with a hint and without the password."""
    settings = settings_for(rabbit)
    source = AmqpSource(replace(settings, urls=(replace(settings.urls[0], **change),)), RecordingSink(), reactor)
    source.start()
    try:
        assert await until(lambda: source.counters["last_failure"] is not None) < 5
        status = source.status()
        assert status.details["last_code"] == code
        assert text in str(status.details["last_failure"])
        assert "canary" not in repr(status)
    finally:
        await source.stop()


@run
async def test_406_names_the_argument(rabbit: PrivateRabbit) -> None:
    """If the stream exists with another age, the reason names its value, the requested value and the setting."""
    settings = settings_for(rabbit)
    async with consuming(settings):
        other = AmqpSource(replace(settings, stream_max_age_s=60), RecordingSink(), reactor)
        other.start()
        try:
            await until(lambda: other.counters["last_failure"] is not None)
            reason = str(other.counters["last_failure"])
            assert "exists with x-max-age '3600s', we asked for '60s': set stream_max_age_s" in reason
        finally:
            await other.stop()


@run
async def test_passive(rabbit: PrivateRabbit) -> None:
    """In passive mode nothing is declared, and a missing object is named. Once it exists, it is consumed."""
    settings = settings_for(rabbit, passive=True, backoff_max_s=1)
    sink = RecordingSink()
    source = AmqpSource(settings, sink, reactor)
    source.start()
    try:
        await until(lambda: source.counters["last_failure"] is not None)
        assert "passive = false" in str(source.counters["last_failure"])
        assert settings.stream not in await queues(rabbit)
        async with consuming(replace(settings, passive=False)):
            await until(lambda: source.status().ready)
            await deferToThread(publish, rabbit, settings.exchange, b"{}")
            await until(lambda: len(sink.offsets) == 1)
    finally:
        await source.stop()


@run
async def test_passive_binds_its_queue_again(rabbit: PrivateRabbit) -> None:
    """Nobody but the daemon can bind its exclusive queue. A deleted exchange takes the binding along, and is declared by another client."""
    settings = settings_for(rabbit, passive=True, consume="queue")
    with channel_to(rabbit) as channel:
        channel.exchange_declare(settings.exchange, "topic", durable=True)
        async with consuming(settings) as (source, sink):
            channel.exchange_delete(settings.exchange)
            channel.exchange_declare(settings.exchange, "topic", durable=True)
            await until(lambda: bool(sink.named("gap")), within_s=30)
            await until(lambda: source.status().ready)
            channel.basic_publish(settings.exchange, "jobs.x", b"{}")
            await until(lambda: [call[2] for call in sink.named("deliver")] == [b"{}"])
            assert source.counters["connects"] == 1


@run
async def test_entries_that_cannot_be_read_and_no_permission_to_publish(tmp_path: Path) -> None:
    """Two entries are no AMQP 1.0, and events are between them. Without markers, new events show that the broker serves the end."""
    require(NO_BROKER, rabbitmq_bin())
    port = free_port()
    with PrivateRabbit(tmp_path / "rabbit", config=listener(port), plugins=PLUGINS) as node:
        settings = settings_for(node, passive=True, backoff_max_s=1)
        with channel_to(node) as channel:
            channel.exchange_declare(settings.exchange, "topic", durable=True)
            channel.queue_declare(settings.stream, durable=True, arguments=stream_arguments(settings))
            channel.queue_bind(settings.stream, settings.exchange, "#")
        await deferToThread(node.add_user, "reader", "secret")
        await deferToThread(node.permit, "reader", "^$", "^$", ".*")
        reader = replace(settings.urls[0], username="reader", password=Secret("secret"))
        sink = RecordingSink()
        source = AmqpSource(replace(settings, urls=(reader,)), sink, reactor)
        source.start()
        sent: list[bytes] = []
        entries = 2
        try:
            while entries or not sink.offsets or sink.named("deliver")[-1][2] != sent[-1]:
                if entries and sink.offsets and source.status().ready and sink.named("deliver")[-1][2] == sent[-1]:
                    entries -= 1
                    with StreamProducer(port, settings.stream) as producer:
                        await deferToThread(producer.publish, b"no AMQP 1.0")
                sent.append(b"%d" % len(sent))
                assert len(sent) < 300
                await deferToThread(publish, node, settings.exchange, sent[-1])
                await task.deferLater(reactor, 0.1)
            assert [call[2] for call in sink.named("deliver")] == sent[-len(sink.offsets) :]
            assert len(sink.named("hole")) == 2
        finally:
            await source.stop()


class _FarDate(dt.datetime):
    """A date that pika can encode and not decode: its timestamp is ten million years later than the date."""

    def utctimetuple(self) -> time.struct_time:
        """The time that pika encodes as the timestamp."""
        return time.struct_time((self.year, self.month, self.day, 24 * 365 * 10**7, 0, 0, 0, 0, 0))


PUBLISH_ZEROS = """
import sys, pika
channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
channel.confirm_delivery()
for _ in range(3):
    channel.basic_publish(sys.argv[2], "jobs.x", bytes(int(sys.argv[3])))
"""


@run
@pytest.mark.parametrize("consume", ["stream", "queue"])
async def test_a_body_above_the_limit_is_not_kept(rabbit: PrivateRabbit, consume: str) -> None:
    """A message of 24 MiB is refused with its size, takes less than 4 MiB of memory, and is acknowledged. The next event arrives."""
    settings = settings_for(rabbit, consume=consume, prefetch=2)
    size = 24 * 1024**2
    reports: list[str] = []
    history = History(10**9, 600)
    ingest = Ingest(
        history,
        Hub(history),
        max_payload_bytes=4 * 1024**2,
        clock=time.monotonic,
        wall_clock=time.time,
        report=lambda bad: reports.append(str(bad)),
        new_epoch=lambda: secrets.token_hex(4),
    )
    source = AmqpSource(settings, ingest, reactor)
    source.start()
    try:
        await until(lambda: source.status().ready)
        tracemalloc.start()
        publisher = (sys.executable, "-c", PUBLISH_ZEROS, rabbit.url, settings.exchange, str(size))
        await deferToThread(subprocess.run, publisher, check=True)  # in a process of its own, because pika copies the body
        await until(lambda: ingest.bad["too_large"] == 3)
        most = tracemalloc.get_traced_memory()[1]
        await deferToThread(publish, rabbit, settings.exchange, b'{"n":1}')
        await until(lambda: history.newest_of("jobs.x") is not None)
    finally:
        tracemalloc.stop()
        await source.stop()
    assert most < 4 * 1024**2
    assert reports == [f"{size} bytes on jobs.x: more than max_payload_bytes = {ingest.max_payload_bytes}"]
    assert (source.counters["failures"], source.counters["sink_errors"]) == (0, 0)


@run
async def test_headers_pika_cannot_decode_arrive(rabbit: PrivateRabbit) -> None:
    """A header's timestamp after the year 9999, which the broker accepts, does no harm."""
    settings = settings_for(rabbit)

    def poison() -> None:
        with channel_to(rabbit) as channel:
            channel.confirm_delivery()
            for when in (dt.datetime.now(dt.UTC), _FarDate(2026, 1, 1, tzinfo=dt.UTC), dt.datetime.now(dt.UTC)):
                channel.basic_publish(settings.exchange, "jobs.x", b"{}", pika.BasicProperties(headers={"when": when}, message_id="é"))

    async with consuming(settings) as (source, sink):
        await deferToThread(poison)
        await until(lambda: len(sink.offsets) == 3)
        assert (source.counters["failures"], source.counters["poison_headers"]) == (0, 0)
        assert {call[4] for call in sink.named("deliver")} == {"é"}


@run
async def test_stop_is_quick_and_clean(rabbit: PrivateRabbit) -> None:
    """stop closes the connection properly, well within 2 s. After that the broker has no connection of the source."""
    settings = settings_for(rabbit, consume="queue")
    async with consuming(settings) as (source, _):
        start = time.monotonic()
        await source.stop()
        assert time.monotonic() - start < 1
    left: Awaitable[str] = ctl(rabbit, "list_connections", "client_properties", "--no-table-headers")
    assert "towerws@" not in await left
