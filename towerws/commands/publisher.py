"""Publishes from the command line, to a broker's exchange or to a daemon's admin port.

Calls block until the event is confirmed. After a lost connection both publishers report it once, and retry with a bounded backoff. If a
retry can't help, for example with a wrong password or without the exchange, they raise `BrokerError`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import pika
from pika import exceptions as pika_exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from towerws.core.errors import BrokerError
from towerws.core.publication import Outcome
from towerws.core.settings import BrokerUrl

BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 10.0
ATTEMPT_S = 10.0
"""Timeout of connecting, and of an answer of the admin port."""

BLOCKED_S = 30.0
"""Without `patience_s`, a connection that the broker blocks for this long is replaced by a new one."""

CLOSE_S = 1.0
"""How long the broker may take to answer the close of a connection. Then the connection is aborted."""

HEARTBEAT_S = 10  # RabbitMQ recommends 5 to 20 s

MESSAGE_ID_BYTES = 255  # AMQP 0-9-1 section 4.2.5.3, short string

MAX_WARNINGS = 10
"""Most warnings of the daemon that the command repeats."""

TRANSIENT = 1  # AMQP's delivery_mode: live events need not survive a broker's restart

_CONNECTION_ENDED = (
    pika_exceptions.StreamLostError,
    pika_exceptions.ConnectionClosedByBroker,
    pika_exceptions.ConnectionWrongStateError,
    pika_exceptions.AMQPHeartbeatTimeout,
    ConnectionError,
)
"""The errors of a connection that may have ended before the publication."""

Tell = Callable[[str], None]
"""Gets a notice, such as one about a lost connection, to show to a person."""


class GaveUp(BrokerError):
    """No confirm came in time. The event may have arrived anyway."""


class NoQueue(BrokerError):
    """No queue is bound to the exchange for this topic, so the broker dropped the event."""


class Publisher(Protocol):
    """Publishes events to one destination."""

    def publish(self, topic: str, payload: bytes, message_id: str | None = None) -> None:
        """Publish JSON on a topic (a routing key). Returns when the event is confirmed. Raises `BrokerError` if it can't be."""

    def idle(self, seconds: float) -> None:
        """Wait, and keep the connection alive."""

    def close(self) -> None:
        """Close the connection. May be called at any time, and more than once."""


class Retry:
    """The backoff of retries: a random pause below a bound that doubles. Reports each loss of the connection once.

    With `patience_s`, `lost` raises `GaveUp` if the next attempt would begin more than `patience_s` seconds after the publication began.
    """

    def __init__(self, tell: Tell, patience_s: float | None = None) -> None:
        self._tell = tell
        self._patience_s = patience_s
        self._began = 0.0
        self._bound_s = BACKOFF_MIN_S
        self._lost = False

    def begin(self) -> None:
        """Start the clock of a publication."""
        if self._patience_s is not None:
            self._began = time.monotonic()

    def left_s(self) -> float | None:
        """Return the seconds until the publication's deadline, or None if it has none."""
        return None if self._patience_s is None else max(0.01, self._began + self._patience_s - time.monotonic())

    def attempt_s(self) -> float:
        """Return the timeout of one attempt, in seconds."""
        left_s = self.left_s()
        return ATTEMPT_S if left_s is None else min(ATTEMPT_S, left_s)

    def lost(self, what: str) -> float:
        """Report a failed attempt (`what`). Returns the seconds to wait before the next one. Raises `GaveUp`."""
        pause_s = random.uniform(BACKOFF_MIN_S / 2, self._bound_s)  # noqa: S311 - only spreads the attempts
        if self._patience_s is not None and time.monotonic() + pause_s > self._began + self._patience_s:
            raise GaveUp(f"{what}; not confirmed within {self._patience_s:g} s")
        if not self._lost:
            self._lost = True
            until = "it works" if self._patience_s is None else f"{self._patience_s:g} s have passed"
            self._tell(f"{what}; trying again until {until}")
        self._bound_s = min(2 * self._bound_s, BACKOFF_MAX_S)
        return pause_s

    def works(self) -> None:
        """Report a confirmed publication."""
        if self._lost:
            self._lost = False
            self._tell("publishing again")
        self._bound_s = BACKOFF_MIN_S


