"""The scenarios that measure connections: memory, storm, resume."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.background import Health, Publisher
from benchmarks.client import Spec
from benchmarks.fanout import BYTES, health_rows, numbered
from benchmarks.fleet import Opened
from benchmarks.load import Load
from benchmarks.world import World, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.servers import Server

WARM = 200
LEAST_STORM_NS = 250_000_000
"""Messages published within these seconds count as sent during the storm: at tiny sizes it ends between two messages."""


def memory(world: World) -> None:
    """10,000 subscribed idle connections, opened with a browser's headers."""
    count = world.scaled(10_000, 100)
    with world.towerws() as server, world.clients() as warm, world.clients() as load:
        warm.open(server.port, [Spec({"jobs": ["status_changed"]})] * WARM)  # memory for the first connections is not counted
        before = server.rss_bytes
        load.open(server.port, [Spec({"jobs": ["status_changed"], "job_events": [number]}) for number in range(count)])
        time.sleep(0.5)
        grown = server.rss_bytes - before
    world.row("memory", f"RSS per connection, {count:,} of them", grown / count / 1000, "KB", "<= 9")


def storm(world: World) -> None:
    """10,000 clients connect and subscribe at once. Meanwhile 100 others get 20 messages per second, and `/healthz` is asked."""
    count = world.scaled(10_000, 100)
    specs = [Spec({"jobs": ["status_changed"], "job_events": [number]}) for number in range(count)]
    healthy = [Spec({"schedules": ["changed"]})] * 100
    stamped = [
        ("schedules.changed", number) for number in range(world.scaled(200, 40))
    ]  # at least 2 s: longer than the time before the storm
    with world.towerws() as server, world.clients() as load, world.clients(1) as others, Health(server.admin_port) as health:
        warm(world, server)
        others.open(server.port, healthy)
        others.expect([[number for _, number in stamped]] * len(healthy), BYTES)
        others.begin_collect(stamped=True)
        with Publisher(world.rabbit.url, server.exchange, stamped, BYTES, per_s=20) as publisher:
            publisher.begin()
            health.begin()
            idle_s = bystanders(server, 0.2 if world.size < 1 else 2)
            begin_ns = time.monotonic_ns()
            opened, cpu_s = measured(server, load, specs)
            end_ns = time.monotonic_ns()
            own_s = cpu_s - idle_s * (end_ns - begin_ns) / 1e9
            answers_ms = health.end()
            publisher.end()
        delays_ms = others.end_collect().delays_ms(begin_ns, max(end_ns, begin_ns + LEAST_STORM_NS))
        refused = sum(server.get("/status")["connections"]["refused"].values())
    floor_s, plain_s = (connecting(world, reference, specs) for reference in (world.greeter, world.plain))
    world.row("storm", f"CPU per client, {count:,} of them", own_s * 1e6 / count, "µs", "<= 220")
    world.row("storm", "with the others' messages and answers", cpu_s * 1e6 / count, "µs")
    world.row("storm", "floor's CPU per client", floor_s * 1e6 / count, "µs")
    world.row("storm", "CPU, times floor's", own_s / floor_s, "x")
    world.row("storm", "plain's CPU, times ours", plain_s / own_s, "x")
    world.row("storm", "refused", refused, "", "<= 0")
    world.row("storm", "until the last was subscribed", max(opened.took_s), "s")
    world.row("storm", "healthy clients' latency p99", percentile(delays_ms, 99), "ms", "<= 250")
    health_rows(world, "storm", answers_ms)


def resume(world: World) -> None:
    """10,000 clients of 3 topics reconnect after 30 s at 200 messages per second. Each one missed about 100 of them."""
    count, messages = world.scaled(10_000, 100), max(180, world.scaled(6000))
    topics = messages * 3 // 100 or 1
    groups: list[dict[str, list[int | str]]] = [
        {"job_events": sorted({(number + step * (topics // 3)) % topics for step in range(3)})} for number in range(count)
    ]
    with world.towerws() as server, world.clients() as load:
        warm(world, server)
        world.publish(server.exchange, numbered(1), BYTES)
        specs = [Spec(each, v1=True) for each in groups]
        opened, storm_s = measured(server, load, specs)
        load.close()
        while server.get("/status")["connections"]["present"]:
            time.sleep(0.1)
        missed = [(f"job_events.{number % topics}", number) for number in range(messages)]
        world.publish(server.exchange, missed, BYTES, 0 if world.size < 1 else 200)
        back = [Spec(each, v1=True, since=position) for each, position in zip(groups, opened.positions, strict=True)]
        cpu = server.cpu_ns
        load.open(server.port, back)
        load.expect([[number for routing_key, number in missed if int(routing_key[11:]) in each["job_events"]] for each in groups], BYTES)
        load.begin_collect()
        received = load.end_collect()
        cpu_s = (server.cpu_ns - cpu) / 1e9
    world.row("resume", "missed messages per client", received.messages / count, "")
    world.row("resume", "CPU per client beyond connecting", (cpu_s - storm_s) * 1e6 / count, "µs", "<= 400")
    world.row("resume", "CPU per client, connecting alone", storm_s * 1e6 / count, "µs")


def bystanders(server: Server, window_s: float) -> float:
    """The load that already runs, in seconds of CPU per second."""
    cpu, start = server.cpu_ns, time.monotonic_ns()
    time.sleep(window_s)
    return (server.cpu_ns - cpu) / (time.monotonic_ns() - start)


def connecting(world: World, start: Callable[[], Server], specs: list[Spec]) -> float:
    """Seconds of CPU that this server needs to accept the same clients."""
    with start() as server, world.clients() as load:
        warm(world, server)
        return measured(server, load, specs)[1]


def measured(server: Server, load: Load, specs: list[Spec]) -> tuple[Opened, float]:
    """Open these clients. Returns the CPU for it, in seconds."""
    cpu = server.cpu_ns
    opened = load.open(server.port, specs)
    return opened, (server.cpu_ns - cpu) / 1e9


def warm(world: World, server: Server) -> None:
    """Open a few connections that pay the one-time costs."""
    with world.clients() as load:
        load.open(server.port, [Spec({"jobs": ["status_changed"]})] * WARM)
