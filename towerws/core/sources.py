"""The interface between a source of deliveries (`amqp.py`, `embedded.py`) and the core.

A source finds messages and hands them to a `Sink`: one call for each, in the log's order, and one `end_batch` after each read.
In between it tells the sink about the log: which one it reads, what was lost, and what has been proven.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from towerws.core.deliveries import Marker
from towerws.core.measurements import PublishedAt


class SourceState(enum.Enum):
    """The states of a source. Only CONSUMING is ready. Each other state has a deadline."""

    IDLE = "idle"
    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    TOPOLOGY = "topology"
    PROVING = "proving"
    REFILLING = "refilling"
    CONSUMING = "consuming"
    BACKOFF = "backoff"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source's state, for operators.

    `reason` says in one line why the source is not ready, and is None when it is. `unproven` has one line for each thing that a
    ready source can't prove.
    """

    state: SourceState
    reason: str | None = None
    details: dict[str, object] = field(default_factory=dict)
    unproven: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether deliveries flow and history has been refilled, without a reason against it."""
        return self.state is SourceState.CONSUMING and self.reason is None


class ControlSink(Protocol):
    """Gets the messages of the control exchange. All calls come from the reactor's thread."""

    def listening(self) -> None:
        """Expect messages. Earlier ones may have been missed. Called again if the binding was found missing."""

    def control(self, body: bytes, message_id: str | None) -> None:
        """Take one message."""


class Sink(Protocol):
    """Takes what a source reads. All calls come from the reactor's thread. None of them raises.

    A source that reads a stream says with `proven` and `marker_sent` what it knows of the log. With `compare` it finds out
    whether that is the log that it read before. A source with a log of this process (a queue, the embedded source) calls `begin`
    and, after a loss, `gap`.
    """

    max_payload_bytes: int
    """The sink refuses a larger message. So the source may pass an `OversizedBody` for it."""

    on_position_asked: Callable[[], None]
    """Set by the source. Called when a client waits for the verdict on a position: the source should send a marker soon."""

    def begin(self, epoch: str) -> None:
        """Expect deliveries of a log of this process. Its positions have this epoch. Such a log needs no proof."""

    def continue_log(self, epoch: str, floor: int) -> None:
        """Expect deliveries of the log of another process, which ended. They begin after the offset `floor`."""

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Take one message of the log. A bad one is counted and skipped."""

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None, *, through_exchange: bool) -> None:
        """Take a marker, from this daemon or another one. It is kept like a delivery. No client gets it.

        In a stream every client is told of the hole that it reports, once. `through_exchange`: it proves that the binding was there.
        """

    def end_batch(self, on_written: Callable[[int], None], published: PublishedAt | None = None) -> None:
        """Write the deliveries since the last call to the connections, as one batch. `published`: when its first one was published.

        `on_written` is called with the number of bytes written, at once or in a later turn of the reactor. Until then the source
        should not read. An event that comes earlier makes the sink write the rest of this batch at once, which blocks the reactor.
        """

    def caught_up(self, *, replay: bool = False) -> None:
        """End the refill of history: later deliveries go to the connections. Further calls change nothing.

        A client that subscribed during the refill gets what follows the newest marker of this daemon that the broker had
        confirmed before. Without such a marker the client may have missed deliveries, and gets a gap notice. `replay`: everything
        that was read is new to the present clients, and goes to them.
        """

    def gap(self, reason: str) -> None:
        """Tell every client once that deliveries may be lost between the last one and the next."""

    # For a source that reads a stream.

    @property
    def history_complete(self) -> bool:
        """Whether `caught_up` was called."""

    @property
    def waiting(self) -> int:
        """The number of clients that wait for their position to be judged."""

    @property
    def newest(self) -> int | None:
        """The offset of the newest delivery, None before the first."""

    @property
    def oldest(self) -> int | None:
        """The offset of the oldest delivery that `compare` knows, None when it knows none."""

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """Return whether this is the delivery that was read at this offset before. None: the sink holds none for that offset."""

    def hole(
        self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str, *, marker_follows: bool = False
    ) -> None:
        """Tell every client once that deliveries before this one are lost. The source calls `deliver` for it next.

        No client can resume from before it, except after `rewind` from a place that is still held. `marker_follows`: a marker will
        report the same hole. Clients get no second notice of it.
        """

    def rewind(self, offset: int | None) -> None:
        """Drop the deliveries after this offset, because the log lost them (None: all of them).

        The source calls `hole` for the first new one.
        """

    def restart(self) -> None:
        """Forget what was read so far: the refill starts over from an earlier place. Only allowed before `caught_up`."""

    def proven(self, proven: bool) -> None:
        """Say whether the log that is read now is the one that history holds."""

    def marker_sent(self, text: str) -> None:
        """Remember that this daemon publishes a marker. When it is read, the positions that wait now can be judged."""

    def marker_confirmed(self, text: str) -> None:
        """Remember that the broker has confirmed this marker. Messages that are published later come after it in the log."""
