"""The parent of several workers: a small daemon that opens the admin port, reserves the websocket port, and supervises the workers.

signal            | the parent
SIGTERM, SIGINT   | stops all workers in order, and ends with status 0. A second one aborts their connections
SIGHUP            | makes each worker reload
SIGUSR2           | makes one worker after the other hand over to a new process
SIGUSR1           | logs that there is no log file: workers and `--logfile` exclude each other
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger

from towerws import __version__
from towerws.config.certificates import ReplaceableCertificate, TlsReactor, read_certificate
from towerws.config.load import Loaded
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings
from towerws.listening import EXIT_BAD_CONFIG, EndOfStart, listen
from towerws.process import use_monotonic_clock
from towerws.reload import differences, merge
from towerws.service import STOP_GRACE_S
from towerws.workers.processes import Processes, State, Worker
from towerws.workers.site import ParentPorts

FORWARD_S: Final = 0.1
"""How long a stop waits before it sends SIGTERM to the workers.

systemd may have sent them one, too, and a second one makes a worker abort its connections. Meanwhile the workers report STOPPING.
"""

KILL_MARGIN_S: Final = 2.0
"""How long after its own deadline a worker is killed."""

LEAVE_S: Final = 20.0
"""How long a process that has handed over may take to end, beyond `drain_s`. During `drain_s` it closes the connections that it kept."""

MAX_SOCKET_PATH_BYTES: Final = 107
"""The longest path of a UNIX socket (unix(7))."""


class Supervisor(Service):
    """The parent. `command` and `folder` are those of this process, and `count` is the number of workers.

    `load` reads the configuration again, as a worker does at its start. It raises `ConfigError`.
    """

    _log = Logger()

    def __init__(
        self, loaded: Loaded, load: Callable[[], Loaded], reactor: Any, *, count: int, command: Sequence[str], folder: str
    ) -> None:
        use_monotonic_clock(reactor)
        self.setName("towerws")
        self._reactor = reactor
        self._loaded = loaded
        self._settings = settings = loaded.settings
        self._load = load
        self._of_workers = dict.fromkeys(range(1, count + 1), loaded)
        """The configuration of each worker's process, by the worker's number. A reload replaces the settings that can be reloaded."""
        self._count = count
        self._ports: dict[str, IListeningPort] = {}
        self._certificates: dict[str, ReplaceableCertificate] = {}
        self._reserved: IListeningPort | None = None
        self._sockets = ""
        self._stopping = self._hurried = False
        self._forward: Any = None
        """The timer that passes a stop on to the workers."""
        self.log_observer: ILogObserver | None = None
        self.ending: Callable[[], bool] = lambda: False
        """Returns whether a signal that ends the process came before the reactor ran."""
        self.warnings: Sequence[str] = ()
        """Sentences that the daemon logs at its start."""
        self.reloading: Callable[[], None] = lambda: None
        self.reloaded: Callable[[], None] = lambda: None
        """Called when a reload begins, and when it has ended."""
        self._reload_under_way = False
        self.processes = Processes(reactor, command, folder, self._changed, lambda: self.drain_s + LEAVE_S)
        self.processes.on_begun = self._begun
        self.ports = ParentPorts(settings, reactor, self.processes, lambda: self._stopping)

    # IService

    def privilegedStartService(self) -> None:
        """Open the ports of the parent, and reserve the port of the workers."""
        self._listen("admin", self._settings.admin, self.ports.admin)
        if self._settings.monitor:
            self._listen("monitor", self._settings.monitor, self.ports.monitor)
        self._reserved = listen(_ReservingReactor(self._reactor), "listen", self._settings.listen, Factory(), self.ending)
        self._sockets = _make_folder(self._count)
        try:
            self.processes.prepare(self._sockets, self._count, getattr(self._ports["admin"].getHost(), "port", 0))
        except OSError as error:
            shutil.rmtree(self._sockets, ignore_errors=True)
            _give_up(f"the workers can't be prepared: {error.strerror}; use --workers 1")

    def startService(self) -> None:
        """Start the workers."""
        super().startService()
        self._log.info(
            "towerws {version}: {count} workers for websockets on {listen}, admin on {admin}, auth {auth}",
            version=__version__,
            count=self._count,
            listen=self._settings.listen,
            admin=self._settings.admin,
            auth=",".join(self._settings.auth),
        )
        for sentence in self.warnings:
            self._log.warn("{sentence}", sentence=sentence)
        self._reactor.callWhenRunning(self._start)

    def _start(self) -> None:
        if not self._stopping:
            self.processes.start()

    def stopService(self) -> Deferred[None]:
        """Stop the workers, and kill those that miss their deadline. Fires once all processes have ended and all ports are closed."""
        self._stopping = True
        done: Deferred[None] = Deferred()
        ended = self.processes.stop()
        forward = self._forward = self._reactor.callLater(0 if self._hurried else FORWARD_S, self._terminate)
        kill = self._reactor.callLater(self.drain_s + STOP_GRACE_S + KILL_MARGIN_S, self.processes.kill)

        def close(_: object) -> Deferred[Any]:
            for call in (forward, kill):
                if call.active():
                    call.cancel()
            self.processes.close()
            shutil.rmtree(self._sockets, ignore_errors=True)
            ports = [*self._ports.values(), *([] if self._reserved is None else [self._reserved])]
            return DeferredList([each for port in ports if (each := port.stopListening()) is not None], consumeErrors=True)

        def finish(_: object) -> None:
            self._log.info("towerws stopped")
            done.callback(None)

        ended.addCallback(close).addCallback(finish)
        super().stopService()
        return done

    def _terminate(self) -> None:
        self.processes.terminate()
        if self._hurried:
            self.processes.terminate(again=True)

    def stop_now(self) -> None:
        """Make the workers abort their connections in a stop, which is under way or about to begin."""
        self._hurried = True
        if self._stopping:
            if self._forward.active():  # otherwise `_terminate` would run twice
                self._forward.cancel()
            self._terminate()

    def setServiceParent(self, parent: Any) -> None:
        """Join twistd's application, and register the log observer there, where twistd looks for it."""
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)

    # signals

    def reload(self, by: str) -> Settings | None:
        """Make each worker reload, and put in force the settings of the parent. Returns the new settings, None if they can't be used.

        Each worker reports its own result in the log.
        """
        if self._stopping:
            self._log.warn("{by}: nothing is reloaded: the daemon is stopping", by=by)
            return None
        self._log.info("{by}: each worker reloads", by=by)
        self._reload_under_way = True
        self.reloading()
        self.processes.reload()
        self._changed()
        try:
            loaded = self._load()
            own = merge(self._loaded, loaded).loaded
            certificates = {key: read_certificate(getattr(self._settings, key)) for key in self._certificates}
        except (ConfigError, ValueError) as error:
            self._log.error("{by}: the parent keeps its settings: {reason}", by=by, reason=str(error))
            return None
        self._loaded, self._settings = own, own.settings
        for number, before in self._of_workers.items():
            with suppress(ConfigError):  # the worker logs this error itself
                self._of_workers[number] = merge(before, loaded).loaded
        self._set_deadlines()
        for key, certificate in certificates.items():
            self._certificates[key].options = certificate
        return own.settings

    def restart(self) -> Deferred[dict[str, object]]:
        """Make one worker after the other hand over. Fires with the figures. Fails with `TowerwsError` if not all workers have."""
        return self.ports.restart()

    # what the service manager asks

    @property
    def accepting(self) -> bool:
        """Whether a worker accepts clients."""
        return bool(self.processes.serving)

    @property
    def drain_s(self) -> float:
        """Seconds over which a stop spreads the closing of connections."""
        return self.ports.drain_s

    def status_text(self) -> str:
        """Return the text for `systemctl status`."""
        waiting = [str(worker.number) for worker in self.processes.workers if worker.state is State.WAITING]
        text = f"{len(self.processes.serving)} of {self._count} workers serve"
        return f"{text}; no process now: worker {', '.join(waiting)}" if waiting else text

    # helpers

    def _begun(self, worker: Worker) -> None:
        """Log a warning if the new process of a worker has other settings than the other workers.

        The new process can't get the old settings: the old configuration, and the files that it named, may no longer exist.
        """
        try:
            loaded = self._of_workers[worker.number] = self._load()
        except ConfigError:  # the worker's process reads the same configuration, logs the error, and ends
            return
        self._set_deadlines()
        if self.ports.restarting:  # the other workers get the new settings next
            return
        for other in self.processes.workers:
            if other.pid and (changes := differences(loaded, self._of_workers[other.number])):
                self._log.warn(
                    "worker {number} has other settings than worker {other}: {changes}. `towerws restart` gives all workers the same ones",
                    number=worker.number,
                    other=other.number,
                    changes="; ".join(changes),
                )
                return

    def _set_deadlines(self) -> None:
        """Set the deadlines for workers to the highest values among their settings."""
        settings = [loaded.settings for loaded in self._of_workers.values()]
        self.ports.restart_s = max(each.restart_s for each in settings)
        self.ports.drain_s = max(each.websocket.drain_s for each in settings)

    def _changed(self) -> None:
        if self._reload_under_way and not any(worker.reloading for worker in self.processes.workers):
            self._reload_under_way = False
            self.reloaded()

    def _listen(self, key: str, description: str, factory: Any) -> None:
        reactor = TlsReactor(self._reactor)
        self._ports[key] = listen(reactor, key, description, factory, self.ending)
        if reactor.certificate is not None:
            self._certificates[key] = reactor.certificate


