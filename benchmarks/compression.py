"""The scenario that measures the savings on the wire by compression, and its cost."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import cycle, islice

from benchmarks.background import publish_bodies
from benchmarks.client import Spec
from benchmarks.servers import ROOT, Plain, Towerws
from benchmarks.world import Run, World

SAMPLES = ROOT / "tests" / "data" / "awx-events.json"

TOPICS = {"job_events.42", "jobs.status_changed"}
"""The topics of a job's page. The samples are a whole run of this job."""


def compression(world: World) -> None:
    """1,000 clients watch a job, and AWX's own events wait for the daemon. Runs with and without `permessage-deflate`."""
    count = max(20, min(1000, world.scaled(10_000)))
    samples = [
        (sample["routing_key"], json.dumps(sample["payload"]).encode("ascii"))
        for sample in json.loads(SAMPLES.read_text(encoding="utf-8"))
        if sample["routing_key"] in TOPICS
    ]
    messages = list(islice(cycle(samples), world.scaled(500, 50)))
    spec = Spec({"job_events": [42], "jobs": ["status_changed"]}, uneven=True)
    with world.towerws() as server:
        bare = _run(world, server, [spec] * count, messages)
    with world.towerws("--websocket-compression") as server:
        squeezed = _run(world, server, [replace(spec, deflate=True)] * count, messages)
    with world.plain() as straight:
        plain = _run(world, straight, [replace(spec, deflate=True)] * count, messages[: len(samples)])
    size = [run.received.size / run.received.messages for run in (bare, squeezed)]
    world.row("compression", "bytes per delivery without", size[0], "")
    world.row("compression", "bytes per delivery with", size[1], "")
    world.row("compression", "saved", 100 - 100 * size[1] / size[0], "%")
    world.row("compression", "CPU per delivery without", bare.us_per_delivery, "µs")
    world.row("compression", "CPU per delivery with", squeezed.us_per_delivery, "µs")
    world.row("compression", "plain's CPU per delivery with", plain.us_per_delivery, "µs")


def _run(world: World, server: Towerws | Plain, specs: list[Spec], messages: list[tuple[str, bytes]]) -> Run:
    with world.clients() as load:
        load.open(server.port, specs)
        for some in (messages[:1], messages):  # the first delivery of a process pays for imports and caches
            load.expect([[body for _, body in some]] * len(specs), 0)
            server.freeze()
            publish_bodies(world.rabbit.url, server.exchange, some)
            load.begin_collect()
            run = world.measured(server, load, server.thaw)
    return run
