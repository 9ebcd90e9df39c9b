"""The producer's cost for its caller, and its speed, compared with plain pika with confirms on the same broker in the same run."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pika

from benchmarks.messages import payload
from benchmarks.world import World
from towerws_producer import Producer

BYTES = 300
TOPIC = "job_events.42"
EXCHANGE = "bench.producer"
DEADLINE_S = 120.0
MANY = 100_000
BARE_MEMORY, ENOUGH_MEMORY = "0.00001", "0.4"  # RabbitMQ's vm_memory_high_watermark: an alarm at once, and its default

Call = Callable[[int], object]


@dataclass(frozen=True)
class Calls:
    """The cost of a number of calls: the caller's CPU, the wall-clock time, and the sorted seconds of each call."""

    cpu_s: float
    wall_s: float
    sorted_s: list[float]

    def us(self, part: float) -> float:
        """The microseconds below which this part of the calls lies."""
        return self.sorted_s[min(len(self.sorted_s) - 1, int(len(self.sorted_s) * part))] * 1e6


def producer(world: World) -> None:
    """20,000 confirmed events, compared with plain pika. Then 100,000 emits to healthy, killed, frozen, blocked and mute brokers."""
    _confirmed(world)
    with Producer(world.rabbit.url, exchange=EXCHANGE, mandatory=False) as ours:
        ours.publish(TOPIC, b"{}")
        _emit_many(world, "healthy", ours)
        _work(ours.flush(DEADLINE_S), "not every event was confirmed")
    for what, fault in (("killed", killed), ("frozen", frozen), ("blocked", blocked)):
        with Producer(world.rabbit.url, exchange=EXCHANGE, mandatory=False) as ours:
            ours.publish(TOPIC, b"{}")
            with fault(world, ours):
                _emit_many(world, what, ours)
            _work(ours.flush(DEADLINE_S), "not every event that was kept was confirmed")
            stats = ours.stats()
            _work(stats["emitted"] == stats["confirmed"] + sum(stats["dropped"].values()), f"{stats}")
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        dead = Producer(f"amqp://127.0.0.1:{mute.getsockname()[1]}", exchange=EXCHANGE)
        _emit_many(world, "mute", dead)
        dead.close(timeout=0)


@contextmanager
def killed(world: World, ours: Producer) -> Iterator[None]:
    """The broker is killed, and restarted afterwards."""
    world.rabbit.kill()
    yield
    world.rabbit.start()


@contextmanager
def frozen(world: World, ours: Producer) -> Iterator[None]:
    """The broker answers nothing, and its connections stay open."""
    world.rabbit.pause()
    yield
    world.rabbit.resume()


@contextmanager
def blocked(world: World, ours: Producer) -> Iterator[None]:
    """A memory alarm. The broker reports it to a connection once that publishes."""
    world.rabbit.limit_memory(BARE_MEMORY)
    give_up = time.monotonic() + DEADLINE_S
    ours.emit(TOPIC, b"{}")
    while ours.stats()["state"] != "blocked":
        _work(time.monotonic() < give_up, "the broker did not block the connection")
        time.sleep(0.01)  # between two polls
    yield
    world.rabbit.limit_memory(ENOUGH_MEMORY)


def _emit_many(world: World, what: str, ours: Producer) -> None:
    count = world.scaled(MANY, 500)
    bodies = [payload(number, BYTES) for number in range(min(count, 1000))]
    calls = timed(lambda number: ours.emit(TOPIC, bodies[number % len(bodies)]), count)
    stats = ours.stats()
    _work(stats["emitted"] >= count, f"{stats}")
    _work(stats["emitted"] == stats["confirmed"] + stats["buffered"] + sum(stats["dropped"].values()), f"{stats}")
    scenario = f"producer {what}"
    world.row(scenario, "caller's CPU, 100,000 emits", calls.cpu_s / count * MANY, "s", "<= 1")
    world.row(scenario, "100,000 emits by the clock", calls.wall_s / count * MANY, "s")
    for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("longest", 1.0)):
        world.row(scenario, f"an emit, {name}", calls.us(part), "µs", "<= 1000" if name == "p99.9" else "")


def _confirmed(world: World) -> None:
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
        for body in bodies:
            ours.emit(TOPIC, body)
        _work(ours.flush(DEADLINE_S), "not every event was confirmed")
        seconds = time.perf_counter() - began
        _work(ours.stats()["confirmed"] == count + 1, f"{ours.stats()}")
    held = int(channel.queue_declare(queue, passive=True).method.message_count)
    _work(held == count + 1, "the queue does not hold every event")
    world.row("producer", "confirmed events/s", count / seconds, "/s")
    world.row("producer", "plain pika with confirms", plain(world, count, bodies), "/s")
    connection.close()


def plain(world: World, count: int, bodies: list[bytes]) -> float:
    """Confirmed messages per second with pika's documented way: one at a time."""
    connection = pika.BlockingConnection(pika.URLParameters(world.rabbit.url))
    channel = connection.channel()
    channel.confirm_delivery()
    some = bodies[: max(100, count // 10)]
    began = time.perf_counter()
    for body in some:
        channel.basic_publish(EXCHANGE, TOPIC, body)
    seconds = time.perf_counter() - began
    connection.close()
    return len(some) / seconds


def timed(call: Call, count: int) -> Calls:
    """Call it with 0 to `count`."""
    seconds = []
    wall, cpu = time.perf_counter(), time.thread_time()
    for number in range(count):
        began = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - began)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return Calls(cpu, wall, sorted(seconds))


def _work(done: bool, otherwise: str) -> None:
    if not done:
        raise AssertionError(otherwise)
