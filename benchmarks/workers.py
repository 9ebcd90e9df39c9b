"""The scenario that compares two workers on one port with one process."""

from __future__ import annotations

from benchmarks.fanout import BYTES, ROUND_S, everyone, numbered, rounds
from benchmarks.world import Run, World

COUNTS = (1, 2)
"""Workers. 1 is the single process."""

CLIENTS = 2000

STEADY_PER_S = 60


def workers(world: World) -> None:
    """2,000 clients on one topic, served by one process and by two workers: a burst, and 60 messages a second.

    The rounds alternate. The fastest round of burst counts, and the cheapest of steady. The CPU is that of all processes, the parent
    included.
    """
    count = max(20, min(CLIENTS, world.scaled(10 * CLIENTS)))
    bursts: dict[int, list[Run]] = {number: [] for number in COUNTS}
    steadies: dict[int, list[Run]] = {number: [] for number in COUNTS}
    specs = everyone(count)
    for _ in range(rounds(world)):
        for number in COUNTS:
            with world.towerws("--workers", str(number)) as server, world.clients() as load:
                load.open(server.port, specs)
                world.run(server, load, numbered(1), specs, BYTES)  # the first delivery of a process pays for imports and caches
                bursts[number].append(world.run(server, load, numbered(world.scaled(2000, 20)), specs, BYTES))
                steadies[number].append(
                    world.run(server, load, numbered(world.scaled(ROUND_S * STEADY_PER_S, 10)), specs, BYTES, STEADY_PER_S)
                )
    rates = {number: max(run.per_s for run in runs) for number, runs in bursts.items()}
    for number in COUNTS:
        name = f"workers {number}"
        world.row(name, "burst: CPU per delivery", min(run.us_per_delivery for run in bursts[number]), "µs")
        world.row(name, "burst: deliveries/s", rates[number] / 1e6, "M/s")
        world.row(name, "steady: CPU per delivery", min(run.us_per_delivery for run in steadies[number]), "µs")
        world.row(name, "steady: latency p99", min(run.delay_ms(99) for run in steadies[number]), "ms")
    world.row("workers 2", "burst: deliveries/s, times one's", rates[2] / rates[1], "x")
