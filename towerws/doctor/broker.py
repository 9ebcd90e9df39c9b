"""Asks one broker: TLS, version, login, permissions, declarations, the time from publishing to receiving, clocks, replicas.

The check changes nothing on the broker. The table says how it tries each permission. An attempt to remove a binding that does not exist
shows a permission, because the broker checks permissions before it looks for the binding.

permission                                | tried with
configure on an exchange or the stream    | declaring it again, with the daemon's arguments: the broker compares them (406)
write on an exchange                      | removing a binding that does not exist, from the exchange to itself
read on an exchange                       | removing a binding that does not exist, from the exchange to an exclusive queue
write on the stream (to bind it)          | removing a binding that does not exist, from the exchange to the stream
read on the stream                        | consuming the stream, from its next message
configure, write, read on `amq.gen-…`     | an exclusive queue that the broker names, and that ends with the connection
write on `amq.default`                    | publishing a marker directly to the stream

Daemons publish markers all the time, and no client gets them. Permissions on an exchange or a stream that does not exist can't be tried
without declaring it.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import secrets
import shlex
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pika
from pika import exceptions as pika_exceptions
from pika import frame as pika_frame

from towerws.broker.failures import ConnectionFailure, from_broker, from_channel
from towerws.broker.topology import Mode, choose_mode, queue_arguments, stream_arguments
from towerws.commands.publisher import connection_parameters, open_connection, wrapped_error
from towerws.core.deliveries import MARKER_TOPIC, Marker, parse_marker
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.doctor.examination import Area, Doing, Finding, Step
from towerws.doctor.network import Unreachable, certificate_finding, connect, days_left, reason

SLOW_MARKER_S = 1.0
"""A marker that takes longer than this is a warning. It normally takes milliseconds."""

MARKER_S = 5.0
"""How long the check waits for a marker."""

CLOCK_S = 10
"""Allowed difference between the clocks of this machine and of the stream's node. A refill of history begins this much earlier."""

LONGEST_START_BYTES = 64 * 1024
"""Longest first frame of a broker (`connection.start`) that is read."""

_is_closing = re.compile(r"""\((\d{3})\) ["'](.*)["']""").search

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_FRAME_HEAD = struct.Struct(">BHI")


def check_broker(url: BrokerUrl, settings: BrokerSettings, *, only: bool) -> Iterator[Step]:
    """Check one URL of `broker`. `only`: whether it is the only one."""
    area = Area("broker")
    yield Doing(f"connecting to {url.host}:{url.port}", 3 * settings.attempt_s)
    try:
        properties, seconds, days = _greet(url, settings)
    except Unreachable as error:
        yield area.problem("connection", f"{url}: {error}", error.change)
        return
    if days is not None:
        yield certificate_finding(area, f"the certificate of {url.host}", days)
    version = str(properties.get("version"))
    try:
        mode = choose_mode(settings.consume, properties)
    except BrokerError as error:
        yield area.problem("version", str(error), 'consume = "auto", or a newer RabbitMQ')
        return
    if mode is Mode.QUEUE and settings.consume == "auto":
        yield area.warning(
            "version",
            f"RabbitMQ {version} has no streams: an outage loses events, and positions end with the daemon",
            "RabbitMQ 3.9 or later",
        )
    else:
        yield area.ok("version", f"{url.host}:{url.port} is RabbitMQ {version}, and answers within {seconds * 1000:.0f} ms")
    yield Doing("logging in", 3 * settings.attempt_s)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # pika logs pages about a failed login
    try:
        parameters = connection_parameters(url, settings.attempt_s, settings.tls_ca, blocked_s=settings.attempt_s, name="towerws doctor")
        connection = open_connection(parameters)
    except (pika_exceptions.AMQPError, OSError) as error:
        failure = _login_failure(error)
        yield area.problem("login", f"{url}: {failure.text}", failure.hint or "see the broker's log")
        return
    yield area.ok("login", f"{url.username} may use the virtual host {url.vhost}")
    examination = _Examination(area, connection, url, settings, mode)
    try:
        yield from examination.run()
        if mode is Mode.STREAM:
            yield from _replicas(area, examination, url, settings, only=only)
    except (pika_exceptions.AMQPError, OSError) as error:
        yield area.unknown("connection", f"{url}: the connection ended: {_login_failure(error).text}", "see the broker's log")
    finally:
        with suppress(pika_exceptions.AMQPError, OSError):  # pika nacks messages that it has buffered, which a stream doesn't support
            connection.close()


