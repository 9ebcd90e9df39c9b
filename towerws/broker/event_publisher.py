"""Publishes the events of `POST /publish` to the exchange, and says what became of each.

It has a connection of its own (`ConfirmedPublisher`): an alarm of the broker blocks connections that publish, and must not touch the one
that consumes. An event that was not confirmed before its connection ended is sent again with the same `message_id`, so daemons deliver
it once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from towerws.broker.confirmed_publisher import ConfirmedPublisher, Endpoint
from towerws.broker.publishing_connection import OutgoingMessage
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishNacked, PublishQueueFull, PublishRefused
from towerws.core.publication import MAX_LINES, Outcome, Publication, Published
from towerws.core.settings import BrokerSettings, BrokerUrl

MAX_WAITING: Final = 10 * MAX_LINES
"""How many events may wait for a confirm: ten full batches."""
MAX_WAITING_BYTES: Final = 16 * 1024**2
"""How many bytes they may have: four full batches, or the largest four events by default."""


class EventPublisher:
    """Publishes events to the exchange of `settings`. `prefer` returns the broker that is known to work, if any."""

    def __init__(
        self,
        settings: BrokerSettings,
        reactor: Any,
        *,
        prefer: Callable[[], BrokerUrl | None],
        max_payload_bytes: int,
        endpoint: Endpoint | None = None,
    ) -> None:
        self._exchange = settings.exchange
        self._publisher = ConfirmedPublisher(
            settings,
            reactor,
            prefer=prefer,
            endpoint=endpoint,
            purpose="publish",
            max_waiting=MAX_WAITING,
            max_waiting_bytes=max(MAX_WAITING_BYTES, max_payload_bytes),
        )

    def publish(self, event: Publication) -> Deferred[Published]:
        """Publish an event. Fires within `confirmed_publisher.CONFIRM_S` with what became of it, and never fails."""
        message_id = event.message_id or secrets.token_hex(16)
        message = OutgoingMessage(self._exchange, event.topic.routing_key, event.payload, message_id)
        if self._publisher.blocked:
            return succeed(self._failed(message, PublishersBlocked("the broker is in a memory or disk alarm: it takes no messages")))
        confirmed = self._publisher.send(message)
        return confirmed.addCallbacks(
            lambda _: Published(Outcome.CONFIRMED, published=True, message_id=message_id),
            lambda failure: self._failed(message, _broker_error(failure)),
        )

    def stop(self) -> Deferred[None]:
        """Answer the events that wait, and close the connection. Fires with None within a second, and never fails."""
        return self._publisher.stop()

    def _failed(self, message: OutgoingMessage, error: BrokerError) -> Published:
        """Judge the failure. A message that was sent without an answer is never reported as not published."""
        text = str(error)
        published: bool | None = False
        if isinstance(error, NotRouted):
            outcome = Outcome.UNROUTABLE
            text = f"no queue is bound to the exchange {self._exchange} for this topic, so the broker dropped the event"
        elif isinstance(error, PublishNacked):
            outcome, published = Outcome.NACKED, None
        elif message.unanswered:
            outcome, published = Outcome.UNKNOWN, None
            text = f"unknown, the event may have been published: {text}; repeat it with the same message_id"
        elif isinstance(error, PublishRefused):
            outcome = Outcome.REFUSED
        elif isinstance(error, PublishersBlocked):
            outcome = Outcome.BLOCKED
        else:
            outcome = Outcome.FULL if isinstance(error, PublishQueueFull) else Outcome.UNAVAILABLE
        return Published(outcome, published, message.message_id, error=text)


def _broker_error(failure: Failure) -> BrokerError:
    failure.trap(BrokerError)
    error = failure.value
    assert isinstance(error, BrokerError)
    return error
