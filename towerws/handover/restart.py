"""Joins the hand-over to a daemon: which sockets and connections there are, and what stops and starts at each step."""

from __future__ import annotations

import os
import signal
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from towerws.core.handover_state import ConnectionState, Event, events_from_json, events_to_json
from towerws.core.hub import Hub
from towerws.core.settings import Settings
from towerws.core.sources import SourceStatus
from towerws.embedded import EmbeddedSource
from towerws.handover.predecessor import BATCH_BYTES, STOP_AFTER_S, HandOver, HandOverCounters, HandOverFailed
from towerws.handover.successor import Adopter, Successor
from towerws.protocol import WebSocketFactory
from towerws.websocket.movable import MovableConnection

PORTS: Final = ("listen", "admin", "monitor")
"""The settings whose listening sockets the successor inherits."""

EVENT_BYTES: Final = 32
"""Bytes that an event of history takes in a message, in addition to its topic, payload and message id."""

PROCESS_1: Final = Path("/proc/1/comm")
"""The name of the program that runs as process 1 (proc(5))."""

ENDING_INITS: Final = ("tini", "docker-init", "dumb-init", "catatonit")
"""Init programs of containers that end when the process that they started ends. `docker --init` is tini under another name."""

WITH_WORKERS: Final = "start towerws with --workers 2 or more, whose parent goes on"

CONTAINER_ADVICE: Final = f"{WITH_WORKERS}, or replace the container"


