"""One connection to one broker, from the attempt to its end. The only module that imports pika.

It runs on the producer's thread, on pika's own event loop, because pika's blocking connection waits for each confirm before it
sends the next message. The other threads call `wake` and `stop` only.

state      | opened              | wake, confirm, return | blocked           | no answer in time  | closed, refused
connecting | -> ready, publish   | -                     | -                 | end (attempt_s)    | end
ready      | -                   | publish               | -> blocked        | end (confirm_s)    | end
blocked    | -                   | -                     | -                 | end (blocked_s)    | end
"""

import logging
import socket
import ssl
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any, Dict, List, Optional, Set, Tuple

import pika
from pika import exceptions as pika_exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from towerws_producer.address import Address
from towerws_producer.buffer import Event
from towerws_producer.errors import Blocked, CredentialsRefused, NoSuchExchange, ProducerError, Refused, Unreachable, Unroutable
from towerws_producer.settings import Settings

BATCH = 8
"""Events per turn of the loop. Each turn ends in a write, which lets other threads run: 8 events are about 0.4 ms of pika."""

TICK_S = 0.5
CLOSE_S = 1.0
"""How long an orderly end may take before the socket is dropped."""

TRANSIENT = 1  # AMQP's delivery_mode: live events are worth nothing after a broker's restart


class Failure:
    """Why a connection ended. `error` is what a waiting `publish` raises. `retryable` is False when waiting is no use."""

    def __init__(self, error: ProducerError, retryable: bool = True, suspect: bool = False, may_not_declare: bool = False) -> None:
        self.error = error
        self.retryable = retryable
        self.suspect = suspect
        """The broker closed the channel because of a message that was in flight."""
        self.may_not_declare = may_not_declare


class Events:
    """What a connection publishes, and whom it tells. The worker provides it; every call comes from the producer's thread."""

    def take(self, most: int) -> List[Event]:
        """Up to `most` events to send now."""
        raise NotImplementedError

    def confirmed(self, events: List[Event]) -> None:
        """The broker has them."""
        raise NotImplementedError

    def failed(self, event: Event, error: ProducerError) -> None:
        """The broker doesn't take this one."""
        raise NotImplementedError

    def ready(self) -> None:
        """Events can be published now."""
        raise NotImplementedError

    def blocked(self, reason: Optional[str]) -> None:
        """The broker takes nothing for this reason; None when it takes events again."""
        raise NotImplementedError


class _Resolved(AbstractIOReference):
    """A look-up that is over."""

    def cancel(self) -> bool:
        """Too late."""
        return False


class _Services(SelectorIOServicesAdapter):
    """pika's I/O, but names are looked up on our thread: pika starts one for that, which Python 3.12 forbids to an ending process."""

    def getaddrinfo(
        self, host: str, port: int, on_done: Any, family: int = 0, socktype: int = 0, proto: int = 0, flags: int = 0
    ) -> AbstractIOReference:
        """Look it up, and report in the loop's next turn."""
        try:
            found: Any = socket.getaddrinfo(host, port, family, socktype, proto, flags)
        except Exception as error:  # noqa: BLE001 - whatever it is, pika is told
            found = error
        self.add_callback_threadsafe(partial(on_done, found))
        return _Resolved()


