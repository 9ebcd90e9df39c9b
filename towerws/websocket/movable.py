"""A connection that moves to another process: taken apart here, put together there. Its client notices nothing.

Each connection belongs to one process at a time. `freeze` stops reading and writing, and returns the state. `release` gives up the socket
without closing it for the client. In the other process, `adopt` continues on that socket.

This module turns what Autobahn has read of an unfinished message into frames again, and the other process reads these. So neither
Autobahn's parser state nor zlib's has to be moved. Compressed messages are independent of each other in both directions (core/deflate.py).
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone

from towerws.auth.transfer import pack_identity
from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.handover_state import MAX_UNSENT_BYTES, ConnectionState, UnfinishedFrame, rebuild_input
from towerws.core.identity import Identity
from towerws.core.limits import TokenBucket
from towerws.core.wire import DIALECTS
from towerws.websocket.autobahn_parts import Inflater
from towerws.websocket.handshake import OpeningConnection
from towerws.websocket.plain_http import Heartbeat
from towerws.websocket.send_buffer import SendBuffer, is_plain_tcp, open_send_buffer
from towerws.websocket.session import Session

if TYPE_CHECKING:
    from towerws.protocol import WebSocketFactory

HANDED_OVER = "handed_over"
"""The reason in `closed_for` of a connection that goes on in another process."""

AT_HANDSHAKE = "at its handshake"
"""What `why_not_movable` returns for a connection that is not open yet."""


class Adoption(NamedTuple):
    """A connection of another process, with its places in the log of this one."""

    state: ConnectionState
    identity: Identity
    since: Delivery
    topics: Mapping[str, int]


class MovableConnection(OpeningConnection):
    """The part of `WebSocketConnection` that hands it over to another process, and takes it over there."""

    adoption: Adoption | None = None
    """Set on a connection that another process hands over, before it gets its transport."""

    # Autobahn's attributes for the unfinished message and frame
    message_data: list[bytes]
    message_is_binary: bool
    frame_data: list[bytes]
    control_frame_data: list[bytes]
    current_frame_masker: Any

    _session: Session | None
    _heartbeat: Heartbeat | None
    _send_buffer: SendBuffer | None
    _controls: TokenBucket | None
    _continuations: TokenBucket | None
    _fragments: int
    _opened_at: float
    _reason: str
    _ended_by = "lost"

    # in the process that gives it up

    @property
    def is_waiting(self) -> bool:
        """Whether a message of its client is being handled and is not answered yet. The answer may come soon."""
        return self._session is not None and self._session.is_waiting

    def why_not_movable(self) -> str | None:
        """Return in a few words why this connection can't be handed over. None if it can."""
        transport = self.transport
        if self.state == self.STATE_CONNECTING:
            return AT_HANDSHAKE
        if self._session is None:
            return "without a credential yet" if self.state == self.STATE_OPEN else "closing"
        if self.state != self.STATE_OPEN or transport.disconnecting or not transport.connected:
            return "closing"
        if self._heartbeat is not None:
            return "an event stream: its reader resumes by itself"
        if not is_plain_tcp(transport):
            return "TLS or the PROXY protocol ends in the daemon"
        subscriber = self._session.subscriber
        if subscriber.holes:
            return "it still has to get a gap notice"
        if subscriber.behind and not subscriber.cursor.position:
            return "its place in the log has no position"
        if len(transport.dataBuffer) - transport.offset + transport._tempDataLen > MAX_UNSENT_BYTES:  # noqa: SLF001 - as in `SocketSendBuffer`
            return "too many unsent bytes"
        return None

    def freeze(self) -> ConnectionState:
        """Stop reading and writing, and return the state. `release` or `thaw` must follow at once.

        `why_not_movable` must have returned None.
        """
        session, transport, context = self._session, self.transport, self.factory.context
        assert session is not None
        position, later = context.hub.flush_to_place(session.subscriber)
        transport.stopReading()
        transport.stopWriting()
        left_s = None
        if (self.inside_message or self.data) and self._timer is not None:
            left_s = max(0.0, self._timer.getTime() - context.reactor.seconds())
        return ConnectionState(
            identity=pack_identity(session.identity),
            address=self.address,
            subprotocol=self.websocket_protocol_in_use,
            compressed=self._perMessageCompress is not None,
            position=position,
            topics=tuple(session.subscriber.topics),
            joined_later=later,
            unsent=_unsent(transport),
            unread=self.unread_input(),
            fragments=self._fragments if self.inside_message else 0,
            assembly_left_s=left_s,
            opened_at=self._opened_at,
            controls=None if self._controls is None else self._controls.level,
            continuations=None if self._continuations is None else self._continuations.level,
            **session.state(),
        )

    def thaw(self, state: ConnectionState) -> None:
        """Undo `freeze`, which returned this state: the connection goes on here."""
        session, transport = self._session, self.transport
        assert session is not None
        # The message that is being handled goes on here, too. It is the first one of the state's inbox.
        session.restore(replace(state, inbox=state.inbox[int(session.is_waiting) :]))
        transport.startReading()
        if state.unsent:
            transport.startWriting()

    def release(self) -> int:
        """Give up the connection without closing it for the client. Return a descriptor of its socket, which the caller must close."""
        transport: Any = self.transport
        descriptor = os.dup(transport.fileno())
        self._ended_by = self._reason = HANDED_OVER
        self.wasClean = True  # otherwise Autobahn records an unclean close by the peer
        transport._shouldShutdown = False  # noqa: SLF001 - Twisted would end the TCP connection for the other process, too
        transport.connectionLost(connectionDone)
        return descriptor

    def unread_input(self) -> bytes:
        """Return frames with the received part of the unfinished message, followed by the bytes that were not parsed yet."""
        current = self.current_frame
        inflater = self._perMessageCompress if self.inside_message and self._isMessageCompressed else None
        if not self.inside_message and current is None:
            return bytes(self.data)
        whole: bytes | None = None
        part = b""
        if self.inside_message:
            whole = b"".join(self.message_data if inflater is None else inflater.wire)
            if current is not None and current.opcode <= 7:
                received = self.current_frame_masker.pointer()  # bytes of this frame
                if inflater is not None:
                    whole, part = whole[: len(whole) - received], whole[len(whole) - received :]
                else:
                    part = b"".join(self.frame_data)
                if current.opcode:
                    whole = None  # it is the first frame of its message
        if current is None:
            frame = None
        else:
            frame = UnfinishedFrame(
                opcode=current.opcode,
                final=current.fin,
                rsv=current.rsv,
                length=current.length,
                mask=current.mask or bytes(4),
                data=part if current.opcode <= 7 else b"".join(self.control_frame_data),
            )
        opcode = 2 if self.inside_message and self.message_is_binary else 1
        return rebuild_input(opcode, whole, frame, bytes(self.data), compressed=inflater is not None)

    # in the process that takes it over

    def continue_from(self, adoption: Adoption) -> None:
        """Open the connection in the state in which the other process stopped. Twisted has just attached the transport."""
        state, identity = adoption.state, adoption.identity
        self.adoption = None
        factory, context, settings = self.factory, self.factory.context, self.factory.settings
        self.begin()
        self._head = None
        self.address, self.identity = state.address, identity
        # The other process has admitted it: no limit refuses it now, but the limits count it.
        factory.connection_limits.locate(self._slot, state.address)
        factory.connection_limits.admit(self._slot, identity.account)
        self.websocket_protocol_in_use = state.subprotocol
        self.enter_open_state()
        if self.autoPingInterval:
            # At a random time, so that the pings of all adopted connections spread.
            delay_s = random.uniform(0, self.autoPingInterval)  # noqa: S311 - spreads load, protects nothing
            self.autoPingPendingCall = factory.timers.call_later(delay_s, self._sendAutoPing)
        if state.compressed:
            self._perMessageCompress = Inflater(settings.message_bytes)
        self._send_buffer = open_send_buffer(self.transport, settings.backlog_bytes, factory.soon)
        if state.unsent:
            self.transport.write(state.unsent)
        self._opened_at = state.opened_at
        dialects = context.deflated if state.compressed else DIALECTS
        self._session = session = Session(context, self, identity, dialects[state.subprotocol], None)
        factory.opened += 1
        session.restore(state)
        if state.controls is not None:
            self._controls = TokenBucket.from_level(settings.controls_per_s, settings.controls_burst, state.controls)
        context.hub.adopt(session.subscriber, adoption.since, adoption.topics)
        session.apply_groups()  # the groups of this process may allow less; it must happen before the first event is sent
        if self.state == self.STATE_OPEN:
            session.go_on()
        if state.unread and self.state == self.STATE_OPEN:
            self._read_again(state)

    def lost_place(self, position: str) -> None:
        """Tell the client that deliveries since this position are lost, or close it with 1013 if its dialect has no notice."""
        if self._session is None:
            return
        context, subscriber = self.factory.context, self._session.subscriber
        end = context.hub.flushed
        offset, _, epoch = position.partition("-")
        start = Delivery(end.seq, "", b"", int(offset or -1), epoch)
        if self._session.dialect.subprotocol is None:
            self.end(CloseReason.HISTORY)
        else:
            context.hub.gap(start, end, "history", [subscriber])

    def revoke(self) -> None:
        """Close the connection: its credential was revoked while it moved."""
        if self._session is not None:
            self._session.revoke()

    # the subclass implements these

    @property
    def send(self) -> Callable[[bytes], bool]:
        """Return the function that writes frames."""
        raise NotImplementedError

    def await_drain(self) -> None:
        """Feed the session's subscriber once the buffer is empty."""
        raise NotImplementedError

    def note_hole(self) -> None:
        """Take note that deliveries may be lost. The hub calls this if the client's dialect has no gap notice."""
        raise NotImplementedError

    def end(self, reason: CloseReason, limit: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError

    # helpers

    def _read_again(self, state: ConnectionState) -> None:
        """Read the unfinished message again, and restore how much of its limits it has used."""
        self.data_after_opening(state.unread)
        if self.state != self.STATE_OPEN:
            return
        self._fragments = state.fragments
        if state.continuations is not None:
            allowed = self.factory.settings.fragments
            self._continuations = TokenBucket.from_level(allowed, 2 * allowed, state.continuations)
        if self._timer is not None and state.assembly_left_s is not None:
            self._timer.reset(state.assembly_left_s)


class AdoptionFactory:
    """A factory for Twisted that makes only one connection: the adopted one."""

    def __init__(self, factory: WebSocketFactory, adoption: Adoption) -> None:
        self._factory = factory
        self._adoption = adoption

    def buildProtocol(self, addr: IAddress) -> MovableConnection:
        """Make the connection."""
        connection: MovableConnection = self._factory.protocol()
        connection.factory = self._factory
        connection.adoption = self._adoption
        return connection


def adopt(reactor: Any, factory: WebSocketFactory, descriptor: int, adoption: Adoption) -> MovableConnection:
    """Continue a connection of another process on this socket. The caller must still close `descriptor`.

    Raises `OSError` if the client has left.
    """
    found = socket.socket(fileno=descriptor)
    family = found.family
    found.detach()
    transport = reactor.adoptStreamConnection(descriptor, family, AdoptionFactory(factory, adoption))
    connection: MovableConnection = transport.protocol
    return connection


def _unsent(transport: Any) -> bytes:
    """Return the bytes in the transport's two buffers (`abstract.FileDescriptor`)."""
    rest: bytes = transport.dataBuffer[transport.offset :] + b"".join(transport._tempDataBuffer)  # noqa: SLF001 - as in `SocketSendBuffer`
    return rest
