"""The scenarios that measure deliveries: burst, steady, mixed, drain, unwatched, large, v1, events."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.background import Health
from benchmarks.client import Spec
from benchmarks.world import Run, World, percentile

SHARED = "jobs.status_changed"

HISTORY_BYTES = 16 * 1024 * 1024
"""About 24,000 messages: half of those that unwatched publishes."""
BYTES = 300

ROUNDS = 3
"""Rounds of figures that depend on other load on the machine. Other load only adds, so the quietest round counts."""

ROUND_S = 8
"""Rounds of steady, at each rate."""


def burst_run(world: World, specs: list[Spec], messages: int, size: int = BYTES) -> Run:
    """Messages on one topic, all waiting in the broker, to all clients."""
    with world.towerws() as server, world.clients() as load:
        load.open(server.port, specs)
        world.run(server, load, numbered(1), specs, size)  # the first delivery of a process pays for imports and caches
        load.close()
        load.open(server.port, specs)
        return world.run(server, load, numbered(messages), specs, size)


def _burst_asked(world: World, specs: list[Spec], messages: int) -> list[float]:
    """The same while `/healthz` is asked. Returns the milliseconds of its answers, sorted."""
    with world.towerws() as server, world.clients() as load, Health(server.admin_port) as health:
        load.open(server.port, specs)
        world.run(server, load, numbered(1), specs, BYTES)
        return world.run(server, load, numbered(messages), specs, BYTES, health=health).health_ms


def rounds(world: World) -> int:
    """The number of rounds in a full run."""
    return ROUNDS if world.size >= 1 else 1


def numbered(messages: int, first: int = 0) -> list[tuple[str, int]]:
    """Messages on the shared topic."""
    return [(SHARED, number) for number in range(first, first + messages)]


def everyone(count: int, *, v1: bool = False, events: bool = False) -> list[Spec]:
    """Clients on the shared topic."""
    return [Spec({"jobs": ["status_changed"]}, v1=v1, events=events)] * count


def health_rows(world: World, scenario: str, answers_ms: list[float]) -> None:
    """Add the figures of `/healthz`'s answers."""
    world.row(scenario, "/healthz p99", percentile(answers_ms, 99), "ms", "<= 100")
    world.row(scenario, "/healthz, slowest answer", answers_ms[-1], "ms")


