"""The parts of one run of a scenario: brokers, daemons, proxies, a publisher, a swarm. All of them end with the run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pika
from private_cluster import PrivateCluster
from private_rabbitmq import PrivateRabbit, free_port

from tests.faults import brokers
from tests.faults.client import Spec
from tests.faults.proxy import FaultProxy
from tests.faults.publisher import FORGOTTEN_S, SILENCE_S, Publisher
from tests.faults.scenario import Outcome
from tests.faults.swarm import Report, Swarm
from tests.kit.daemon import Daemon
from towerws.auth.tower_api import IDLE_S

TOPICS: Final = ["jobs.status_changed", *(f"job_events.{number}" for number in range(1, 8))]
MANY: Final = (
    "--limits-per-address=100000",
    "--limits-per-user=100000",
    "--limits-half-open=100000",
    # A paused or killed broker must be noticed within seconds, otherwise the run takes an hour.
    "--heartbeat-s=2",
    "--silence-s=5",
    "--attempt-s=5",
    "--backoff-min-s=0.2",
    "--backoff-max-s=1",
)
STREAM_LIMITS: Final = {"x-max-age": "3600s", "x-max-length-bytes": 1 << 30, "x-stream-max-segment-size-bytes": 16 << 20}
SETTLE_S: Final = 45.0
CLIENTS: Final = 100
TOWER: Final = 20
"""The default number of clients, and how many of them speak the Tower dialect."""

KEPT_S: Final = IDLE_S + 15
"""For so long the daemon may keep connections to the API that nobody uses."""

SPARE_DESCRIPTORS: Final = 12
"""Connections to the broker come and go: this many more descriptors than before are no leak."""


class Brokers:
    """The node and the clusters that scenarios of one run share. A scenario that may have damaged them calls `spoil`."""

    def __init__(self, version: int, folder: Path) -> None:
        self.version = version
        self._folder = folder
        self._node: PrivateRabbit | None = None
        self._cluster: PrivateCluster | None = None
        self._handling = ""
        self._count = 0

    def shared(self) -> PrivateRabbit:
        """The running node."""
        if self._node is None:
            self._count += 1
            self._node = brokers.single_node(self.version, self._folder / f"shared-{self._count}")
        self._node.start()
        return self._node

    def shared_cluster(self, partition_handling: str) -> PrivateCluster:
        """The running cluster, healthy. There is only one at a time, because three nodes take memory."""
        if self._cluster is not None and self._handling != partition_handling:
            self._cluster.stop()
            self._cluster = None
        if self._cluster is None:
            self._count += 1
            folder = self._folder / f"cluster-{self._count}"
            self._cluster = brokers.cluster(self.version, folder, partition_handling=partition_handling)
            self._handling = partition_handling
            self._cluster.start()
        self._cluster.mend()
        return self._cluster

    def spoil(self) -> None:
        """End the node and the cluster. The next scenario gets new ones."""
        if self._node is not None:
            self._node.kill()
            self._node = None
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None


class Case:
    """One run of one scenario. `say` shows progress, and `random` depends on the seed."""

    def __init__(self, name: str, seed: str, folder: Path, shared: Brokers, say: Callable[[str], None], leave: ExitStack) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.folder = folder
        self.say = say
        self.exchange = f"towerws-{name}"
        self.stream = f"towerws-{name}.events"
        self.topics = list(TOPICS)
        self._shared = shared
        self._leave = leave
        self._swarms: dict[str, Swarm] = {}
        self._daemons: list[Daemon] = []
        self._descriptors: dict[int, int] = {}
        self._publisher: Publisher | None = None
        self._publisher_host = ("127.0.0.1", 0)
        self.reports: dict[str, Report] = {}
        """The counts for each group of clients, once `finish` has judged them."""

    # Parts

    @property
    def version(self) -> int:
        """The major version of RabbitMQ."""
        return self._shared.version

    @property
    def rabbit(self) -> PrivateRabbit:
        """The shared node, running."""
        return self._shared.shared()

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call this at the end of the scenario, while the broker and the daemons still run."""
        self._leave.callback(callback)

    def spoil(self) -> None:
        """Keep other scenarios from using the shared node."""
        self._leave.callback(self._shared.spoil)

    def fresh_rabbit(self, *, config: str = "", plugins: Sequence[str] = ()) -> PrivateRabbit:
        """A started node for this scenario alone."""
        node = brokers.single_node(self.version, self._new_folder("rabbit"), config=config, plugins=plugins)
        self._leave.callback(node.kill)
        node.start()
        return node

    def cluster(self, partition_handling: str = "pause_minority") -> PrivateCluster:
        """The shared cluster, healthy and running."""
        return self._shared.shared_cluster(partition_handling)

    def proxy(self, *ports: int) -> FaultProxy:
        """A proxy in front of these ports on 127.0.0.1."""
        return self._leave.enter_context(FaultProxy(*(("127.0.0.1", port) for port in ports)))

    def daemon(
        self,
        *ports: int,
        flags: tuple[str, ...] = (),
        ready: bool = True,
        broker: str = "",
        user: str = "guest:guest",
        tls_pem: str = "",
        environment: Mapping[str, str] | None = None,
        kind: type[Daemon] = Daemon,
    ) -> Daemon:
        """A started daemon that reads from these ports on 127.0.0.1, in this order (or from `broker`, a list of URLs).

        With `tls_pem`, a file with key and certificate, it serves TLS. `environment` is added to the process's environment.
        """
        urls = broker or ",".join(f"amqp://{user}@127.0.0.1:{port}/%2F" for port in ports)
        own = (f"--exchange={self.exchange}", f"--stream={self.stream}")
        daemon = kind(self._new_folder("daemon"), urls, *own, *MANY, *flags, tls_pem=tls_pem, environment=environment, forked=False)
        self._leave.push(daemon)
        daemon.start(ready=ready)
        self._daemons.append(daemon)
        self._descriptors[daemon.port] = descriptors(daemon)
        return daemon

    def new_port(self) -> int:
        """A free port on 127.0.0.1."""
        return free_port()

    def publisher(
        self,
        *ports: int,
        per_s: float = 200,
        size: int = 40,
        topics: list[str] | None = None,
        hosts: list[tuple[str, int]] | None = None,
        silence_s: float = SILENCE_S,
        forgotten_s: float = FORGOTTEN_S,
    ) -> Publisher:
        """A publisher for these ports on 127.0.0.1 (or for `hosts`), in rotation. The daemon must have declared the stream."""
        targets = hosts or [("127.0.0.1", port) for port in ports]
        self._publisher_host = targets[0]
        publisher = Publisher(
            targets,
            topics or self.topics,
            exchange=self.exchange,
            stream=self.stream,
            per_s=per_s,
            size=size,
            seed=self.random.randrange(2**31),
            silence_s=silence_s,
            forgotten_s=forgotten_s,
        )
        self._publisher = self._leave.enter_context(publisher)
        return publisher

    @property
    def swarm(self) -> Swarm:
        """The process with the clients."""
        return self._swarm("swarm")

    @property
    def bystanders(self) -> Swarm:
        """A process for clients whose latency is measured: the other clients' load must not count as the daemon's."""
        return self._swarm("bystanders")

    def _swarm(self, name: str) -> Swarm:
        if name not in self._swarms:
            self._swarms[name] = self._leave.enter_context(Swarm(self.random.randrange(2**31)))
        return self._swarms[name]

    def specs(self, count: int, *daemons: Daemon, tower: int = 0, each: int = 0, ports: tuple[int, ...] = (), **more: Any) -> list[Spec]:
        """This many clients, the first `tower` of them Tower clients. Each connection goes to a random one of the daemons (or `ports`).

        With `each` a client has that many random topics, otherwise all of them. `more` are fields of `Spec`.
        """
        urls = tuple(("127.0.0.1", port) for port in ports or [daemon.port for daemon in daemons])
        specs = []
        for number in range(count):
            kinds = range(len(self.topics)) if not each else sorted(self.random.sample(range(len(self.topics)), each))
            topics = tuple(self.topics[kind] for kind in kinds)
            specs.append(Spec(**{"urls": urls, "topics": topics, "kinds": frozenset(kinds), "v1": number >= tower, **more}))
        return specs

    def direct(
        self,
        *,
        port: int = 0,
        clients: int = CLIENTS,
        tower: int = TOWER,
        flags: tuple[str, ...] = (),
        user: str = "guest:guest",
        **flow: Any,
    ) -> tuple[Daemon, Publisher]:
        """The usual parts: a daemon on the shared node (or on `port`), a publisher (`flow` are its arguments), and live clients."""
        daemon = self.daemon(port or self.rabbit.port, flags=flags, user=user)
        publisher = self.publisher(self.rabbit.port, **flow)
        self.swarm.open(self.specs(clients, daemon, tower=tower))
        return daemon, publisher

    def proxied(self, **more: Any) -> tuple[FaultProxy, Daemon, Publisher]:
        """The same parts with a proxy between daemon and node. `more` are arguments of `direct`."""
        proxy = self.proxy(self.rabbit.port)
        return proxy, *self.direct(port=proxy.port, **more)

    def declare(self, channel: Any, *, exchange_type: str = "topic", **limits: Any) -> None:
        """Declare exchange, stream and binding with the daemon's defaults, as a producer with rights would."""
        channel.exchange_declare(self.exchange, exchange_type, durable=True)
        arguments = {"x-queue-type": "stream", **(limits or STREAM_LIMITS)}
        channel.queue_declare(self.stream, durable=True, arguments=arguments)
        channel.queue_bind(self.stream, self.exchange, "#")

    def wait_ready(self, daemon: Daemon, *, ready: bool = True, within_s: float = 30.0) -> str:
        """Wait for this readiness in `/readyz`. Returns the reason."""
        answer: tuple[int, Any] = (0, {})

        def is_so() -> bool:
            nonlocal answer
            with suppress(OSError):
                answer = daemon.get("/readyz")
            return (answer[0] == 200) is ready

        self.wait_until(is_so, f"/readyz is {200 if ready else 503}", within_s)
        return str(answer[1].get("reason"))

    @contextmanager
    def amqp(self, port: int, user: str = "guest:guest", host: str = "127.0.0.1") -> Iterator[Any]:
        """A channel of pika's blocking connection."""
        name, _, password = user.partition(":")
        connection = pika.BlockingConnection(pika.ConnectionParameters(host, port, "/", pika.PlainCredentials(name, password)))
        try:
            yield connection.channel()
        finally:
            with suppress(pika.exceptions.AMQPError):
                connection.close()

    def sleep(self, seconds: float) -> None:
        """Let the load run for this time. Injected outages have a duration, so this is no wait for an event."""
        time.sleep(seconds)

    def wait_until(self, is_so: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        """Poll until the condition holds. Raises `AssertionError` at the timeout."""
        give_up = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > give_up:
                raise AssertionError(f"waited {within_s:g} s in vain until {what}")
            time.sleep(0.02)  # between two polls: the condition has no event

    # The end

    def finish(
        self,
        injected: str,
        *,
        holes: int = 0,
        broken: list[str] | None = None,
        notes: list[str] | None = None,
        settle_s: float = SETTLE_S,
    ) -> Outcome:
        """Publish a last round, let every client catch up, judge it, and check for leaks.

        `holes` is the number of real losses: each v1 client must get exactly one gap (or `recovered: false`) for each.
        Losses of Tower clients in these are not judged: their dialect has no frame for them.
        """
        outcome = Outcome(injected, broken=broken or [], notes=notes or [])
        publisher = self._publisher
        assert publisher is not None
        # Tower clients have no position, so they must be connected during the last round.
        swarms = self._swarms.values()
        if left := sum(swarm.wait_live(within_s=settle_s) for swarm in swarms):
            outcome.broken.append(f"{left} clients are not connected and subscribed {settle_s:g} s after the fault")
        self.say("the last round")
        publisher.last_round()
        if left := sum(swarm.wait_for(publisher.journal, within_s=settle_s) for swarm in swarms):
            outcome.broken.append(f"{left} clients did not get the last event within {settle_s:g} s")
        self.say("judging")
        for swarm in swarms:
            self.reports.update(swarm.report(publisher.journal))
        self._count(outcome, holes)
        returned = len(publisher.journal.returned)
        if returned:
            outcome.notes.append(f"{returned} messages were returned by the broker")
        if outcome.tally.lost:
            outcome.notes.append(self._where_lost(outcome.tally.lost_numbers, publisher))
        self._look_for_leaks(outcome)
        return outcome

    def _where_lost(self, lost: set[int], publisher: Publisher) -> str:
        """Whether the stream still has the events that clients did not get. Then the broker did not lose them."""
        held: set[int] = set()
        last = publisher.journal.count - 1
        try:
            with self.amqp(self._publisher_host[1], host=self._publisher_host[0]) as channel:
                channel.basic_qos(prefetch_count=500)
                for method, _, body in channel.consume(self.stream, arguments={"x-stream-offset": "first"}, inactivity_timeout=5):
                    if method is None:
                        break
                    channel.basic_ack(method.delivery_tag)
                    number = json.loads(body).get("n") if method.routing_key in self.topics else None
                    held.add(-1 if number is None else int(number))
                    if number == last:
                        break
        except (pika.exceptions.AMQPError, OSError) as error:
            return f"the stream can't be read: {error!r}"
        return f"of {len(lost)} numbers that clients lost the stream still holds {len(lost & held)}"

    def _count(self, outcome: Outcome, holes: int) -> None:
        broken, tally = outcome.broken, outcome.tally
        for report in self.reports.values():
            tally.add(report.tally)
            outcome.worst_ms = max(outcome.worst_ms, report.worst_ms)
            broken += [f"violation: {text}" for text in report.violations]
        for count, what in ((tally.lost, "lost"), (tally.repeated, "repeated"), (tally.reordered, "reordered")):
            if count:
                broken.append(f"{count} events {what}")
        if not holes:
            for count, what in ((tally.gaps, "false gaps"), (tally.recovered_false, "false answers `recovered: false`")):
                if count:
                    broken.append(f"{count} {what}")
        elif tally.least_told >= 0 and (tally.least_told, tally.most_told) != (holes, holes):
            broken.append(
                f"each client should be told {holes} times of a loss; told between {tally.least_told} and {tally.most_told} times"
            )
        if tally.hidden:
            outcome.notes.append(f"{tally.hidden} events that the broker still had are covered by gaps")
        outcome.notes += tally.examples[:5]

    def _look_for_leaks(self, outcome: Outcome) -> None:
        """After all clients have left, a daemon has no connection, no topic, no subscription, and no more descriptors than before."""
        for swarm in self._swarms.values():
            swarm.leave()
        for daemon in self._daemons:
            with suppress(OSError):
                what = "the daemon has no connection, no topic and no subscription"
                self.wait_until(lambda daemon=daemon: is_empty(daemon), what, 60)  # type: ignore[misc]
                before = self._descriptors[daemon.port]
                # Connections to the API are kept for a while. A restarted daemon has other descriptors.
                with suppress(AssertionError):
                    self.wait_until(lambda daemon=daemon, most=before + SPARE_DESCRIPTORS: descriptors(daemon) <= most, "", KEPT_S)  # type: ignore[misc]
                if (now := descriptors(daemon)) > before + SPARE_DESCRIPTORS:
                    outcome.broken.append(f"descriptors: {before} before, {now} after")
                outcome.notes.append(f"rss {daemon.rss_kib() // 1024} MiB")

    def _new_folder(self, what: str) -> Path:
        folder = self.folder / f"{what}-{len(list(self.folder.iterdir())) + 1}"
        folder.mkdir(parents=True)
        return folder


def descriptors(daemon: Daemon) -> int:
    """How many files and sockets the daemon has open."""
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


def is_empty(daemon: Daemon) -> bool:
    """Whether the daemon has no connection, no topic and no subscription left."""
    status, answer = daemon.get("/status")
    return status == 200 and present(answer) == answer["hub"]["topics"] == answer["hub"]["subscriptions"] == 0


def present(status: dict[str, Any]) -> int:
    """How many clients are connected, from `/status`."""
    connections = status["connections"]
    return int(connections["present"] if isinstance(connections, dict) else connections)
