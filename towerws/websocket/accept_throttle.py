"""The doorman: how fast connections are accepted.

Twisted accepts up to a hundred connections in one turn of the reactor, and more in each turn after that: ten thousand
clients that come back at once kept everybody else waiting for a second (make bench SCENARIO=storm). Here a few are accepted,
and no more for a moment; the rest wait in the kernel's queue, which is made long enough for them. Nobody is refused.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime

BATCH = 20
"""How many are accepted in one turn: some 6 ms until the last of them is subscribed."""

BACKLOG = 4096
"""How many may wait in the kernel's queue, if the operator does not say (Twisted: 50). It takes `net.core.somaxconn` at most."""


class Port(Protocol):
    """What is used of a listening port of Twisted's."""

    connected: Any
    numberAccepts: int
    """How many connections it accepts in its next turn."""
    socket: Any

    def startReading(self) -> None:
        """Accept."""

    def stopReading(self) -> None:
        """Accept nothing."""


class AcceptThrottle:
    """Lets in at most `per_s` connections a second, `BATCH` at a time."""

    def __init__(self, per_s: float, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._period_s = BATCH / per_s
        self._port: Port | None = None
        self._resuming: Any = None
        self._turning: Any = None
        self._began = 0.0
        self._accepted = 0
        self.pauses = 0
        """How often the door was closed for a moment since the start."""

    def attach(self, port: Any, *, backlog: bool) -> None:
        """Begin. With `backlog` the kernel's queue of this port is made `BACKLOG` long. No connection waits to fill a segment."""
        self._port = port
        port.numberAccepts = BATCH
        with suppress(OSError):  # a UNIX socket has no such thing
            port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts has it too (tcp(7))
        if backlog:
            port.socket.listen(BACKLOG)  # a second call changes the length (Linux: inet_listen)

    def accepted(self) -> None:
        """One more was let in."""
        if self._turning is None and self._port is not None:
            self._turning = self._reactor.callLater(0, self._turned)
        now = self._reactor.seconds()
        if now - self._began >= self._period_s:
            self._began, self._accepted = now, 0
        self._accepted += 1
        if self._accepted >= BATCH and self._port is not None and self._resuming is None:
            self.pauses += 1
            self._port.stopReading()
            self._resuming = self._reactor.callLater(max(0.0, self._began + self._period_s - now), self._resume)

    def leave(self) -> None:
        """End: the port is closed, or about to be."""
        self._port = None
        for waiting in (self._resuming, self._turning):
            if waiting is not None:
                waiting.cancel()
        self._resuming = self._turning = None

    def _turned(self) -> None:
        self._turning = None
        if self._port is not None:
            self._port.numberAccepts = BATCH  # Twisted has changed it: more after a full batch, fewer after less

    def _resume(self) -> None:
        self._resuming = None
        if self._port is not None and self._port.connected:
            self._port.startReading()
