"""A client on a bad network: a proxy cuts, freezes and delays its connection while numbered events are published.

It prints what happens, and at the end whether each event came exactly once and in order. Exit status 1 says that it did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from contextlib import suppress
from itertools import cycle
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

from towerws.client import Event, Gap, StateChange, Subscribed, connect

TOPIC = "job_events.1"
BATCH = 10
"""Events that are published at once."""
TROUBLE_BATCHES = 8
"""The network breaks once in so many batches."""
DELAY_S = 0.3
READ_BYTES = 65536
REQUEST_S = 10
END_S = 60
"""Seconds that the client may take to resume, and to get the last events."""


class FlakyProxy:
    """A TCP proxy that breaks the connections it has. The next connection works."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen on loopback. Returns the port."""
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link([writer, far_writer])
        self._links.add(link)
        try:
            await asyncio.gather(link.forward(reader, far_writer), link.forward(far_reader, writer))
        finally:
            self._links.discard(link)

    def cut(self) -> None:
        """Cut every connection in the middle of the next piece of data, which may be in the middle of a frame."""
        for link in self._links:
            link.cutting = True

    def freeze(self) -> None:
        """Forward nothing any more, and tell nobody: a phone that left the network."""
        for link in self._links:
            link.flows.clear()

    async def delay(self, seconds: float) -> None:
        """Hold everything back, then forward it at once: a train in a tunnel."""
        held = set(self._links)
        for link in held:
            link.flows.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            for link in held:
                link.flows.set()

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        self._server.close()
        for link in self._links:
            link.abort()
            link.flows.set()
        await asyncio.gather(*self._tasks)