class AmqpPublisher:
    """Publishes to a RabbitMQ topic exchange, with a confirm for each event. Several URLs are tried in turn.

    With `mandatory`, an event that no queue takes raises `NoQueue`. Without `declare`, the exchange must exist. `patience_s` bounds
    each publication, in seconds.
    """

    def __init__(
        self,
        urls: Sequence[BrokerUrl],
        exchange: str,
        tell: Tell,
        *,
        mandatory: bool = False,
        declare: bool = True,
        patience_s: float | None = None,
        tls_ca: str = "",
    ) -> None:
        # pika logs pages about a failed attempt. `Retry` reports it in one line.
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        self._urls = list(urls)
        self._exchange = exchange
        self._retry = Retry(tell, patience_s)
        self._mandatory = mandatory
        self._declare = declare
        self._tls_ca = tls_ca
        self._blocked_s = BLOCKED_S if patience_s is None else None  # with patience, the deadline of the publication is enough
        self._connection: Any = None
        self._channel: Any = None
        self._alarm = ""
        self._interrupted = False

    def publish(self, topic: str, payload: bytes, message_id: str | None = None) -> None:
        """Publish, and wait for the confirm. If the connection ends first, send the event again with the same id."""
        now_ms = int(time.time() * 1000)
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=TRANSIENT,
            message_id=message_id or str(uuid4()),
            timestamp=now_ms // 1000,
            headers={"timestamp_in_ms": now_ms},
        )
        self._retry.begin()
        may_be_idle = self._connection is not None
        while True:
            try:
                self._publish(topic, payload, properties)
            except KeyboardInterrupt:
                self._interrupted = True
                raise
            except pika_exceptions.UnroutableError:
                raise NoQueue(f"no queue is bound to the exchange {self._exchange!r} for this topic") from None
            except (pika_exceptions.AMQPError, OSError) as error:
                self._abandon()
                if (refusal := _refusal(error)) is not None:
                    raise BrokerError(f"{self._urls[0]} refused: {refusal}") from error
                if may_be_idle and isinstance(error, _CONNECTION_ENDED):
                    may_be_idle = False
                    continue  # while the input pauses, nothing answers heartbeats, so try a new connection at once
                pause_s = self._retry.lost(f"{self._urls[0]}: {_reason(error)}")
                self._urls.append(self._urls.pop(0))
                time.sleep(pause_s)
            else:
                self._retry.works()
                return

    def idle(self, seconds: float) -> None:
        """Wait, and answer heartbeats."""
        if self._connection is None:
            time.sleep(seconds)
            return
        try:
            self._connection.sleep(seconds)
        except (pika_exceptions.AMQPError, OSError):
            self._abandon()  # the next publication reconnects, and reports a failure

    def close(self) -> None:
        """End the connection."""
        self._abandon()

    def _publish(self, topic: str, payload: bytes, properties: pika.BasicProperties) -> None:
        """Make one attempt. pika waits for a confirm without a timeout, so a timer aborts the connection at the deadline."""
        if self._connection is None:
            parameters = connection_parameters(self._urls[0], self._retry.attempt_s(), self._tls_ca, blocked_s=self._blocked_s)
            self._connection = open_connection(parameters)
            self._watch_alarms(self._connection)
        left_s = self._retry.left_s()
        with contextlib.nullcontext() if left_s is None else _aborted_after(left_s, self._connection, self._why_no_answer):
            if self._channel is None:
                channel = self._connection.channel()
                if self._declare:
                    channel.exchange_declare(self._exchange, "topic", durable=True)
                channel.confirm_delivery()
                self._channel = channel
            self._channel.basic_publish(self._exchange, topic, payload, properties, mandatory=self._mandatory)

    def _watch_alarms(self, connection: Any) -> None:
        """Note the broker's alarm while it lasts."""

        def blocked(_: object, frame: Any) -> None:
            self._alarm = frame.method.reason

        def unblocked(_: object, __: object) -> None:
            self._alarm = ""

        self._alarm = ""
        inner = connection._impl  # noqa: SLF001 - pika's blocking connection calls back only between publications
        inner.add_on_connection_blocked_callback(blocked)
        inner.add_on_connection_unblocked_callback(unblocked)

    def _why_no_answer(self) -> str:
        return f"the broker has an alarm ({self._alarm}) and takes no messages" if self._alarm else "no answer"

    def _abandon(self) -> None:
        """Close the connection, or abort it after `CLOSE_S`. After Ctrl-C it is aborted at once."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is None or not connection.is_open:
            return
        # A broker in an alarm does not read the connection, so it would not answer the close.
        within_s = 0 if self._interrupted else CLOSE_S
        with contextlib.suppress(pika_exceptions.AMQPError, OSError), _aborted_after(within_s, connection, lambda: "no answer"):
            connection.close()


@contextlib.contextmanager
def _aborted_after(seconds: float, connection: Any, why: Callable[[], str]) -> Iterator[None]:
    """Abort the connection if the block takes longer. pika's call in the block then raises an `AMQPConnectionError` with the text `why`."""
    inner = connection._impl  # noqa: SLF001 - `BlockingConnection.call_later` calls back only between publications

    def abort() -> None:
        inner._terminate_stream(pika_exceptions.AMQPConnectionError(why()))  # noqa: SLF001 - as pika's own timers do

    timer = inner.ioloop.call_later(seconds, abort)
    try:
        yield
    finally:
        inner.ioloop.remove_timeout(timer)