def burst(world: World) -> None:
    """1,000 clients on one topic, 1,000 messages of 300 bytes as fast as possible. `/healthz` is asked during ten times as many."""
    count, messages = world.scaled(1000, 20), world.scaled(1000, 20)
    count = max(count, min(1000, count * 10))  # reduce messages before clients: the cost per message is spread over the clients
    specs = everyone(count)
    run = burst_run(world, specs, messages)
    answers_ms = _burst_asked(world, specs, 10 * messages)
    with world.plain() as server, world.clients() as load:
        load.open(server.port, specs)
        plain = world.run(server, load, numbered(max(10, messages // 4)), specs, BYTES)
    with world.floor(count, BYTES) as server, world.clients() as load:
        load.open(server.port, [Spec(raw=True)] * count)
        floor = world.run_floor(server, load, max(10, messages // 4), count, BYTES)
    world.row("burst", "CPU per delivery", run.us_per_delivery, "µs", "<= 0.35")
    world.row("burst", "deliveries/s", run.per_s / 1e6, "M/s", ">= 2.5")
    world.row("burst", "plain's CPU per delivery", plain.us_per_delivery, "µs")
    world.row("burst", "times better than plain", plain.us_per_delivery / run.us_per_delivery, "x", ">= 12")
    world.row("burst", "floor's CPU per delivery", floor.us_per_delivery, "µs")
    health_rows(world, "burst", answers_ms)


def steady(world: World) -> None:
    """1,000 clients on one topic, 30 and 60 messages per second, each sent when it arrives.

    The rounds alternate with floor. The quietest of each counts: other load on the machine only adds.
    """
    count = max(20, min(1000, world.scaled(10_000)))
    specs = everyone(count)
    rates = {per_s: world.scaled(ROUND_S * per_s, 10) for per_s in (30, 60)}
    ours: dict[int, list[Run]] = {per_s: [] for per_s in rates}
    floors: dict[int, list[Run]] = {per_s: [] for per_s in rates}
    relays: dict[int, list[Run]] = {per_s: [] for per_s in rates}
    bare = [Spec({"jobs": ["status_changed"]}, raw=True)] * count
    with ExitStack() as stack:
        server, floor = stack.enter_context(world.towerws()), stack.enter_context(world.floor(count, BYTES))
        relay = stack.enter_context(world.relay(count))
        load, raw, behind = (stack.enter_context(world.clients()) for _ in range(3))
        load.open(server.port, specs)
        raw.open(floor.port, bare)
        behind.open(relay.port, bare)
        for _ in range(rounds(world)):
            for per_s, messages in rates.items():
                ours[per_s].append(world.run(server, load, numbered(messages), specs, BYTES, per_s))
                floors[per_s].append(world.run_floor(floor, raw, messages, count, BYTES, per_s))
                relays[per_s].append(world.run(relay, behind, numbered(messages), bare, BYTES, per_s))
    with world.plain() as straight, world.clients() as load:
        load.open(straight.port, specs)
        plains = [world.run(straight, load, numbered(messages), specs, BYTES, per_s) for per_s, messages in rates.items()]
    for per_s, plain in zip(rates, plains, strict=True):
        name = f"steady {per_s}/s"
        cpu, floor_cpu = (min(run.us_per_delivery for run in runs[per_s]) for runs in (ours, floors))
        p99, floor_p99, relay_p99 = (min(run.delay_ms(99) for run in runs[per_s]) for runs in (ours, floors, relays))
        world.row(name, "CPU per delivery", cpu, "µs")
        world.row(name, "floor's CPU per delivery", floor_cpu, "µs")
        world.row(name, "CPU, times floor's", cpu / floor_cpu, "x", "<= 1.6")
        world.row(name, "plain's CPU, times ours", plain.us_per_delivery / cpu, "x")
        world.row(name, "latency p50", min(run.delay_ms(50) for run in ours[per_s]), "ms")
        world.row(name, "latency p99", p99, "ms")
        world.row(name, "floor's latency p99", floor_p99, "ms")
        world.row(name, "latency p99, times floor's", p99 / floor_p99, "x", "<= 1.5")
        world.row(name, "... times floor's behind the broker", p99 / relay_p99, "x")


def mixed(world: World) -> None:
    """1,000 clients, each on one of 50 job topics and the shared one. A backlog of 10,000 messages, one in ten shared, is drained."""
    count = max(50, min(1000, world.scaled(10_000)))
    specs = [Spec({"job_events": [number % 50], "jobs": ["status_changed"]}) for number in range(count)]
    messages = [
        (SHARED if number % 10 == 0 else f"job_events.{(number - number // 10) % 50}", number)
        for number in range(world.scaled(10_000, 500))
    ]
    with world.towerws() as server, world.clients() as load:
        load.open(server.port, specs)
        run = world.run(server, load, messages, specs, BYTES)
    world.row("mixed", "deliveries/s", run.per_s / 1e6, "M/s", ">= 1.5")
    world.row("mixed", "CPU per delivery", run.us_per_delivery, "µs")


def drain(world: World) -> None:
    """50,000 messages wait in the stream. 1,000 clients have 1,000 topics, and each message has one subscriber."""
    count = max(50, min(1000, world.scaled(10_000)))
    specs = [Spec({"job_events": [number]}) for number in range(count)]
    messages = [(f"job_events.{number % count}", number) for number in range(world.scaled(50_000, 1000))]
    with world.towerws() as server, world.clients() as load:
        load.open(server.port, specs)
        run = world.run(server, load, messages, specs, BYTES)
    world.row("drain", "messages/s", run.per_s, "/s", ">= 35000")
    world.row("drain", "CPU per message", run.us_per_delivery, "µs")


def unwatched(world: World) -> None:
    """50,000 messages without a subscriber, with 10 and with 1,000,000 subscribed topics. History is full before the start.

    The kernel has to find pages for memory that is filled the first time, and that costs a large process more.
    """
    messages = world.scaled(50_000, 1000)
    wanted = [(f"job_events.{number % 100}", number) for number in range(messages)]
    costs = []
    for topics in (10, world.scaled(1_000_000, 1000)):
        each = min(1000, topics)
        first = 1_000_000
        specs = [Spec({"job_events": list(range(at, at + each))}) for at in range(first, first + topics, each)]
        specs.append(Spec({"jobs": ["status_changed"]}))
        history_bytes = world.scaled(HISTORY_BYTES, 512 * 1024)
        flags = ("--max-payload-bytes", "65536", "--history-max-bytes", str(history_bytes))  # a payload must fit into history
        with world.towerws(*flags) as server, world.clients() as load:
            load.open(server.port, specs)
            for _ in ("history is filled", "this counts"):
                run = world.run(server, load, [*wanted, (SHARED, messages)], specs, BYTES)  # the last message shows that all were read
        costs.append(run.cpu_s * 1e6 / messages)
        world.row("unwatched", f"CPU per message, {topics:,} topics", costs[-1], "µs", "<= 16")
    world.row("unwatched", "many topics, times few", costs[1] / costs[0], "x", "<= 1.1")


def v1(world: World) -> None:
    """Burst in the dialect `towerws.v1` and in Tower's."""
    count, messages = max(20, min(1000, world.scaled(10_000))), world.scaled(1000, 20)
    tower = burst_run(world, everyone(count), messages)
    run = burst_run(world, everyone(count, v1=True), messages)
    world.row("v1", "CPU per delivery", run.us_per_delivery, "µs")
    world.row("v1", "CPU, times Tower's", run.us_per_delivery / tower.us_per_delivery, "x")
    world.row("v1", "deliveries/s", run.per_s / 1e6, "M/s")


def events(world: World) -> None:
    """Readers of event streams next to websockets of `towerws.v1`: steady with 60 messages per second, and burst.

    The rounds alternate, and the quietest of each counts.
    """
    count, messages = max(20, min(1000, world.scaled(10_000))), world.scaled(1000, 20)
    kinds = {"streams": everyone(count, events=True), "websockets": everyone(count, v1=True)}
    steady_us: dict[str, list[float]] = {kind: [] for kind in kinds}
    burst_us: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(world.towerws()) for kind in kinds}
        loads = {kind: stack.enter_context(world.clients()) for kind in kinds}
        for kind, specs in kinds.items():
            loads[kind].open(servers[kind].port, specs)
        for _ in range(rounds(world)):
            for kind, specs in kinds.items():
                run = world.run(servers[kind], loads[kind], numbered(world.scaled(ROUND_S * 60, 10)), specs, BYTES, 60)
                steady_us[kind].append(run.us_per_delivery)
    for _ in range(rounds(world)):
        for kind, specs in kinds.items():
            burst_us[kind].append(burst_run(world, specs, messages).us_per_delivery)
    for name, costs, bar in (("steady", steady_us, "<= 1.1"), ("burst", burst_us, "")):
        stream, socket = (min(costs[kind]) for kind in kinds)
        world.row("events", f"{name}: CPU per delivery", stream, "µs")
        world.row("events", f"{name}: CPU, times towerws.v1's", stream / socket, "x", bar)


def large(world: World) -> None:
    """1,000 clients, payloads of 8 KB and 256 KB. One client in a hundred reads nothing until the others have everything.

    The fastest round of each server counts.
    """
    count = max(20, min(1000, world.scaled(10_000)))
    for size, full in ((8 * 1024, 400), (256 * 1024, 16)):
        messages = world.scaled(full, 4)
        specs = [Spec({"jobs": ["status_changed"]}, slow=number % 100 == 1) for number in range(count)]
        name = f"large {size // 1024} KB"
        with world.towerws() as server, world.clients() as load:
            load.open(server.port, specs)
            before = server.rss_bytes
            per_s = 0.0
            for _ in range(rounds(world)):
                per_s = max(per_s, world.run(server, load, numbered(messages), specs, size).per_s)
                load.begin_collect(slow=True)
                load.end_collect()
            grown = server.peak_bytes - before
        with world.floor(count, size) as server, world.clients() as load:
            load.open(server.port, [Spec(raw=True)] * count)
            floor_per_s = max(world.run_floor(server, load, messages, count, size).per_s for _ in range(rounds(world)))
        world.row(name, "bytes/s", per_s * size / 1e6, "MB/s")
        world.row(name, "bytes/s, of floor's", per_s / floor_per_s, "x", ">= 0.8")
        world.row(name, "memory above idle, at most", grown / 1e6, "MB")
