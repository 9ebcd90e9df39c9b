"""One connection to one broker, from the attempt to its end.

It runs on the producer's thread, on pika's own event loop, because pika's blocking connection waits for each confirm before it
sends the next message. The other threads call `wake` and `stop` only.

state      | opened              | wake, confirm, return | blocked           | no answer in time  | closed, refused
connecting | -> ready, publish   | -                     | -                 | end (attempt_s)    | end
ready      | -                   | publish               | -> blocked        | end (confirm_s)    | end
blocked    | -                   | -                     | -                 | end (blocked_s)    | end

An event that the broker does not take (a nack) is sent again after a pause. The pause doubles while nothing that was sent again is
confirmed. Other events go on meanwhile.
"""

import random
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any, Dict, List, Optional

import pika
from pika import exceptions as pika_exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from towerws_producer.address import Address
from towerws_producer.buffer import Event
from towerws_producer.errors import Blocked, ProducerError, Unreachable
from towerws_producer.failures import Failure, judge, nacked, unroutable
from towerws_producer.pika_log import quiet_pika
from towerws_producer.settings import Settings

BATCH = 8
"""Events per turn of the loop. Each turn ends in a write, which lets other threads run: 8 events are about 0.4 ms of pika."""

TICK_S = 0.5
CLOSE_S = 1.0
"""How long an orderly end may take before the socket is dropped."""

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0
RETRY_EVENTS = 100
"""Events that were nacked wait this long before they are sent again, and so many at once: a queue that is full stays full for a while."""

TRANSIENT = 1  # AMQP's delivery_mode: live events are worth nothing after a broker's restart


class Events(ABC):
    """What a connection publishes, and whom it tells. The worker provides it; every call comes from the producer's thread."""

    @abstractmethod
    def take(self, most: int) -> List[Event]:
        """Up to `most` events to send now."""

    @abstractmethod
    def confirmed(self, events: List[Event]) -> None:
        """The broker has them."""

    @abstractmethod
    def failed(self, event: Event, error: ProducerError) -> None:
        """The broker doesn't take this one, and never will."""

    @abstractmethod
    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """The broker doesn't take these for now."""

    @abstractmethod
    def retry(self, most: int) -> bool:
        """Offer up to so many nacked events to `take` again. Whether there are more."""

    @abstractmethod
    def message_id(self, event: Event) -> str:
        """The event's id, which is the same each time that it is sent."""

    @abstractmethod
    def ready(self) -> None:
        """Events can be published now."""

    @abstractmethod
    def blocked(self, reason: Optional[str]) -> None:
        """The broker takes nothing for this reason; None when it takes events again."""


class _Resolved(AbstractIOReference):  # type: ignore[misc]  # pika has no annotations in all of its versions
    """A look-up that is over."""

    def cancel(self) -> bool:
        """Too late."""
        return False


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc]  # as above
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
        self._retry_s = RETRY_MIN_S
        self._retrying = False

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
                    message_id=self._events.message_id(event),
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
        events = self._answered(frame.method)
        if isinstance(frame.method, pika.spec.Basic.Nack):
            self._events.nacked(events, nacked(self._settings.exchange))
            self._retry_later()
        else:
            if any(event.nacks for event in events):
                self._retry_s = RETRY_MIN_S
            if self._returned:
                self._confirm_some_returned(events)
            elif events:
                self._events.confirmed(events)
        self._pump()

    def _answered(self, method: Any) -> List[Event]:
        """The events that a confirm or a nack is about; let go of them here."""
        tags = [method.delivery_tag]
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        return [event for event in (self._unconfirmed.pop(tag, None) for tag in tags) if event is not None]

    def _confirm_some_returned(self, events: List[Event]) -> None:
        for event in events:
            error = self._returned.pop(self._events.message_id(event), None)
            if error is None:
                self._events.confirmed([event])
            else:
                self._events.failed(event, unroutable(self._settings.exchange))

    def _take_back(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        """No queue took it. The confirm follows behind this, and only then is the event done."""
        self._returned[str(properties.message_id)] = str(method.reply_text)

    def _retry_later(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(random.uniform(self._retry_s / 2, self._retry_s), self._retry)  # noqa: S311 - only spreads the attempts
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _retry(self) -> None:
        """Send some again. While there are more, the next ones follow after another pause."""
        self._retrying = False
        if self._events.retry(RETRY_EVENTS):
            self._retry_later()
        self._pump()

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
