"""The private socket pair between a process and its successor: messages in JSON, and descriptors (SCM_RIGHTS).

from         | message      | content                                                         | answer
successor    | `starting`   | why it is not ready yet                                         | -
successor    | `failed`     | why it can't start                                              | -
successor    | `ready`      | the version of the format, its process id                       | `begin`
predecessor  | `history`    | a piece of the history of `embedded:`                           | `kept`
predecessor  | `begin`      | its position in the log, the time, its counters and connections | `begun`, or `failed`
predecessor  | `batch`      | states of connections, and their descriptors                    | `adopted`: which failed, which are missing
predecessor  | `done`       | its duration, connections moved and closed                      | `serving`

Until `begin` the successor accepts no client. Between `begin` and `done` both processes serve connections, each its own.
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

READS: Final = 128
"""Reads in one turn of the reactor: more than a message has descriptors."""

Received = Callable[[dict[str, Any], list[int | None]], None]


@implementer(IFileDescriptorReceiver)
class Channel(Int32StringReceiver):
    """One end. `received` gets each message with its descriptors, which it must close. `lost` is called at the end, once.

    Descriptors travel one by one, each with a byte of the stream. So they are there before the message that names them. A process at its
    limit of open files doesn't get them all: the kernel drops the others silently (unix(7)). So a message names each descriptor by its
    inode, which both processes see alike. `received` gets None for one that was dropped.
    """

    MAX_LENGTH = MAX_MESSAGE_BYTES
    transport: Any

    def __init__(self, received: Received, lost: Callable[[], None]) -> None:
        self._received = received
        self._lost: Callable[[], None] | None = lost
        self._descriptors: list[int] = []
        self._has_read = self._ended = False

    def tell(self, kind: str, descriptors: Sequence[int] = (), states: Sequence[str] | None = None, **content: object) -> None:
        """Send a message. The descriptors must stay open until it is answered. `states`: see `encode_message`."""
        self.sendString(encode_message(kind, states, descriptors=[_inode(each) for each in descriptors], **content))
        for descriptor in descriptors:
            self.transport.sendFileDescriptor(descriptor)

    def close(self) -> None:
        """Close the channel, and make no more calls."""
        self._lost = None
        self._abort()

    def _abort(self) -> None:
        self._ended = True
        if self.transport is not None:
            self.transport.abortConnection()

    # Twisted calls these

    def connectionMade(self) -> None:
        """Read several times in one turn of the reactor. Each read ends at a descriptor, and a turn of a busy daemon takes milliseconds."""
        self.transport.doRead = partial(self._read_all, self.transport.doRead)

    def _read_all(self, read: Callable[[], Any]) -> Any:
        for _ in range(READS):
            self._has_read = False
            lost = read()
            if lost is not None or not self._has_read or self._ended:
                return lost
        return None

    def dataReceived(self, data: bytes) -> None:
        """Note that there was something to read."""
        self._has_read = True
        super().dataReceived(data)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """Keep a descriptor for the message that names it."""
        self._descriptors.append(descriptor)

    def stringReceived(self, string: bytes) -> None:
        """Pass a message on. Anything else ends the channel."""
        try:
            message = decode_message(string)
            inodes = message["descriptors"]
            if not isinstance(inodes, list):
                raise ValueError("the descriptors are no list")
        except (ValueError, KeyError):
            self._abort()
            return
        here = {_inode(each): each for each in self._descriptors}
        descriptors = [here.pop(inode, None) for inode in inodes]
        self._descriptors = list(here.values())  # the next message's first one may be here already
        self._received(message, descriptors)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the end once, and close descriptors of a message that did not come whole."""
        self._ended = True
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


class _OneChannel:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: IAddress) -> Channel:
        """Return the channel."""
        return self._channel


def open_channel(reactor: Any, descriptor: int, received: Received, lost: Callable[[], None]) -> Channel:
    """Make the channel on this end of a socket pair. The descriptor is closed: the channel has its own."""
    channel = Channel(received, lost)
    os.set_blocking(descriptor, False)
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _OneChannel(channel))
    os.close(descriptor)
    return channel
