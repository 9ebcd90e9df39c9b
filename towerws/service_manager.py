"""Tells the service manager (systemd) about the daemon: `READY`, `RELOADING`, `STATUS`, `STOPPING`, `WATCHDOG`, `MAINPID` of sd_notify(3).

Each message is one datagram to the socket that `NOTIFY_SOCKET` names. The watchdog pings come from a timer of the reactor. If the reactor
hangs, the pings stop, and systemd ends and restarts the daemon after the unit's `WatchdogSec=`.

No library does this for us. sdnotify 0.3.2 and systemd-watchdog 1.0 send on a blocking socket, so a service manager that does not read
would block the reactor. sdnotify hides every error, and systemd-watchdog raises them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

STATUS_S = 5.0
"""Interval between two checks for a new status text. `systemctl status` shows the text."""

START_S = 0.1
"""Interval between two checks while clients aren't accepted yet. Other units wait for `READY`."""

TELL_S = 5.0
"""How long a process that has handed over waits at most, before it ends, to tell the id of its successor."""

PINGS = 3
"""Pings within one timeout of the watchdog. sd_watchdog_enabled(3) recommends at least two."""

STATUS_CHARACTERS = 200
"""Longest status text."""

MOVING = "X_TOWERWS_MOVING"
"""What a worker tells its parent: 1 while it moves its connections to a successor, 0 if it goes on itself (`X_`: sd_notify(3))."""


