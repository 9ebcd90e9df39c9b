"""The `towerws` command. The daemon itself is `twistd towerws`."""

from __future__ import annotations

import click

from towerws import __version__
from towerws.commands.admin_port import explain_command, restart_command
from towerws.commands.config import check_command, config_command
from towerws.commands.demo import demo_command
from towerws.commands.doctor import doctor_command
from towerws.commands.publish import publish_command
from towerws.commands.tail import tail_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


for command in (
    check_command,
    config_command,
    demo_command,
    doctor_command,
    explain_command,
    publish_command,
    restart_command,
    tail_command,
):
    main.add_command(command)
