"""Which RabbitMQ a run uses: the machine's own (Debian 12 has 3.10), or a 4 that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from private_rabbitmq import PrivateRabbit, rabbitmq_bin

VERSIONS: Final = (3, 4)


class MissingError(Exception):
    """Something that a scenario needs is not on this machine. The text names it, and how to get it."""


def single_node(version: int, folder: Path, *, config: str = "") -> PrivateRabbit:
    """A node of this major version that is not started yet. `MissingError` when there is none."""
    if rabbitmq_bin() is None:
        raise MissingError("RabbitMQ is not installed: apt-get install rabbitmq-server (the service need not run)")
    if version != installed_version():
        raise MissingError(f"RabbitMQ {version} is not on this machine, whose own is {installed_version()}")
    return PrivateRabbit(folder, config=config)


def installed_version() -> int:
    """The major version of the installed RabbitMQ, from the folder of its server application."""
    folder = rabbitmq_bin()
    found = (
        [] if folder is None else sorted((folder.parent / "lib").glob("rabbitmq_server-*")) + sorted(folder.parent.glob("plugins/rabbit-*"))
    )
    for path in found:
        version = path.name.rpartition("-")[2].partition(".")[0]
        if version.isdigit():
            return int(version)
    return 3
