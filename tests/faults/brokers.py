"""Which RabbitMQ a run uses: the machine's own (Debian 12 has 3.10), or a 4 that is asked for (`script/rabbitmq4` makes it)."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from private_cluster import PrivateCluster, missing_for_cluster
from private_rabbitmq import PrivateRabbit, rabbitmq_bin, rabbitmq_version

VERSIONS: Final = (3, 4)
MAKE_4: Final = Path(__file__).parents[2] / "script" / "rabbitmq4"
MAKE_S: Final = 900.0

_providing = threading.Lock()
_refused: dict[int, str] = {}
"""Why a version can't be had here. It is asked once in a run."""


class MissingError(Exception):
    """Something that a scenario needs is not on this machine. The text names it, and how to get it."""


def single_node(version: int, folder: Path, *, config: str = "", plugins: Sequence[str] = ()) -> PrivateRabbit:
    """A node of this major version that is not started yet. `MissingError` when there is none."""
    _provide(version)
    return PrivateRabbit(folder, config=config, plugins=plugins)


def cluster(version: int, folder: Path, *, partition_handling: str) -> PrivateCluster:
    """A cluster of three nodes of this major version that is not started yet. `MissingError` when there can be none."""
    _provide(version)
    if missing := missing_for_cluster():
        raise MissingError(missing)
    return PrivateCluster(folder, partition_handling=partition_handling)


def _provide(version: int) -> None:
    """Make this version the one that private nodes run."""
    with _providing:
        _provide_once(version)


def _provide_once(version: int) -> None:
    if version in _refused:
        raise MissingError(_refused[version])
    if version == 4 and (rabbitmq_bin() is None or installed_version() != 4):
        made = subprocess.run([MAKE_4], capture_output=True, text=True, timeout=MAKE_S, check=False, stdin=subprocess.DEVNULL)
        if made.returncode:
            _refuse(version, made.stderr.strip())
        os.environ["PRIVATE_RABBITMQ_BIN"] = made.stdout.strip()
    if rabbitmq_bin() is None:
        _refuse(version, "RabbitMQ is not installed: apt-get install rabbitmq-server (the service need not run)")
    if version != installed_version():
        _refuse(version, f"RabbitMQ {version} is not on this machine, whose own is {rabbitmq_version()}")


def _refuse(version: int, why: str) -> None:
    _refused[version] = why
    raise MissingError(why)


def installed_version() -> int:
    """The major version that private nodes run now."""
    return int(rabbitmq_version().partition(".")[0])