def permission_patterns(settings: BrokerSettings) -> tuple[str, str, str]:
    """Return the patterns for configure, write and read that the daemon's user needs at least."""
    names = [re.escape(name) for name in (settings.exchange, settings.control, settings.stream)]
    own = "amq\\.gen-.*"
    declared = [] if settings.passive else names
    return tuple("^(" + "|".join(group) + ")$" for group in ([*declared, own], [*names, "amq\\.default", own], [*names, own]))  # type: ignore[return-value]


def _greet(url: BrokerUrl, settings: BrokerSettings) -> tuple[Mapping[str, Any], float, float | None]:
    """Return the broker's server properties, the seconds until its answer, and the days for which its certificate is still valid.

    The broker sends its properties before any login (AMQP 0-9-1 section 2.2.4). Raises `Unreachable`.
    """
    connection = connect(url.host, url.port, tls=url.tls, ca=settings.tls_ca, ca_option="tls_ca", timeout_s=settings.attempt_s)
    with connection:
        began = time.monotonic()
        try:
            connection.sendall(_PROTOCOL_HEADER)
            data = b""
            while len(data) < _FRAME_HEAD.size or len(data) < _frame_bytes(data):
                piece = connection.recv(65536)
                if not piece:
                    raise ConnectionResetError
                data += piece
            frame = pika_frame.decode_frame(data)[1]
            return frame.method.server_properties, time.monotonic() - began, days_left(connection)
        except (OSError, ValueError, AttributeError, pika_exceptions.AMQPError) as error:
            why = reason(error) if isinstance(error, OSError) else "it does not speak AMQP 0-9-1"
            hint = "amqps:// is for the port with TLS, amqp:// for the one without; the management port is another one"
            raise Unreachable(why, f"check host and port in the broker's URL: {hint}") from None


def _frame_bytes(data: bytes) -> int:
    length = _FRAME_HEAD.unpack_from(data)[2]
    if data[:1] != b"\x01" or length > LONGEST_START_BYTES:
        raise ValueError("no AMQP method")
    return int(_FRAME_HEAD.size + length + 1)


def _login_failure(error: Exception) -> ConnectionFailure:
    """Return why a connection was refused or ended, with the operator's next step."""
    if isinstance(error, pika_exceptions.ProbableAuthenticationError | pika_exceptions.AuthenticationError):
        return from_broker(403, "ACCESS_REFUSED - Login was refused")
    inner = wrapped_error(error)
    if isinstance(inner, pika_exceptions.ConnectionClosedByBroker):
        return from_broker(inner.reply_code, inner.reply_text)
    if (said := _is_closing(str(inner))) is not None:  # if a virtual host is refused, only the text of pika's error has the broker's answer
        return from_broker(int(said[1]), said[2])
    if isinstance(inner, ssl.SSLError | OSError):
        return ConnectionFailure(reason(inner))
    return ConnectionFailure(type(inner).__name__)