def open_connection(parameters: pika.ConnectionParameters) -> pika.BlockingConnection:
    """Connect and log in. Raises pika's errors, those of the socket, and `TimeoutError` if the broker does not answer the handshake."""
    try:
        return pika.BlockingConnection(parameters)
    except AMQPConnectorStackTimeout as error:  # unlike pika's other errors, it is no `AMQPError`
        raise TimeoutError("no answer to the AMQP handshake") from error


def connection_parameters(
    url: BrokerUrl, attempt_s: float, tls_ca: str, *, blocked_s: float | None, name: str = "towerws publisher"
) -> Any:
    """Return pika's parameters for one attempt. Each step of connecting takes at most `attempt_s`. The broker shows `name`.

    A broker in a memory or disk alarm blocks connections. pika ends a connection that was blocked for `blocked_s` seconds.
    """
    tls = pika.SSLOptions(ssl.create_default_context(cafile=tls_ca or None), url.host) if url.tls else None
    return pika.ConnectionParameters(
        host=url.host,
        port=url.port,
        virtual_host=url.vhost,
        credentials=pika.PlainCredentials(url.username, url.password.reveal()),
        ssl_options=tls,
        heartbeat=HEARTBEAT_S,
        socket_timeout=attempt_s,
        stack_timeout=attempt_s,
        blocked_connection_timeout=blocked_s,
        connection_attempts=1,
        client_properties={"connection_name": name},
    )


