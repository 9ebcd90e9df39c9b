"""Background work during a measurement. Each piece has its own process, so that it waits for the server only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

import pika

from benchmarks.messages import payload

Message = tuple[str, int]
"""A routing key and a number."""

ASK_EVERY_S = 0.02


@contextmanager
def _channel(url: str) -> Iterator[Any]:
    """A channel to publish with. At the end the broker has accepted every message."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    yield channel
    channel.close()  # the broker answers this after all that was published
    connection.close()


_PROPERTIES = pika.BasicProperties(content_type="application/json")


def publish(url: str, exchange: str, messages: Iterable[Message], size: int, per_s: float = 0) -> None:
    """Publish at `per_s` messages per second, or as fast as possible if that is 0."""
    with _channel(url) as channel:
        start = time.monotonic()
        for count, (routing_key, number) in enumerate(messages):
            if per_s and (wait := start + count / per_s - time.monotonic()) > 0:
                channel.connection.sleep(wait)
            channel.basic_publish(exchange, routing_key, payload(number, size, stamp=bool(per_s)), _PROPERTIES)


def publish_bodies(url: str, exchange: str, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publish these messages as fast as possible."""
    with _channel(url) as channel:
        for routing_key, body in messages:
            channel.basic_publish(exchange, routing_key, body, _PROPERTIES)


class _Beside:
    """A process that is ready once constructed. `begin` starts its work, and `_result` waits for the result."""

    def __init__(self, work: Callable[..., object], *args: object) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, work, args), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def begin(self) -> None:
        """Start the work."""
        self._pipe.send("begin")

    def _result(self) -> Any:
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


class Publisher(_Beside):
    """Publishes at a steady rate."""

    def __init__(self, url: str, exchange: str, messages: list[Message], size: int, per_s: float) -> None:
        super().__init__(_publish, url, exchange, messages, size, per_s)

    def end(self) -> None:
        """Wait until everything is published."""
        self._result()


class Health(_Beside):
    """Asks `/healthz` on a new connection every `ASK_EVERY_S`."""

    def __init__(self, port: int) -> None:
        super().__init__(_ask, port)

    def end(self) -> list[float]:
        """Stop. Returns the milliseconds of each answer, sorted.

        Each counts from its scheduled time: while one answer is awaited, the next ones wait, too.
        """
        self._pipe.send("end")
        return sorted(took_s * 1000 for took_s in self._result())


def _child(pipe: Connection, work: Callable[..., object], args: tuple[object, ...]) -> None:
    pipe.send("ready")
    pipe.recv()
    pipe.send(work(pipe, *args))


def _publish(pipe: Connection, url: str, exchange: str, messages: list[Message], size: int, per_s: float) -> None:
    publish(url, exchange, messages, size, per_s)


def _ask(pipe: Connection, port: int) -> list[float]:
    due = time.monotonic()
    took: list[float] = []
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/healthz")
        if connection.getresponse().status != 200:
            raise RuntimeError("/healthz answered with an error")
        connection.close()
        now = time.monotonic()
        while due <= now:
            took.append(now - due)
            due += ASK_EVERY_S
        if pipe.poll(due - now):
            return took
