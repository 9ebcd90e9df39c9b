"""The embedded source: no broker at all. Deliveries come from `POST /publish` on the admin port.

Its log lives as long as the process: positions are worth nothing to the next one, which the log's random name makes plain.
"""

from __future__ import annotations

import secrets

from twisted.internet.defer import Deferred, succeed

from towerws.core.sources import Sink, SourceState, SourceStatus


class EmbeddedSource:
    """A source that is ready as soon as it is started."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._log = secrets.token_hex(4)
        self._offset = 0
        self._state = SourceState.IDLE

    def start(self) -> None:
        """Begin the log."""
        self._sink.begin(self._log)
        self._state = SourceState.CONSUMING
        self._sink.caught_up()

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        self._state = SourceState.STOPPED
        return succeed(None)

    def status(self) -> SourceStatus:
        """Consuming, from start to stop."""
        reason = None if self._state is SourceState.CONSUMING else f"the embedded source is {self._state.value}"
        return SourceStatus(self._state, reason, {"published": self._offset})

    def publish(self, routing_key: str, payload: bytes) -> str:
        """Put a delivery into the log and out to the connections; its position. The caller has checked both."""
        self._offset += 1
        self._sink.deliver(routing_key, payload, self._offset, None)
        self._sink.end_batch(_written)
        return f"{self._offset}-{self._log}"


def _written(size: int) -> None:
    """Who publishes is answered at once: the next delivery waits for what is left of this one's turn."""
