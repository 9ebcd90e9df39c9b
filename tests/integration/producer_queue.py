"""Reads what a producer published, from a test's own queue, with pika's blocking client."""

from __future__ import annotations

import json
from typing import Any, Self

import pika

from tests.kit.daemon import DEADLINE_S


class Queue:
    """A queue that gets every message of an exchange."""

    def __init__(self, url: str, exchange: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.exchange_declare(exchange, "topic", durable=True)
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(self._queue, exchange, "#")

    def get(self) -> tuple[Any, Any, Any]:
        """The next message: its method, its properties, its body."""
        for method, properties, body in self._channel.consume(self._queue, auto_ack=True, inactivity_timeout=DEADLINE_S):
            assert method is not None, "nothing came"
            return method, properties, body
        raise AssertionError("the queue is gone")

    def payloads(self, count: int) -> list[Any]:
        """This many payloads, decoded."""
        return [json.loads(self.get()[2]) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()
