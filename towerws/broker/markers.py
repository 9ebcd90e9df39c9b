"""Publishes this daemon's markers, and knows them again when they come back.

A marker goes straight to the stream or queue (the default exchange, with its name as routing key), which needs no binding but
the permission to write to `amq.default`; or through the events exchange, which proves the binding as well. Where the first is
refused the second takes its place.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.python.failure import Failure

from towerws.broker.confirmed_publisher import ConfirmedPublisher
from towerws.core.deliveries import MARKER_TOPIC, Marker
from towerws.core.errors import BrokerError, PublishRefused

REMEMBERED: Final = 1000
"""How many of our markers on their way are known again. One is on its way for milliseconds, and some are published per minute."""

DIRECT_AGAIN_S: Final = 300.0
"""For how long a refusal to publish straight to the stream is believed."""

Done = Callable[[BrokerError | None], None]
"""Told what the broker said of a marker: None, it has it; else why not."""


class MarkerPublisher:
    """`publisher` has a connection of its own: an alarm stops a connection that publishes, its acknowledgements included."""

    def __init__(self, publisher: ConfirmedPublisher, exchange: str, reactor: Any) -> None:
        self._publisher = publisher
        self._exchange = exchange
        self._reactor = reactor
        self._daemon = secrets.token_hex(8)
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._direct_refused_at: float | None = None
        self.count = 0
        """How many were sent. A marker's number tells whether it was sent after something else."""

    @property
    def blocked(self) -> bool:
        """Whether the broker said that it is in an alarm."""
        return self._publisher.blocked

    def number(self, marker: Marker) -> int | None:
        """The number of a marker of ours, None for another daemon's."""
        sent = self._sent.get(marker.text) if marker.daemon == self._daemon else None
        return None if sent is None else sent[0]

    def sent_at(self, marker: Marker) -> float:
        """When a marker that has a number was published, in monotonic seconds."""
        return self._sent[marker.text][1]

    def send_through_exchange(self, done: Done, *, hole: int | None = None, sent: Callable[[str], None] = lambda _: None) -> str:
        """Publish a marker that proves the binding; its text. `sent` is called with that before anything else happens."""
        return self._send(self._exchange, MARKER_TOPIC, hole, done, sent)

    def send_direct(self, key: str, done: Done, sent: Callable[[str], None] = lambda _: None) -> str:
        """Publish a marker straight to the stream or queue of that name, or through the exchange where that is refused."""
        refused_at = self._direct_refused_at
        if refused_at is not None and self._reactor.seconds() - refused_at < DIRECT_AGAIN_S:
            return self.send_through_exchange(done, sent=sent)

        def answered(error: BrokerError | None) -> None:
            if isinstance(error, PublishRefused) and error.code == 403:
                self._direct_refused_at = self._reactor.seconds()
                self.send_through_exchange(done, sent=sent)
            else:
                done(error)

        return self._send("", key, None, answered, sent)

    def _send(self, exchange: str, routing_key: str, hole: int | None, done: Done, sent: Callable[[str], None]) -> str:
        marker = Marker(secrets.token_hex(16), self._daemon, hole)
        self.count += 1
        self._sent[marker.text] = self.count, self._reactor.seconds()
        if len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)
        sent(marker.text)
        told = self._publisher.publish(exchange, routing_key, marker.body, marker.text)
        told.addCallbacks(lambda _: done(None), partial(_failed, done))
        return marker.text


def _failed(done: Done, failure: Failure) -> None:
    failure.trap(BrokerError)
    error = failure.value
    assert isinstance(error, BrokerError)
    done(error)
