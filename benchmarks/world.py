"""What a scenario uses: its own broker, servers, clients and sizes, and the rows that it fills."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from private_rabbitmq import PrivateRabbit, free_port

from benchmarks.background import Health, Message, publish
from benchmarks.certificate import make_certificate
from benchmarks.client import HOST, Spec
from benchmarks.fleet import Received
from benchmarks.load import Load
from benchmarks.servers import Floor, Greeter, Plain, Relay, Server, Towerws


@dataclass(frozen=True, slots=True)
class Point:
    """The place of a figure in a plot: its curve (`burst`), and its value on an axis (10,000 `clients`).

    `flat`: it must be within 25 % of the first flat point of its curve.
    """

    curve: str
    axis: str
    at: int
    flat: bool

    def lies_on(self, curve: str, axis: str) -> bool:
        """Whether the point belongs to this curve."""
        return (self.curve, self.axis) == (curve, axis)


@dataclass(frozen=True)
class Row:
    """One figure and its limit: `<= 0.35`, `>= 12`, or none."""

    scenario: str
    what: str
    value: float
    unit: str
    bar: str = ""
    point: Point | None = None

    @property
    def met(self) -> bool | None:
        """Whether it reaches its limit, None if there is none."""
        if not self.bar:
            return None
        sign, bound = self.bar.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


@dataclass(frozen=True)
class Run:
    """One run of one server: its cost, its deliveries, and the sorted times of `/healthz`'s answers, if it was asked."""

    cpu_s: float
    wall_s: float
    received: Received
    health_ms: list[float]

    @property
    def us_per_delivery(self) -> float:
        """CPU per delivery, in microseconds."""
        return self.cpu_s * 1e6 / self.received.messages

    @property
    def per_s(self) -> float:
        """Deliveries per second of wall clock."""
        return self.received.messages / self.wall_s

    def delay_ms(self, percent: float) -> float:
        """A percentile of the delay."""
        return percentile(self.received.delays_ms(), percent)


def percentile(figures: list[float], percent: float) -> float:
    """The value below which this percentage of the sorted figures lies."""
    return figures[min(len(figures) - 1, int(len(figures) * percent / 100))]


