"""A TCP proxy that injects faults. Its event loop runs in its own thread, not in a daemon's.

A direction is `UP` (from the client to the target) or `DOWN` (from the target to the client). A change applies to open connections
and to later ones. Every method may be called from any thread, and returns once the change is in force.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import enum
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

MAX_HELD_BYTES: Final = 1 << 20
"""Bytes that the proxy holds for one direction of a connection. Beyond that it stops reading, so the sender's buffer fills up."""

CALL_S: Final = 30.0

CONSUME_OK: Final = b"\x00\x3c\x00\x15"
"""Class 60, method 21 (AMQP 0-9-1, basic.consume-ok)."""

FRAME_END: Final = b"\xce"

T = TypeVar("T")


class Direction(enum.Enum):
    """The direction of the bytes."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Direction.UP, Direction.DOWN


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the bytes of one direction are forwarded.

    `delay_s` delays each piece. `slice_bytes` limits the size of a piece, and `slice_pause_s` separates two of them. `stopped` forwards
    nothing (a black hole: the sender sees no error). `mark` is a byte pattern: bytes after its AMQP frame are delayed by
    `mark_delay_s`, for each occurrence.
    """

    delay_s: float = 0.0
    slice_bytes: int = 0
    slice_pause_s: float = 0.0
    stopped: bool = False
    mark: bytes = b""
    mark_delay_s: float = 0.0


class FaultProxy:
    """Listens on 127.0.0.1 and forwards each connection to one of its targets (`host`, `port`), in rotation.

    A target that refuses is skipped. If all refuse, the client's connection is reset.
    """

    def __init__(self, *targets: tuple[str, int], port: int = 0) -> None:
        self._targets = list(targets)
        self._next = 0
        self._wanted_port = port
        self._conduct = {UP: Conduct(), DOWN: Conduct()}
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._accepted = 0
        self._accepted_changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self.port = 0
        self.bytes_forwarded = {UP: 0, DOWN: 0}

    def start(self) -> Self:
        """Listen. Sets `port`."""
        self._thread.start()
        self._call(self._listen)
        return self

    def stop(self) -> None:
        """Reset open connections, stop listening, and end the thread."""

        async def end() -> None:
            await self._unlisten()
            self._reset_all()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # Faults

    def delay(self, direction: Direction, delay_s: float) -> None:
        """Delay each piece by this time, in order. 0 forwards at once again."""
        self._change(direction, delay_s=delay_s)

    def slice(self, direction: Direction, slice_bytes: int, pause_s: float = 0.0) -> None:
        """Forward at most this many bytes at once. 0 forwards whole pieces again."""
        self._change(direction, slice_bytes=slice_bytes, slice_pause_s=pause_s)

    def delay_after(self, direction: Direction, mark: bytes, delay_s: float) -> None:
        """Delay the bytes after each AMQP frame that contains `mark`. An empty mark ends this."""
        self._change(direction, mark=mark, mark_delay_s=delay_s)

    def black_hole(self, *directions: Direction) -> None:
        """Forward nothing in these directions (both by default), without an error. Ends of connections are not passed on, either."""
        for direction in directions or (UP, DOWN):
            self._change(direction, stopped=True)

    def heal(self) -> None:
        """Forward everything at once again, held bytes included, and listen."""
        self._conduct = {UP: Conduct(), DOWN: Conduct()}

        def apply() -> None:
            for link in self._links:
                for direction in (UP, DOWN):
                    link.pipes[direction].conduct = Conduct()
                    link.pipes[direction].wake()

        self._call_plain(apply)
        self.refuse(refused=False)

    def reset(self) -> int:
        """End every connection with a TCP reset on both sides. Returns their number."""
        return self._call_plain(self._reset_all)

    def half_close(self, direction: Direction) -> None:
        """Send an end of stream in this direction on every connection. The other direction goes on."""

        def apply() -> None:
            for link in self._links:
                link.pipes[direction].finish()

        self._call_plain(apply)

    def refuse(self, *, refused: bool = True) -> None:
        """Stop listening: new connections are refused. Open ones stay. False listens on the same port again."""
        if refused:
            self._call(self._unlisten)
        else:
            self._call(self._listen)

    def retarget(self, *targets: tuple[str, int]) -> None:
        """Send new connections to these targets."""

        def apply() -> None:
            self._targets = list(targets)
            self._next = 0

        self._call_plain(apply)

    # What a test may wait for

    @property
    def accepted(self) -> int:
        """The number of connections accepted so far."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """The number of connections that are forwarded now."""
        return len(self._links)

    def wait_for_accepted(self, count: int, within_s: float = CALL_S) -> bool:
        """Wait until this many connections were accepted since the start. False at the timeout."""
        with self._accepted_changed:
            return self._accepted_changed.wait_for(lambda: self._accepted >= count, within_s)

    # Inside the loop

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port or self._wanted_port, limit=64 * 1024, backlog=4096
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._accepted_changed:
            self._accepted += 1
            self._accepted_changed.notify_all()
        for _ in range(len(self._targets)):
            host, port = self._targets[self._next % len(self._targets)]
            self._next += 1
            try:
                target_reader, target_writer = await asyncio.open_connection(host, port, limit=64 * 1024)
            except OSError:
                continue
            break
        else:
            _reset(writer)
            return
        link = _Link(self, (reader, writer), (target_reader, target_writer), self._conduct)
        self._links.add(link)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # `stop` ends the rest
                await link.run()
        finally:
            self._links.discard(link)

    def _reset_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def _change(self, direction: Direction, **fields: Any) -> None:
        def apply() -> None:
            conduct = self._conduct[direction] = replace(self._conduct[direction], **fields)
            for link in self._links:
                link.pipes[direction].conduct = conduct
                link.pipes[direction].wake()

        self._call_plain(apply)

    def _call(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(CALL_S)

    def _call_plain(self, function: Callable[[], T]) -> T:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(CALL_S)


class _Link:
    """A client's connection, and the one to its target."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        target: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        conduct: dict[Direction, Conduct],
    ) -> None:
        self._writers = (client[1], target[1])
        self.pipes = {
            UP: _Pipe(proxy, UP, client[0], target[1], conduct[UP]),
            DOWN: _Pipe(proxy, DOWN, target[0], client[1], conduct[DOWN]),
        }

    async def run(self) -> None:
        """Forward until both directions have ended or one side was reset."""
        try:
            await asyncio.gather(*(pipe.run() for pipe in self.pipes.values()))
        except (OSError, asyncio.IncompleteReadError):
            self.reset()
        finally:
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def reset(self) -> None:
        """End both sides with a reset."""
        for writer in self._writers:
            _reset(writer)
        for pipe in self.pipes.values():
            pipe.abandon()


