"""The `towerws` command. The daemon itself is `twistd towerws`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import click

from towerws import __version__
from towerws.commands.terminal import output

_COMMANDS = {
    "check": "config:check_command",
    "config": "config:config_command",
    "demo": "demo:demo_command",
    "doctor": "doctor:doctor_command",
    "explain": "admin_port:explain_command",
    "publish": "publish:publish_command",
    "restart": "admin_port:restart_command",
    "tail": "tail:tail_command",
}
"""Each subcommand, with its module in `commands/` and its name there."""


class _Commands(click.Group):
    """Imports a subcommand when it is asked for. `towerws tail` then needs no Twisted and no pika, and starts in half the time."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments up to the subcommand. `--help` and `--version` print their text here, and end the command."""
        with output():
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand, or None if there is none of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"towerws.commands.{module}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="towerws")
def main() -> None:
    """Live events from RabbitMQ to browsers: tools for the daemon.

    `twistd -n towerws` starts the daemon, and `twistd towerws --help` lists its options.

    \b
    Try it, in three terminals:
      twistd -n towerws --broker embedded: --auth open
      towerws demo
      towerws tail

    \b
    With your RabbitMQ:
      export TOWERWS_BROKER=amqp://USER:PASSWORD@HOST/VHOST
      twistd -n towerws --auth open
      towerws publish jobs.summary '{"unified_job_id": 42, "final_counter": 7}'

    `towerws COMMAND --help` has examples, and the exit codes for scripts.
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a shell started the command with `2>&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
