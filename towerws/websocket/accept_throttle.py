"""Limits how many connections are accepted per second.

Twisted accepts up to a hundred connections in one iteration of the reactor, and more in each iteration after that. Without
a limit, ten thousand clients that reconnect at once delayed all other work by a second (make bench SCENARIO=storm). The throttle
accepts `ACCEPTS_AT_ONCE` connections and then pauses. The other clients wait in the kernel's accept queue, which the throttle makes long
enough. It refuses nobody.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime

ACCEPTS_AT_ONCE = 20
"""Connections accepted in one iteration of the reactor. After about 6 ms the last of them is subscribed."""

BACKLOG = 4096
"""Length of the kernel's accept queue, unless the operator sets one (Twisted's default is 50). The kernel caps it at
`net.core.somaxconn`."""


class Port(Protocol):
    """The part of Twisted's listening port that the throttle uses."""

    connected: Any
    numberAccepts: int
    """Connections that the port accepts in the next iteration of the reactor."""
    socket: Any

    def startReading(self) -> None:
        """Accept connections."""

    def stopReading(self) -> None:
        """Accept no connections."""


class AcceptThrottle:
    """Accepts at most `per_s` connections per second, `ACCEPTS_AT_ONCE` at a time."""

    def __init__(self, per_s: float, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self.set_rate(per_s)
        self._port: Port | None = None
        self._resuming: Any = None  # the delayed call that ends a pause after `ACCEPTS_AT_ONCE` connections
        self._resetting: Any = None  # the delayed call that resets `numberAccepts`
        self._began = 0.0
        self._accepted = 0
        self._holding: Any = None  # the delayed call that ends a `hold`
        self._paused = False  # by `pause`
        self.pauses = 0
        """Pauses after `ACCEPTS_AT_ONCE` connections, since the start."""

    def set_rate(self, per_s: float) -> None:
        """Accept at most `per_s` connections per second."""
        self._period_s = ACCEPTS_AT_ONCE / per_s

    def attach(self, port: Any, *, backlog: bool) -> None:
        """Start to throttle this port, and switch Nagle's algorithm off for the connections that it accepts.

        `backlog`: also make the kernel's accept queue `BACKLOG` long.
        """
        self._port = port
        port.numberAccepts = ACCEPTS_AT_ONCE
        with suppress(OSError):  # a UNIX socket has no such option
            port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it (tcp(7))
        if backlog:
            port.socket.listen(BACKLOG)  # a second call changes the length (Linux: inet_listen)

    @property
    def holding(self) -> bool:
        """Whether a `hold` is in force."""
        return self._holding is not None

    def hold(self, seconds: float) -> None:
        """Accept no connection until `release`, or for `seconds`. Clients wait in the kernel's accept queue."""
        if self._port is not None and not self.holding:
            self._port.stopReading()
            self._holding = self._reactor.callLater(seconds, self.release)

    def release(self) -> None:
        """End the `hold`, and accept connections. Does nothing without a `hold`."""
        holding, self._holding = self._holding, None
        if holding is None:
            return
        if holding.active():
            holding.cancel()
        self._resume()

    def pause(self) -> None:
        """Accept no connection until `go_on`. Clients wait in the kernel's accept queue."""
        self._paused = True
        if self._port is not None:
            self._port.stopReading()

    def go_on(self) -> None:
        """Accept connections again. Does nothing without a `pause`."""
        if self._paused:
            self._paused = False
            if self._resuming is None and not self.holding:
                self._resume()

    def accepted(self) -> None:
        """Count one accepted connection, and pause the port after `ACCEPTS_AT_ONCE` of them."""
        if self._resetting is None and self._port is not None:
            self._resetting = self._reactor.callLater(0, self._reset_accepts)
        now = self._reactor.seconds()
        if now - self._began >= self._period_s:
            self._began, self._accepted = now, 0
        self._accepted += 1
        if self._accepted >= ACCEPTS_AT_ONCE and self._port is not None and self._resuming is None:
            self.pauses += 1
            self._port.stopReading()
            self._resuming = self._reactor.callLater(max(0.0, self._began + self._period_s - now), self._resume)

    def detach(self) -> None:
        """Stop throttling: the port is closed, or about to be."""
        self._port = None
        for call in (self._resuming, self._resetting, self._holding):
            if call is not None:
                call.cancel()
        self._resuming = self._resetting = self._holding = None

    def _reset_accepts(self) -> None:
        self._resetting = None
        if self._port is not None:
            self._port.numberAccepts = ACCEPTS_AT_ONCE  # Twisted changes it after each iteration: up after a full batch, down otherwise

    def _resume(self) -> None:
        self._resuming = None
        if self._port is not None and self._port.connected and not self._paused:
            self._port.startReading()
