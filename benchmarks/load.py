"""The load generator: clients in processes of their own.

A child process runs the calls that its parent sends through a pipe, one at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.client import LoadError, Spec
from benchmarks.fleet import Due, Fleet, Opened, Received
from benchmarks.messages import frame


class Load:
    """The parent's side. Clients are spread evenly over the processes, client `number` always in the same one."""

    def __init__(self, processes: int = 2) -> None:
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._specs: list[Spec] = []
        self._expected: Sequence[Due] = []
        self._bytes = 0

    def open(self, port: int, specs: Sequence[Spec]) -> Opened:
        """Open these clients, all at once."""
        self.begin_open(port, specs)
        return self.end_open()

    def begin_open(self, port: int, specs: Sequence[Spec]) -> None:
        """The same in two steps. Clients may be opened once, until `close`."""
        self._specs = list(specs)
        self._call("open", lambda number: (port, self._specs[number :: len(self._pipes)]))

    def end_open(self) -> Opened:
        """Wait until all are open."""
        parts: list[Opened] = self._answers()
        positions = [""] * len(self._specs)
        for number, part in enumerate(parts):
            if part.positions:
                positions[number :: len(self._pipes)] = part.positions
        return Opened([took for part in parts for took in part.took_s], positions)

    def expect(self, expected: Sequence[Due], size: int, sample: int = 25) -> None:
        """Tell each client what it must get, in order: numbers of messages of `size` bytes, or the messages if their lengths differ."""
        self._expected, self._bytes = expected, size
        step = len(self._pipes)
        size = len(frame(bytes(size)))
        self._call("expect", lambda number: ([len(due) for due in expected[number::step]], size, sample))
        self._answers()
        self._sample = sample

    def begin_collect(self, within_s: float = 120, *, stamped: bool = False, slow: bool = False) -> None:
        """Let the clients read from now on."""
        step = len(self._pipes)

        def args(number: int) -> tuple[object, ...]:
            mine = self._expected[number::step]
            sampled = {at: mine[at] for at in range(0, len(mine), self._sample)}
            return (within_s, self._bytes, sampled, stamped, slow)

        self._call("collect", args)

    def end_collect(self) -> Received:
        """Wait until every client has all its messages. Raises `LoadError` if it does not, or if one of the sample got another."""
        parts: list[Received] = self._answers()
        whole = Received(
            sum(part.messages for part in parts),
            sum(part.size for part in parts),
            max(part.ended_ns for part in parts),
            sum(part.disorder for part in parts),
            sum((part.sent_ns for part in parts), array("q")),
            sum((part.delays_ns for part in parts), array("q")),
        )
        if whole.disorder:
            raise LoadError(f"{whole.disorder} clients of the sample got other messages than they were due, or in another order")
        return whole

    def close(self) -> None:
        """Disconnect all clients."""
        self._call("close", lambda number: ())
        self._answers()

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)

    def _call(self, method: str, args: Callable[[int], tuple[object, ...]]) -> None:
        for number, pipe in enumerate(self._pipes):
            pipe.send((method, args(number)))

    def _answers(self) -> list[Any]:
        answers = [pipe.recv() for pipe in self._pipes]
        for done, value in answers:
            if not done:
                raise LoadError(value)
        return [value for _, value in answers]


def _serve(pipe: Connection) -> None:
    fleet = Fleet()
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            pipe.send((True, getattr(fleet, method)(*args)))
        except (LoadError, OSError, ValueError, KeyError) as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
