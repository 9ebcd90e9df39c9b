"""The scenario that measures what a further daemon costs the broker."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.fanout import BYTES
from benchmarks.servers import Towerws
from benchmarks.world import World

MOST = 4
"""Daemons on one broker."""

PER_S = 500


def readers(world: World) -> None:
    """Events at a steady rate, read by none to four daemons from one stream. What the broker spends without a daemon is subtracted."""
    messages = [(f"job_events.{number % 100}", number) for number in range(world.scaled(10 * PER_S, 50))]
    name = "bench.readers"
    with _daemon(world, name, 0):
        pass  # it declares the stream
    alone_s = _broker_s(world, name, messages)
    world.row("readers 0", "broker's CPU per message", alone_s * 1e6 / len(messages), "µs")
    for count in range(1, MOST + 1):
        with ExitStack() as leave:
            daemons = [leave.enter_context(_daemon(world, name, number)) for number in range(count)]
            before = sum(daemon.cpu_ns for daemon in daemons)
            spent_s = _broker_s(world, name, messages)
            own_s = (sum(daemon.cpu_ns for daemon in daemons) - before) / 1e9
        each = (spent_s - alone_s) * 1e6 / len(messages) / count
        world.row(f"readers {count}", "broker's CPU per message and daemon", each, "µs")
        world.row(f"readers {count}", "a daemon's CPU per message", own_s * 1e6 / len(messages) / count, "µs")


def _daemon(world: World, name: str, number: int) -> Towerws:
    return Towerws(world.folder / f"readers-{number}.log", world.rabbit.url, name)


def _broker_s(world: World, name: str, messages: list[tuple[str, int]]) -> float:
    """Publish, and return the broker's CPU in seconds, until what follows the last message is done."""
    before = _cpu_ns(world.rabbit.pid)
    world.publish(name, messages, BYTES, PER_S)
    time.sleep(1 if world.size >= 0.1 else 0.1)
    return (_cpu_ns(world.rabbit.pid) - before) / 1e9


def _cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
