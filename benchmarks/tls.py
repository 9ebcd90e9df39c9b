"""The scenario that measures the cost of TLS, towards the clients and towards the broker."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.fanout import BYTES, SHARED, everyone, numbered
from benchmarks.world import World

FIRST = 20
"""Warm-up clients before those that are measured: they pay for imports and caches."""


def tls(world: World) -> None:
    """Burst on a plain and on a TLS listener. Then messages without a subscriber, and a burst, from `amqp://` and from `amqps://`."""
    _listener(world)
    _broker(world)


def _listener(world: World) -> None:
    count, messages = max(20, min(1000, world.scaled(10_000))), world.scaled(1000, 20)
    costs = []
    for name, pem in (("tcp", None), ("ssl", world.pem)):
        specs = [replace(spec, pem=None if pem is None else str(pem)) for spec in everyone(count)]
        with world.towerws(pem=pem) as server, world.clients(1) as first, world.clients() as load:
            first.open(server.port, specs[:FIRST])
            first.close()
            cpu, size = server.cpu_ns, server.rss_bytes
            load.open(server.port, specs)
            connecting_us, memory = (server.cpu_ns - cpu) / 1e3 / count, server.rss_bytes - size
            world.run(server, load, numbered(1), specs, BYTES)  # the first delivery of a process pays for imports and caches
            run = world.run(server, load, numbered(messages), specs, BYTES)
        costs.append(run.us_per_delivery)
        world.row(f"tls {name}:", "CPU per client, connecting", connecting_us, "µs")
        world.row(f"tls {name}:", "RSS per connection", memory / count / 1000, "KB")
        world.row(f"tls {name}:", "CPU per delivery", run.us_per_delivery, "µs")
        world.row(f"tls {name}:", "deliveries/s", run.per_s / 1e6, "M/s")
    world.row("tls ssl:", "CPU per delivery, times tcp:'s", costs[1] / costs[0], "x")


def _broker(world: World) -> None:
    messages = world.scaled(20_000, 1000)
    specs = everyone(1)
    clients, burst = everyone(max(20, min(1000, world.scaled(10_000)))), world.scaled(1000, 20)
    costs, burst_costs = [], []
    for name, flags in (("amqp:", ()), ("amqps:", ("--broker", world.tls_url, "--tls-ca", str(world.pem)))):
        with world.towerws(*flags) as server, world.clients(1) as load:
            load.open(server.port, specs)
            world.run(server, load, numbered(1), specs, BYTES)
            run = world.run(server, load, [*[("job_events.1", number) for number in range(messages)], (SHARED, messages)], specs, BYTES)
            load.close()
            load.open(server.port, clients)
            burst_run = world.run(server, load, numbered(burst), clients, BYTES)
        costs.append(run.cpu_s * 1e6 / messages)
        burst_costs.append(burst_run.us_per_delivery)
        world.row(f"tls {name}", "CPU per message nobody wants", costs[-1], "µs")
        world.row(f"tls {name}", "messages/s", messages / run.wall_s, "/s")
        world.row(f"tls {name}", "CPU per delivery of a burst", burst_costs[-1], "µs")
    world.row("tls amqps:", "CPU per message, times amqp:'s", costs[1] / costs[0], "x")
    world.row("tls amqps:", "CPU per delivery, times amqp:'s", burst_costs[1] / burst_costs[0], "x", "<= 2")