@dataclass
class World:
    """`size` scales a scenario: 1 is the full run, 0.1 a quick one, and 0.01 only shows that it works.

    `pem` is a key and a certificate for both ends. The broker speaks TLS with it at `tls_url`.
    """

    rabbit: PrivateRabbit
    folder: Path
    size: float
    pem: Path
    tls_url: str
    rows: list[Row] = field(default_factory=list)
    _names: int = 0
    _idle: dict[int, list[Load]] = field(default_factory=dict)

    def scaled(self, full: int, least: int = 1) -> int:
        """This number, scaled to the size."""
        return max(least, round(full * self.size))

    def row(self, scenario: str, what: str, value: float, unit: str, bar: str = "", *, point: Point | None = None) -> None:
        """Add a figure."""
        self.rows.append(Row(scenario, what, value, unit, bar, point))

    def towerws(self, *flags: str, pem: Path | None = None) -> Towerws:
        """A daemon on an empty stream. With `pem` it listens with TLS."""
        return Towerws(self._log("towerws"), self.rabbit.url, f"bench.{self._names}", *flags, pem=pem)

    def plain(self) -> Plain:
        """The straightforward server: Autobahn and pika."""
        return Plain(self._log("plain"), self.rabbit.url, f"bench.{self._names}")

    def floor(self, clients: int, size: int) -> Floor:
        """The bare loop."""
        return Floor(self._log("floor"), clients, size)

    def relay(self, clients: int) -> Relay:
        """The bare loop behind the broker."""
        return Relay(self._log("relay"), self.rabbit.url, f"bench.{self._names}", clients)

    def greeter(self) -> Greeter:
        """The bare system calls of connecting."""
        return Greeter(self._log("greeter"))

    @contextmanager
    def clients(self, processes: int = 2) -> Iterator[Load]:
        """A load generator of this many processes, without clients. At the end its clients disconnect, and it is kept for the next use."""
        idle = self._idle.setdefault(processes, [])
        load = idle.pop() if idle else Load(processes)
        try:
            yield load
            load.close()
        except BaseException:
            load.stop()
            raise
        idle.append(load)

    def stop(self) -> None:
        """End the load generators."""
        for loads in self._idle.values():
            for load in loads:
                load.stop()

    def _log(self, name: str) -> Path:
        self._names += 1
        return self.folder / f"{self._names}-{name}.log"

    def publish(self, exchange: str, messages: Iterable[Message], size: int, per_s: float = 0) -> None:
        """Publish at `per_s` messages per second, or as fast as possible if that is 0."""
        publish(self.rabbit.url, exchange, messages, size, per_s)

    def run(
        self,
        server: Towerws | Plain | Relay,
        load: Load,
        messages: list[Message],
        specs: list[Spec],
        size: int,
        per_s: float = 0,
        health: Health | None = None,
    ) -> Run:
        """Publish all messages, and measure until every client has its own. Without `per_s` all of them first wait for the server.

        `health` is asked meanwhile. Its answers are part of the cost.
        """
        load.expect(due(messages, specs), size)
        if not per_s:
            server.freeze()
            self.publish(server.exchange, messages, size)
        load.begin_collect(stamped=bool(per_s))

        if per_s:
            return self.measured(server, load, lambda: self.publish(server.exchange, messages, size, per_s), health)
        return self.measured(server, load, server.thaw, health)

    def run_floor(self, floor: Floor, load: Load, messages: int, clients: int, size: int, per_s: float = 0) -> Run:
        """The same with the bare loop."""
        load.expect([list(range(messages))] * clients, size)
        load.begin_collect(stamped=bool(per_s))
        return self.measured(floor, load, lambda: floor.run(messages, per_s))

    def measured(self, server: Server, load: Load, go: Callable[[], None], health: Health | None = None) -> Run:
        """Call `go`, and measure until every client has all its messages."""
        pause_s = 0.2 if self.size >= 0.1 else 0.02
        time.sleep(pause_s)  # by then the clients are waiting
        if health is not None:
            health.begin()
        cpu, start = server.cpu_ns, time.monotonic_ns()
        go()
        received = load.end_collect()
        answers_ms = [] if health is None else health.end()
        time.sleep(pause_s)  # remaining work (acknowledging) is part of the cost
        return Run((server.cpu_ns - cpu) / 1e9, (received.ended_ns - start) / 1e9, received, answers_ms)


def due(messages: list[Message], specs: list[Spec]) -> list[list[int]]:
    """The numbers that each client must get, in order. Clients with the same topics share a list."""
    known: dict[tuple[str, ...], list[int]] = {}
    lists = []
    for spec in specs:
        topics = tuple(f"{group}.{event}" for group, events in spec.groups.items() for event in events)
        if topics not in known:
            mine = set(topics)
            known[topics] = [number for routing_key, number in messages if routing_key in mine]
        lists.append(known[topics])
    return lists


@contextmanager
def world(size: float) -> Iterator[World]:
    """Start the broker. At the end stop it, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="towerws-bench-") as name:
        folder = Path(name)
        pem = folder / "tls.pem"
        make_certificate(pem)
        rabbit = PrivateRabbit(folder / "rabbit")
        port = free_port()
        settings = rabbit.data_dir / "conf.d" / "tls.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            f"listeners.ssl.1 = {HOST}:{port}\n" + "".join(f"ssl_options.{key} = {pem}\n" for key in ("cacertfile", "certfile", "keyfile"))
        )
        with rabbit:
            here = World(rabbit, folder, size, pem, f"amqps://guest:guest@{HOST}:{port}/%2F")
            try:
                yield here
            finally:
                here.stop()