@dataclass(slots=True)
class _Markers:
    """Markers that came back from the broker, by their text. The values are the time (monotonic seconds) and the offset."""

    read: dict[str, tuple[float, int | None]] = field(default_factory=dict)

    def consumed(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """Note a marker. pika calls this for each message."""
        channel.basic_ack(method.delivery_tag)
        if (marker := parse_marker(body)) is not None:
            self.read[marker.text] = time.monotonic(), (properties.headers or {}).get("x-stream-offset")


class _Examination:
    """The checks over one open connection."""

    def __init__(self, area: Area, connection: Any, url: BrokerUrl, settings: BrokerSettings, mode: Mode) -> None:
        self._area = area
        self._connection = connection
        self._url = url
        self._settings = settings
        self._mode = mode
        self._refused: list[str] = []
        self._tried = 0
        self._missing: set[str] = set()
        self.no_replica: ConnectionFailure | None = None
        self.reads_stream = False

    def run(self) -> Iterator[Step]:
        """Yield the findings."""
        settings = self._settings
        yield Doing("asking for exchanges, the stream and permissions", 3 * settings.attempt_s)
        yield from self._declared("exchange", settings.exchange, "exchange")
        yield from self._declared("control exchange", settings.control, "control_exchange")
        if self._mode is Mode.STREAM:
            yield from self._declared("stream", settings.stream, "stream")
        self._try_rights()
        yield from self._markers()
        yield self._permissions()

    # what is declared, and with which arguments

    def _declared(self, what: str, name: str, option: str) -> Iterator[Finding]:
        """Check that an exchange or the stream exists with the type and arguments that the daemon declares."""
        area = self._area
        if (failure := self._attempt(lambda channel: self._declare(channel, name, passive=True))) is not None:
            if failure.code == 404 and "no " in failure.text:
                self._missing.add(name)
                yield self._not_there(what, name, option)
            else:
                yield area.problem(what, f"{what} {name}: {failure.text}", failure.hint or "see the broker's log")
            return
        failure = self._attempt(lambda channel: self._declare(channel, name, passive=False))
        if failure is None:
            self._tried += 1
            yield area.ok(what, f"{what} {name} exists, with {self._described(name)}")
        elif failure.code == 403:
            if not self._settings.passive:
                self._refuse("configure", name, failure)
            why = f"{what} {name} exists. Its type and arguments can't be compared without the configure permission"
            yield area.skipped(what, why) if self._settings.passive else area.unknown(what, why, self._grant())
        else:
            yield area.problem(what, f"{what} {name}: {failure.text}", failure.hint or f"choose another {option}")

    def _declare(self, channel: Any, name: str, *, passive: bool) -> None:
        settings = self._settings
        if name == settings.stream and self._mode is Mode.STREAM:
            channel.queue_declare(name, passive=passive, durable=True, arguments=None if passive else stream_arguments(settings))
        else:
            kind = "topic" if name == settings.exchange else "fanout"
            channel.exchange_declare(name, kind, passive=passive, durable=True)

    def _described(self, name: str) -> str:
        settings = self._settings
        if name == settings.stream:
            arguments = stream_arguments(settings)
            return ", ".join(f"{key.removeprefix('x-')} {value}" for key, value in arguments.items())
        return "the type topic" if name == settings.exchange else "the type fanout"

    def _not_there(self, what: str, name: str, option: str) -> Finding:
        if self._settings.passive:
            return self._area.problem(
                what,
                f"{what} {name} does not exist, and with passive the daemon does not make it",
                f"declare it on the broker, correct {option}, or set passive = false",
            )
        return self._area.unknown(
            what,
            f"{what} {name} does not exist yet: the daemon declares it when it starts. Until then permissions on it can't be tried",
            "start the daemon, then run the doctor again",
        )

    # permissions

    def _try_rights(self) -> None:
        settings = self._settings
        key = f"towerws.doctor.{secrets.token_hex(8)}"
        for name in (settings.exchange, settings.control):
            if name in self._missing:
                continue
            readable = self._right("read", name, partial(_unbind_own_queue, exchange=name, key=key))
            if readable:
                self._right("write", name, partial(_unbind_from_itself, exchange=name, key=key))
        if self._mode is Mode.STREAM and not self._missing & {settings.stream, settings.exchange} and not settings.passive:
            self._right("write", settings.stream, lambda channel: channel.queue_unbind(settings.stream, settings.exchange, key))

    def _right(self, right: str, name: str, act: Callable[[Any], None]) -> bool:
        failure = self._attempt(act)
        if failure is None:
            self._tried += 1
        elif failure.code == 403:
            self._refuse(right, name, failure)
        return failure is None

    def _refuse(self, right: str, name: str, failure: ConnectionFailure) -> None:
        """Note a refusal. A private queue needs all three permissions, and the broker doesn't say which of them is missing."""
        lacking = "configure, write or read on amq.gen-*" if "'amq.gen-" in failure.text else f"{right} on {name}"
        if lacking not in self._refused:
            self._refused.append(lacking)

    def _permissions(self) -> Finding:
        user = self._url.username
        if self._refused:
            return self._area.problem("permissions", f"{user} lacks at least {', '.join(self._refused)}", self._grant())
        if self._missing:
            what = ", ".join(sorted(self._missing))
            return self._area.unknown("permissions", f"permissions on {what} can't be tried before these exist", "start the daemon once")
        return self._area.ok("permissions", f"{user} has all {self._tried} permissions that the daemon needs")

    def _grant(self) -> str:
        configure, write, read = permission_patterns(self._settings)
        place = f"-p {shlex.quote(self._url.vhost)} {shlex.quote(self._url.username)}"
        return f"rabbitmqctl set_permissions {place} '{configure}' '{write}' '{read}'"

    # from publishing to receiving

    def _markers(self) -> Iterator[Step]:
        area, settings = self._area, self._settings
        if settings.exchange in self._missing or (self._mode is Mode.STREAM and settings.stream in self._missing):
            yield area.unknown("delivery", "nothing can be received before exchange and stream exist", "start the daemon once")
            return
        yield Doing("publishing a marker and reading it back", 3 * settings.attempt_s)
        markers = _Markers()
        consumer = self._connection.channel()
        queue = self._consume(consumer, markers)
        if isinstance(queue, ConnectionFailure):
            if queue.code == 403:
                self._refuse("read", settings.stream if self._mode is Mode.STREAM else settings.exchange, queue)
            elif "replica" in queue.text:
                self.no_replica = queue
            yield area.unknown("delivery", f"the events can't be consumed: {queue.text}", queue.hint)
            return
        self.reads_stream = self._mode is Mode.STREAM
        wall = time.time()
        sent = time.monotonic()
        bound = _marker()
        failure = self._publish(settings.exchange, MARKER_TOPIC, bound)
        if failure is not None:
            yield self._not_published(failure, settings.exchange)
            return
        direct = _marker()
        direct_failure = self._publish("", queue, direct)
        if direct_failure is None:
            self._tried += 1
        else:
            yield area.warning(
                "markers",
                f"no marker may be published straight to {queue}, so the daemon can prove less ({direct_failure.text})",
                self._grant(),
            )
        wanted = {bound.text} if direct_failure else {direct.text}
        self._wait(lambda: wanted <= markers.read.keys(), MARKER_S)
        if bound.text in markers.read:
            yield self._received(markers.read[bound.text][0] - sent)
            if self._mode is Mode.STREAM:
                yield from self._clock(wall, markers.read[bound.text][1], queue if direct_failure is None else None)
        elif direct.text in markers.read:
            # The broker confirmed both markers in order, and the stream keeps the order. So the first marker never reached the stream.
            yield area.problem(
                "delivery",
                f"{queue} is not bound to {settings.exchange}: a marker that was published there did not reach it",
                f"start the daemon, which binds it, or bind it: exchange {settings.exchange}, queue {queue}, routing key #",
            )
        else:
            yield area.unknown("delivery", f"a marker was confirmed and not received within {MARKER_S:g} s", "see the broker's log")

    def _consume(self, channel: Any, markers: _Markers) -> str | ConnectionFailure:
        """Consume from the next message on. Returns the name of the stream or the queue, or why that failed."""
        settings = self._settings
        try:
            channel.basic_qos(prefetch_count=100)
            if self._mode is Mode.STREAM:
                channel.basic_consume(settings.stream, markers.consumed, arguments={"x-stream-offset": "next"})
                return settings.stream
            declared = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=queue_arguments(settings))
            queue = str(declared.method.queue)
            channel.queue_bind(queue, settings.exchange, "#")
            channel.basic_consume(queue, markers.consumed)
        except pika_exceptions.ChannelClosedByBroker as error:
            return from_channel(error)
        self._tried += 1
        return queue

    def _publish(self, exchange: str, key: str, marker: Marker) -> ConnectionFailure | None:
        def publish(channel: Any) -> None:
            channel.confirm_delivery()
            properties = pika.BasicProperties(content_type="application/json", delivery_mode=1, message_id=marker.text)
            channel.basic_publish(exchange, key, marker.body, properties, mandatory=True)

        try:
            return self._attempt(publish)
        except pika_exceptions.UnroutableError:
            return ConnectionFailure(f"no queue is bound to the exchange {exchange} for it", code=312)
        except pika_exceptions.NackError:
            return ConnectionFailure("a queue did not take it (nack): is it full, or its node down?")

    def _not_published(self, failure: ConnectionFailure, exchange: str) -> Finding:
        if failure.code == 403:
            self._refuse("write", exchange, failure)
            return self._area.unknown("delivery", f"no marker may be published to {exchange}: {failure.text}", self._grant())
        if failure.code == 312:
            return self._area.problem(
                "delivery",
                f"nothing is bound to {exchange}: events that are published there are lost",
                "start the daemon, which binds the stream",
            )
        return self._area.problem(
            "delivery", f"a marker can't be published to {exchange}: {failure.text}", failure.hint or "see the broker's log"
        )

    def _received(self, seconds: float) -> Finding:
        text = f"a marker came back {seconds * 1000:.0f} ms after it was published"
        if seconds > SLOW_MARKER_S:
            return self._area.warning("delivery", text, "look for an overloaded broker, disk or network: it is normally milliseconds")
        return self._area.ok("delivery", text)

    # the clock of the stream's node

    def _clock(self, wall: float, offset: int | None, direct: str | None) -> Iterator[Step]:
        """Compare the clock of the stream's node with this machine's, by consuming the stream from two timestamps.

        One timestamp is `CLOCK_S` before our marker by this machine's clock, the other one `CLOCK_S` after it. The node compares them with
        its own clock. So the first message of each consumer shows on which side of the marker its timestamp is. A further marker, published
        afterwards, gives each consumer a message in any case.
        """
        area, stream = self._area, self._settings.stream
        if offset is None or direct is None:
            yield area.unknown("clock", "the broker's clock can't be asked without write on amq.default", self._grant())
            return
        yield Doing("comparing clocks", 3 * self._settings.attempt_s)
        firsts: list[list[int]] = [[], []]
        for first, moment in zip(firsts, (wall - CLOCK_S, wall + CLOCK_S), strict=True):
            channel = self._connection.channel()
            channel.basic_qos(prefetch_count=1)  # the first message is the answer. It is never acknowledged, so no other one follows

            def took(_channel: Any, _method: Any, properties: Any, _body: bytes, first: list[int] = first) -> None:
                first.append(int((properties.headers or {}).get("x-stream-offset", -1)))

            since = dt.datetime.fromtimestamp(moment, dt.UTC)
            channel.basic_consume(stream, took, arguments={"x-stream-offset": since})
        failure = self._publish("", stream, _marker())
        if failure is None:
            self._wait(lambda: all(firsts), MARKER_S)
        before, after = firsts
        if not before or not after:
            yield area.unknown(
                "clock", f"the stream did not answer within {MARKER_S:g} s, so its clock is not known", "run the doctor again"
            )
        elif before[0] > offset or after[0] <= offset:
            ahead = "ahead of" if after[0] <= offset else "behind"
            yield area.warning(
                "clock",
                f"the clock of the stream's node is more than {CLOCK_S} s {ahead} this machine's: after a restart history may miss events",
                "let both machines follow NTP (timedatectl shows whether one does)",
            )
        else:
            yield area.ok("clock", f"the clock of the stream's node agrees with this machine's, within {CLOCK_S} s")

    # calls

    def _attempt(self, act: Callable[[Any], None]) -> ConnectionFailure | None:
        """Call `act` with a new channel. Returns None, or why the broker closed the channel."""
        channel = self._connection.channel()
        try:
            act(channel)
        except pika_exceptions.ChannelClosedByBroker as error:
            return from_channel(error)
        channel.close()
        return None

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not done() and time.monotonic() < give_up:
            self._connection.process_data_events(time_limit=0.05)


def _replicas(area: Area, examination: _Examination, url: BrokerUrl, settings: BrokerSettings, *, only: bool) -> Iterator[Finding]:
    place = f"-p {shlex.quote(url.vhost)} {shlex.quote(settings.stream)}"
    how = f"rabbitmq-streams stream_status {place}"
    if examination.no_replica is not None:
        text = f"{url.host}:{url.port} has no replica of {settings.stream}, so no daemon can read it there"
        change = f"rabbitmq-streams add_replica {place} NODE, or name nodes with a replica first in broker"
        yield area.problem("replicas", text, change) if only else area.warning("replicas", text, change)
    elif examination.reads_stream:
        yield area.ok("replicas", f"{url.host}:{url.port} has a replica of {settings.stream}")
    yield area.skipped("replicas", f"how many replicas there are in all can't be seen over AMQP: {how}")


def _unbind_own_queue(channel: Any, exchange: str, key: str) -> None:
    queue = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
    channel.queue_unbind(queue, exchange, key)
    channel.queue_delete(queue)


def _unbind_from_itself(channel: Any, exchange: str, key: str) -> None:
    channel.exchange_unbind(exchange, exchange, key)


def _marker() -> Marker:
    return Marker(secrets.token_hex(16), secrets.token_hex(8))
