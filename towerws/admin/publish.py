"""`POST /publish`: one event for the embedded source.

The body is `{"topic": "job_events.42", "payload": {…}}` or `{"group": "job_events", "event": "42", "payload": {…}}`.
"""

from __future__ import annotations

from collections.abc import Callable

from towerws.admin.endpoint import Answer, HttpError, json_answer
from towerws.core.errors import BadDelivery
from towerws.core.publication import parse_publication

ENVELOPE_BYTES = 1024
"""Bytes that the body of a request may have around its payload."""

_FROM_A_BROKER = (
    "this daemon reads from a broker: publish to its exchange there, with `towerws publish --broker URL` "
    "or any AMQP client (docs/publish.md)"
)


def publish_event(
    body: bytes,
    publish: Callable[[str, bytes], str] | None,
    why_no_subscriber: Callable[[str, str], str | None],
) -> Answer:
    """Publish an event. Answers 202 with its position, and a warning if no client can subscribe to it.

    `publish` takes a routing key and a payload, and returns the position. It raises `BadDelivery`. It is None if the daemon reads
    from a broker. `why_no_subscriber` says why no client can subscribe to a group's event, or returns None.
    """
    if publish is None:
        raise HttpError(404, _FROM_A_BROKER)
    try:
        publication = parse_publication(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    try:
        position = publish(publication.topic.routing_key, publication.payload)
    except BadDelivery as bad:
        raise HttpError(413 if bad.reason == "too_large" else 400, str(bad)) from None
    answer: dict[str, object] = {"position": position}
    if (warning := why_no_subscriber(publication.topic.group, publication.topic.event)) is not None:
        answer["warning"] = warning
    return json_answer(202, answer)
