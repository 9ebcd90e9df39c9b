"""Sends events on an open channel and handles the broker's answers: confirmed, returned, or nacked.

A nacked event is sent again after a pause. The pause doubles until an event that was sent again is confirmed. Other events go on
meanwhile.

A broker that has just started accepts connections before its streams take messages. Until then it returns the messages. RabbitMQ 3.10.8
returned them for 40 to 80 ms, and on a busy machine for more than 400 ms. So after a lost or failed connection the first event is sent
alone. While the broker returns it, it is sent again, for up to `ROUTE_S`. The other events wait behind it.
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
"""Most events in one iteration of the loop. 8 events take pika about 0.4 ms. The write of each one lets other threads run."""

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0
RETRY_EVENTS = 100
"""The pause before nacked events are sent again, and how many are sent at once. A full queue usually stays full for a while."""

ROUTE_S = 15.0
ROUTE_PAUSE_S = 0.1
"""How long an event waits for a queue, and the pause between two attempts. A daemon binds a lost stream again within 12 s."""

TRANSIENT = 1  # AMQP's delivery_mode: live events need not survive a broker's restart


class Events(ABC):
    """The events of a connection, and its callbacks. The worker implements it. Every call comes from the producer's thread."""

    @abstractmethod
    def take(self, most: int) -> List[Event]:
        """Return up to `most` events to send now."""

    @abstractmethod
    def confirmed(self, events: List[Event]) -> None:
        """Handle events that the broker has confirmed."""

    @abstractmethod
    def failed(self, event: Event, error: ProducerError) -> None:
        """Handle an event that the broker will always refuse."""

    @abstractmethod
    def returned(self, event: Event) -> None:
        """Handle an event that no queue takes yet. `take` returns it next."""

    @abstractmethod
    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """Handle events that the broker has nacked. `retry` sends them again."""

    @abstractmethod
    def retry(self, most: int) -> bool:
        """Let `take` return up to `most` nacked events again. Returns whether there are more of them."""

    @abstractmethod
    def message_id(self, event: Event) -> str:
        """Return the event's id, which is the same for every copy."""

    @abstractmethod
    def ready(self) -> None:
        """Note that events can be published now."""

    @abstractmethod
    def blocked(self, reason: Optional[str]) -> None:
        """Note that the broker accepts no messages for this reason. None: it accepts them again."""


class Publishing:
    """The events in flight on one channel. Between `start` and `pause` it sends available events.

    `again`: whether an earlier connection was lost or failed, so that the broker may have just started.
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
        """Whether a queue took an event, or the wait for a queue is over."""
        self._route_until: Optional[float] = None
        """When the wait for a queue ends, by the monotonic clock. None before the first return."""
        self._route_pause = False
        """Whether a pause before the next attempt is under way."""

    @property
    def waits_since(self) -> Optional[float]:
        """When the oldest event in flight was sent, by the monotonic clock. None if no event is in flight."""
        oldest = next(iter(self._unconfirmed.values()), None)
        return None if oldest is None else oldest.sent_at

    def confirm_on(self, channel: Any, callback: Any) -> None:
        """Ask the broker for confirms on this channel, and call back once it agrees."""
        self._channel = channel
        channel.add_on_return_callback(self._take_back)
        channel.confirm_delivery(self._confirm, callback=callback)

    def start(self) -> None:
        """Start sending. The timeout of each confirm begins again, because a broker that was blocked did not read."""
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
        # If `_send` dropped an event, no confirm may come that would call `pump` again.
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
        self._tag += 1  # the delivery tag: the broker counts the messages that it gets on the channel
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
        """Remove the events that a confirm or a nack names, and return them."""
        tags = [method.delivery_tag]
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        return [event for event in (self._unconfirmed.pop(tag, None) for tag in tags) if event is not None]

    def _confirm_some_returned(self, events: List[Event]) -> None:
        """Handle confirmed events of which the broker has returned some: a returned event is confirmed, too."""
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
        """Whether a returned event is sent again: for `ROUTE_S` seconds from the first return, unless a queue has taken an event."""
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
        """Note that no queue took an event. Its confirm follows, and `_confirm_some_returned` handles it then."""
        self._returned[properties.message_id, method.routing_key] += 1

    def _retry_later(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(random.uniform(self._retry_s / 2, self._retry_s), self._retry)  # noqa: S311 - only spreads the attempts
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _retry(self) -> None:
        """Send nacked events again. If there are more than `RETRY_EVENTS`, the others follow after another pause."""
        self._retrying = False
        if self._events.retry(RETRY_EVENTS):
            self._retry_later()
        self.pump()


def _encoding_error(properties: Any) -> Optional[Exception]:
    """Return why the properties can't be encoded. None if they can be: then the connection has another fault, and the event stays."""
    try:
        pika.frame.Header(1, 0, properties).marshal()
    except Exception as error:  # noqa: BLE001 - it may be an error of a codec, of pika or of `struct`
        return error
    return None
