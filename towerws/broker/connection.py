"""One connection to a broker: pika's Twisted adapter, reduced to the parts that work on a bad network, too.

Only this module uses private names of pika. `tests/insides/test_pika.py` lists them, and fails when pika changes one. What differs
from pika's own adapter, and why:

- Every end of the connection goes through `BrokerConnection._end`. It aborts the transport, stops pika's timers and reports the reason
  once. After that it calls nothing. pika's `loseConnection` waits for a flush or a TLS close, which never happens on a dead network.
- The code and text of the broker's Connection.Close are kept. pika overwrites them when the TCP connection ends.
- If nothing is received for `silence_s`, the connection ends. pika sends heartbeats, and its own check is only a second one.
- The read loop walks the buffer by index. pika copies the rest of the buffer for each frame.
- The read loop assembles deliveries itself, with `broker.content` for the content headers: 5.1 µs per delivery with an empty callback.
  pika takes 24 µs (20,000 of 300 bytes with three headers, in reads of 64 KiB, CPython 3.11). All other methods are pika's.
- Raw callbacks only. pika's Deferreds break when they are cancelled, and cost a queue entry per message.
"""

from __future__ import annotations

import logging
import os
import platform
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

import pika
from pika import exceptions as pika_exceptions
from pika import frame as pika_frame
from pika.adapters.twisted_connection import _TwistedConnectionAdapter
from pika.channel import Channel
from twisted.internet import interfaces, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws import __version__
from towerws.broker.content import Content, read_content, read_timed_content
from towerws.broker.failures import ConnectionFailure, RetryPolicy, from_broker, from_transport
from towerws.core.deliveries import OversizedBody
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.outgoing import Deadline, release, socket_transport

_read_frame_head = struct.Struct(">BHI").unpack_from
_read_u64 = struct.Struct(">Q").unpack_from
_METHOD, _HEADER, _BODY, _FRAME_END = 1, 2, 3, 0xCE
_PROTOCOL_HEADER: Final = ord("A")
"""Not a frame's type: a broker that refuses the protocol's version answers `AMQP` and its own version (AMQP 0-9-1 section 4.2.2)."""
_DELIVER: Final = bytes.fromhex("003c003c")  # class 60, method 60
_RETURN: Final = bytes.fromhex("003c0032")  # class 60, method 50
# pika announces frame_max 131072, and RabbitMQ keeps to it: a longer frame is not AMQP.
_LONGEST_FRAME: Final = 131072
# The deliveries of one read are written together. A larger read saves writes: 0.69 -> 0.40 µs of CPU per delivery with 256 KiB
# instead of Twisted's 64 KiB (make bench SCENARIO=mixed). But for ten thousand clients of one topic 256 KiB come to 2.5 GB, and the
# kernel would have to hold them. So the size of a read follows from the bytes that were written for the last one.
SMALLEST_READ: Final = 16 * 1024
LARGEST_READ: Final = 256 * 1024
FIRST_READ: Final = 64 * 1024
WRITTEN_BYTES: Final = 512 * 1024 * 1024
"""A read is sized so that at most about this many bytes are written to clients for it."""


class NotAmqp(Exception):
    """The peer sent something that is not AMQP 0-9-1."""


OnDelivery = Callable[[int, str, Content, bytes], None]
"""Called with the delivery tag, the routing key, the content header, and the body. The tag of a returned message is 0.

The body is an `OversizedBody` if it has several frames and is larger than the channel keeps.
"""


class BrokerConnectionEvents(Protocol):
    """What a connection tells its owner, in the reactor's thread. Only `connection_closed` may follow `connection_failed`."""

    def connection_up(self) -> None:
        """TCP is connected, and TLS if the URL asks for it. The AMQP handshake begins."""

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """The AMQP handshake is done. Channels may be opened."""

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """The connection ended, and its transport is being aborted. Called once."""

    def connection_closed(self) -> None:
        """The transport is closed."""


def quiet_pika() -> None:
    """Set pika's own loggers to WARNING at any log level. Below that they log message bodies and whole frames.

    The channel's logger is set to ERROR: why the broker closed a channel is in our own log line, once and not at every attempt.
    """
    logging.getLogger("pika").setLevel(logging.WARNING)
    logging.getLogger("pika.channel").setLevel(logging.ERROR)


def _parameters(url: BrokerUrl, settings: BrokerSettings, purpose: str) -> pika.ConnectionParameters:
    return pika.ConnectionParameters(
        host=url.host,
        port=url.port,
        virtual_host=url.vhost,
        credentials=pika.PlainCredentials(url.username, url.password.reveal()),
        heartbeat=round(settings.heartbeat_s),
        client_properties={
            "product": "towerws",
            "version": __version__,
            "connection_name": f"towerws@{platform.node()}:{os.getpid()}{purpose}",
            "information": "live events to websockets",
        },
    )


