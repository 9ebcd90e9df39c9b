"""The private socket pair between a process and its successor: messages in JSON, and descriptors (SCM_RIGHTS).

sender       | message      | content                                                         | answer
successor    | `starting`   | why it is not ready yet                                         | -
successor    | `failed`     | why it can't start                                              | -
successor    | `ready`      | the version of the format, its process id                       | `begin`
predecessor  | `history`    | a piece of the history of `embedded:`                           | `kept`
predecessor  | `begin`      | its position in the log, the time, its counters and connections | `begun`, or `failed`
predecessor  | `batch`      | states of connections, and their descriptors                    | `adopted`: which failed, which are missing
predecessor  | `done`       | its duration, connections moved and closed                      | `serving`

Until `begin` the successor accepts no client. Between `begin` and `done` each process serves the connections that it owns.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IFileDescriptorReceiver
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from towerws.core.handover_state import MAX_MESSAGE_BYTES, decode_message, encode_message

MAX_READS: Final = 128
"""Most reads in one turn of the reactor. A message has fewer descriptors than this."""

Received = Callable[[dict[str, Any], list[int | None]], None]


@implementer(IFileDescriptorReceiver)
class Channel(Int32StringReceiver):
    """One end of the socket pair. `received` gets each message with its descriptors, and must close them.

    `lost` is called once, when the other end closes the channel or sends nonsense.

    The kernel delivers each descriptor with one byte of the stream. So the descriptors arrive before the message that names them is whole.
    A process at its limit of open files gets only some of them: the kernel drops the others silently (unix(7)). So a message names each
    descriptor by its inode, which is the same in both processes. `received` gets None for a descriptor that was dropped.
    """

    MAX_LENGTH = MAX_MESSAGE_BYTES
    transport: Any

    def __init__(self, received: Received, lost: Callable[[], None]) -> None:
        self._received = received
        self._lost: Callable[[], None] | None = lost
        self._descriptors: list[int] = []
        self._has_read = self._ended = False

    def tell(self, kind: str, descriptors: Sequence[int] = (), states: Sequence[str] | None = None, **content: object) -> None:
        """Send a message. The descriptors must stay open until the message is answered. `states`: see `encode_message`."""
        self.sendString(encode_message(kind, states, descriptors=[_inode(each) for each in descriptors], **content))
        for descriptor in descriptors:
            self.transport.sendFileDescriptor(descriptor)

    def close(self) -> None:
        """Close the channel. It calls neither `received` nor `lost` after this."""
        self._lost = None
        self._abort()

    def _abort(self) -> None:
        self._ended = True
        if self.transport is not None:
            self.transport.abortConnection()

    # Twisted calls these

    def connectionMade(self) -> None:
        """Make each turn of the reactor read several times.

        A read ends at a descriptor. With one read per turn, 50 descriptors would take 50 turns, each of milliseconds in a busy daemon.
        """
        self.transport.doRead = partial(self._read_all, self.transport.doRead)

    def _read_all(self, read: Callable[[], Any]) -> Any:
        for _ in range(MAX_READS):
            self._has_read = False
            lost = read()
            if lost is not None or not self._has_read or self._ended:
                return lost
        return None

    def dataReceived(self, data: bytes) -> None:
        """Parse a piece of the stream, and note that the read returned data."""
        self._has_read = True
        super().dataReceived(data)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """Keep a descriptor for the message that names it."""
        self._descriptors.append(descriptor)

    def stringReceived(self, string: bytes) -> None:
        """Pass a message to `received`. Bytes that are no message end the channel."""
        try:
            message = decode_message(string)
            inodes = message["descriptors"]
            if not isinstance(inodes, list):
                raise ValueError("the descriptors are no list")
        except (ValueError, KeyError):
            self._abort()
            return
        arrived = {_inode(each): each for each in self._descriptors}
        descriptors = [arrived.pop(inode, None) for inode in inodes]
        self._descriptors = list(arrived.values())  # the first descriptor of the next message may have arrived already
        self._received(message, descriptors)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Call `lost` once, and close the descriptors of an incomplete message."""
        self._ended = True
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


class _ChannelFactory:
    """Gives the channel to `adoptStreamConnection`, which asks a factory for its protocol."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: IAddress) -> Channel:
        """Return the channel."""
        return self._channel


def open_channel(reactor: Any, descriptor: int, received: Received, lost: Callable[[], None]) -> Channel:
    """Return a channel on this end of a socket pair. Closes the descriptor: the reactor has a duplicate of it."""
    channel = Channel(received, lost)
    os.set_blocking(descriptor, False)
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _ChannelFactory(channel))
    os.close(descriptor)
    return channel
