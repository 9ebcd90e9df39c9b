"""The `twistd towerws` plugin: its options, and the service that it makes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver
from twisted.python import usage

from towerws.amqp import quiet_pika
from towerws.auth.chain import make_chain
from towerws.config.exposure import exposure
from towerws.config.load import Loaded, given, load_all, suggest_flag, usage_flags, usage_parameters
from towerws.config.options import OPTIONS
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings
from towerws.handover.ports import VARIABLE, take_inheritance, tell_predecessor
from towerws.handover.restart import on_restart_signal
from towerws.handover.successor import Successor
from towerws.listening import EXIT_BAD_CONFIG
from towerws.logs import LevelFilter, forward_library_logs, make_observer, open_output
from towerws.process import LAST_S, Signals, collect_rarely, too_few_descriptors, use_monotonic_clock
from towerws.reload import Reloader
from towerws.service import STOP_GRACE_S, TowerwsService
from towerws.service_manager import ServiceManager
from towerws.workers.supervisor import KILL_MARGIN_S, Supervisor
from towerws.workers.worker import Membership, ParentWatch, worker_count

STOP_MARGIN_S = 5.0
"""Seconds that the process may take to end after its own deadline for a stop. Then systemd kills it."""

_unknown_flag = re.compile(r"option --(\S+) not recognized").fullmatch
_short_flag = re.compile(r"option --(\S+) not a unique prefix").fullmatch


class Options(usage.Options):
    """The flags of `twistd towerws`, made from the table of options.

    An error in a flag, the environment or the file prints one line to stderr and exits with status 2. twistd itself would print all of its
    help and exit with 0.
    """

    synopsis = "[options]"
    longdesc = (
        "Live events from RabbitMQ to browsers. --auth is required. `towerws config` prints the settings in force, and `towerws check` "
        "what is wrong with them. Every option can be set in the --config file or in the environment, too: docs/configuration.md."
    )
    optFlags = usage_flags()
    optParameters = usage_parameters()

    settings: Settings
    loaded: Loaded
    membership: Membership | None = None
    """Set in a worker."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the flags, then the file and the environment."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _give_up(_with_suggestion(str(error)))

    def postOptions(self) -> None:
        """Build the settings. Ends the process if they are invalid."""
        self.membership = Membership.from_environ(os.environ)
        try:
            self.loaded = self.load(os.environ)
        except ConfigError as error:
            _give_up(str(error))
        self.settings = self.loaded.settings
        if os.environ.get(VARIABLE) and worker_count(self.settings) > 1:
            asked = f"{self.loaded.by_key['workers'].origin} = {self.settings.workers!r}"
            _give_up(f"{asked}: the running process can't hand over to several workers; restart towerws")
        if self.parent is not None:
            if self.membership is not None:
                self.parent["pidfile"] = ""  # the file has the id of the workers' parent
            _disable_pid_file(self.parent, sys.argv)
            _check_files(self.parent)
            if self.settings.workers != 1 and (why := _why_no_workers(self.parent)):
                _give_up(f"{self.loaded.by_key['workers'].origin} = {self.settings.workers!r}: {why}")

    def load(self, environ: Mapping[str, str]) -> Loaded:
        """Read flags, environment and file. In a worker: as that worker uses them. Raises `ConfigError`."""
        loaded = load_all(given(self), environ)
        return loaded if self.membership is None else self.membership.loaded(loaded)


def _with_suggestion(text: str) -> str:
    """Add a suggestion to getopt's error about a flag."""
    if match := _unknown_flag(text):
        return text + suggest_flag(match[1])
    if match := _short_flag(text):
        meant = [f"--{option.flag}" for option in OPTIONS if option.flag.startswith(match[1])]
        return f"{text}: there is {', '.join(meant)}"
    return text


def _disable_pid_file(twistd: MutableMapping[str, Any], arguments: Sequence[str]) -> None:
    """Make twistd write no pid file, unless `--pidfile` was given. Its default is in the current folder, which may be read-only.

    A given pid file that holds this process's own pid is stale: an earlier container had the same pid. The file is removed, because
    twistd would take it for that of a running daemon.
    """
    before = arguments[1 : arguments.index("towerws") if "towerws" in arguments else None]
    if not any(word.startswith("--pi") for word in before):  # getopt accepts abbreviated flags
        twistd["pidfile"] = ""
    elif twistd["pidfile"]:
        file = Path(twistd["pidfile"])
        with suppress(OSError, ValueError):
            if int(file.read_text(encoding="ascii")) == os.getpid():
                file.unlink()


