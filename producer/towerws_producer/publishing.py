"""Sends events on an open channel and sorts the broker's answers: confirmed, returned, or nacked.

An event that the broker refuses for now (a nack) is sent again after a pause. The pause doubles while no repeated event is
confirmed. Other events go on meanwhile.

A broker that has just started accepts connections before its streams take messages. Until then it returns what is published.
RabbitMQ 3.10.8 did so for 40 to 80 ms, and on a busy machine for more than 400 ms. After a lost or failed connection the first event is
therefore sent alone, and again while it is returned, for up to `ROUTE_S`. The others wait behind it.
"""

import random
import time
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from typing import Any, List, Optional, Tuple

import pika

from towerws_producer.buffer import Event
from towerws_producer.errors import ProducerError
from towerws_producer.failures import cant_be_carried, nacked, unroutable
from towerws_producer.settings import Settings

BATCH = 8
"""Events per iteration of the loop. Each ends in a write, which lets other threads run: 8 events are about 0.4 ms of pika."""

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0
RETRY_EVENTS = 100
"""Seconds before nacked events are sent again, and how many at once: a full queue usually stays full for a while."""

ROUTE_S = 15.0
ROUTE_PAUSE_S = 0.1
"""Seconds to wait for a queue, and between two attempts. A daemon binds a lost stream again within 12 s."""

TRANSIENT = 1  # AMQP's delivery_mode: live events are worth nothing after a broker's restart


class Events(ABC):
    """The events of a connection, and its callbacks. The worker implements it. Every call comes from the producer's thread."""

    @abstractmethod
    def take(self, most: int) -> List[Event]:
        """Up to `most` events to send now."""

    @abstractmethod
    def confirmed(self, events: List[Event]) -> None:
        """The broker has confirmed them."""

    @abstractmethod
    def failed(self, event: Event, error: ProducerError) -> None:
        """The broker refuses this one, and will always do so."""

    @abstractmethod
    def returned(self, event: Event) -> None:
        """No queue takes this one yet. It is the next that `take` gives."""

    @abstractmethod
    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """The broker refuses these for now."""

    @abstractmethod
    def retry(self, most: int) -> bool:
        """Offer up to `most` nacked events to `take` again. Returns whether there are more."""

    @abstractmethod
    def message_id(self, event: Event) -> str:
        """The event's id, which is the same for every copy."""

    @abstractmethod
    def ready(self) -> None:
        """Events can be published now."""

    @abstractmethod
    def blocked(self, reason: Optional[str]) -> None:
        """The broker accepts nothing for this reason, or None once it accepts events again."""


class Publishing:
    """The events in flight on one channel. Between `start` and `pause` it sends available events.

    `again` says that a connection was lost or failed before: the broker may have just started.
    """

    def __init__(self, settings: Settings, events: Events, loop: Any, again: bool = False) -> None:
        self._settings = settings
        self._events = events
        self._loop = loop
        self._channel: Any = None
        self._running = False
        self._pumping = False
        self._tag = 0
        self._unconfirmed: OrderedDict[int, Event] = OrderedDict()
        self._returned: Counter[Tuple[str, str]] = Counter()
        """How many events in flight were returned, by id and topic. A caller may give an id twice."""
        self._retry_s = RETRY_MIN_S
        self._retrying = False
        self._routed = not again
        """Whether a queue took an event, or is no longer waited for."""
        self._route_until: Optional[float] = None
        self._route_pause = False

    @property
    def waits_since(self) -> Optional[float]:
        """The time when the oldest event in flight was sent, by the monotonic clock. None if there is none."""
        oldest = next(iter(self._unconfirmed.values()), None)
        return None if oldest is None else oldest.sent_at

    def confirm_on(self, channel: Any, callback: Any) -> None:
        """Ask the broker for confirms on this channel, and call back once it agrees."""
        self._channel = channel
        channel.add_on_return_callback(self._take_back)
        channel.confirm_delivery(self._confirm, callback=callback)

    def start(self) -> None:
        """Start sending. Each confirm gets its full time from now on: a broker that was blocked did not read."""
        self._running = True
        self._route_until = None
        now = time.monotonic()
        for event in self._unconfirmed.values():
            event.sent_at = now
        self.pump()

    def pause(self) -> None:
        """Stop sending."""
        self._running = False

    def pump(self) -> None:
        """Send a batch. After a full batch the next one follows in the loop's next iteration."""
        if not self._running or self._route_pause or not (self._routed or not self._unconfirmed):
            return
        events = self._events.take(BATCH if self._routed else 1)
        now = time.monotonic()
        sent = 0
        for event in events:
            event.sends += 1
            event.sent_at = now
            sent += self._send(event)
        # After a dropped event no confirm may come that sends the next one.
        if (len(events) == BATCH or sent < len(events)) and not self._pumping:
            self._pumping = True
            self._loop.add_callback_threadsafe(self._pump_again)

    def _send(self, event: Event) -> bool:
        """Send an event. False if AMQP can't carry it: the event is dropped, because it would end each later connection, too."""
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=TRANSIENT,
            message_id=self._events.message_id(event),
            timestamp=event.emitted_ms // 1000,
            headers={"timestamp_in_ms": event.emitted_ms},  # the name of RabbitMQ's own header
        )
        try:
            self._channel.basic_publish(self._settings.exchange, event.topic, event.body, properties, mandatory=self._settings.mandatory)
        except Exception:
            error = _encoding_error(properties)
            if error is None:
                raise
            self._events.failed(event, cant_be_carried(error))
            return False
        self._tag += 1  # the broker counts what it gets
        self._unconfirmed[self._tag] = event
        return True

    def _pump_again(self) -> None:
        self._pumping = False
        self.pump()

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
                self._routed = True
                self._events.confirmed(events)
        self.pump()

    def _answered(self, method: Any) -> List[Event]:
        """The events that a confirm or a nack names. They are removed here."""
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
            place = self._events.message_id(event), event.topic
            if not self._returned[place]:
                self._routed = True
                self._events.confirmed([event])
                continue
            self._returned[place] -= 1
            if not self._returned[place]:
                del self._returned[place]
            if self._waits_for_a_queue():
                self._events.returned(event)
                self._route_pause = True
                self._loop.call_later(ROUTE_PAUSE_S, self._try_the_route)
            else:
                self._events.failed(event, unroutable(self._settings.exchange))

    def _waits_for_a_queue(self) -> bool:
        """Whether a returned event is sent again. The time counts from the first return."""
        if not self._routed:
            now = time.monotonic()
            if self._route_until is None:
                self._route_until = now + ROUTE_S
            self._routed = now >= self._route_until
        return not self._routed

    def _try_the_route(self) -> None:
        self._route_pause = False
        self.pump()

    def _take_back(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        """No queue took it. Its confirm follows, and only then is the event done."""
        self._returned[properties.message_id, method.routing_key] += 1

    def _retry_later(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(random.uniform(self._retry_s / 2, self._retry_s), self._retry)  # noqa: S311 - only spreads the attempts
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _retry(self) -> None:
        """Send some again. If there are more, they follow after another pause."""
        self._retrying = False
        if self._events.retry(RETRY_EVENTS):
            self._retry_later()
        self.pump()


def _encoding_error(properties: Any) -> Optional[Exception]:
    """Why the properties can't be encoded. None if they can be: the connection has another fault, and the event stays."""
    try:
        pika.frame.Header(1, 0, properties).marshal()
    except Exception as error:  # noqa: BLE001 - a codec's, pika's, or one of `struct`
        return error
    return None
