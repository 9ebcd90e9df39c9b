"""The outlet: how a connection's bytes leave, bounded, and past what makes it slow where that is safe.

On a plain TCP transport with nothing waiting, `socket.send` is called directly; what it does not take goes to the transport.
That saves the transport's way through two buffers and an `epoll_ctl` pair per write. Everything else (TLS, a test's
transport) is written through the transport. Both never raise: a socket that fails is the reactor's to discover.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer


class SendBuffer(Protocol):
    """The way out of one connection."""

    def send(self, data: bytes) -> bool:
        """Take whole frames; False, and nothing taken, when more bytes would then be waiting than the bound allows.

        An outlet with nothing waiting takes anything. A closed one takes everything, and drops it.
        """

    def await_drain(self, call: Callable[[], None]) -> None:
        """Call this once nothing is waiting any more, never from within this call. A second wait replaces the first."""

    def close(self) -> None:
        """Send nothing any more, and call nobody."""


def open_send_buffer(transport: Any, bound: int, soon: Callable[[Callable[[], None]], object]) -> SendBuffer:
    """The fitting outlet. `bound` is in bytes; `soon` runs a callable in another turn of the reactor."""
    if is_plain_tcp(transport):
        return SocketSendBuffer(transport, bound, soon)
    return TransportSendBuffer(transport, bound, soon)


def is_plain_tcp(transport: Any) -> bool:
    """Whether bytes go to the socket as they are. A UNIX socket counts as well."""
    return isinstance(transport, tcp.Connection) and not getattr(transport, "TLS", False)


@implementer(IPullProducer)
class SocketSendBuffer:
    """An outlet on a plain TCP connection of Twisted's, whose buffer can be looked at."""

    __slots__ = ("_bound", "_call", "_closed", "_soon", "_transport")

    def __init__(self, transport: tcp.Connection, bound: int, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport: Any = transport
        self._bound = bound
        self._soon = soon
        self._call: Callable[[], None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Bytes in the transport's buffers (`abstract.FileDescriptor` keeps them in two)."""
        transport = self._transport
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen  # type: ignore[no-any-return]  # noqa: SLF001

    def send(self, data: bytes) -> bool:
        """See `SendBuffer`."""
        if self._closed:
            return True
        transport = self._transport
        if transport.dataBuffer or transport._tempDataLen:  # noqa: SLF001 - as in `waiting`, without the call
            if self.waiting + len(data) > self._bound:
                return False
            transport.write(data)
            return True
        try:
            sent = transport.socket.send(data)
        except OSError:  # full, or broken; the transport finds out which
            sent = 0
        if sent < len(data):
            transport.write(data[sent:] if sent else data)
        return True

    def await_drain(self, call: Callable[[], None]) -> None:
        """See `SendBuffer`. A pull producer is asked for more exactly when the transport's buffer has run empty."""
        if self._closed:
            return
        waits = self._call is not None
        self._call = call
        if waits:
            return
        if self.waiting:
            self._transport.registerProducer(self, False)
        else:
            self._soon(self._drained)

    def resumeProducing(self) -> None:
        """IPullProducer: the buffer is empty; except for the call from `registerProducer` itself, when it is not."""
        if not self.waiting:
            self._transport.unregisterProducer()
            self._drained()

    def stopProducing(self) -> None:
        """IPullProducer: the connection is lost."""
        self.close()

    def _drained(self) -> None:
        call, self._call = self._call, None
        if call is not None and not self._closed:
            call()

    def close(self) -> None:
        """See `SendBuffer`."""
        self._closed = True
        self._call = None


@implementer(IPushProducer)
class TransportSendBuffer:
    """An outlet on any transport: it counts what it wrote since the transport said that it has enough."""

    __slots__ = ("_bound", "_call", "_closed", "_paused", "_since_pause", "_soon", "_transport")

    def __init__(self, transport: Any, bound: int, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport = transport
        self._bound = bound
        self._soon = soon
        self._call: Callable[[], None] | None = None
        self._closed = False
        self._paused = False
        self._since_pause = 0
        transport.registerProducer(self, True)

    def send(self, data: bytes) -> bool:
        """See `SendBuffer`."""
        if self._closed:
            return True
        if self._paused:
            if self._since_pause + len(data) > self._bound:
                return False
            self._since_pause += len(data)
        self._transport.write(data)
        return True

    def await_drain(self, call: Callable[[], None]) -> None:
        """See `SendBuffer`."""
        if self._closed:
            return
        waits = self._call is not None
        self._call = call
        if not waits and not self._paused:
            self._soon(self._drained)

    def pauseProducing(self) -> None:
        """IPushProducer: the transport has more than 64 KiB waiting. Twisted says so again with every write."""
        if not self._paused:
            self._paused = True
            self._since_pause = 0

    def resumeProducing(self) -> None:
        """IPushProducer: the transport has nothing waiting any more."""
        self._paused = False
        self._drained()

    def stopProducing(self) -> None:
        """IPushProducer: the connection is lost."""
        self.close()

    def _drained(self) -> None:
        if self._paused or self._closed:
            return
        call, self._call = self._call, None
        if call is not None:
            call()

    def close(self) -> None:
        """See `SendBuffer`."""
        self._closed = True
        self._call = None