class _ReservingReactor:
    """Binds ports without listening. So an address in use is found, and no other program can take the port while all workers restart."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Reserve a port. Raises `CannotListenError`."""
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        try:
            address = socket.getaddrinfo(interface or "0.0.0.0", port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0][4]  # noqa: S104
            _bound(family, address, socket.SO_REUSEADDR).close()  # with SO_REUSEPORT, a port that another towerws shares would look free
            return _Reserved(_reserve(family, address))
        except OSError as error:
            raise CannotListenError(interface, port, error) from error

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Reserve a port."""
        return self.listenTCP(port, factory, backlog, interface)


def _reserve(family: int, address: Any) -> socket.socket:
    """Bind a socket whose port only sockets with SO_REUSEPORT may share."""
    try:
        return _bound(family, address, socket.SO_REUSEPORT)
    except OSError:
        # Connections of a process without SO_REUSEPORT are in TIME_WAIT. With SO_REUSEADDR the port can be bound, but another server with
        # SO_REUSEADDR could take it, too.
        return _bound(family, address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bound(family: int, address: Any, *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


class _Reserved:
    """A port that is bound, and on which this process does not listen."""

    def __init__(self, bound: socket.socket) -> None:
        self._bound = bound

    def stopListening(self) -> None:
        """Release the port."""
        self._bound.close()


def _make_folder(count: int) -> str:
    """Make the folder of the workers' sockets, which only this user can enter. Raises `EndOfStart` if that fails."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    try:
        folder = tempfile.mkdtemp(prefix="towerws-", dir=runtime or None)
    except OSError as error:
        _give_up(f"no folder for the workers' sockets can be made: {error}; set TMPDIR to one that can be written to")
    if len(f"{folder}/notify-{count}".encode()) > MAX_SOCKET_PATH_BYTES:
        Path(folder).rmdir()
        _give_up(f"the path {folder} is too long for the workers' sockets; set TMPDIR to a shorter one")
    return folder


def _give_up(text: str) -> NoReturn:
    """End the start with a text on standard error."""
    print(f"towerws: {text}", file=sys.__stderr__, flush=True)
    raise EndOfStart(EXIT_BAD_CONFIG)
