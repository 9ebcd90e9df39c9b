"""What one open connection does: learn where the stream stands, attach the sink, consume; and again when the broker takes
the channel away.

Where consuming starts in a stream, measured on RabbitMQ 3.10.8:

  the sink holds        | scouted                 | start          | live when              | nothing comes in time
  nothing               | no stream, or no answer | now - refill_s | consume-ok             |
  nothing               | last chunk at C         | now - refill_s | C or later arrived     | 0.5 s: start at C
  the delivery at n     | no stream               | first          | consume-ok             |
  the delivery at n     | a stream                | n              | n or later arrived     | 1 s: start at now - refill_s

A timestamp behind the last chunk, and one in an empty stream, mean "next". A number behind the end of the stream delivers
nothing before that number is reached, so a stream that another process made anew would stay mute: hence the last line. The
delivery at n is asked for once more, to let the sink see that it is the same log.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from pika import exceptions as pika_exceptions
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.consumer import Consumer, Feed, by_the_link
from towerws.broker.content import Content
from towerws.broker.link import Link
from towerws.broker.loss import Cure, Loss
from towerws.broker.topology import Mode
from towerws.core.settings import BrokerSettings

PROBE_S: Final = 0.3  # a stream that holds anything answered in 2.4 ms
HEAD_S: Final = 0.5
RESUME_S: Final = 1.0
RESTARTS: Final = 3
RESTARTS_S: Final = 60.0


class SubscriptionEvents(Protocol):
    """What a subscription tells its owner. Nothing after `subscription_failed` or `close`."""

    def subscription_refilling(self) -> None:
        """Consuming; history is being filled up to where the log stood."""

    def subscription_live(self) -> None:
        """Deliveries come as they are published."""

    def subscription_restarted(self, loss: Loss) -> None:
        """The channel was lost, a new one is being set up on the same connection."""

    def subscription_failed(self, loss: Loss) -> None:
        """This connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to start consuming; live once the delivery at `until` arrived (None: at once), else `otherwise` after `wait_s`."""

    at: object = None
    until: int | None = None
    expect: int | None = None
    wait_s: float = 0
    otherwise: Start | None = None


class Subscription:
    """See the module. `wall` gives the time of day in UTC, which is what the broker's timestamps are compared with."""

    _log = Logger()

    def __init__(
        self,
        link: Link,
        mode: Mode,
        settings: BrokerSettings,
        feed: Feed,
        reactor: interfaces.IReactorTime,
        wall: Callable[[], dt.datetime],
        events: SubscriptionEvents,
    ) -> None:
        self._link = link
        self._mode = mode
        self._settings = settings
        self._feed = feed
        self._reactor = reactor
        self._wall = wall
        self._events = events
        self._closed = False
        self._live = False
        self._scout: Any = None
        self._start = Start()
        self._consumer: Consumer | None = None
        self._timer: interfaces.IDelayedCall | None = None
        self._seen: int | None = None
        self._restarts: deque[float] = deque(maxlen=RESTARTS)

    def begin(self) -> None:
        """Set everything up; ends in `subscription_live` or `subscription_failed`, unless the connection dies or `close` is called."""
        self._live = False
        if self._mode is Mode.QUEUE:
            self._consume(Start())
            return
        resume = self._feed.sink.resume_from() if self._feed.attached is Mode.STREAM else None
        self._scout = self._link.open_channel(lambda channel: self._scout_opened(channel, resume), self._probed)
        self._scout.add_on_close_callback(lambda channel, reason: self._scout_closed(channel, reason, resume))

    def end_read(self) -> None:
        """One read from the socket was handled."""
        consumer = self._consumer
        if consumer is None:
            return
        consumer.end_read()
        until = self._start.until
        if not self._live and until is not None and consumer.offset is not None and consumer.offset >= until:
            self._go_live()

    def close(self) -> None:
        """Acknowledge and end the channel; nothing reaches the sink any more."""
        self._closed = True
        self._stop_timer()
        self._interrupted()
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    # ConsumerEvents

    def consumer_ok(self) -> None:
        """Attach the sink before the first delivery."""
        feed, start = self._feed, self._start
        self._stop_timer()
        if self._mode is Mode.STREAM:
            feed.sink.attach(None, start.expect)
        elif feed.attached is not Mode.QUEUE:
            feed.sink.attach(feed.log, None)
        if feed.interrupted and (self._mode is Mode.QUEUE or feed.attached is Mode.QUEUE):
            feed.sink.gap("broker")
        feed.attached, feed.interrupted = self._mode, False
        self._events.subscription_refilling()
        if start.until is None:
            self._go_live()
        else:
            self._seen = None
            self._timer = self._reactor.callLater(start.wait_s, self._waited)

    def consumer_lost(self, loss: Loss) -> None:
        """Again on a new channel; or give the connection up when that happens too often or was refused."""
        self._consumer = None
        self._stop_timer()
        self._interrupted()
        now = self._reactor.seconds()
        worn_out = len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_S
        if not self._live or worn_out:
            self._fail(replace(loss, cure=Cure.SOON) if worn_out else loss)
            return
        self._restarts.append(now)
        self._events.subscription_restarted(loss)
        self.begin()

    # the scout: a channel that looks before the other one touches anything

    def _scout_opened(self, channel: Any, resume: int | None) -> None:
        if self._closed:
            return
        if resume is not None:
            channel.queue_declare(self._settings.stream, passive=True, callback=lambda _: self._scouted(resume, missing=False))
            return
        channel.basic_qos(prefetch_count=1, callback=lambda _: None)
        channel.basic_consume(
            self._settings.stream, by_the_link, arguments={"x-stream-offset": "last"}, callback=lambda _: self._wait_for_probe()
        )

    def _wait_for_probe(self) -> None:
        if self._scout is not None and not self._closed:
            self._timer = self._reactor.callLater(PROBE_S, self._probe_waited)

    def _probe_waited(self) -> None:
        self._timer = None
        self._scouted(None, missing=False)

    def _probed(self, _tag: int, _routing_key: str, content: Content, _body: bytes) -> None:
        if self._scout is not None and content.offset is not None:
            self._scouted(None, missing=False, head=content.offset)

    def _scout_closed(self, channel: object, reason: Exception, resume: int | None) -> None:
        # "No queue" is an answer (404 alone is not: also a queue whose node is just coming up). Any other refusal the
        # consumer's channel meets again, and reports.
        if channel is self._scout:
            missing = (
                isinstance(reason, pika_exceptions.ChannelClosedByBroker) and reason.reply_code == 404 and "no queue" in reason.reply_text
            )
            self._scouted(resume, missing=missing)

    def _scouted(self, resume: int | None, *, missing: bool, head: int | None = None) -> None:
        scout, self._scout = self._scout, None
        if scout is None or self._closed:
            return
        self._stop_timer()
        if scout.is_open:
            scout.close()
        now_less_refill = Start(self._wall() - dt.timedelta(seconds=self._settings.refill_s))
        if resume is None and head is None:
            start = now_less_refill
        elif resume is None:
            start = replace(now_less_refill, until=head, wait_s=HEAD_S, otherwise=Start(head, until=head, wait_s=self._settings.attempt_s))
        elif missing:
            start = Start("first", expect=resume)
        else:
            start = Start(resume, until=resume, expect=resume, wait_s=RESUME_S, otherwise=replace(now_less_refill, expect=resume))
        self._consume(start)

    # consuming

    def _consume(self, start: Start) -> None:
        self._start = start
        self._consumer = Consumer(self._link, self._mode, start.at, self._settings, self._feed, self._reactor, self)
        self._timer = self._reactor.callLater(self._settings.attempt_s, self._unanswered)

    def _unanswered(self) -> None:
        self._timer = None
        self._fail(Loss(f"topology: no answer from the broker within {self._settings.attempt_s:g} s"))

    def _waited(self) -> None:
        """What the start waits for has not arrived: start otherwise if nothing came at all, else wait while there is progress."""
        self._timer = None
        consumer, start = self._consumer, self._start
        if consumer is None:
            return
        if consumer.offset is None and start.otherwise is not None:
            consumer.close()
            self._consume(start.otherwise)
        elif consumer.offset != self._seen:
            self._seen = consumer.offset
            self._timer = self._reactor.callLater(self._settings.attempt_s, self._waited)
        else:
            self._log.warn("refill stopped at offset {offset} before {until}; going on", offset=consumer.offset, until=start.until)
            self._go_live()

    def _go_live(self) -> None:
        self._live = True
        self._stop_timer()
        self._feed.sink.caught_up()
        self._events.subscription_live()

    def _fail(self, loss: Loss) -> None:
        self.close()
        self._events.subscription_failed(loss)

    def _interrupted(self) -> None:
        """Deliveries stopped coming: a queue's are lost from here on."""
        self._feed.interrupted = self._feed.attached is not None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
