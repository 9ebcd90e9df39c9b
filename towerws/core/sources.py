"""What a source of deliveries is, and what it feeds: the seam between `amqp.py`/`embedded.py` and the core.

A source finds deliveries and hands them to a `Sink`, one call each, in the log's order, followed by `end_batch` once per
reactor turn. It tells the sink about the log in between: which log it reads, what was lost, and what has been proven.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from towerws.core.deliveries import Marker


class SourceState(enum.Enum):
    """Where a source stands. Only CONSUMING is ready; every other state has a deadline of its own."""

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
    """What an operator may know of a source.

    `reason` says in a line why the source is not ready, None when it is. `unproven` lists what a ready source can't prove,
    each in a line.
    """

    state: SourceState
    reason: str | None = None
    details: dict[str, object] = field(default_factory=dict)
    unproven: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """True while deliveries flow, history has been refilled, and nothing says otherwise."""
        return self.state is SourceState.CONSUMING and self.reason is None


class ControlSink(Protocol):
    """What hears the control exchange. All calls come from the reactor's thread."""

    def listening(self) -> None:
        """Messages will come from now on; some may have been missed before. Called again when the binding was found missing."""

    def control(self, body: bytes, message_id: str | None) -> None:
        """One message."""


class Sink(Protocol):
    """What a source feeds. All calls come from the reactor's thread; none of them raises.

    A source of a stream says what it knows of the log by `proven` and `marker_sent`, and finds out whether it reads the same log
    as before by `compare`. A source of a log of its own (a queue, the embedded source) calls `begin` and, after a loss, `gap`.
    """

    on_position_asked: Callable[[], None]
    """Set by the source. Called when a client waits for a position that only a marker can judge."""

    def begin(self, log: str) -> None:
        """Deliveries will come from a log of this process. `log` names it in positions. Proven from its first delivery on."""

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """One message of the log. A bad one is counted and skipped."""

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None) -> None:
        """A marker, of this daemon or another. It is kept like a delivery and goes to nobody."""

    def end_batch(self, written: Callable[[int], None]) -> None:
        """The deliveries since the last call are a batch: write to each connection what it is due.

        `written` is called with the bytes that this came to, at once or in a later turn of the reactor. Until then the source
        should read no more; what it does bring is written behind this, with everybody waiting.
        """

    def caught_up(self, *, replay: bool = False) -> None:
        """History is as full as it can be made; from now on deliveries go out to the connections. Later calls change nothing.

        A client that subscribed before gets what lies behind the newest marker of ours that the broker had confirmed by then. Where
        there is none it may have missed something, and is told so. `replay`: all that was read is new to the clients that are
        there, and goes out to them.
        """

    def gap(self, reason: str) -> None:
        """Deliveries may have been lost between the last one and the next; every client is told once."""

    # the log of a stream

    @property
    def history_complete(self) -> bool:
        """Whether `caught_up` was called."""

    @property
    def waiting(self) -> int:
        """How many clients wait for their position to be judged."""

    @property
    def newest(self) -> int | None:
        """The offset of the newest delivery; None before the first."""

    @property
    def oldest(self) -> int | None:
        """The offset of the oldest delivery that `compare` knows; None when it knows none."""

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """Whether this is the delivery that was read at this offset before. None: the sink doesn't hold one for that offset."""

    def hole(self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str) -> None:
        """Deliveries before this one are lost; it has not been delivered yet. Every client is told once.

        Nobody resumes from before it any more.
        """

    def rewind(self, offset: int | None) -> None:
        """The log lost its deliveries behind this offset (None: all of them). The first one of what replaced them comes with `hole`."""

    def restart(self) -> None:
        """Forget what was read so far: the refill starts over from an earlier place. Only before `caught_up`."""

    def proven(self, proven: bool) -> None:
        """Whether the log that is read now is the one that history holds."""

    def marker_sent(self, text: str) -> None:
        """A marker of this daemon is being published. A client that asked before can be answered for sure when it arrives."""

    def marker_confirmed(self, text: str) -> None:
        """The broker has it: what is published from now on comes behind it."""
