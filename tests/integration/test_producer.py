"""The producer against a real broker: what arrives, how each fault is reported, and what an unhealthy broker costs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import pytest
from private_rabbitmq import PrivateRabbit

from tests.integration.producer_queue import Queue
from tests.kit.daemon import DEADLINE_S, Daemon, V1Client
from tests.kit.forwarder import Forwarder
from towerws_producer import (
    Blocked,
    BufferFull,
    ConfigError,
    CredentialsRefused,
    Nacked,
    NoSuchExchange,
    NotConfirmed,
    PayloadTooLarge,
    Producer,
    ProducerClosed,
    ProducerError,
    Refused,
    Unreachable,
    Unroutable,
)
from towerws_producer import aio as producer_aio


@pytest.fixture
def exchange() -> str:
    """An exchange name of the test's own."""
    return f"producer-{uuid4().hex}"


@pytest.fixture
def make(exchange: str) -> Iterator[Callable[..., Producer]]:
    """A maker of producers. At the end they are closed without waiting for their buffered events."""
    made: list[Producer] = []

    def make(broker: str, **settings: Any) -> Producer:
        producer = Producer(broker, **{"exchange": exchange, **settings})
        made.append(producer)
        return producer

    yield make
    for producer in made:
        producer.close(timeout=0)


def at(url: str, credentials: str = "guest:guest", vhost: str = "") -> str:
    """Another URL of the same broker."""
    return f"amqp://{credentials}@{url.rpartition('@')[2].partition('/')[0]}/{vhost}"


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for a condition that is not announced."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.01)  # between two polls