class Connection:
    """One connection. `run` makes the attempt and returns once it has ended."""

    def __init__(self, address: Address, settings: Settings, events: Events, declare: bool) -> None:
        self._address = address
        self._settings = settings
        self._events = events
        self._declare = declare
        self._loop = IOLoop()
        self._connection: Any = None
        self._channel: Any = None
        self._open = False
        self._ready = False
        self._pumping = False
        self._blocked_since: Optional[float] = None
        self._started = time.monotonic()
        self._tag = 0
        self._unconfirmed: OrderedDict[int, Event] = OrderedDict()
        self._returned: Dict[str, str] = {}
        self._failure: Optional[Failure] = None
        self._stopping = False

    def run(self) -> Failure:
        """Connect, publish, and return why it ended."""
        quiet_pika()
        try:
            self._connection = SelectConnection(
                parameters(self._address, self._settings),
                on_open_callback=self._opened,
                on_open_error_callback=self._not_opened,
                on_close_callback=self._closed,
                custom_ioloop=_Services(self._loop),
            )
            self._loop.call_later(TICK_S, self._tick)
            self._loop.start()
        except Exception as error:  # noqa: BLE001 - pika raises what a damaged stream or a wrong TLS file made of it
            self._failure = self._failure or self._judge(error, "connecting to" if not self._ready else "publishing to")
            self._end_after_error()
        return self._failure or Failure(Unreachable(f"{self._address}: the connection ended"))

    def _end_after_error(self) -> None:
        """pika's loop raised: let it end the connection, which takes another turn or two."""
        if self._connection is not None:
            with suppress(Exception):
                self._give_up()
                self._loop.start()

    def close_loop(self) -> None:
        """Release the loop's descriptors. Nothing may call `wake` after this."""
        self._loop.close()

    def wake(self) -> None:
        """There are events to take. From any thread."""
        self._loop.add_callback_threadsafe(self._pump)

    def stop(self) -> None:
        """End the connection in an orderly way. From any thread."""
        self._loop.add_callback_threadsafe(self._stop)

    # Opening

    def _opened(self, _: Any) -> None:
        self._open = True
        self._connection.add_on_connection_blocked_callback(self._block)
        self._connection.add_on_connection_unblocked_callback(self._unblock)
        self._connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._take_back)
        if self._declare:
            channel.exchange_declare(self._settings.exchange, "topic", durable=True, callback=self._declared)
        else:
            self._declared(None)

    def _declared(self, _: Any) -> None:
        self._channel.confirm_delivery(self._confirm, callback=self._confirming)

    def _confirming(self, _: Any) -> None:
        self._ready = True
        self._events.ready()
        self._pump()

    # Publishing

    def _pump(self) -> None:
        """Send a batch; while batches are full, the next one follows in the loop's next turn."""
        if not self._ready or self._blocked_since is not None or self._failure is not None:
            return
        events = self._events.take(BATCH)
        now = time.monotonic()
        for event in events:
            self._tag += 1
            self._unconfirmed[self._tag] = event
            event.sends += 1
            event.sent_at = now
            self._channel.basic_publish(
                self._settings.exchange,
                event.topic,
                event.body,
                pika.BasicProperties(
                    content_type="application/json",
                    delivery_mode=TRANSIENT,
                    message_id=event.message_id,
                    timestamp=event.timestamp,
                ),
                mandatory=self._settings.mandatory,
            )
        if len(events) == BATCH and not self._pumping:
            self._pumping = True
            self._loop.add_callback_threadsafe(self._pump_again)

    def _pump_again(self) -> None:
        self._pumping = False
        self._pump()

    def _confirm(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        events = [event for event in (self._unconfirmed.pop(tag, None) for tag in tags) if event is not None]
        if isinstance(method, pika.spec.Basic.Nack):
            for event in events:
                self._events.failed(event, Refused(f"a queue behind the exchange {self._settings.exchange!r} did not take the event"))
        elif self._returned:
            self._confirm_some_returned(events)
        elif events:
            self._events.confirmed(events)
        self._pump()

    def _confirm_some_returned(self, events: List[Event]) -> None:
        for event in events:
            error = self._returned.pop(str(event.message_id), None)
            if error is None:
                self._events.confirmed([event])
            else:
                self._events.failed(event, unroutable(self._settings.exchange))

    def _take_back(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        """No queue took it. The confirm follows behind this, and only then is the event done."""
        self._returned[str(properties.message_id)] = str(method.reply_text)

    def _block(self, _: Any, frame: Any) -> None:
        self._blocked_since = time.monotonic()
        self._events.blocked(str(getattr(frame.method, "reason", "") or "no reason given")[:100])

    def _unblock(self, *_: Any) -> None:
        self._blocked_since = None
        now = time.monotonic()
        for event in self._unconfirmed.values():  # the broker did not read meanwhile
            event.sent_at = now
        self._events.blocked(None)
        self._pump()

    # Ending

    def _tick(self) -> None:
        """Look at the deadlines."""
        now = time.monotonic()
        settings = self._settings
        if self._failure is None:
            oldest = next(iter(self._unconfirmed.values()), None)
            if not self._ready:
                if now - self._started > settings.attempt_s:
                    self._end(Failure(Unreachable(f"{self._address}: no answer within {settings.attempt_s:g} s")))
            elif self._blocked_since is not None:
                if now - self._blocked_since > settings.blocked_s:
                    self._end(Failure(Blocked(f"{self._address}: the broker takes no messages (memory or disk alarm)")))
            elif oldest is not None and now - oldest.sent_at > settings.confirm_s:
                self._end(Failure(Unreachable(f"{self._address}: no confirm within {settings.confirm_s:g} s")))
        self._loop.call_later(TICK_S, self._tick)

    def _stop(self) -> None:
        self._stopping = True
        if self._failure is not None:
            return
        self._failure = Failure(Unreachable(f"{self._address}: closed"))
        self._loop.call_later(CLOSE_S, self._give_up)
        try:
            self._connection.close()
        except pika_exceptions.AMQPError:
            self._give_up()

    def _end(self, failure: Failure) -> None:
        """The other side is silent: no goodbye would be answered."""
        self._failure = failure
        self._give_up()

    def _give_up(self) -> None:
        """Drop the socket. pika reports the end through the loop; should it not, the loop ends anyway."""
        self._loop.call_later(CLOSE_S, self._loop.stop)
        self._drop_socket()

    def _drop_socket(self) -> None:
        """While it is opening, `close` drops the connection at once. Later only the transport does, and pika has no public way to it."""
        connection = self._connection
        transport = getattr(connection, "_transport", None)
        try:
            if not self._open and not (connection.is_closing or connection.is_closed):
                connection.close()
            elif transport is not None:
                transport.abort()
        except (pika_exceptions.AMQPError, AssertionError):
            self._loop.stop()  # it is ending already

    def _not_opened(self, _: Any, error: Any) -> None:
        if self._failure is None:
            self._failure = self._judge(error if isinstance(error, BaseException) else Exception(str(error)), "connecting to")
        self._loop.stop()

    def _closed(self, _: Any, error: BaseException) -> None:
        if self._failure is None:
            self._failure = self._judge(error, "publishing to")
        self._loop.stop()

    def _channel_closed(self, _: Any, error: BaseException) -> None:
        """The broker closes the channel over a mistake of ours; the connection alone is of no use."""
        if self._failure is not None:
            return
        self._failure = self._judge(error, "publishing to")
        try:
            self._connection.close()
            self._loop.call_later(CLOSE_S, self._give_up)
        except pika_exceptions.AMQPError:
            self._give_up()

    def _judge(self, error: BaseException, doing: str) -> Failure:
        return judge(error, f"{doing} {self._address}", self._settings.exchange, self._ready)


def unroutable(exchange: str) -> ProducerError:
    """The error of an event that no queue took."""
    return Unroutable(
        f"no queue is bound to the exchange {exchange!r} for this topic: is a towerws daemon running, and does it read from this exchange "
        "and virtual host?"
    )


def judge(error: BaseException, doing: str, exchange: str, ready: bool) -> Failure:
    """Sort what pika says into what a publisher can do about it."""
    inner = _unwrapped(error)
    code, text = _reply(inner)
    if isinstance(inner, (pika_exceptions.ProbableAuthenticationError, pika_exceptions.AuthenticationError)) or (
        not ready and code == 403 and "login" in text.lower()
    ):
        return Failure(CredentialsRefused(f"{doing}: user name or password is wrong"), retryable=False)
    if isinstance(inner, pika_exceptions.ProbableAccessDeniedError) or (
        isinstance(inner, pika_exceptions.ConnectionClosed) and code == 530
    ):
        return Failure(CredentialsRefused(f"{doing}: the virtual host does not exist, or the user may not use it"), retryable=False)
    if isinstance(inner, pika_exceptions.ChannelClosed):
        return _judge_channel(code, text, doing, exchange, ready)
    if isinstance(inner, ssl.SSLError):
        hint = "does that port speak TLS?" if "VERSION" in str(inner).upper() else "check the certificate, or tls_ca"
        return Failure(Refused(f"{doing}: TLS failed: {_short(inner)}; {hint}"), retryable=False)
    return Failure(Unreachable(f"{doing}: {_short(inner)}"))


def _judge_channel(code: int, text: str, doing: str, exchange: str, ready: bool) -> Failure:
    if code == 404:
        return Failure(
            NoSuchExchange(f"{doing}: there is no exchange {exchange!r}: start the towerws daemon, or check `exchange`"),
            retryable=False,
        )
    if code == 403:
        if not ready:  # declaring needs the right to configure; publishing doesn't, where the daemon has declared
            return Failure(Refused(f"{doing}: may not declare the exchange {exchange!r}"), may_not_declare=True)
        return Failure(
            Refused(f"{doing}: the user may not write to the exchange {exchange!r} or to this topic there"),
            retryable=False,
            suspect=True,
        )
    if code == 406 and not ready:
        return Failure(
            NoSuchExchange(f"{doing}: {exchange!r} exists and is no durable topic exchange: choose another `exchange`"),
            retryable=False,
        )
    return Failure(Refused(f"{doing}: the broker refused a message: {text}"), suspect=True)


def _unwrapped(error: BaseException) -> BaseException:
    """pika wraps what happened in several exceptions, most of which have no text."""
    for _ in range(10):
        inner: Any = getattr(error, "exceptions", None)
        if inner:
            inner = inner[-1]
        else:
            inner = getattr(error, "exception", None)
            if inner is None and isinstance(error, pika_exceptions.AMQPConnectionError) and len(error.args) == 1:
                inner = error.args[0]
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def _reply(error: BaseException) -> Tuple[int, str]:
    code = getattr(error, "reply_code", 0)
    return (code if isinstance(code, int) else 0), " ".join(str(getattr(error, "reply_text", "")).split())[:200]


def _short(error: BaseException) -> str:
    if isinstance(error, pika_exceptions.AMQPHeartbeatTimeout):
        return "no heartbeat came"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    code, text = _reply(error)
    if text:
        return f"{text} ({code})"
    return " ".join(str(error).split())[:200] or type(error).__name__


def parameters(address: Address, settings: Settings) -> Any:
    """pika's parameters for one address."""
    options = None
    if address.tls:
        options = pika.SSLOptions(ssl.create_default_context(cafile=settings.tls_ca), address.host)
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.username, address.password),
        ssl_options=options,
        heartbeat=settings.heartbeat_s,
        socket_timeout=settings.connect_s,
        stack_timeout=2 * settings.attempt_s,  # ours comes first, and says more
        connection_attempts=1,
        retry_delay=0,
        client_properties={"connection_name": "towerws-producer"},
    )


class _NotFromOurThread(logging.Filter):
    """Keeps back what pika logs about our connections: pages for each failed attempt, said in one line here."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: Set[Optional[int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.threads


_filter = _NotFromOurThread()
_filtered: Set[str] = set()


def quiet_pika() -> None:
    """Keep pika's log lines from the calling thread back. Those of the application's own pika connections stay as they are."""
    _filter.threads.add(threading.get_ident())
    for name in list(logging.Logger.manager.loggerDict):
        if (name == "pika" or name.startswith("pika.")) and name not in _filtered:
            _filtered.add(name)
            logging.getLogger(name).addFilter(_filter)


def forget_quiet() -> None:
    """The calling thread ends: another one may get its number."""
    _filter.threads.discard(threading.get_ident())


def forget_all_quiet() -> None:
    """After a fork: none of the parent's threads is here."""
    _filter.threads.clear()
