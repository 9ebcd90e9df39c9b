"""The swarm: a process with up to thousands of clients that a scenario controls. They are judged at the end.

`Swarm` is the scenario's side. Each of its methods calls the child process and returns its answer.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from tests.faults.client import Client, Spec
from tests.faults.judge import Judge, Lost, Tally
from tests.faults.publisher import Journal

POLL_S: Final = 0.02
TICK_S: Final = 0.05
"""Interval in which the child measures how late its own loop is."""

CALL_S: Final = 400.0
OPENING: Final = 500
"""How many clients open at once. Others follow as these are answered."""


@dataclass
class Report:
    """The counts of one group of clients. `worst_ms` is the longest time from publish to receipt."""

    tally: Tally = field(default_factory=Tally)
    codes: Counter[int] = field(default_factory=Counter)
    worst_ms: float = 0.0
    refused: int = 0
    connections: int = 0
    violations: list[str] = field(default_factory=list)


class Loop:
    """The shared state of the child's clients, and the parent's commands."""

    def __init__(self, seed: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(seed)
        self.clients: list[Client] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._wandering: asyncio.TimerHandle | None = None
        self._late_s = 0.0
        self._due = self.loop.time() + TICK_S
        self.loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self.loop.time()
        self._late_s = max(self._late_s, now - self._due)
        self._due = now + TICK_S
        self.loop.call_at(self._due, self._tick)

    async def late(self) -> float:
        """The longest time, in seconds, by which this loop itself was late, since the last call."""
        late_s, self._late_s = max(self._late_s, self.loop.time() - self._due), 0.0
        return late_s

    async def worst(self) -> float:
        """The longest time, in seconds, from publish to receipt since the last call. A client that is not `timed` does not count."""
        worst_ns = 0
        for client in self.clients:
            if client.spec.judged and client.spec.timed:
                worst_ns = max(worst_ns, client.counts.worst_ns)
            client.counts.worst_ns = 0
        return worst_ns / 1e9

    def context(self, pem: str) -> ssl.SSLContext:
        """A TLS context that trusts this certificate."""
        if pem not in self._contexts:
            self._contexts[pem] = ssl.create_default_context(cafile=pem)
        return self._contexts[pem]

    def of(self, name: str) -> list[Client]:
        """The clients of this group name, or all for ""."""
        return [client for client in self.clients if name in {"", client.spec.group_name}]

    async def open(self, specs: list[Spec], within_s: float, wait: bool, at_once: int) -> int:
        """Make these clients and connect them. Returns how many are live."""
        new = [Client(self, spec, len(self.clients) + number) for number, spec in enumerate(specs)]
        self.clients += new
        deadline = self.loop.time() + within_s
        for first in range(0, len(new), at_once):
            part = new[first : first + at_once]
            for client in part:
                client.connect()
            if wait:
                await self._poll(lambda part=part: not_live(part), deadline - self.loop.time())  # type: ignore[misc]
        return sum(client.state == "live" for client in new)

    async def wait_live(self, name: str, within_s: float) -> int:
        """Wait until all judged clients are live. Returns how many are not at the timeout."""
        judged = [client for client in self.of(name) if client.spec.judged]
        return await self._poll(lambda: not_live(judged), within_s)

    async def drop(self, name: str, share: float) -> int:
        """Cut this share of the connections, at random. Returns their number."""
        chosen = [client for client in self.of(name) if client.state == "live" and self.random.random() < share]
        for client in chosen:
            client.drop()
        return len(chosen)

    async def wander(self, name: str, per_s: float) -> None:
        """Cut this many connections per second, one after another, at random. 0 ends that."""
        if self._wandering is not None:
            self._wandering.cancel()
            self._wandering = None
        if per_s:

            def step() -> None:
                if live := [client for client in self.of(name) if client.state == "live"]:
                    self.random.choice(live).drop()
                self._wandering = self.loop.call_later(1 / per_s, step)

            step()

    async def ask_again(self, share: float) -> None:
        """Let this share of the clients, at random, subscribe again on their open connections."""
        for client in self.clients:
            if client.state == "live" and self.random.random() < share:
                client.ask_again()

    async def begin_messages(self, name: str) -> None:
        """Let these clients send a part of a request."""
        for client in self.of(name):
            client.begin_message()

    async def finish_messages(self, name: str, within_s: float) -> int:
        """Let them send the rest, and wait for the answers. Returns how many have none at the timeout."""
        clients = self.of(name)
        for client in clients:
            client.finish_message()
        return await self._poll(lambda: sum(not client.is_answered for client in clients), within_s)

    async def misbehave(self, name: str, how: str, low_s: float, high_s: float) -> None:
        """Stop reading (see `Client.misbehave`) for a random time between the two."""
        for client in self.of(name):
            client.misbehave(how, self.random.uniform(low_s, high_s))

    async def leave(self, name: str) -> None:
        """Disconnect permanently."""
        for client in self.of(name):
            client.leave()

    async def wait_for(self, name: str, last: list[int], within_s: float) -> int:
        """Wait until each judged client has the last number of its topics (`last`, by topic). Returns how many lack it at the timeout."""

        def is_done(client: Client) -> bool:
            return client.last >= max(last[kind] for kind in client.spec.kinds)

        waiting = [client for client in self.of(name) if client.spec.judged]
        return await self._poll(lambda: sum(not is_done(client) for client in waiting), within_s)

    async def _poll(self, left: Callable[[], int], within_s: float) -> int:
        """Wait until the count is zero. Returns the count at the timeout."""
        deadline = self.loop.time() + within_s
        while True:
            count = left()
            if not count or self.loop.time() > deadline:
                return count
            await asyncio.sleep(POLL_S)

    async def states(self, name: str) -> Counter[str]:
        """How many clients are in each state."""
        return Counter(client.state for client in self.of(name))

    async def codes(self, name: str) -> Counter[int]:
        """How often connections ended with each code so far."""
        return Counter(note.code for client in self.of(name) for note in client.story.notes if isinstance(note, Lost))

    async def report(self, journal: Journal) -> dict[str, Report]:
        """Judge every client. Returns reports by group name."""
        judge = Judge(journal)
        reports: dict[str, Report] = {}
        for client in self.clients:
            report = reports.setdefault(client.spec.group_name, Report())
            counts = client.counts
            report.codes.update(note.code for note in client.story.notes if isinstance(note, Lost))
            report.refused += counts.refused
            report.connections += counts.connections
            if client.spec.judged:
                tower = "" if client.spec.v1 else "Tower "
                report.tally.add(judge.judge(client.story, f"{tower}client {client.number}"))
                if client.spec.timed:
                    report.worst_ms = max(report.worst_ms, counts.worst_ns / 1e6)
                report.violations = (report.violations + counts.violations)[:10]
        return reports


def not_live(clients: Sequence[Client]) -> int:
    """How many of them are not subscribed now."""
    return sum(client.state != "live" for client in clients)


class Swarm:
    """The scenario's side of a child process. Any thread may call it."""

    def __init__(self, seed: int = 0) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._calling = threading.Lock()
        self._process = context.Process(target=_serve, args=(theirs, seed), daemon=True)
        self._theirs = theirs

    def start(self) -> Self:
        """Start the child."""
        self._process.start()
        self._theirs.close()
        return self

    def stop(self) -> None:
        """End the child, and with it every connection."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def open(self, specs: Sequence[Spec], within_s: float = 60.0, *, wait: bool = True, at_once: int = OPENING) -> int:
        """Connect these clients, `at_once` at a time, and wait until all are subscribed. Returns how many are."""
        live: int = self._call("open", list(specs), within_s, wait, at_once)
        return live

    def wait_live(self, name: str = "", within_s: float = 60.0) -> int:
        """Wait until all judged clients are subscribed. Returns how many are not at the timeout."""
        left: int = self._call("wait_live", name, within_s)
        return left

    def drop(self, name: str = "", share: float = 1.0) -> int:
        """Cut this share of the connections. Their clients reconnect by themselves."""
        dropped: int = self._call("drop", name, share)
        return dropped

    def wander(self, per_s: float, name: str = "") -> None:
        """Cut this many connections per second until it is set to 0."""
        self._call("wander", name, per_s)

    def ask_again(self, share: float) -> None:
        """Let this share of the clients subscribe again on their open connections."""
        self._call("ask_again", share)

    def begin_messages(self, name: str) -> None:
        """Let these clients send the first frame of a request, and a part of the second one."""
        self._call("begin_messages", name)

    def finish_messages(self, name: str, within_s: float = 60.0) -> int:
        """Let them send the rest. Returns how many have no answer at the timeout."""
        left: int = self._call("finish_messages", name, within_s)
        return left

    def late(self) -> float:
        """The longest time, in seconds, by which the child itself was late since the last call. Its clients' latency contains it."""
        late_s: float = self._call("late")
        return late_s

    def worst(self) -> float:
        """The longest time, in seconds, from publish to receipt since the last call."""
        worst_s: float = self._call("worst")
        return worst_s

    def misbehave(self, name: str, how: str, low_s: float = 0.0, high_s: float = 0.0) -> None:
        """Let these clients `stall` for a time, `never` read again, `talk` without reading, or `close` and not read."""
        self._call("misbehave", name, how, low_s, high_s)

    def leave(self, name: str = "") -> None:
        """Disconnect these clients permanently."""
        self._call("leave", name)

    def wait_for(self, journal: Journal, name: str = "", within_s: float = 60.0) -> int:
        """Wait until each client has the last number on its topics. Returns how many lack it at the timeout."""
        last = [-1] * len(journal.topics)
        for number, topic in enumerate(journal.topic_of):
            last[topic] = number
        left: int = self._call("wait_for", name, last, within_s)
        return left

    def states(self, name: str = "") -> Counter[str]:
        """How many clients are in each state."""
        states: Counter[str] = self._call("states", name)
        return states

    def codes(self, name: str = "") -> Counter[int]:
        """How often connections ended with each close code."""
        codes: Counter[int] = self._call("codes", name)
        return codes

    def report(self, journal: Journal) -> dict[str, Report]:
        """Judge every client. Returns reports by group name."""
        reports: dict[str, Report] = self._call("report", journal)
        return reports

    def _call(self, method: str, *args: Any) -> Any:
        with self._calling:
            self._pipe.send((method, args))
            if not self._pipe.poll(CALL_S):
                raise AssertionError(f"the swarm did not answer {method} within {CALL_S:g} s")
            done, answer = self._pipe.recv()
        if not done:
            raise AssertionError(f"the swarm failed in {method}:\n{answer}")
        return answer


def _serve(pipe: Connection, seed: int) -> None:
    """The child: it runs one command at a time, while its clients go on."""
    asyncio.run(_obey(pipe, seed))


async def _obey(pipe: Connection, seed: int) -> None:
    shared = Loop(seed)
    ready = asyncio.Event()
    shared.loop.set_exception_handler(lambda loop, context: None if "exception" not in context else loop.default_exception_handler(context))
    shared.loop.add_reader(pipe.fileno(), ready.set)
    while True:
        await ready.wait()
        ready.clear()
        while pipe.poll():
            try:
                method, args = pipe.recv()
            except EOFError:
                shared.loop.remove_reader(pipe.fileno())
                for client in shared.clients:
                    client.leave()
                return
            try:
                answer = await getattr(shared, method)(*args)
            except Exception:  # noqa: BLE001 - the parent raises it
                pipe.send((False, traceback.format_exc()))
            else:
                pipe.send((True, answer))
