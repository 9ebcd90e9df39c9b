"""Listening sockets that a process inherits from its predecessor, and the variable that names them."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from towerws.core.handover_state import VERSION, encode_message

VARIABLE: Final = "_TOWERWS_HANDOVER"
"""In the environment of a successor: the descriptors that it inherits, and the version of the format."""


@dataclass(frozen=True, slots=True)
class InheritedPort:
    """A listening socket of the predecessor. `description` is its endpoint in the predecessor's settings."""

    descriptor: int
    family: int
    description: str

    def open(self, reactor: Any, factory: Any, wrap: Callable[[Any], Any]) -> IListeningPort:
        """Listen on the socket for clients of `factory`, in the way that its endpoint says.

        `wrap` gets the reactor that this endpoint would use, and returns the one that it uses, such as `TlsReactor`.
        """
        return _listen(wrap(_AdoptingReactor(reactor, self.descriptor, self.family)), self.description, factory)

    def close(self) -> None:
        """Close the descriptor. A port from `open` has a duplicate."""
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a successor finds in its environment. `version` is the predecessor's version of the hand-over format."""

    version: int
    channel: int
    """The descriptor of the successor's end of the socket pair."""
    ports: Mapping[str, InheritedPort]
    """The inherited ports, by the key of the setting that names the address."""

    def to_text(self) -> str:
        """Return the value of `VARIABLE`."""
        ports = {key: [port.descriptor, port.family, port.description] for key, port in self.ports.items()}
        return json.dumps({"version": self.version, "channel": self.channel, "ports": ports})


def take_inheritance(environ: MutableMapping[str, str]) -> Inheritance | None:
    """Return what `VARIABLE` says, and remove it from the environment. None: there is no predecessor."""
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    found = json.loads(text)
    ports = {key: InheritedPort(*port) for key, port in found.get("ports", {}).items()}
    return Inheritance(found.get("version", 0), found["channel"], ports)


def tell_predecessor(environ: Mapping[str, str], reason: str) -> None:
    """Tell the predecessor, if there is one, why this process can't start. Blocks for a second at most, and never fails."""
    text = environ.get(VARIABLE, "")
    if not text:
        return
    with suppress(OSError, ValueError, KeyError):
        report(json.loads(text)["channel"], reason)


def report(channel: int, reason: str) -> None:
    """Write the message `failed` to the channel, before the reactor runs. Blocks for a second at most. Raises `OSError`."""
    body = encode_message("failed", descriptors=[], reason=reason, version=VERSION)
    with socket.socket(fileno=os.dup(channel)) as end:
        end.settimeout(1)
        end.sendall(struct.pack("!I", len(body)) + body)


class _SystemdPort(unix.Port):
    """A UNIX socket that systemd opened. The socket unit sets the mode of its file and its backlog. systemd listens on after a stop.

    Twisted's own port makes the file writable for everybody, and fails if the file belongs to another user. At its end it removes the file
    and shuts the socket down.
    """

    _shouldShutdown = False

    def __init__(self, reactor: Any, descriptor: int, factory: Any) -> None:
        self.socket = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(self.socket.getsockname(), factory, reactor=reactor)

    def startListening(self) -> None:
        """Begin to accept clients."""
        tcp._reservedFD.reserve()  # noqa: SLF001 - as Twisted's own ports do
        factory: Any = self.factory
        factory.doStart()
        self.fileno = self.socket.fileno  # type: ignore[method-assign]  # as Twisted's own do
        self.connected, self.numberAccepts = True, 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close this process's descriptor."""
        tcp.Port.connectionLost(self, reason)


class SystemdReactor:
    """Opens sockets that systemd passed. Every other call goes to the reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """See `IReactorSocket`."""
        if addressFamily != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(fileDescriptor, addressFamily, factory)
        port = _SystemdPort(self._reactor, fileDescriptor, factory)
        port.startListening()
        return port


class _AdoptingReactor(SystemdReactor):
    """Gives an endpoint an inherited socket instead of a new one."""

    def __init__(self, reactor: Any, descriptor: int, family: int) -> None:
        super().__init__(reactor)
        self._socket = descriptor, family

    def _adopt(self, factory: Any) -> Any:
        return self.adoptStreamPort(*self._socket, factory)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorTCP`."""
        return self._adopt(factory)

    def listenUNIX(self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False) -> Any:
        """See `IReactorUNIX`. Keeps the mode of the endpoint: `adoptStreamPort` would make the file writable for everybody."""
        adopted: Any = unix.Port
        listening = adopted._fromListeningDescriptor(self._reactor, self._socket[0], factory)  # noqa: SLF001 - no public way has a mode
        listening.mode, listening.backlog = mode, backlog
        listening.startListening()
        return listening

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorSSL`. Twisted's method wraps the factory in the same way."""
        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))


def _listen(reactor: Any, description: str, factory: Any) -> IListeningPort:
    prefix, found, _ = description.partition("systemd:")
    if found and prefix in ("", "haproxy:"):
        # Only the first process gets systemd's socket from systemd. `_AdoptingReactor` replaces the socket, so only the prefix matters.
        description = f"{prefix}tcp:0"
    ports: list[IListeningPort] = []  # the Deferred of an adopted socket has fired already
    serverFromString(reactor, description).listen(factory).addCallback(ports.append)
    return ports[0]