class Link:
    """One connection through the proxy."""

    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self._writers = writers
        self.cutting = False
        self.flows = asyncio.Event()
        self.flows.set()

    def abort(self) -> None:
        """End both sides without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction until one side ends."""
        with suppress(OSError):
            while piece := await reader.read(READ_BYTES):
                await self.flows.wait()
                writer.write(piece[: len(piece) // 2] if self.cutting else piece)
                if self.cutting:
                    break
                await writer.drain()
            with suppress(OSError):
                await writer.drain()
        self.abort()


class Watcher:
    """The client's side: it keeps every number, and every notice of a loss."""

    def __init__(self, run: str, count: int) -> None:
        self.numbers: list[int] = []
        self.losses: list[str] = []
        self.recovered = 0
        self.subscribed = asyncio.Event()
        self.lost = asyncio.Event()
        self.complete = asyncio.Event()
        self.run, self.count = run, count

    def on_event(self, event: Event) -> None:
        """An event. Those of another demo don't count."""
        payload = event.payload or {}
        if payload.get("run") == self.run:
            self.numbers.append(payload["n"])
            if payload["n"] == self.count - 1:
                self.complete.set()

    def on_subscribed(self, notice: Subscribed) -> None:
        """The first subscription, or one that missed nothing."""
        self.recovered += notice.type == "recovered"
        self.subscribed.set()

    def on_loss(self, notice: Subscribed | Gap) -> None:
        """Events are missing, and the client says so."""
        self.losses.append(notice.type)
        self.subscribed.set()

    def on_state(self, change: StateChange) -> None:
        """The client noticed that its connection is gone, or has one."""
        if change.state == "waiting":
            print(f"  lost: {change.reason}")
            self.subscribed.clear()
            self.lost.set()
        if change.state == "closed":  # by itself, or at the end: nobody has to wait any more
            for event in (self.subscribed, self.lost, self.complete):
                event.set()

    def verdict(self) -> str:
        """One line."""
        wanted = list(range(self.count))
        if self.numbers == wanted:
            return f"{self.count} events: each came exactly once and in order. The client resumed {self.recovered} times"
        missing, twice = len(set(wanted) - set(self.numbers)), len(self.numbers) - len(set(self.numbers))
        order = "in order" if self.numbers == sorted(self.numbers) else "not in order"
        return f"{missing} events are missing, {twice} came twice, {order}. The client told: {', '.join(self.losses) or 'nothing'}"


async def publish(admin: str, run: str, numbers: range) -> None:
    """Publish numbers on the admin port, past the bad network."""
    lines = [json.dumps({"topic": TOPIC, "payload": {"run": run, "n": n}}) for n in numbers]
    request = Request(f"{admin}/publish", "\n".join(lines).encode(), {"Content-Type": "application/x-ndjson"})
    for line in (await asyncio.to_thread(_answer, request)).splitlines():
        if json.loads(line)["status"] != 202:
            raise SystemExit(f"the daemon did not take an event: {line.decode()}")


def _answer(request: Request) -> bytes:
    with urlopen(request, timeout=REQUEST_S) as answer:
        return bytes(answer.read())


async def trouble(fault: str, proxy: FlakyProxy, watcher: Watcher) -> None:
    """Break the network, and wait until the client has noticed and resumed."""
    print(f"{fault}, after {len(watcher.numbers)} events")
    if fault == "delay":
        await proxy.delay(DELAY_S)
        return
    watcher.lost.clear()
    (proxy.cut if fault == "cut" else proxy.freeze)()
    await watcher.lost.wait()
    await watcher.subscribed.wait()


async def publish_in_trouble(admin: str, watcher: Watcher, proxy: FlakyProxy, per_s: float) -> None:
    """Publish all numbers, and break the network again and again meanwhile. The next trouble waits for the end of the one before."""
    faults = cycle(["cut", "delay", "freeze"])
    running: asyncio.Task[None] | None = None
    for index, first in enumerate(range(0, watcher.count, BATCH)):
        if index % TROUBLE_BATCHES == TROUBLE_BATCHES // 2:
            if running is not None:
                await asyncio.wait_for(running, END_S)
            running = asyncio.create_task(trouble(next(faults), proxy, watcher))
        numbers = range(first, min(first + BATCH, watcher.count))
        await publish(admin, watcher.run, numbers)
        await asyncio.sleep(len(numbers) / per_s)
    await asyncio.wait_for(watcher.complete.wait(), END_S)


async def main() -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="ws://127.0.0.1:8051/websocket/", help="the daemon's websocket (%(default)s)")
    parser.add_argument("--admin", default="http://127.0.0.1:9051", help="the daemon's admin port (%(default)s)")
    parser.add_argument("--events", type=int, default=2000, help="how many (%(default)s)")
    parser.add_argument("--per-s", type=float, default=100, help="events per second (%(default)s)")
    flags = parser.parse_args()
    if flags.events < 1 or flags.per_s <= 0:
        parser.error("--events and --per-s must be above 0")
    parts = urlsplit(flags.url)
    if parts.scheme != "ws" or not parts.hostname:
        parser.error(f"--url {flags.url}: it must be like ws://host:port/websocket/, because the proxy speaks no TLS")
    admin = flags.admin.rstrip("/")
    try:
        await asyncio.to_thread(_answer, Request(f"{admin}/readyz"))
    except OSError as error:
        print(f"{admin} can't be reached, or is not ready: {error}", file=sys.stderr)
        return 1
    proxy = FlakyProxy(parts.hostname, parts.port or 80)
    port = await proxy.start()
    watcher = Watcher(uuid.uuid4().hex, flags.events)
    # A short ping: the demo should notice a frozen connection within 2 s. The default is within 30 s.
    live = connect(
        urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}")),
        onstate=watcher.on_state,
        onerror=lambda error: print(f"  {error}"),
        retry_min_s=0.2,
        retry_max_s=1,
        ping_s=0.5,
        pong_s=1,
        connect_s=5,
    )
    subscribed, lost = watcher.on_subscribed, watcher.on_loss
    live.subscribe({"job_events": [1]}, watcher.on_event, subscribed=subscribed, recovered=subscribed, stale=lost, gap=lost)
    async with live:
        try:
            await asyncio.wait_for(watcher.subscribed.wait(), END_S)
            await publish_in_trouble(admin, watcher, proxy, flags.per_s)
        except OSError as error:  # the verdict says what is missing
            print(f"ended early: {error!r}")
    await proxy.close()
    print(watcher.verdict())
    return 0 if watcher.numbers == list(range(flags.events)) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
