"""The process of the daemon: its clock, its garbage collector, its descriptors and its signals.

Clock: Twisted's timers follow the wall clock (`reactor.seconds` is `time.time`). A step forward fires every deadline at once. A step back
freezes all timers, "reconnect in 5 s" among them (reproduced with libfaketime; twisted issue 2424).

Collector: a full collection looks at every container in the process while everything else waits. Measured in a daemon (CPython 3.11, CPU
time):

connections | a full collection | the same after gc.freeze() at the start (not used)
0           | 26 to 42 ms       | 0 ms
1,000       | 21 ms             | 1.1 ms
10,000      | 99 ms             | 58 ms

A connection is 17 containers. When it ends it leaves no cycles, so full collections can be rare. They bound the memory of the few cycles
that remain: a new connection to the Tower API leaves up to 60 containers of Twisted's endpoints.

Signals:

signal           | first                                         | second                    | third
SIGTERM, SIGINT  | stop in order, status 0                       | end at once, status 0     | end by the signal
SIGHUP           | a reload (towerws/reload.py)                  | a reload                  | a reload
SIGUSR1          | opens twistd's log file again (logrotate)     | the same                  | the same
SIGUSR2          | a hand-over (towerws/handover/restart.py)     | a hand-over               | a hand-over

The handlers replace Twisted's. Twisted's handlers end the process by the signal after an orderly stop (status 143), ignore a second
SIGTERM, and leave SIGHUP at its default, which kills. twistd leaves SIGUSR1 there, too, unless it logs to a file. A signal that the
parent process ignores (`nohup`, a shell's background job) stays ignored.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from towerws.config.load import Loaded
from towerws.logs import FoldedLog
from towerws.workers.worker import divide, worker_count

FULL_AFTER = 50
"""After how many collections of the middle generation a full one may come (CPython: 10).

50 of them are 350,000 more containers. If all are garbage they take about 49 MB, at 140 bytes each. 10,000 new clients make 24 collections
of the middle generation, so a storm of 20,000 needs no full one in a daemon that has just started.
"""

RESERVED_DESCRIPTORS = 64
"""File descriptors reserved for the broker, the API, the admin port and the log."""

ENDING = (signal.SIGTERM, signal.SIGINT)

LAST_S = 1.0
"""How long the process may take to end after the second signal. A thread that resolves a name could take longer."""


def use_monotonic_clock(reactor: Any) -> None:
    """Make the reactor's timers follow the monotonic clock. Raises `RuntimeError` if a call is scheduled already."""
    if reactor.seconds is time.monotonic:
        return
    waiting = reactor.getDelayedCalls()
    if waiting:
        raise RuntimeError(f"calls were scheduled before the clock was set: {waiting}")
    reactor.seconds = time.monotonic


def collect_rarely() -> None:
    """Make full collections rare. The two younger generations are collected as often as before."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_AFTER)


def descriptors_for_clients() -> int:
    """Return how many connections of clients the process may hold: its limit of open files, without `RESERVED_DESCRIPTORS`."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, descriptors - RESERVED_DESCRIPTORS)


def wanted_connections(loaded: Loaded) -> tuple[int, str]:
    """Return how many connections one process is to hold, and that limit as a text. A worker holds its share."""
    asked = int(str(loaded.by_key["limits.connections"].value))
    share = divide(loaded.settings.limits, worker_count(loaded.settings)).connections
    of_worker = f", of which {share} are a worker's" if share != asked else ""
    return share, f"limits.connections = {asked}{of_worker}"


def too_few_descriptors(loaded: Loaded, process: str = "this process") -> Iterator[str]:
    """Yield a sentence if `limits.connections` is more than the limit of open files leaves room for. `process` is whose limit it is."""
    wanted, limit = wanted_connections(loaded)
    if wanted > (room := descriptors_for_clients()):
        yield (
            f"{limit}: {process} may open {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files, and "
            f"{RESERVED_DESCRIPTORS} of them are reserved, so {room} connections are its limit: "
            f"set LimitNOFILE={wanted + RESERVED_DESCRIPTORS} or more in the unit, or lower limits.connections"
        )


class Signals:
    """Installs the handlers of the process. `hurry` finishes a stop at once. `reload` gets the signal's name.

    After the second signal the process has `last_s` seconds. Then the signal itself ends it.
    """

    _log = Logger()

    def __init__(self, reactor: Any, hurry: Callable[[], None], reload: Callable[[str], None], last_s: float = LAST_S) -> None:
        self._last_s = last_s
        self._reactor = reactor
        self._hurry = hurry
        self._request_reload = reload
        self._received = 0
        self.reopen_log: Callable[[], None] | None = None
        """Opens the log file again. None: there is none."""
        self._folded = FoldedLog(self._log, reactor)

    @property
    def ending(self) -> bool:
        """Whether a signal that ends the process came. It is asked before the reactor runs."""
        return self._received > 0

    def install(self) -> None:
        """Install the handlers now, and again once the reactor runs: it installs its own when it starts."""
        self._install()
        self._reactor.callWhenRunning(self._install)
        # Twisted handles a signal that comes between the two, and would exit with its status.
        self._reactor.addSystemEventTrigger("after", "shutdown", setattr, self._reactor, "_exitSignal", None)

    def _install(self) -> None:
        for number in ENDING:
            self._set(number, self._end)
        self._set(signal.SIGHUP, self._reload)
        self._set(signal.SIGUSR1, self._reopen)

    def _set(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)

    # A handler may interrupt anything, even the writing of a log line. So it only schedules work for the reactor.

    def _end(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._received += 1
        if self._received == 1:
            self._reactor.callFromThread(self._stop, name)
        elif self._received == 2:
            signal.signal(signal.SIGALRM, lambda _number, _frame: _end_by(number))
            signal.setitimer(signal.ITIMER_REAL, self._last_s)
            self._reactor.callFromThread(self._stop_now, name)
        else:
            _end_by(number)

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._request_reload, signal.Signals(number).name)

    def _reopen(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reopen_log, signal.Signals(number).name)

    def _reopen_log(self, name: str) -> None:
        if self.reopen_log is None:
            self._folded.info("{name}: there is no log file to open again (twistd's --logfile)", name=name)
            return
        try:
            self.reopen_log()
        except OSError as error:
            self._log.error(
                "{name}: {path} can't be opened: {reason}; the log goes on in the file that was open; let logrotate create the new one",
                name=name,
                path=error.filename,
                reason=error.strerror,
            )

    def _stop(self, name: str) -> None:
        self._log.info("{name}: stopping; a second one ends at once", name=name)
        with suppress(ReactorNotRunning):  # the reactor stops already, because of a hand-over or an error
            self._reactor.stop()

    def _stop_now(self, name: str) -> None:
        self._log.warn("{name} again: ending at once", name=name)
        self._hurry()


def _end_by(number: int) -> None:
    """End the process by this signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
