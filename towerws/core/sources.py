"""What a source of deliveries is, and what it feeds: the seam between `amqp.py`/`embedded.py` and the core.

A source finds deliveries and hands them to a `Sink`, one call each, in the log's order, followed by `end_turn` once per
reactor turn. It tells the sink about the log in between: that it attached, that something was lost.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class SourceState(enum.Enum):
    """Where a source stands. Only CONSUMING is ready; every other state has a deadline of its own."""

    IDLE = "idle"
    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    TOPOLOGY = "topology"
    REFILLING = "refilling"
    CONSUMING = "consuming"
    BACKOFF = "backoff"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What an operator may know of a source. `reason` says in a line why it is not consuming, None when it is."""

    state: SourceState
    reason: str | None = None
    details: dict[str, object] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """True while deliveries are flowing and history has been refilled."""
        return self.state is SourceState.CONSUMING


class ControlSink(Protocol):
    """What hears the control exchange. All calls come from the reactor's thread."""

    def listening(self) -> None:
        """Messages will come from now on; some may have been missed before. Called again when the binding was found missing."""

    def control(self, body: bytes, message_id: str | None) -> None:
        """One message."""


class Sink(Protocol):
    """What a source feeds. All calls come from the reactor's thread; none of them raises."""

    def resume_from(self) -> int | None:
        """The offset of the newest delivery held, where a source that lost its link continues; None before the first."""

    def attach(self, log: str | None, expect: int | None) -> None:
        """Deliveries will come now, from a log whose offsets only grow.

        `log` names it when its offsets mean something in this process only (a queue, the embedded source); None for a
        stream, whose offsets are the same for every process. `expect` is the offset that the first delivery must have,
        because the source asked for it: it must be the one at `resume_from()`, delivered once more. If that can't be
        had the sink notices it by the first delivery (a later offset: something was trimmed; an earlier one, or other
        content: the log was deleted and made anew) and tells the clients of the gap. None: no check.
        """

    def caught_up(self) -> None:
        """History is as full as it can be made; from now on deliveries go out to the connections.

        Called once after the first `attach` (later calls change nothing). Until then deliveries only fill history, and
        subscriptions wait for it, since nobody can be told yet whether a position is held.
        """

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """One message of the log. A bad one is counted and skipped."""

    def end_turn(self, written: Callable[[int], None]) -> None:
        """The deliveries since the last call are a turn: write to each connection what it is due.

        `written` is called with the octets that this came to, at once or in a later turn of the reactor. Until then the source
        should read no more; what it does bring is written behind this, with everybody waiting.
        """

    def gap(self, reason: str) -> None:
        """Deliveries may have been lost between the last one and the next; every client is told once."""