class _Pipe:
    """One direction: a reader task that fills `held`, and a writer task that forwards each piece when it is due."""

    def __init__(
        self, proxy: FaultProxy, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conduct: Conduct
    ) -> None:
        self.conduct = conduct
        self._proxy = proxy
        self._direction = direction
        self._reader, self._writer = reader, writer
        self._held: deque[tuple[float, bytes]] = deque()  # when each piece was read (later if a mark delays it), and its bytes
        self._held_bytes = 0
        self._not_before = 0.0  # a mark's delay lasts until this time
        self._tail = b""
        self._changed = asyncio.Event()
        self._ended = False  # the sender has ended its stream
        self._finished = False  # the receiver got our half-close
        self._abandoned = False
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Check the conduct again."""
        self._changed.set()

    def finish(self) -> None:
        """Tell the receiver that the stream has ended. Later bytes of the sender are read and dropped."""
        if not self._finished:
            self._finished = True
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.write_eof()
            self.wake()

    def abandon(self) -> None:
        """The connection is gone: end both tasks."""
        self._abandoned = True
        self.wake()

    async def run(self) -> None:
        """Read and write until the end."""
        reading = asyncio.ensure_future(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await reading

    async def _read(self) -> None:
        try:
            while not self._abandoned:
                if self._held_bytes >= MAX_HELD_BYTES:
                    await self._wait(None)
                    continue
                data = await self._reader.read(64 * 1024)
                if not data:
                    break
                if not self._finished:
                    self._hold(data)
                self.wake()
        except ConnectionError:
            self._abandoned = True
        self._ended = True
        self.wake()

    def _hold(self, data: bytes) -> None:
        """Queue the bytes. Those after a marked frame get a later time."""
        self._held_bytes += len(data)
        mark = self.conduct.mark
        while mark:
            looked_at = self._tail + data
            at = looked_at.find(mark)
            end = looked_at.find(FRAME_END, at + len(mark)) if at >= 0 else -1
            if end < 0:
                # A mark, or the end of its frame, may be split between two pieces.
                self._tail = looked_at[at:] if at >= 0 else looked_at[1 - len(mark) :]
                break
            cut = end + 1 - len(self._tail)
            self._append(data[:cut])
            data, self._tail = data[cut:], b""
            self._not_before = self._loop.time() + self.conduct.mark_delay_s
        self._append(data)

    def _append(self, data: bytes) -> None:
        if data:
            self._held.append((max(self._loop.time(), self._not_before), data))

    async def _write(self) -> None:
        while not self._abandoned:
            conduct = self.conduct
            if conduct.stopped or self._finished or (not self._held and not self._ended):
                await self._wait(None)
                continue
            if not self._held:
                self.finish()
                return
            when, data = self._held[0]
            healed = conduct == Conduct()
            left = 0.0 if healed else when + conduct.delay_s - self._loop.time()
            if left > 0:
                await self._wait(left)
                continue
            self._held.popleft()
            # Each pause is for a whole slice, even if smaller pieces came. Otherwise the line would be slower than intended.
            while self._held and len(data) < conduct.slice_bytes and self._held[0][0] + conduct.delay_s <= self._loop.time():
                when, more = self._held.popleft()
                data += more
            if 0 < conduct.slice_bytes < len(data):
                self._held.appendleft((when, data[conduct.slice_bytes :]))
                data = data[: conduct.slice_bytes]
            self._held_bytes -= len(data)
            self._writer.write(data)
            self._proxy.bytes_forwarded[self._direction] += len(data)
            self.wake()  # the reader may be waiting for room
            await self._writer.drain()
            if conduct.slice_bytes and conduct.slice_pause_s:
                await asyncio.sleep(conduct.slice_pause_s)

    async def _wait(self, seconds: float | None) -> None:
        """Wait until a change, or for this long."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer sees a reset: with a linger time of zero the kernel sends RST, not FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
