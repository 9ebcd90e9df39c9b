"""What the producer costs its caller, and how fast it is: beside plain pika with confirms, on the same broker in the same run."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pika

from benchmarks.messages import payload
from benchmarks.world import World
from towerws_producer import Producer

BYTES = 300
TOPIC = "job_events.42"
EXCHANGE = "bench.producer"
DEADLINE_S = 120.0


def producer(world: World) -> None:
    """20,000 events to a healthy broker by `emit`, and by plain pika with a confirm each; 100,000 to one that answers nothing."""
    count = world.scaled(20_000, 200)
    bodies = [payload(number, BYTES) for number in range(count)]
    connection = pika.BlockingConnection(pika.URLParameters(world.rabbit.url))
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, EXCHANGE, "#")
    with Producer(world.rabbit.url, exchange=EXCHANGE) as ours:
        ours.publish(TOPIC, bodies[0])
        began = time.perf_counter()
        calls = timed(lambda number: ours.emit(TOPIC, bodies[number]), count)
        _work(ours.flush(DEADLINE_S), "not every event was confirmed")
        seconds = time.perf_counter() - began
        _work(ours.stats()["confirmed"] == count + 1, f"{ours.stats()}")
    _work(held(channel, queue) == count + 1, "the queue does not hold every event")
    rows(world, "emit, broker healthy", calls)
    world.row("producer", "confirmed events/s", count / seconds, "/s")
    world.row("producer", "plain pika with confirms", plain(world, count, bodies), "/s")
    connection.close()
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        dead = Producer(f"amqp://127.0.0.1:{silent.getsockname()[1]}", exchange=EXCHANGE)
        many = world.scaled(100_000, 1000)
        calls = timed(lambda number: dead.emit(TOPIC, bodies[number % count]), many)
        stats = dead.stats()
        _work(stats["emitted"] == many == stats["buffered"] + sum(stats["dropped"].values()), f"{stats}")
        dead.close(timeout=0)
    rows(world, "emit, broker silent", calls)
    world.row("producer", "100,000 emits, broker silent", sum(calls) / many * 100_000, "s", "<= 1")


def plain(world: World, count: int, bodies: list[bytes]) -> float:
    """Confirmed messages a second as pika's documentation has them: one at a time."""
    connection = pika.BlockingConnection(pika.URLParameters(world.rabbit.url))
    channel = connection.channel()
    channel.confirm_delivery()
    some = max(100, count // 10)
    began = time.perf_counter()
    for body in bodies[:some]:
        channel.basic_publish(EXCHANGE, TOPIC, body)
    seconds = time.perf_counter() - began
    connection.close()
    return min(some, len(bodies)) / seconds


def timed(call: Callable[[int], Any], count: int) -> list[float]:
    """The seconds of each call."""
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - began)
    return seconds


def rows(world: World, what: str, calls: list[float]) -> None:
    """A call's mean, and what one in a thousand takes at least."""
    ordered = sorted(calls)
    world.row("producer", what, sum(calls) / len(calls) * 1e6, "µs")
    world.row("producer", f"{what}, p99.9", ordered[int(len(ordered) * 0.999)] * 1e6, "µs", "<= 1000")


def held(channel: Any, queue: str) -> int:
    """How many messages the queue holds."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def _work(done: bool, otherwise: str) -> None:
    if not done:
        raise AssertionError(otherwise)
