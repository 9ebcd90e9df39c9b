"""Bounded writes to one client.

On plain TCP with an empty buffer, `send` calls `socket.send` directly. It writes the rest to the transport. This saves two copies
and a pair of `epoll_ctl` calls per write. Other transports (TLS, in-memory) get all data by `transport.write`. Neither form
raises: the reactor discovers a broken socket.
"""

from __future__ import annotations

import fcntl
import termios
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer


class SendBuffer(Protocol):
    """What the hub writes to."""

    def send(self, data: bytes) -> bool:
        """Write complete frames. Return False, and write nothing, if more bytes than the bound would then be buffered.

        An empty buffer takes data of any size. A closed one drops the data and returns True.
        """

    def await_drain(self, call: Callable[[], None]) -> None:
        """Call this once the buffer is empty, never from within this method. A second call replaces the first."""

    def close(self) -> None:
        """Write nothing more, and make no more calls."""


def open_send_buffer(transport: Any, bound: int, soon: Callable[[Callable[[], None]], object]) -> SendBuffer:
    """Make the send buffer for this transport. `bound` is in bytes. `soon` calls a function in the next iteration of the reactor."""
    if is_plain_tcp(transport):
        return SocketSendBuffer(transport, bound, soon)
    return TransportSendBuffer(transport, bound, soon)


def is_plain_tcp(transport: Any) -> bool:
    """Return whether the transport writes bytes to its socket unchanged. True for a UNIX socket, too."""
    return isinstance(transport, tcp.Connection) and not getattr(transport, "TLS", False)


def has_arrived(transport: Any) -> bool:
    """Return whether the other end's kernel has taken all that was written. False where that can't be asked."""
    if not is_plain_tcp(transport) or transport.dataBuffer or transport._tempDataLen:  # noqa: SLF001 - as in `SocketSendBuffer.waiting`
        return False
    try:
        in_kernel = fcntl.ioctl(transport.socket.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return False
    return not any(in_kernel)


class _Buffer:
    """What the two send buffers share. Each is the producer of its transport."""

    __slots__ = ("_bound", "_call", "_closed", "_soon", "_transport")

    def __init__(self, transport: Any, bound: int, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport = transport
        self._bound = bound
        self._soon = soon
        self._call: Callable[[], None] | None = None
        """Called when the buffer is empty. A closed buffer has none."""
        self._closed = False

    def close(self) -> None:
        """See `SendBuffer`."""
        self._closed = True
        self._call = None

    def stopProducing(self) -> None:
        """IProducer: the connection is lost."""
        self.close()

    def _drained(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


@implementer(IPullProducer)
class SocketSendBuffer(_Buffer):
    """Writes to Twisted's plain TCP connection, whose buffer it can measure."""

    __slots__ = ()

    @property
    def waiting(self) -> int:
        """Bytes in the transport's two buffers (`abstract.FileDescriptor`)."""
        transport = self._transport
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen  # type: ignore[no-any-return]  # noqa: SLF001

    def send(self, data: bytes) -> bool:
        """See `SendBuffer`."""
        if self._closed:
            return True
        transport = self._transport
        if transport.dataBuffer or transport._tempDataLen:  # noqa: SLF001 - `waiting`, inlined
            if self.waiting + len(data) > self._bound:
                return False
            transport.write(data)
            return True
        try:
            sent = transport.socket.send(data)
        except OSError:  # the socket is full or broken; the transport finds out which
            sent = 0
        if sent < len(data):
            transport.write(data[sent:] if sent else data)
        return True

    def await_drain(self, call: Callable[[], None]) -> None:
        """See `SendBuffer`. The transport calls a pull producer exactly when its buffer is empty."""
        if self._closed:
            return
        is_waiting = self._call is not None
        self._call = call
        if is_waiting:
            return
        if self.waiting:
            self._transport.registerProducer(self, False)
        else:
            self._soon(self._drained)

    def resumeProducing(self) -> None:
        """IPullProducer: the buffer is empty, except in the call that `registerProducer` itself makes."""
        if not self.waiting:
            self._transport.unregisterProducer()
            self._drained()


@implementer(IPushProducer)
class TransportSendBuffer(_Buffer):
    """Writes to any transport. It counts the bytes that it wrote since the transport paused it."""

    __slots__ = ("_paused", "_since_pause")

    def __init__(self, transport: Any, bound: int, soon: Callable[[Callable[[], None]], object]) -> None:
        super().__init__(transport, bound, soon)
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
        is_waiting = self._call is not None
        self._call = call
        if not is_waiting and not self._paused:
            self._soon(self._drained)

    def pauseProducing(self) -> None:
        """IPushProducer: the transport's buffer holds more than 64 KiB. Twisted repeats the call at each write."""
        if not self._paused:
            self._paused = True
            self._since_pause = 0

    def resumeProducing(self) -> None:
        """IPushProducer: the transport's buffer is empty."""
        self._paused = False
        self._drained()

    def _drained(self) -> None:
        if not self._paused:
            super()._drained()