def _refusal(error: Exception) -> str | None:
    """Return why a retry can't help, or None if it may."""
    if isinstance(error, pika_exceptions.ProbableAuthenticationError | pika_exceptions.AuthenticationError):
        return "user name or password is wrong"
    if isinstance(error, pika_exceptions.ProbableAccessDeniedError):
        return "the virtual host does not exist, or the user has no access to it"
    if isinstance(error, pika_exceptions.ChannelClosedByBroker) and error.reply_code in {403, 404, 406}:
        return str(error.reply_text)
    inner = wrapped_error(error)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"TLS failed: {inner.verify_message or inner}; check the certificate, or the authorities that TOWERWS_TLS_CA names"
    if isinstance(inner, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(inner):
        return "TLS failed: that port doesn't speak TLS; amqp:// is for plain TCP"
    return None


def _reason(error: Exception) -> str:
    """Return the reason of a failed attempt. pika wraps it in several exceptions, most of which have no text."""
    if isinstance(error, pika_exceptions.NackError):
        return "a queue did not take the event (nack): is it at its maximum length?"
    inner = wrapped_error(error)
    return str(inner) or repr(inner)


def wrapped_error(error: Exception) -> object:
    """Return the innermost error, which pika wraps in others."""
    inner: object = error
    while isinstance(inner, pika_exceptions.AMQPConnectionError) and len(inner.args) == 1:
        inner = inner.args[0]
    return getattr(inner, "exception", inner)  # AMQPConnectorSocketConnectError and the like carry the OSError


# Only the scheme ignores case. If the whole pattern did, its range beyond ASCII would exclude the letters s and k, too, because U+017F and
# U+212A are their capitals.
_is_admin_url = re.compile(r"(?i:http)://[^\x00-\x20/?#@\x7f-\U0010ffff]+/?").fullmatch


def admin_connection(url: str) -> http.client.HTTPConnection:
    """Return a connection to the admin port at `url`, not opened yet. Raises `ValueError` for any URL but `http://host:port`."""
    parts = urlsplit(url)
    if not _is_admin_url(url) or not parts.hostname:
        raise ValueError("the address of an admin port must be http://host:port, without a user or a path")
    if parts.port == 0 or not all(0 < len(label) < 64 for label in parts.hostname.removesuffix(".").split(".")):
        raise ValueError("the port must be 1 to 65535, and each part of the host's name 1 to 63 characters")
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=ATTEMPT_S)


class AdminPublisher:
    """Publishes through `POST /publish` of a daemon's admin port, over one kept-alive connection."""

    def __init__(self, url: str, tell: Tell, *, patience_s: float | None = None) -> None:
        """`url` is `http://host:port`. Raises `ValueError` for any other URL."""
        self._url = url.rstrip("/")
        self._connection = admin_connection(url)
        self._retry = Retry(tell, patience_s)
        self._tell = tell
        self._warned: set[str] = set()

    def publish(self, topic: str, payload: bytes, message_id: str | None = None) -> None:
        """Post the event. If no answer arrives, post it again with the same id."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": message_id or str(uuid4())}
        body = b'{"topic":%b,"payload":%b}' % (json.dumps(topic).encode("ascii"), payload)
        self._retry.begin()
        while True:
            kept_alive = self._connection.sock is not None
            self._connection.timeout = self._retry.attempt_s()
            if kept_alive:
                self._connection.sock.settimeout(self._connection.timeout)
            try:
                self._connection.request("POST", "/publish", body, headers)
                response = self._connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if kept_alive and isinstance(error, ConnectionError):
                    continue  # the daemon closes idle connections, so try a new one at once
                time.sleep(self._retry.lost(f"{self._url}: {getattr(error, 'strerror', None) or str(error) or repr(error)}"))
                continue
            if response.status == 202:
                self._retry.works()
                self._warn(topic, answer)
                return
            outcome = _text_of(answer, "outcome")
            text = _text_of(answer, "error")
            if outcome == Outcome.UNROUTABLE.value:
                raise NoQueue(f"{self._url}: {text}")
            if response.status < 500 or outcome == Outcome.REFUSED.value:
                raise BrokerError(f"{self._url} refused: {text or f'HTTP status {response.status}'}")
            time.sleep(self._retry.lost(f"{self._url} answers {response.status}{text and f': {text}'}"))

    def _warn(self, topic: str, answer: bytes) -> None:
        """Show the daemon's warning, once per topic, for the first `MAX_WARNINGS` topics."""
        if b'"warning"' in answer and topic not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(topic)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._tell(f"towerws: warning: {json.loads(answer)['warning']}")

    def idle(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _text_of(answer: bytes, name: str) -> str:
    """Return the text with this name in the daemon's answer, empty if there is none."""
    try:
        return str(json.loads(answer)[name])
    except (ValueError, KeyError, TypeError):
        return ""
