"""A listening socket keeps its settings in the process that inherits it."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor

from tests.test_clock import close
from towerws.handover.ports import InheritedPort, SystemdReactor


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
        port: Any = inherited.open(reactor, Refusing(), lambda inner: inner)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (port.mode, port.backlog) == (0o600, 7)
        port.stopListening()
        reactor.iterate()


def test_a_unix_socket_of_systemd(reactor: Any, tmp_path: Path) -> None:
    """systemd owns the file and the queue: the mode and the backlog stay as they are, and after a stop systemd still listens.

    It is so at an ordinary start, and in a process that inherits the socket.
    """
    for start in (lambda found: adopted(reactor, found), lambda found: inherited_from(reactor, found)):
        path = tmp_path / start.__code__.co_names[0]
        with socket.socket(socket.AF_UNIX) as found, ExitStack() as clients:
            found.bind(str(path))
            found.listen(2)
            found.setblocking(False)
            path.chmod(0o600)
            port = start(found)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for _ in range(3):  # Linux takes one more than the backlog
                dial(path, clients)
            with pytest.raises(BlockingIOError):
                dial(path, clients)
            reactor.iterate()
            port.stopListening()
            reactor.iterate()
            dial(path, clients)


class Refusing(Factory):
    """Twisted closes each connection that this factory makes no protocol for."""

    def buildProtocol(self, addr: Any) -> None:
        """Return None."""
        return


def adopted(reactor: Any, found: socket.socket) -> Any:
    """The port of a process that systemd started with this socket."""
    return SystemdReactor(reactor).adoptStreamPort(found.fileno(), found.family, Refusing())


def inherited_from(reactor: Any, found: socket.socket) -> Any:
    """The port of its successor."""
    return InheritedPort(found.fileno(), found.family, "systemd:domain=UNIX:name=web").open(reactor, Refusing(), lambda inner: inner)


def dial(path: Path, clients: ExitStack) -> None:
    """Connect to the socket at once, or raise."""
    client = clients.enter_context(socket.socket(socket.AF_UNIX))
    client.setblocking(False)
    client.connect(str(path))
