"""The embedded source, which needs no broker. Deliveries come from `POST /publish` on the admin port.

Its log ends with the process. The log's random epoch makes positions of an earlier process invalid.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from twisted.internet.defer import Deferred, succeed

from towerws.core.handover_state import Event
from towerws.core.sources import Sink, SourceState, SourceStatus


class EmbeddedSource:
    """A source that is ready as soon as it starts."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._epoch = secrets.token_hex(4)
        self._offset = 0
        self._state = SourceState.IDLE

    def start(self) -> None:
        """Begin the log, and report that history is complete."""
        self._sink.begin(self._epoch)
        self._state = SourceState.CONSUMING
        self._sink.caught_up()

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        self._state = SourceState.STOPPED
        return succeed(None)

    def status(self) -> SourceStatus:
        """Return the state: consuming, from start to stop."""
        reason = None if self._state is SourceState.CONSUMING else f"the embedded source is {self._state.value}"
        return SourceStatus(self._state, reason, {"published": self._offset})

    @property
    def place(self) -> tuple[str, int]:
        """The log's epoch, and the offset of its newest event."""
        return self._epoch, self._offset

    def continue_log(self, epoch: str, floor: int) -> None:
        """Go on with the log of another process, whose history begins after the offset `floor`. Only before the first event."""
        self._epoch, self._offset = epoch, floor
        self._sink.continue_log(epoch, floor)

    def keep(self, events: Iterable[Event], offset: int) -> None:
        """Put events of the other process into history, after `continue_log`. `offset` is the offset of its newest event."""
        for routing_key, payload, place, message_id in events:
            self._sink.deliver(routing_key, payload, place, message_id)
        self._sink.end_batch(_written)
        self._offset = offset

    def publish(self, routing_key: str, payload: bytes, message_id: str | None = None) -> str:
        """Deliver an event, and return its position. The caller has checked the routing key, the payload, and that the id is new.

        `flush` must follow in the same turn of the reactor: a client that subscribed before it could miss the event.
        """
        self._offset += 1
        self._sink.deliver(routing_key, payload, self._offset, message_id)
        return f"{self._offset}-{self._epoch}"

    def flush(self) -> None:
        """Write the published events to the clients, each client's in one piece."""
        self._sink.end_batch(_written)


def _written(size: int) -> None:
    """Nothing to do: the publisher gets its answer before the batch is written. The hub writes the rest before the next batch."""