def test_events_arrive_in_order_with_their_properties(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """Text arrives byte for byte, a mapping as JSON. Each message is transient, with its own id and time, in milliseconds too."""
    text = '{"a":  "\\ud83d", "n": NaN}'
    with Queue(rabbit.url, exchange) as queue, make(rabbit.url) as producer:
        assert producer.emit("job_events.42", text)
        assert producer.emit("job_events.42", {"b": "ä"})
        assert producer.publish("jobs.summary", b'{"c": 3}', message_id="mine") == "mine"
        got = [queue.get() for _ in range(3)]
        assert producer.stats()["confirmed"] == 3
    assert [(method.routing_key, body) for method, _, body in got] == [
        ("job_events.42", text.encode()),
        ("job_events.42", b'{"b":"\\u00e4"}'),
        ("jobs.summary", b'{"c": 3}'),
    ]
    assert {(p.content_type, p.delivery_mode) for _, p, _ in got} == {("application/json", 1)}
    assert len({p.message_id for _, p, _ in got}) == 3
    for _, properties, _ in got:
        published_ms = properties.headers["timestamp_in_ms"]
        assert published_ms // 1000 == properties.timestamp
        assert abs(published_ms / 1000 - time.time()) < 600


FAULTS = [
    pytest.param(lambda url: (at(url, "guest:s3cret-word"), {}), CredentialsRefused, "password is wrong", id="wrong password"),
    pytest.param(lambda url: (at(url, vhost="nowhere"), {}), CredentialsRefused, "virtual host", id="unknown virtual host"),
    pytest.param(lambda url: (url, {"exchange": "amq.direct"}), NoSuchExchange, "no durable topic exchange", id="exchange of another type"),
    pytest.param(lambda url: (url, {"declare": False}), NoSuchExchange, "there is no exchange", id="no such exchange"),
    pytest.param(lambda url: (url, {}), Unroutable, "no queue is bound", id="no queue takes it"),
    pytest.param(lambda url: (url, {"max_payload_bytes": 10}), PayloadTooLarge, "more than max_payload_bytes = 10", id="too large"),
    pytest.param(lambda url: ("amqp://127.0.0.1:1", {}), Unreachable, "refused", id="nothing listens"),
    pytest.param(lambda url: (at(url).replace("amqp:", "amqps:"), {}), ProducerError, "TLS failed", id="TLS to a plain port"),
]


@pytest.mark.parametrize(("broken", "error", "text"), FAULTS)
def test_each_fault_has_a_name_and_a_text(
    rabbit: PrivateRabbit,
    make: Callable[..., Producer],
    broken: Callable[[str], tuple[str, dict[str, Any]]],
    error: type[ProducerError],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`publish` raises it. `emit` counts it and logs one line, without the password and without the payload."""
    broker, settings = broken(rabbit.url)
    producer = make(broker, **settings)
    with pytest.raises(error, match=text) as raised:
        # Faults that waiting may cure are raised at the timeout, all others at once.
        producer.publish("job_events.42", {"secret": "payload-word"}, timeout=1 if error is Unreachable else DEADLINE_S)
    for _ in range(20):
        producer.emit("job_events.42", {"secret": "payload-word"})
    producer.flush(0.2)
    ours = [record.getMessage() for record in caplog.records if record.name == "towerws_producer" and record.levelno >= logging.WARNING]
    assert 1 <= len(ours) <= 2
    assert text in " ".join(ours)
    assert not [record for record in caplog.records if record.name.startswith("pika")]
    everything = f"{raised.value} {' '.join(ours)}"
    assert "s3cret-word" not in everything
    assert "payload-word" not in everything


def test_a_connection_that_works_later_brings_what_was_emitted(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """Events emitted while there is no exchange are kept, and published once there is one."""
    producer = make(rabbit.url, declare=False)
    for number in range(100):
        producer.emit("job_events.42", {"n": number})
    with pytest.raises(NoSuchExchange):
        producer.publish("job_events.42", {"n": "waiting"}, timeout=DEADLINE_S)
    with Queue(rabbit.url, exchange) as queue:
        assert [json.loads(queue.get()[2])["n"] for _ in range(100)] == list(range(100))


def test_a_refused_topic_costs_its_neighbours_nothing(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """The broker closes the channel for topics that the user may not write to. Only the events of those topics are dropped."""
    user = f"u{uuid4().hex[:8]}"
    rabbit.add_user(user, "pw")
    rabbit.permit(user, "", ".*", ".*")
    rabbit.permit_topics(user, exchange, r"^jobs\..*", ".*")
    with Queue(rabbit.url, exchange) as queue:
        producer = make(at(rabbit.url, f"{user}:pw"))
        for number in range(60):
            producer.emit("secrets.1" if number in {7, 8, 40} else "jobs.summary", {"n": number})
        with pytest.raises(Refused, match="may not write"):
            producer.publish("secrets.1", {}, timeout=DEADLINE_S)
        assert producer.flush(DEADLINE_S)
        got: dict[str, int] = {}  # by message id: events in flight with a refused one are sent twice, and the daemon drops the second copy
        while 59 not in got.values():
            _, properties, body = queue.get()
            got.setdefault(properties.message_id, json.loads(body)["n"])
    assert list(got.values()) == [number for number in range(60) if number not in {7, 8, 40}]
    assert producer.stats()["dropped"] == {"refused": 4}


def test_an_event_that_amqp_cant_carry(
    rabbit: PrivateRabbit,
    exchange: str,
    make: Callable[..., Producer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such an event is dropped, and its caller gets the error. The others go on, each with its own confirm, on the same connection."""
    monkeypatch.setattr("towerws_producer.producer.utf8_bytes", len)  # instead of the check that refuses such an id
    answers: list[ProducerError | None] = []
    with Queue(rabbit.url, exchange) as queue:
        producer = make(rabbit.url)
        for number in range(30):
            if number in {0, 7, 20}:
                producer.submit("jobs.1", {"secret": "payload-word"}, answers.append, "\udcff")
            producer.emit("jobs.1", {"n": number})
        assert producer.flush(DEADLINE_S)
        assert queue.payloads(30) == [{"n": number} for number in range(30)]
        assert producer.stats()["connected"] == 1
        second = make(f"amqp://127.0.0.1:1,{at(rabbit.url)}")  # after a failed attempt the first event is sent alone
        second.submit("jobs.1", {}, answers.append, "\udcff")
        second.publish("jobs.1", {"n": 30}, timeout=DEADLINE_S)
        assert queue.payloads(1) == [{"n": 30}]
    assert [(type(answer), str(answer)) for answer in answers] == [
        (ConfigError, "AMQP can't carry the event (UnicodeEncodeError): check its message_id")
    ] * 4
    assert (producer.stats()["dropped"], second.stats()["dropped"]) == ({"config": 3}, {"config": 1})
    assert "payload-word" not in caplog.text


def test_a_full_buffer_drops_the_oldest(make: Callable[..., Producer]) -> None:
    """Without a broker the newest events are kept, within the bound. A caller that waits for a dropped event gets an error."""
    producer = make("amqp://127.0.0.1:1", buffer_bytes=100_000)
    answers: list[ProducerError | None] = []
    producer.submit("a.b", {"first": True}, answers.append)
    for number in range(5_000):
        producer.emit("a.b", {"n": number})
    stats = producer.stats()
    assert stats["emitted"] == 5_001 == stats["buffered"] + stats["dropped"]["buffer_full"]
    assert 0 < stats["buffered_bytes"] <= 100_000
    assert [type(answer) for answer in answers] == [BufferFull]


def test_a_closed_producer_says_so(rabbit: PrivateRabbit, make: Callable[..., Producer]) -> None:
    """`publish` raises, and `emit` counts. A second close does nothing."""
    producer = make(rabbit.url)
    producer.emit("a.b", {})
    producer.close()
    producer.close()
    assert not producer.emit("a.b", {})
    with pytest.raises(ProducerClosed):
        producer.publish("a.b", {})


def test_asyncio_binds_nothing_to_a_loop(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """One producer serves several loops in turn, has its own error for a timeout, and survives a loop that closes before the confirm."""
    with Queue(rabbit.url, exchange) as queue:
        producer = make(rabbit.url)

        async def many(first: int) -> list[str]:
            return await asyncio.gather(*(producer_aio.publish("a.b", {"n": n}, producer=producer) for n in range(first, first + 50)))

        ids = asyncio.run(many(0)) + asyncio.run(many(50))
        assert len(set(ids)) == 100
        assert {json.loads(queue.get()[2])["n"] for _ in range(100)} == set(range(100))
    silent = make("amqp://127.0.0.1:1")
    with pytest.raises(Unreachable):
        asyncio.run(producer_aio.publish("a.b", {}, timeout=1.5, producer=silent))


def test_threads_share_one_connection(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """Eight threads share one connection and lose nothing. The events of each thread stay in order."""
    with Queue(rabbit.url, exchange) as queue:
        producer = make(rabbit.url)

        def write(thread: int) -> None:
            for number in range(200):
                producer.emit("a.b", {"t": thread, "n": number})

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert producer.flush(DEADLINE_S)
        got = [json.loads(queue.get()[2]) for _ in range(1600)]
    for number in range(8):
        assert [event["n"] for event in got if event["t"] == number] == list(range(200))
    stats = producer.stats()
    assert (stats["connected"], stats["confirmed"]) == (1, 1600)


def test_the_next_host_is_tried(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """The producer connects to the first of several brokers that answers."""
    with Queue(rabbit.url, exchange) as queue:
        producer = make(f"amqp://127.0.0.1:1,{rabbit.url.replace('%2F', '')}")
        producer.publish("a.b", {"n": 1}, timeout=DEADLINE_S)
        assert queue.payloads(1) == [{"n": 1}]


@pytest.mark.parametrize("reconnects", ["before the events", "during the exit"])
def test_an_exit_after_a_lost_connection(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer], reconnects: str) -> None:
    """The broker confirms, so the process sends its events before it ends, also if nothing was confirmed since the loss."""
    port = int(rabbit.url.rpartition(":")[2].partition("/")[0])
    with Queue(rabbit.url, exchange) as queue, Forwarder(port) as forwarder:
        producer = make(at(f"127.0.0.1:{forwarder.port}"), exit_s=DEADLINE_S)
        producer.publish("jobs.1", {"n": 0}, timeout=DEADLINE_S)
        forwarder.cut()
        if reconnects == "before the events":
            wait_until(lambda: producer.stats()["connected"] == 2)
        else:
            wait_until(lambda: producer.stats()["state"] != "ready")
        for number in range(1, 4):
            producer.emit("jobs.1", {"n": number})
        producer.flush_at_exit()
        stats = producer.stats()
        assert (stats["confirmed"], stats["dropped"]) == (4, {})
        assert queue.payloads(4) == [{"n": number} for number in range(4)]


def test_an_exit_after_a_refused_event(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """The broker closes the channel. The process connects again, and sends the events that the user may publish."""
    user = f"u{uuid4().hex[:8]}"
    rabbit.add_user(user, "pw")
    rabbit.permit(user, "", ".*", ".*")
    rabbit.permit_topics(user, exchange, r"^jobs\..*", ".*")
    with Queue(rabbit.url, exchange):
        producer = make(at(rabbit.url, f"{user}:pw"), exit_s=DEADLINE_S)
        with pytest.raises(Refused, match="may not write"):
            producer.publish("secrets.1", {}, timeout=DEADLINE_S)
        for number in range(100):
            producer.emit("jobs.1", {"n": number})
        producer.flush_at_exit()
    stats = producer.stats()
    assert (stats["confirmed"], stats["dropped"]) == (100, {"refused": 1})


def test_an_exit_without_a_broker(make: Callable[..., Producer]) -> None:
    """If a whole round of attempts has failed, waiting does not help."""
    producer = make("amqp://127.0.0.1:1", exit_s=1000)
    producer.emit("jobs.1", {})
    worker = producer._worker()
    assert not worker.flush(1000, 1000)  # no longer than the attempts take, otherwise the test times out


def test_the_next_host_is_tried_after_a_refusal(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """`publish` raises the refusal if all brokers refuse. While one is only unreachable, the event stays buffered."""
    refuses = at(rabbit.url, vhost="nowhere")
    with Queue(rabbit.url, exchange) as queue:
        producer = make(f"{refuses},{at(rabbit.url)}")
        producer.publish("a.b", {"n": 1}, timeout=DEADLINE_S)
        assert queue.payloads(1) == [{"n": 1}]
        assert producer.stats()["dropped"] == {}
    with pytest.raises(CredentialsRefused):
        make(f"{refuses},{refuses}").publish("a.b", {}, timeout=DEADLINE_S)
    waits = make(f"{refuses},amqp://127.0.0.1:1")
    with pytest.raises(Unreachable):
        waits.publish("a.b", {}, timeout=2)
    assert waits.stats()["buffered"] == 1


def test_a_nacked_event_is_sent_again(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """A full queue nacks. Nothing is lost: once there is room, each event arrives, with the same id as before."""
    fits, events = 5, 300
    with closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_declare(exchange, arguments={"x-max-length": fits, "x-overflow": "reject-publish"})
        channel.queue_bind(exchange, exchange, "full.*")
        seen = channel.queue_declare("", exclusive=True).method.queue  # gets every copy, those of a nacked event included
        channel.queue_bind(seen, exchange, "#")
        producer = make(rabbit.url)
        for number in range(events):
            producer.emit("full.1", {"n": number})
        producer.publish("free.1", {"n": "beside"}, timeout=DEADLINE_S)  # an event of another topic does not wait for them
        wait_until(lambda: producer.stats()["nacked"] >= events - fits)
        with pytest.raises(Nacked, match=r"takes no events \(nack\)"):
            producer.publish("full.1", {"n": events}, timeout=0.2, message_id="mine")
        assert not producer.flush(0.1)
        assert producer.stats()["dropped"] == {}
        got = []
        for _method, properties, body in channel.consume(exchange, auto_ack=True, inactivity_timeout=DEADLINE_S):
            assert properties is not None, f"nothing came: {producer.stats()}"
            got.append((properties.message_id, json.loads(body)["n"]))
            if len(got) == events + 1:
                break
        assert producer.flush(DEADLINE_S)
        copies: dict[str, set[int | str]] = {}
        while (message := channel.basic_get(seen, auto_ack=True))[0] is not None:
            copies.setdefault(message[1].message_id, set()).add(json.loads(message[2])["n"])
        channel.queue_delete(exchange)
    assert sorted(number for _, number in got) == list(range(events + 1))
    assert ("mine", events) in got
    assert len(copies) == events + 2  # one id for each event, however many copies were sent
    assert all(len(numbers) == 1 for numbers in copies.values())
    stats = producer.stats()
    assert (stats["confirmed"], stats["buffered"]) == (events + 2, 0)
    assert stats["resent"] == stats["nacked"] >= events - fits


def test_events_that_are_nacked_for_ever_stay_within_the_bound(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """The oldest events are then dropped and counted. The thread pauses between attempts, and closing the producer drops the rest."""
    with closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_declare(exchange, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, exclusive=True)
        channel.queue_bind(exchange, exchange, "#")
        producer = make(rabbit.url, buffer_bytes=100_000)
        for number in range(1000):
            producer.emit("full.1", {"n": number})
        wait_until(lambda: producer.stats()["nacked"] > 400)
        stats = producer.stats()
        assert stats["buffered_bytes"] <= 100_000
        producer.flush_at_exit()
    stats = producer.stats()
    assert stats["emitted"] == 1000 == stats["confirmed"] + sum(stats["dropped"].values())
    assert set(stats["dropped"]) == {"buffer_full", "closed"}


EMITS = 100_000
OUTAGE = 10**6  # number of the first event that is emitted during the outage
IN_OUTAGE = 20_000  # ten times as many as are in flight at once
BODY = json.dumps({"stdout": "x" * 300})


def emit_all(producer: Producer, first: int = 0, count: int = EMITS) -> None:
    """Emit `count` events, each with its number. `make bench SCENARIO=producer` has a limit for the cost."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for number in range(first, first + count):
        producer.emit("job_events.42", f'{{"n": {number}, {BODY[1:]}')
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    print(f"{count} emits: {cpu:.2f} s of the caller's CPU, {wall:.2f} s by the clock")  # noqa: T201 - shown by -s


def rabbit_pids(node: PrivateRabbit) -> list[int]:
    """The node's Erlang VM."""
    process = node._node
    assert process is not None
    return [process.pid]


def test_a_broker_killed_under_load(rabbit_to_kill: PrivateRabbit, tmp_path: Path, make: Callable[..., Producer]) -> None:
    """The broker is killed and restarted while events are emitted, 20,000 in the outage. The client gets each confirmed event once."""
    node = rabbit_to_kill
    exchange = f"killed-{uuid4().hex}"
    with Daemon(tmp_path, node.url, "--exchange", exchange, "--stream", f"{exchange}.events") as daemon:
        node.save()
        client = V1Client(daemon.url, {"job_events": [42]}).open()
        producer = make(node.url, exchange=exchange, buffer_bytes=256 * 1024**2)  # room for the whole outage
        ended = threading.Event()
        emitted = [0]

        def load() -> None:
            while not ended.is_set():
                emitted[0] += 1
                producer.emit("job_events.42", {"n": emitted[0]})
                time.sleep(0.0005)  # the load's pace

        thread = threading.Thread(target=load)
        thread.start()
        wait_until(lambda: producer.stats()["confirmed"] > 300)
        node.kill()
        wait_until(lambda: producer.stats()["state"] == "down")
        emit_all(producer, OUTAGE, IN_OUTAGE)
        node.start()
        confirmed = producer.stats()["confirmed"]
        wait_until(lambda: producer.stats()["confirmed"] > confirmed + 300)
        ended.set()
        thread.join()
        assert producer.flush(4 * DEADLINE_S)
        stats = producer.stats()
        producer.publish("job_events.42", {"n": "last"}, timeout=DEADLINE_S)
        client.until({"n": "last"})
        numbers = [payload["n"] for payload in client.payloads[:-1]]
        client.close()
    assert stats["confirmed"] == emitted[0] + IN_OUTAGE
    assert stats["dropped"] == {}
    # Transient messages that the killed node had confirmed may be missing from a queue, but not from a stream.
    assert sorted(set(numbers)) == [*range(1, emitted[0] + 1), *range(OUTAGE, OUTAGE + IN_OUTAGE)]
    assert len(numbers) == len(set(numbers))


LATE = 2000  # more than are in flight at once


def reconnected_without_a_queue(node: PrivateRabbit, exchange: str, producer: Producer) -> None:
    """The producer had a connection and a queue. It has a new connection and events, and there is no queue."""
    with Queue(node.url, exchange):
        producer.publish("job_events.42", {"n": 0}, timeout=DEADLINE_S)
    connections = producer.stats()["connected"]
    node.ctl("close_all_connections", "a test's end of the connections")
    wait_until(lambda: producer.stats()["connected"] > connections)
    for number in range(LATE):
        producer.emit("job_events.42", {"n": number})


def test_a_broker_whose_queues_come_late(
    rabbit_to_kill: PrivateRabbit, exchange: str, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ accepts connections before its streams take messages. What was emitted waits for the queue, and arrives in order."""
    producer = make(rabbit_to_kill.url)
    reconnected_without_a_queue(rabbit_to_kill, exchange, producer)
    wait_until(lambda: "no queue takes events" in str(producer.stats()["reason"]))
    with pytest.raises(NotConfirmed, match="no queue takes events"):
        producer.publish("job_events.42", {"n": LATE}, timeout=0.1)
    with Queue(rabbit_to_kill.url, exchange) as queue:
        assert producer.flush(4 * DEADLINE_S)
        assert [json.loads(queue.get()[2])["n"] for _ in range(LATE + 1)] == [*range(LATE + 1)]
    stats = producer.stats()
    assert (stats["dropped"], stats["reason"]) == ({}, None)
    assert caplog.text.count("the event is sent again for up to 15 s") == 1


def test_a_first_connection_to_a_broker_that_starts(rabbit_to_kill: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """Attempts failed before, so the broker may have just started: the events wait for a queue here, too."""
    rabbit_to_kill.stop()
    producer = make(rabbit_to_kill.url)
    producer.emit("job_events.42", {"n": 0})
    wait_until(lambda: producer.stats()["state"] == "down")
    rabbit_to_kill.start()
    wait_until(lambda: "no queue takes events" in str(producer.stats()["reason"]))
    with Queue(rabbit_to_kill.url, exchange) as queue:
        assert json.loads(queue.get()[2]) == {"n": 0}


def test_queues_that_never_come(
    rabbit_to_kill: PrivateRabbit, exchange: str, make: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time for it everything is dropped and counted, and the next one is told at once."""
    monkeypatch.setattr("towerws_producer.publishing.ROUTE_S", 0.3)
    producer = make(rabbit_to_kill.url)
    reconnected_without_a_queue(rabbit_to_kill, exchange, producer)
    assert producer.flush(4 * DEADLINE_S)
    with pytest.raises(Unroutable):
        producer.publish("job_events.42", {}, timeout=DEADLINE_S)
    stats = producer.stats()
    assert (stats["confirmed"], stats["dropped"]) == (1, {"returned": LATE + 1})


def test_a_frozen_broker(rabbit_to_kill: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """SIGSTOP: the caller is not blocked, and the connection counts as lost. Once the broker runs again, all kept events arrive."""
    node = rabbit_to_kill
    with Queue(node.url, exchange):
        producer = make(node.url, confirm_s=1, attempt_s=1, buffer_bytes=1024**2)
        producer.publish("job_events.42", {}, timeout=DEADLINE_S)
        for pid in rabbit_pids(node):
            os.killpg(pid, signal.SIGSTOP)
        try:
            emit_all(producer)
            wait_until(lambda: producer.stats()["state"] != "ready")
            with pytest.raises(NotConfirmed):
                producer.publish("job_events.42", {}, timeout=0.2)
        finally:
            for pid in rabbit_pids(node):
                os.killpg(pid, signal.SIGCONT)
        assert producer.flush(DEADLINE_S)
        stats = producer.stats()
    assert stats["emitted"] == EMITS + 2 == stats["confirmed"] + sum(stats["dropped"].values())
    assert stats["dropped"]["buffer_full"] > 0


def test_a_blocked_broker(rabbit_to_kill: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """A memory alarm blocks publishing but not the caller, and `publish` names it. Afterwards the kept events arrive."""
    node = rabbit_to_kill
    with Queue(node.url, exchange):
        producer = make(node.url, buffer_bytes=1024**2, blocked_s=60, heartbeat_s=60)
        producer.publish("job_events.42", {}, timeout=DEADLINE_S)
        node.limit_memory("0.00001")
        producer.emit("job_events.42", {})  # the broker reports the alarm to a connection only once it publishes
        wait_until(lambda: producer.stats()["state"] == "blocked")
        emit_all(producer)
        with pytest.raises(Blocked, match="takes no messages"):
            producer.publish("job_events.42", {}, timeout=0.2)
        node.limit_memory("0.4")
        assert producer.flush(DEADLINE_S)
        stats = producer.stats()
    assert stats["emitted"] == EMITS + 3 == stats["confirmed"] + sum(stats["dropped"].values())
    assert stats["state"] == "ready"


def test_a_black_hole(make: Callable[..., Producer]) -> None:
    """If the peer accepts connections and never answers, 100,000 emits are as fast as ever, and an exit does not wait."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as hole:
        producer = make(f"amqp://127.0.0.1:{hole.getsockname()[1]}", attempt_s=0.5, buffer_bytes=1024**2)
        emit_all(producer)
        with pytest.raises(Unreachable, match="no answer"):
            producer.publish("a.b", {}, timeout=1.5)
        producer.flush_at_exit()
        stats = producer.stats()
    assert stats["emitted"] == EMITS + 1 == sum(stats["dropped"].values())


def test_without_the_right_to_declare(rabbit: PrivateRabbit, exchange: str, make: Callable[..., Producer]) -> None:
    """A user with write permission only can still publish, if the daemon has declared the exchange."""
    user = f"w{uuid4().hex[:8]}"
    rabbit.add_user(user, "pw")
    rabbit.permit(user, "", ".*", "")
    with Queue(rabbit.url, exchange) as queue:
        producer = make(at(rabbit.url, f"{user}:pw"))
        producer.publish("a.b", {"n": 1}, timeout=DEADLINE_S)
        assert json.loads(queue.get()[2]) == {"n": 1}