class _Delivery:
    """The delivery that is being read on one channel: a method frame, a header frame, then any number of body frames.

    The frames of a body above `max_body_bytes` are counted and dropped.
    """

    __slots__ = ("_content", "_max_body_bytes", "_missing", "_on_delivery", "_parts", "_routing_key", "_tag")

    def __init__(self, on_delivery: OnDelivery, max_body_bytes: int) -> None:
        self._on_delivery = on_delivery
        self._max_body_bytes = max_body_bytes
        self._tag = self._missing = 0
        self._routing_key = ""
        self._content = Content(None, None, damaged=False)
        self._parts: list[bytes] = []

    def begin(self, data: bytes, at: int) -> None:
        """Read Basic.Deliver: consumer tag, delivery tag, redelivered, exchange, routing key."""
        at += 1 + data[at]
        self._tag = _read_u64(data, at)[0]
        at += 9
        at += 1 + data[at]
        # A key that is not UTF-8 is passed on with escapes. The sink refuses it by name.
        self._routing_key = data[at + 1 : at + 1 + data[at]].decode("utf-8", "backslashreplace")

    def begin_return(self, data: bytes, at: int) -> None:
        """Read Basic.Return: reply code, reply text, exchange, routing key. The tag of a returned message is 0."""
        at += 2
        at += 1 + data[at]
        at += 1 + data[at]
        self._tag = 0
        self._routing_key = data[at + 1 : at + 1 + data[at]].decode("utf-8", "backslashreplace")

    def describe(self, body_size: int, content: Content) -> None:
        """Keep the content header. A message without a body is complete then, and is passed on."""
        self._content = content
        self._missing = body_size
        if self._parts:
            self._parts = []
        if not body_size:
            self._on_delivery(self._tag, self._routing_key, content, b"")

    def add(self, part: bytes) -> None:
        """Add a body frame. Most bodies have one frame, which is then passed on without a copy."""
        missing = self._missing = self._missing - len(part)
        if missing < 0:
            raise NotAmqp("a body is longer than its header says")
        if self._parts or missing:
            part = self._add_to_parts(part, missing)
            if missing:
                return
        self._on_delivery(self._tag, self._routing_key, self._content, part)

    def _add_to_parts(self, part: bytes, missing: int) -> bytes:
        """Add one of several body frames. `missing` bytes follow. Returns the body after the last frame."""
        parts = self._parts
        if not parts and len(part) + missing > self._max_body_bytes:
            parts.append(OversizedBody(len(part) + missing))
        elif not parts or type(parts[0]) is bytes:
            parts.append(part)
        if not missing:
            self._parts = []
            return b"".join(parts) if type(parts[0]) is bytes else parts[0]
        return b""


class _PikaConnection(_TwistedConnectionAdapter):
    """pika's connection with our read loop. It tells `owner` when pika wants the transport closed."""

    def __init__(self, owner: BrokerConnection, parameters: pika.ConnectionParameters, reactor: interfaces.IReactorTime) -> None:
        super().__init__(
            parameters=parameters,
            on_open_callback=owner.opened,
            on_open_error_callback=_ignore,
            on_close_callback=_ignore,
            custom_reactor=reactor,
        )
        self._owner = owner
        self.opening: dict[int, Callable[[Channel], None]] = {}
        self.deliveries: dict[int, _Delivery] = {}

    # pika calls these

    def _adapter_disconnect_stream(self) -> None:
        # `_error` is the reason: the broker's Connection.Close, missed heartbeats, CloseOk to our close, or a failed handshake.
        self._owner.disconnected(self._error)

    def _on_data_available(self, data_in: bytes) -> None:
        buffer = self._frame_buffer + data_in if self._frame_buffer else data_in
        size = len(buffer)
        start = 0
        read = read_timed_content
        owner, deliveries = self._owner, self.deliveries
        while size - start >= 8 and not owner.dead:
            kind, channel, length = _read_frame_head(buffer, start)
            if length > _LONGEST_FRAME or kind == _PROTOCOL_HEADER:
                raise NotAmqp(f"the peer sent {buffer[start : start + 16]!r}")
            at = start + 7
            end = at + length
            if end >= size:
                break
            if buffer[end] != _FRAME_END:
                raise NotAmqp("a frame without its end byte")
            if kind == _METHOD and buffer.startswith(_DELIVER, at):
                if delivery := deliveries.get(channel):
                    delivery.begin(buffer, at + 4)
            elif kind == _HEADER:
                if delivery := deliveries.get(channel):
                    delivery.describe(_read_u64(buffer, at + 4)[0], read(buffer, at + 12, end))
                    read = read_content  # one time for each read is enough: it costs 1 to 3 µs
            elif kind == _BODY:
                if delivery := deliveries.get(channel):
                    delivery.add(buffer[at:end])
            else:
                if kind == _METHOD and buffer.startswith(_RETURN, at) and (delivery := deliveries.get(channel)):
                    delivery.begin_return(buffer, at + 4)
                self._process_frame(pika_frame.decode_frame(buffer[start : end + 1])[1])
            start = end + 1
        self.bytes_received += start
        self._frame_buffer = buffer[start:]

    def stop_timers(self) -> None:
        """Stop sending and checking heartbeats."""
        self._remove_heartbeat()

    def channel_opened(self, channel: Channel) -> None:
        """Call the callback for `channel`, once, and drop it. pika's channel would keep the callback, and with it the channel's owner."""
        self.opening.pop(channel.channel_number)(channel)

    def release(self) -> None:
        """Drop the references back to this object. Otherwise they are a cycle, which only a full garbage collection frees."""
        self.callbacks.clear()
        self._channels.clear()
        self.opening.clear()
        self.deliveries.clear()
        self._owner = cast("BrokerConnection", None)  # pika calls nothing after the end