class ServiceManager:
    """Sends the messages. Without `NOTIFY_SOCKET` in `environ` it does nothing.

    `accepting` tells whether the daemon accepts clients: then it is `READY`. `status` returns the status text. `stop_s` returns
    the time that a stop may take, in seconds.
    """

    _log = Logger()

    def __init__(
        self,
        environ: Mapping[str, str],
        reactor: Any,
        *,
        accepting: Callable[[], bool],
        status: Callable[[], str],
        stop_s: Callable[[], float],
    ) -> None:
        self._environ = environ
        self._reactor = reactor
        self._accepting = accepting
        self._status = status
        self._stop_s = stop_s
        self._socket: socket.socket | None = None
        self._address = ""
        self._watchdog_s: float | None = None
        self._ready = False
        self._sent_status = ""
        self._logged_reason = ""
        self._timer: Any = None
        self._unsent: dict[str, object] = {}
        """Values that the service manager must get, by their names. They are sent again until it takes them."""
        self._successor_told: Deferred[None] | None = None
        """Fires once the id of the successor is told. None: there is no successor."""

    def install(self, *, start: bool = True) -> None:
        """Send messages from the moment that the reactor runs until the process ends. Without `start`: from the call of `start`."""
        if self._environ.get("NOTIFY_SOCKET"):
            if start:
                self._reactor.callWhenRunning(self.start)
            # Before twistd's own trigger, which stops the service: triggers of a phase run in the order of their registration.
            self._reactor.addSystemEventTrigger("before", "shutdown", self.stopping)

    def take_over(self) -> None:
        """Tell the parent that this process is the worker now, and start the timer.

        The process that handed over should have told it, and may have been killed before that.
        """
        if self._open():
            self._unsent["MAINPID"] = os.getpid()
            self._tick()

    def start(self) -> None:
        """Start the timer. Called after twistd has forked, because `WATCHDOG_PID` is compared with this process."""
        if self._open():
            self._tick()

    def _open(self) -> bool:
        name = self._environ.get("NOTIFY_SOCKET", "")
        if not name:
            return False
        if name[:1] not in ("/", "@") or len(name) < 2:
            self._log.warn(
                "NOTIFY_SOCKET = {name!r}: must be an absolute path, or an abstract name that begins with @; the service manager is told "
                "nothing",
                name=name,
            )
            return False
        self._address = f"\0{name[1:]}" if name[0] == "@" else name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._watchdog_s = self._read_watchdog()
        return True

    def stopping(self) -> Deferred[None] | None:
        """Say that the stop has begun, and how long it may take at most. The pings go on.

        After a hand-over nothing is said. The Deferred fires when this process may end: once the id of its successor is told, at the latest
        after `TELL_S`. Otherwise systemd would think that the daemon has ended, and kill the successor.
        """
        if self._successor_told is not None:
            return None if self._successor_told.called else self._successor_told
        # The extension keeps systemd from killing a daemon whose `websocket.drain_s` is above the unit's TimeoutStopSec=.
        self._send("STOPPING=1", f"STATUS={self._status_text()}", f"EXTEND_TIMEOUT_USEC={int(self._stop_s() * 1e6)}")
        return None

    def reloading(self) -> None:
        """Say that a reload has begun. A daemon that isn't `READY` yet says nothing: its start goes on."""
        if self._ready:
            # systemd compares the time with that of its own request, to match the answer to it (Type=notify-reload).
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Say that the reload has ended, with or without success."""
        if self._ready and not self._send("READY=1"):
            self._ready = False  # the timer tries again

    def moving(self, moving: bool) -> None:
        """Say whether connections move to a successor. Meanwhile the admin port is not read. Only a worker's parent understands it."""
        if self._socket is None:
            return
        self._unsent[MOVING] = int(moving)
        if not self._send_unsent() and self._timer is not None and self._timer.active():
            self._timer.reset(START_S)

    def hand_over(self, pid: int) -> None:
        """Say that the process with this id is the daemon now. After that nothing more is sent."""
        self._unsent = {"MAINPID": pid}
        self._successor_told = Deferred()
        self._tell_successor(self._reactor.seconds() + TELL_S)

    def _tell_successor(self, give_up: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._socket is None or self._send_unsent() or self._reactor.seconds() >= give_up:
            self.close()
            if self._successor_told is not None and not self._successor_told.called:
                self._successor_told.callback(None)
        else:
            self._timer = self._reactor.callLater(START_S, self._tell_successor, give_up)

    def close(self) -> None:
        """Stop the timer and close the socket."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read_watchdog(self) -> float | None:
        """Return the timeout of the watchdog in seconds. None: it is off, or watches another process."""
        text, pid = self._environ.get("WATCHDOG_USEC", ""), self._environ.get("WATCHDOG_PID", "")
        if not text or (pid and pid != str(os.getpid())):
            return None
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            self._log.warn("WATCHDOG_USEC = {text!r}: must be a whole number of microseconds above 0; no watchdog ping is sent", text=text)
            return None
        return int(text) / 1e6

    def _tick(self) -> None:
        # The next call and the ping come first: an exception below must not end the pings.
        self._timer = self._reactor.callLater(self._period(), self._tick)
        if self._watchdog_s is not None:
            self._send("WATCHDOG=1")
        if not self._send_unsent():
            return
        messages = []
        if not self._ready and self._accepting():
            messages.append("READY=1")
        status = self._status_text()
        if status != self._sent_status:
            messages.append(f"STATUS={status}")
        if messages and self._send(*messages):
            self._ready = self._ready or "READY=1" in messages
            self._sent_status = status

    def _period(self) -> float:
        longest = STATUS_S if self._ready and not self._unsent else START_S
        return longest if self._watchdog_s is None else min(longest, self._watchdog_s / PINGS)

    def _status_text(self) -> str:
        return " ".join(self._status().split())[:STATUS_CHARACTERS]

    def _send_unsent(self) -> bool:
        """Send what the service manager must get. Return whether it has all of that."""
        for name, value in list(self._unsent.items()):
            if not self._send(f"{name}={value}"):
                return False
            del self._unsent[name]
        return True

    def _send(self, *messages: str) -> bool:
        """Send one datagram, and return whether that succeeded. Each reason of a failure is logged once."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(messages).encode(), self._address)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._logged_reason:
                self._logged_reason = reason
                self._log.warn(
                    "NOTIFY_SOCKET = {name!r}: can't tell the service manager: {reason}; trying again",
                    name=self._environ["NOTIFY_SOCKET"],
                    reason=reason,
                )
            return False
        self._logged_reason = ""
        return True
