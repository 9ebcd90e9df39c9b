"""A listening socket keeps its settings in the process that inherits it."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor

from tests.test_clock import close
from towerws.handover.ports import InheritedPort


@pytest.fixture
def reactor() -> Iterator[Any]:
    """A reactor that does not run."""
    made = SelectReactor()
    yield made
    close(made)


def test_a_unix_socket_keeps_its_mode_and_its_backlog(reactor: Any, tmp_path: Path) -> None:
    """The file keeps the mode that the endpoint names. Twisted would open it to everybody."""
    path = tmp_path / "towerws.sock"
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
        found.listen()
        found.setblocking(False)
        path.chmod(0o600)
        inherited = InheritedPort(found.fileno(), found.family, f"unix:{path}:mode=600:backlog=7:lockfile=0")
        port: Any = inherited.open(reactor, Factory(), lambda inner: inner)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (port.mode, port.backlog) == (0o600, 7)
        port.stopListening()
        reactor.iterate()