def _ignore(*_: object) -> None:
    """Does nothing. pika demands a callback for the end of a connection, which `BrokerConnection` reports itself."""


class BrokerConnection(protocol.Protocol):
    """One connection to one broker, from TCP to its end.

    Use `open_channel` and `close_channel` after `connection_open`, `close` for an orderly end, and `abort` for an immediate one.
    `connection_failed` is called once, unless `abort` ended the connection. Only `connection_closed` follows.
    """

    _log = Logger()

    def __init__(
        self, url: BrokerUrl, settings: BrokerSettings, reactor: interfaces.IReactorTime, events: BrokerConnectionEvents, purpose: str = ""
    ) -> None:
        """Prepare the connection. `purpose` is appended to the connection's name in the broker's lists."""
        self.url = url
        self.dead = False
        """Whether the connection has ended. Then only `connection_closed` may still be called."""
        self.on_read: Callable[[], None] = _ignore
        """Called when the frames of one read from the socket were handled."""
        self._silence_s = settings.silence_s
        self._reactor = reactor
        self._events = events
        self._phase = "handshake"  # the first words of a failure's text
        self._received_at = 0.0
        self._read_bytes = 0
        self._records: list[bytes] = []
        """With TLS: what was received in this turn of the reactor. It is read at the turn's end, so that nothing comes in between."""
        self._end_of_turn = Deadline(reactor)
        self._paused = False
        self._resumed_at = 0.0
        """When the last pause ended."""
        self._watchdog: interfaces.IDelayedCall | None = None
        self._amqp = _PikaConnection(self, _parameters(url, settings, purpose), reactor)

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """The broker's description of itself. Empty before the handshake."""
        return self._amqp.server_properties or {}

    def open_channel(self, opened: Callable[[Channel], None], on_delivery: OnDelivery, *, max_body_bytes: int) -> Channel:
        """Return a new pika channel. `opened(channel)` is called when the broker has opened it.

        Deliveries for its consumers go to `on_delivery`, never to the callback given to pika's `basic_consume`. Nothing is kept of a
        body in several frames that is larger than `max_body_bytes`.
        """
        channel = self._amqp.channel(on_open_callback=self._amqp.channel_opened)
        self._amqp.opening[channel.channel_number] = opened
        self._amqp.deliveries[channel.channel_number] = _Delivery(on_delivery, max_body_bytes)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Close `channel`, also if the broker has not opened it yet: then `opened` is not called. A second call does nothing."""
        if not self.dead and (channel.is_open or channel.is_opening):
            self._amqp.opening.pop(channel.channel_number, None)
            channel.close()

    def watch_alarms(self, blocked: Callable[[bool], None]) -> None:
        """Call `blocked(True)` when the broker stops taking messages (Connection.Blocked), and `blocked(False)` when it resumes."""
        self._amqp.add_on_connection_blocked_callback(lambda *_: blocked(True))
        self._amqp.add_on_connection_unblocked_callback(lambda *_: blocked(False))

    @property
    def reading_since(self) -> float | None:
        """Since when the connection reads without a pause, in the reactor's seconds. None: it pauses."""
        return None if self._paused else self._resumed_at

    def pause(self) -> None:
        """Read nothing until `resume`: the last batch is still being written to clients.

        If that takes `silence_s`, the connection ends as if nothing had been received.
        """
        if not self.dead and not self._paused:
            self._paused = True
            cast("interfaces.IPushProducer", self.transport).pauseProducing()

    def resume(self, written: int) -> None:
        """Read again. `written` bytes were written to clients for the last read: the size of the next read follows from that."""
        if self.dead:
            return
        if written and interfaces.ITCPTransport.providedBy(self.transport):
            socket_transport(self.transport).bufferSize = max(SMALLEST_READ, min(LARGEST_READ, self._read_bytes * WRITTEN_BYTES // written))
        if self._paused:
            self._paused = False
            self._received_at = self._resumed_at = self._reactor.seconds()  # nothing could be received while it was paused
            cast("interfaces.IPushProducer", self.transport).resumeProducing()

    def close(self) -> None:
        """Close the channels, then the connection, in order. `connection_failed` follows.

        The close has no deadline: the caller has one, and calls `abort`.
        """
        if self.dead:
            return
        if self._amqp.is_open:
            self._amqp.close(200, "towerws stops")
        elif not self._amqp.is_closing:
            self.abort()

    def abort(self) -> None:
        """End now, without telling the broker."""
        self._end(None)

    # Twisted calls these

    def connectionMade(self) -> None:
        """TCP is connected: begin the AMQP handshake."""
        if self.dead:
            self._abort_transport()
            return
        self._received_at = self._reactor.seconds()
        self._watchdog = self._reactor.callLater(self._silence_s, self._check_silence)
        transport = self.transport
        assert transport is not None
        if interfaces.ITCPTransport.providedBy(transport):
            socket_transport(transport).bufferSize = FIRST_READ
            transport.setTcpNoDelay(True)  # the handshake writes twice before it reads: 40 ms each time with a delayed ACK
        self._events.connection_up()
        self._amqp.connection_made(transport)

    def dataReceived(self, data: bytes) -> None:
        """Handle every complete frame. Never raises."""
        if self.dead:
            return
        self._received_at = self._reactor.seconds()
        if not self.url.tls:
            self._read(data)
            return
        # TLS passes on each record of a read by itself. RabbitMQ's hold a few messages.
        if not self._records:
            self._end_of_turn.set(0, self._read_records)
        self._records.append(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """The transport is closed."""
        if self._records:
            self._read_records()
        self._end(from_transport(reason, self._phase, tls=self.url.tls))
        self._events.connection_closed()
        self._amqp.release()
        self.on_read = _ignore
        release(self.transport)

    # `_PikaConnection` calls these

    def opened(self, _: object) -> None:
        """The AMQP handshake is done."""
        self._phase = "connection lost"
        self._events.connection_open(self.server_properties)

    def disconnected(self, error: Exception | None) -> None:
        """pika gave the connection up because of `error`: end it with a text for the operator."""
        if isinstance(error, pika_exceptions.ConnectionClosedByBroker):
            self._end(from_broker(error.reply_code, error.reply_text))
        elif isinstance(error, pika_exceptions.ConnectionClosedByClient):
            self._end(ConnectionFailure("closed by towerws"))
        elif isinstance(error, pika_exceptions.AMQPHeartbeatTimeout):
            self._end(ConnectionFailure(f"{self._phase}: no heartbeat from the broker", RetryPolicy.FAST))
        else:
            self._end(ConnectionFailure(f"{self._phase}: {type(error).__name__}"))

    # our own

    def _read(self, data: bytes) -> None:
        self._read_bytes = len(data)
        try:
            self._amqp.data_received(data)
        except NotAmqp as error:
            self._end(ConnectionFailure(f"{self._phase}: not AMQP 0-9-1: {error}", hint="check host and port in the broker URL"))
        except Exception as error:  # noqa: BLE001 - an error in pika ends this connection only
            self._log.failure("the connection to {url} is closed because of an error in reading; towerws connects again", url=self.url)
            self._end(ConnectionFailure(f"{self._phase}: can't read what the broker sent: {type(error).__name__}"))
        if not self.dead:
            self.on_read()

    def _read_records(self) -> None:
        self._end_of_turn.clear()
        records, self._records = self._records, []
        self._read(b"".join(records))

    def _check_silence(self) -> None:
        """End the connection if nothing was received for `silence_s`. The peer or the network is dead, even if TCP doesn't know yet."""
        self._watchdog = None
        silent_s = self._reactor.seconds() - self._received_at
        if silent_s < self._silence_s - 0.001:  # less is rounding
            self._watchdog = self._reactor.callLater(self._silence_s - silent_s, self._check_silence)
        elif self._paused:
            self._end(
                ConnectionFailure(
                    f"{self._phase}: nothing read for {self._silence_s:g} s, since a batch was still being written to clients",
                    RetryPolicy.FAST,
                )
            )
        else:
            self._end(ConnectionFailure(f"{self._phase}: nothing received for {self._silence_s:g} s", RetryPolicy.FAST))

    def _end(self, failure: ConnectionFailure | None) -> None:
        if self.dead:
            return
        self.dead = True
        self._amqp.stop_timers()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._end_of_turn.clear()
        self._abort_transport()
        if failure is not None:
            self._events.connection_failed(failure)

    def _abort_transport(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # TCP and TLS transports have it, ITransport does not
