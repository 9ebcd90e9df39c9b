"""What `twistd towerws` calls: the options, and the service that they make."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.logger import ILogObserver
from twisted.python import usage

from towerws.amqp import quiet_pika
from towerws.collector import collect_rarely
from towerws.config.exposure import exposure
from towerws.config.load import OPTIONS, Loaded, given, load_all, suggest_flag, usage_flags, usage_parameters
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings
from towerws.listening import EXIT_BAD_CONFIG
from towerws.logs import forward_library_logs, make_observer, open_output
from towerws.service import TowerwsService
from towerws.signals import Signals

_unknown_flag = re.compile(r"option --(\S+) not recognized").fullmatch
_short_flag = re.compile(r"option --(\S+) not a unique prefix").fullmatch


class Options(usage.Options):
    """The flags of `twistd towerws`, made from the one table of options.

    Whatever is wrong with them, the environment or the file is one line on stderr, and exit status 2: twistd itself would print
    all of its help, and exit with 0.
    """

    synopsis = "[options]"
    longdesc = (
        "Live events from RabbitMQ to browsers. Say at least --auth; `towerws config` prints what is in force, and `towerws check` "
        "what is wrong. Every option can stand in the --config file or in the environment too: docs/configuration.md."
    )
    optFlags = usage_flags()
    optParameters = usage_parameters()

    settings: Settings
    loaded: Loaded

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the flags, then everything else."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _give_up(_with_suggestion(str(error)))

    def postOptions(self) -> None:
        """Make the settings, or end the process."""
        try:
            self.loaded = load_all(given(self), os.environ)
        except ConfigError as error:
            _give_up(str(error))
        self.settings = self.loaded.settings
        if self.parent is not None:
            _forget_pid_file(self.parent, sys.argv)


def _with_suggestion(text: str) -> str:
    """getopt's words about a flag, with what may have been meant."""
    if match := _unknown_flag(text):
        return text + suggest_flag(match[1])
    if match := _short_flag(text):
        meant = [f"--{option.flag}" for option in OPTIONS if option.flag.startswith(match[1])]
        return f"{text}: there is {', '.join(meant)}"
    return text


def _forget_pid_file(twistd: MutableMapping[str, Any], arguments: Sequence[str]) -> None:
    """Unless `--pidfile` was given, have twistd write no pid file: its default is one in the current folder, which may be read-only.

    One that was given and names our own pid was left by another container's life, in which we had the same; twistd takes it for proof
    that a second daemon runs.
    """
    before = arguments[1 : arguments.index("towerws") if "towerws" in arguments else None]
    if not any(word.startswith("--pi") for word in before):  # getopt takes a flag's beginning for the flag
        twistd["pidfile"] = ""
    elif twistd["pidfile"]:
        file = Path(twistd["pidfile"])
        with suppress(OSError, ValueError):
            if int(file.read_text(encoding="ascii")) == os.getpid():
                file.unlink()


def _give_up(text: str) -> NoReturn:
    print(f"towerws: {text}", file=sys.__stderr__, flush=True)
    raise SystemExit(EXIT_BAD_CONFIG)


def makeService(options: Options, reactor: Any = None) -> TowerwsService:
    """The daemon that the options describe. Touches no network, and nothing of the reactor's but its clock.

    What can't be used after all (a key file, a certificate) ends the process like a bad option.
    """
    own_process = reactor is None
    if own_process:
        from twisted.internet import reactor  # noqa: PLC0415 - twistd chooses it before this
    quiet_pika()
    collect_rarely()
    try:
        service = TowerwsService(options.settings, reactor)
    except ConfigError as error:
        _give_up(str(error))
    service.warnings = tuple(exposure(options.loaded))
    if own_process:
        signals = Signals(reactor, service.stop_now)
        signals.install()
        service.ending = lambda: signals.ending
        if options.parent is not None:
            service.log_observer = _log_observer(options.settings, options.parent, reactor)
    return service


def _log_observer(settings: Settings, twistd: Mapping[str, Any], reactor: Any) -> ILogObserver | None:
    """What writes the log in twistd's place; None where it was told to do it in a way of its own (`--syslog`, `--logger`)."""
    in_front = twistd["nodaemon"] or twistd["debug"]
    logfile = twistd["logfile"] or ("-" if in_front else "twistd.log")
    if twistd["syslog"] or twistd["logger"] or (logfile == "-" and not in_front):
        return None
    output, journal = open_output(logfile, reactor)
    forward_library_logs()
    return make_observer(settings.log_format, settings.log_level, output, journal=journal)
