"""What `twistd towerws` calls: the options, and the service that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from twisted.python import usage

from towerws.amqp import quiet_pika
from towerws.collector import collect_rarely
from towerws.config.exposure import exposure
from towerws.config.load import Loaded, given, load_all, usage_flags, usage_parameters
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings
from towerws.service import EXIT_BAD_CONFIG, TowerwsService


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
            _give_up(str(error))

    def postOptions(self) -> None:
        """Make the settings, or end the process."""
        try:
            self.loaded = load_all(given(self), os.environ)
        except ConfigError as error:
            _give_up(str(error))
        self.settings = self.loaded.settings


def _give_up(text: str) -> NoReturn:
    print(f"towerws: {text}", file=sys.__stderr__, flush=True)
    raise SystemExit(EXIT_BAD_CONFIG)


def makeService(options: Options, reactor: Any = None) -> TowerwsService:
    """The daemon that the options describe. Touches no network, and nothing of the reactor's but its clock.

    What can't be used after all (a key file, a certificate) ends the process like a bad option.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - twistd chooses it before this
    quiet_pika()
    collect_rarely()
    try:
        service = TowerwsService(options.settings, reactor)
    except ConfigError as error:
        _give_up(str(error))
    service.warnings = tuple(exposure(options.loaded))
    return service
