"""The scenario that measures the cost of growth: the same messages to more clients, or with more subscribed topics."""

from __future__ import annotations

from benchmarks.client import Spec
from benchmarks.fanout import BYTES, everyone, numbered, rounds
from benchmarks.world import Point, World

CLIENTS = (10, 100, 1000, 10_000)
TOPICS = (1, 100, 10_000, 1_000_000)
"""Total subscribed topics, by 1,000 clients: the one with the messages, and others without any."""

MAX_HELD = 1001
"""Topics of one client: one more than a connection may hold by default."""

FLAT_FROM = 100
"""With fewer clients, the cost per message outweighs the cost of its deliveries."""


def growth(world: World) -> None:
    """Burst and steady at 10 to 10,000 clients, then with 1 to 1,000,000 subscribed topics: CPU per delivery."""
    for count in CLIENTS:
        if count <= world.scaled(max(CLIENTS), FLAT_FROM):
            _both(world, everyone(count), "clients", count)
    holders = min(1000, world.scaled(10_000, FLAT_FROM))
    for topics in TOPICS:
        if topics <= world.scaled(max(TOPICS), 1000):
            _both(world, _holders(holders, topics), "topics", topics)
    for axis in ("clients", "topics"):
        for curve in ("burst", "steady"):
            flat = [(row.point, row.value) for row in world.rows if row.point and row.point.flat and row.point.lies_on(curve, axis)]
            first, least = flat[0]
            costs = [cost for _, cost in flat]
            world.row(f"growth {curve}", f"dearest, times that at {_many(first.at, axis)}", max(costs) / least, "x", "<= 1.25")
            # More clients share the cost per message, so it may fall. More topics have nothing to share.
            bar = ">= 0.75" if axis == "topics" else ""
            world.row(f"growth {curve}", f"cheapest, times that at {_many(first.at, axis)}", min(costs) / least, "x", bar)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun if count != 1 else noun.removesuffix('s')}"


def _holders(count: int, topics: int) -> list[Spec]:
    """Clients on the shared topic that hold this many topics together."""
    return [Spec({"jobs": ["status_changed"], "job_events": list(range(1 + number, topics, count))}) for number in range(count)]


def _both(world: World, specs: list[Spec], axis: str, at: int) -> None:
    """Measure one point of both curves."""
    count, messages = len(specs), world.scaled(1000, 20)
    per_s = 30 if count <= 1000 else 5  # 10,000 clients at 30 messages per second would need more than one core
    with world.towerws("--websocket-topics", str(MAX_HELD)) as server, world.clients() as load:
        load.open(server.port, specs)
        world.run(server, load, numbered(messages), specs, BYTES)  # the first deliveries of a process pay for imports and caches
        bursts = [world.run(server, load, numbered(messages), specs, BYTES) for _ in range(rounds(world))]
        steadies = [world.run(server, load, numbered(world.scaled(5 * per_s, 10)), specs, BYTES, per_s) for _ in range(rounds(world))]
    for curve, runs in (("burst", bursts), ("steady", steadies)):
        cheapest = min(run.us_per_delivery for run in runs)  # other processes on the machine only add to it
        point = Point(curve, axis, at, flat=count >= FLAT_FROM)
        world.row(f"growth {curve}", f"CPU per delivery, {_many(at, axis)}", cheapest, "µs", point=point)