def _why_no_workers(twistd: Mapping[str, Any]) -> str:
    """Return why a process that twistd started with these flags can't start workers with the same command line. Empty if it can."""
    if not twistd["nodaemon"]:
        return "twistd runs it in the background, and several workers need a parent that stays; start it with --nodaemon"
    if twistd["uid"] is not None or twistd["gid"] is not None or twistd["chroot"]:
        return "--uid, --gid and --chroot can't be repeated by a worker without privileges; let systemd choose the user (User=)"
    if twistd["logfile"] not in (None, "-") and not twistd["syslog"] and not twistd["logger"]:
        return "several workers can't rotate one --logfile; let them log to standard output"
    return ""


def _check_files(twistd: Mapping[str, Any]) -> None:
    """End the process where twistd itself would end in a traceback: at a folder that is not there, or a file that it can't write."""
    folder = Path(twistd["rundir"])
    if not folder.is_dir():
        _give_up(f"--rundir = {twistd['rundir']!r}: there is no such folder; choose another one")
    pidfile, logfile = twistd["pidfile"], twistd["logfile"]
    files: dict[str, Path] = {}
    if pidfile:
        files["--pidfile"] = folder / pidfile  # twistd goes into that folder before it writes this
    if logfile and logfile != "-":
        files["--logfile"] = Path(logfile)
    for flag, file in files.items():
        was_there = file.exists()
        try:
            file.open("ab").close()
        except OSError as error:
            _give_up(f"{flag} = {twistd[flag[2:]]!r}: can't be written: {error.strerror}; choose another one")
        if not was_there:
            file.unlink()


def _give_up(text: str) -> NoReturn:
    tell_predecessor(os.environ, text)
    print(f"towerws: {text}", file=sys.__stderr__, flush=True)
    raise SystemExit(EXIT_BAD_CONFIG)


def makeService(options: Options, reactor: Any = None) -> TowerwsService | Supervisor:
    """Make the daemon of these options, or the parent of its workers. Uses no network, and changes only the reactor's clock.

    An unusable key file or certificate ends the process like a bad option.
    """
    own_process = reactor is None
    if own_process:
        from twisted.internet import reactor  # noqa: PLC0415 - twistd installs it before this call
    quiet_pika()
    collect_rarely()
    level = LevelFilter(options.settings.log_level)
    if (count := worker_count(options.settings)) > 1:
        return _make_parent(options, reactor, count, level)
    try:
        service = TowerwsService(options.settings, reactor, options.membership)
    except ConfigError as error:
        _give_up(str(error))
    service.warnings = (*exposure(options.loaded), *too_few_descriptors(options.loaded))
    if own_process:
        _join_hand_over(service, options, reactor)
        manager = tell_service_manager(service, os.environ, reactor)
        environ = dict(os.environ)  # a reload reads what the start read
        reloader = Reloader(service, options.loaded, lambda: options.load(environ), set_log_level=level.set, manager=manager)
        signals = Signals(reactor, service.stop_now, reloader.request)
        signals.install()
        service.ending = lambda: signals.ending
        if options.membership is not None:
            ParentWatch(options.membership, reactor, _stop(reactor), successor=service.restarts.successor is not None)
        if options.parent is not None:
            number = 0 if options.membership is None else options.membership.number
            service.log_observer = _log_observer(options.settings, level, options.parent, signals, number)
    return service


def _make_parent(options: Options, reactor: Any, count: int, level: LevelFilter) -> Supervisor:
    """Make the parent of the workers. Each worker runs this process's command line."""
    use_monotonic_clock(reactor)
    try:
        make_chain(options.settings, reactor)  # settings that no worker could use end the start here
    except ConfigError as error:
        _give_up(str(error))
    environ = dict(os.environ)
    parent = Supervisor(options.loaded, lambda: options.load(environ), reactor, count=count, command=sys.orig_argv, folder=str(Path.cwd()))
    parent.warnings = (*exposure(options.loaded), *too_few_descriptors(options.loaded, "each worker"))
    manager = ServiceManager(
        os.environ,
        reactor,
        accepting=lambda: parent.accepting,
        status=parent.status_text,
        stop_s=lambda: parent.drain_s + STOP_GRACE_S + KILL_MARGIN_S + STOP_MARGIN_S,
    )
    manager.install()
    parent.reloading, parent.reloaded = manager.reloading, manager.reloaded

    def reload(by: str) -> None:
        if (settings := parent.reload(by)) is not None:
            level.set(settings.log_level)

    signals = Signals(reactor, parent.stop_now, reload, LAST_S + KILL_MARGIN_S)  # each worker has LAST_S
    signals.install()
    on_restart_signal(reactor, parent.restart)
    parent.ending = lambda: signals.ending
    if options.parent is not None:
        parent.log_observer = _log_observer(options.settings, level, options.parent, signals)
    return parent


