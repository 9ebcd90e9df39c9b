"""A client on a bad network: a proxy cuts, freezes and delays its connection while numbered events are published.

It prints what happens, and at the end whether each event came exactly once and in order. Exit status 1 says that it did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import uuid
from contextlib import suppress
from itertools import cycle
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

from towerws.client import Event, Gap, StateChange, Subscribed, connect

TOPIC = "job_events.1"
BATCH = 10
READ_BYTES = 65536
REQUEST_S = 10
END_S = 60
"""Seconds to wait for the last events after the last one was published."""


class FlakyProxy:
    """A TCP proxy that breaks the connections it has. The next connection works."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._links: set[Link] = set()

    async def start(self) -> int:
        """Listen on loopback. Returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

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
        self._run, self._count = run, count

    def on_event(self, event: Event) -> None:
        """An event. Those of another demo don't count."""
        payload = event.payload or {}
        if payload.get("run") == self._run:
            self.numbers.append(payload["n"])
            if payload["n"] == self._count - 1:
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
        if change.state in {"waiting", "closed"}:
            print(f"  {change.state}: {change.reason}")
            self.subscribed.clear()
            self.lost.set()
        if change.state == "closed":
            self.complete.set()

    def verdict(self) -> str:
        """One line."""
        wanted = list(range(self._count))
        if self.numbers == wanted:
            return f"{self._count} events: each came exactly once and in order. The client resumed {self.recovered} times"
        missing, twice = len(set(wanted) - set(self.numbers)), len(self.numbers) - len(set(self.numbers))
        order = "in order" if self.numbers == sorted(self.numbers) else "not in order"
        return f"{missing} events are missing, {twice} came twice, {order}. The client told: {', '.join(self.losses) or 'nothing'}"


async def publish(admin: str, run: str, count: int, per_s: float) -> None:
    """Publish the numbers on the admin port, past the bad network."""
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        lines = [json.dumps({"topic": TOPIC, "payload": {"run": run, "n": n}}) for n in numbers]
        request = Request(f"{admin}/publish", "\n".join(lines).encode(), {"Content-Type": "application/x-ndjson"})
        answer = await asyncio.to_thread(_answer, request)
        for line in answer.splitlines():
            if json.loads(line)["status"] != 202:
                raise SystemExit(f"the daemon did not take an event: {line.decode()}")
        await asyncio.sleep(len(numbers) / per_s)


def _answer(request: Request) -> bytes:
    with urlopen(request, timeout=REQUEST_S) as answer:
        return bytes(answer.read())


async def trouble(proxy: FlakyProxy, watcher: Watcher, chance: random.Random) -> None:
    """Break the network again and again, each time after the client has recovered. Runs until it is cancelled."""
    for fault in cycle(["cut", "delay", "freeze"]):
        await watcher.subscribed.wait()
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        print(f"{fault}, after {len(watcher.numbers)} events")
        if fault == "delay":
            await proxy.delay(0.3)
            continue
        watcher.lost.clear()
        (proxy.cut if fault == "cut" else proxy.freeze)()
        await watcher.lost.wait()


async def main() -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="ws://127.0.0.1:8051/websocket/", help="the daemon's websocket (%(default)s)")
    parser.add_argument("--admin", default="http://127.0.0.1:9051", help="the daemon's admin port (%(default)s)")
    parser.add_argument("--events", type=int, default=2000, help="how many (%(default)s)")
    parser.add_argument("--per-s", type=float, default=100, help="events per second (%(default)s)")
    flags = parser.parse_args()
    admin = flags.admin.rstrip("/")
    try:
        await asyncio.to_thread(_answer, Request(f"{admin}/readyz"))
    except OSError as error:
        print(f"{admin} can't be reached, or is not ready: {error}", file=sys.stderr)
        return 1
    parts = urlsplit(flags.url)
    proxy = FlakyProxy(parts.hostname or "127.0.0.1", parts.port or 80)
    port = await proxy.start()
    run = uuid.uuid4().hex
    watcher = Watcher(run, flags.events)
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
    told = {"subscribed": watcher.on_subscribed, "recovered": watcher.on_subscribed, "stale": watcher.on_loss, "gap": watcher.on_loss}
    live.subscribe({"job_events": [1]}, watcher.on_event, **told)
    async with live:
        await asyncio.wait_for(watcher.subscribed.wait(), END_S)
        troubles = asyncio.create_task(trouble(proxy, watcher, random.Random()))
        await publish(admin, run, flags.events, flags.per_s)
        troubles.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(watcher.complete.wait(), END_S)
    await proxy.close()
    print(watcher.verdict())
    return 0 if watcher.numbers == list(range(flags.events)) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