class Restarts:
    """The hand-overs of one process, as predecessor and as successor. It is the `Daemon` of its `HandOver`.

    `source_status` returns the state of the source, even while this process accepts no clients. `ports` are the listening ports, by the key
    of their setting. `embedded` is the source of a daemon without a broker.
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        websockets: WebSocketFactory,
        source_status: Callable[[], SourceStatus],
        ports: Mapping[str, IListeningPort],
        embedded: EmbeddedSource | None,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._websockets = websockets
        self._source_status = source_status
        self._ports = ports
        self._embedded = embedded
        self.hub: Hub = websockets.context.hub
        self.counters = HandOverCounters()
        self._adopter = Adopter(reactor, websockets, settings.auth)
        self._hand_over: HandOver | None = None
        self._obstacle = "this daemon was not started by twistd"
        self._reload_noted = False
        self._parts: list[bytes] = []
        """The first parts of the payload of the predecessor's next large event."""
        self.below_parent = False
        """Whether this process is a worker. Then its parent goes on when this process ends, and supervises the successor."""
        self._replaced_by = 0
        """The process id of the successor, once it serves all clients."""
        self.successor: Successor | None = None
        """Set by `tap` in a process that a running daemon started."""
        self.on_handed_over: Callable[[int], None] = lambda _: None
        """Called with the process id of the successor, once it serves all clients."""
        self.on_moving: Callable[[bool], None] = lambda _: None
        """Called with True when this process stops reading its admin port for a hand-over, and with False when it reads it again."""
        self.on_alone: Callable[[], None] = lambda: None
        """Called in the successor, once the predecessor has ended."""

    @property
    def shares_ports(self) -> bool:
        """Whether another process uses the same listening sockets. Then a stop must not remove the files of UNIX sockets."""
        if self.successor is not None and not self.successor.serving:
            return True
        return self._hand_over is not None and self._hand_over.complete

    def enable(self, command: Sequence[str], folder: str, obstacle: str) -> None:
        """Allow hand-overs to a process with this command line, in this folder. `obstacle`: why they are impossible, or empty."""
        self._obstacle = obstacle
        self._hand_over = HandOver(self, self._reactor, self.counters, ready_s=self._settings.restart_s, command=command, folder=folder)

    def restart(self) -> Deferred[dict[str, object]]:
        """Hand this daemon over to a new process. Fires with the figures. Fails with `HandOverFailed`, and then this process goes on."""
        if self._hand_over is None:
            return fail(HandOverFailed(self._obstacle))
        if not self._hand_over.under_way:
            self._reload_noted = False
        return self._hand_over.restart()

    def reload_requested(self) -> bool:
        """Make the successor reload, because it may have read the old configuration. Return whether it has replaced this process already.

        A successor that is still starting gets its SIGHUP when the hand-over is complete.
        """
        if self._replaced_by:
            self._reload_successor()
        elif self._hand_over is not None and self._hand_over.under_way:
            self._reload_noted = True
        return self._replaced_by != 0

    def _reload_successor(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._replaced_by, signal.SIGHUP)

    # in a successor

    def open_port(self, key: str, description: str, factory: Any, wrap: Callable[[Any], Any]) -> IListeningPort | None:
        """Listen on the predecessor's socket for this setting. None if this process inherited none. `wrap`: see `InheritedPort.open`."""
        if self.successor is None or (port := self.successor.port(key, description)) is None:
            return None
        return port.open(self._reactor, factory, wrap)

    def tell_why(self, reason: str) -> None:
        """Tell the predecessor, if there is one, why this process can't start."""
        if self.successor is not None:
            self.successor.tell_why(reason)

    def start(self) -> None:
        """Begin to take over from the predecessor, if there is one. Until then this process accepts no clients."""
        if self.successor is not None:
            self.accept(False)
            begin = self._websockets.accept_throttle.go_on
            self.successor.start(self._adopter, self._source_status, keep=self._keep, begin=begin, serve=self._serve, alone=self.on_alone)

    def _serve(self) -> None:
        """Read the admin and monitor ports, too. They come last, so that at no time two processes take `POST /publish`."""
        self.accept(True)

    def _keep(self, piece: Mapping[str, Any]) -> None:
        """Add a piece of the predecessor's history, which `history` made there. The first piece with events names the log."""
        if self._embedded is None:
            return
        if "part" in piece:
            self._parts.append(b64decode(piece["part"]))
            return
        if "log" in piece:
            self._embedded.continue_log(piece["log"], piece["floor"])
        events = events_from_json(piece["events"])
        if self._parts:
            topic, rest, offset, message_id = events.pop()
            events.append((topic, b"".join([*self._parts, rest]), offset, message_id))
            self._parts.clear()
        self._embedded.keep(events, piece["offset"])

    def stop(self) -> None:
        """End a hand-over that is under way, because this process stops."""
        if self.successor is not None:
            if not self.successor.serving:
                self.accept(False)
            self.successor.stop()
        if self._hand_over is not None:
            self._hand_over.cancel()

    # for the hand-over

    def why_no_handover(self) -> str | None:
        """See `Daemon`."""
        if self._obstacle:
            return self._obstacle
        if not self.below_parent and (why := _why_not_outlived()) is not None:
            return why
        if self.successor is not None and not self.successor.serving:
            return "this process has not taken over from its predecessor yet"
        status = self._source_status()
        if self._embedded is None and status.details.get("mode") != "stream":
            return "a daemon that reads a queue of its own can't hand over: the queue ends with its process; use a stream"
        if not status.ready or not self.hub.position:
            return f"this process is not ready: {status.reason or status.state.value}"
        return None

    def ports(self) -> Mapping[str, tuple[IListeningPort, str]]:
        """See `Daemon`."""
        return {key: (self._ports[key], getattr(self._settings, key)) for key in PORTS if key in self._ports}

    def connections(self) -> Sequence[MovableConnection]:
        """See `Daemon`."""
        return list(self._websockets.connections)

    def history(self) -> Iterable[Mapping[str, object]]:
        """See `Daemon`. An event with a large payload is the last one of its piece, and its first parts come before the piece."""
        if self._embedded is None:
            return
        epoch, offset = self._embedded.place
        held = deque(self.hub.history.entries())
        first: dict[str, object] = {"log": epoch, "floor": self.hub.history.floor.offset}
        while held or first:
            events: list[Event] = []
            size = 0
            while held and size < BATCH_BYTES:
                delivery = held.popleft()
                start = 0
                for start in range(BATCH_BYTES, len(delivery.payload), BATCH_BYTES):
                    yield {"part": b64encode(delivery.payload[start - BATCH_BYTES : start]).decode("ascii")}
                events.append((delivery.topic, delivery.payload[start:], delivery.offset, delivery.message_id))
                size += EVENT_BYTES + len(delivery.payload) + len(delivery.topic) + len(delivery.message_id or "")
            yield {**first, "events": events_to_json(events), "offset": offset}
            first = {}

    @property
    def moving(self) -> bool:
        """Whether this process must refuse `POST /publish`, because a successor has the history."""
        return self._hand_over is not None and (self._hand_over.moving or self._hand_over.complete)

    def accept(self, accepting: bool) -> None:
        """See `Daemon`."""
        self.on_moving(not accepting)
        throttle = self._websockets.accept_throttle
        if accepting:
            throttle.go_on()
        else:
            throttle.pause()
        for key, port in self._ports.items():
            if key != "listen":
                reading: Any = port
                if accepting:
                    reading.startReading()
                else:
                    reading.stopReading()

    def readopt(self, state: ConnectionState, descriptor: int, frozen_at: float) -> bool:
        """See `Daemon`."""
        try:
            why = self._adopter.adopt(state, descriptor, frozen_at)
        except Exception:  # noqa: BLE001 - one connection must not stop the others
            self._log.failure("a connection that could not be sent is lost")
            return False
        if why is not None:
            self._log.warn("a connection that could not be sent is lost: {why}", why=why)
        return why is None

    def handed_over(self, pid: int) -> None:
        """See `Daemon`."""
        self.on_handed_over(pid)
        self._replaced_by = pid
        if self._reload_noted:
            self._reload_successor()
        self._reactor.callLater(STOP_AFTER_S, self._stop)

    def _stop(self) -> None:
        with suppress(ReactorNotRunning):  # a signal has stopped the reactor already
            self._reactor.stop()


def on_restart_signal(reactor: Any, restart: Callable[[], Deferred[dict[str, object]]]) -> None:
    """Call `restart` at each SIGUSR2, unless the parent process ignores it. Without a handler the signal would end the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(lambda: restart().addErrback(lambda failure: None))  # the log has the reason already

    if signal.getsignal(signal.SIGUSR2) is not signal.SIG_IGN:
        signal.signal(signal.SIGUSR2, handle)


def _why_not_outlived() -> str | None:
    """Return why the end of this process would also end its successor, or start a second daemon. None if it would not."""
    if os.getpid() == 1:
        return f"this is process 1, and its container would end with it; {CONTAINER_ADVICE}"
    if os.getppid() == 1 and (name := _name_of_process_1()).startswith(ENDING_INITS):
        return f"process 1 is {name}, which ends with its first child, and the container with it; {CONTAINER_ADVICE}"
    if "SUPERVISOR_ENABLED" in os.environ:
        return f"supervisord would start a second daemon; use supervisorctl restart, or {WITH_WORKERS}"
    return None


def _name_of_process_1() -> str:
    """Return the name of the program of process 1, or an empty text if that can't be read."""
    try:
        return PROCESS_1.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