def _stop(reactor: Any) -> Callable[[], None]:
    def stop() -> None:
        with suppress(ReactorNotRunning):  # the reactor stops already
            reactor.stop()

    return stop


def tell_service_manager(service: TowerwsService, environ: Mapping[str, str], reactor: Any) -> ServiceManager:
    """Tell systemd the state of this daemon, if the unit asks for it (`Type=notify`).

    The daemon is ready when it accepts clients, with or without its broker. Otherwise, while the broker is away, systemd would end the
    start after the unit's TimeoutStartSec=, and with it the clients' connections.
    """

    def status() -> str:
        source, clients = service.source_status(), f"{len(service.websockets.connections)} clients"
        if service.reloads.failure is not None:
            clients += "; the last reload failed"
        if not source.ready:
            return f"not ready: {source.reason or source.state.value}; {clients}"
        markers = source.details.get("markers")
        lag_s = markers.get("lag_s") if isinstance(markers, dict) else None
        return f"ready; {clients}" if lag_s is None else f"ready; {clients}; lag {lag_s:.3f} s"

    manager = ServiceManager(
        environ,
        reactor,
        accepting=lambda: not service.websockets.accept_throttle.holding,
        status=status,
        stop_s=lambda: service.drain_s + STOP_GRACE_S + STOP_MARGIN_S,
    )
    # systemd takes messages of the main process only. A successor becomes the main process at the end of a hand-over.
    manager.install(start=service.restarts.successor is None)
    service.restarts.on_alone = manager.take_over if service.restarts.below_parent else manager.start
    service.restarts.on_handed_over = manager.hand_over
    if service.restarts.below_parent:
        service.restarts.on_moving = manager.moving
    return manager


def _join_hand_over(service: TowerwsService, options: Options, reactor: Any) -> None:
    """Make this process the successor of the one that started it, if one did, and let it have a successor of its own."""
    inheritance = take_inheritance(os.environ)
    if inheritance is not None:
        successor = Successor(inheritance, reactor, service.restarts.counters)
        if (why := successor.why_not()) is not None:
            successor.tell_why(why)
            _give_up(why)
        service.restarts.successor = successor
    service.restarts.enable(sys.orig_argv, str(Path.cwd()), _obstacle(options.parent))
    service.restarts.below_parent = options.membership is not None
    on_restart_signal(reactor, service.restarts.restart)


def _obstacle(twistd: Mapping[str, Any] | None) -> str:
    """Return why a process that twistd started with these flags can't start another one like itself. Empty if it can."""
    if twistd is None:
        return "this daemon was not started by twistd"
    if not twistd["nodaemon"]:
        return "twistd runs it in the background; start it with --nodaemon"
    if twistd["pidfile"]:
        return "--pidfile allows one process only; start towerws without it"
    if twistd["uid"] is not None or twistd["gid"] is not None or twistd["chroot"]:
        return "--uid, --gid and --chroot can't be repeated by a process without privileges; let systemd choose the user (User=)"
    return ""


def _log_observer(
    settings: Settings, level: LevelFilter, twistd: Mapping[str, Any], signals: Signals, worker: int = 0
) -> ILogObserver | None:
    """Return the observer that writes the log instead of twistd's. None if twistd's own was chosen (`--syslog`, `--logger`)."""
    in_front = twistd["nodaemon"] or twistd["debug"]
    logfile = twistd["logfile"] or ("-" if in_front else "twistd.log")
    if twistd["syslog"] or twistd["logger"] or (logfile == "-" and not in_front):
        return None
    opened = open_output(logfile)
    signals.reopen_log = opened.reopen
    forward_library_logs()
    return make_observer(settings.log_format, level, opened.output, journal=opened.journal, worker=worker)
