"""Searches history for the console: the newest events, and the newest topics. Each search has a bound in deliveries and in bytes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from towerws.core.deliveries import Delivery
from towerws.core.history import History
from towerws.core.topics import WITHHELD

MAX_EVENTS = 200
"""The most events in one answer."""

SEARCHED = 5000
"""How many of the newest deliveries one search reads: 2.2 ms with 1,000 bytes each."""

SEARCHED_BYTES = 16 * 1024 * 1024
"""How many bytes of payloads one search reads: 5.6 ms."""

MAX_TOPICS = 200


class Found(NamedTuple):
    """The result of a search, the newest event first."""

    events: list[Delivery]
    complete: bool
    """Whether these are all events that were asked for and are still held. Otherwise older ones were left out."""


def find_events(history: History, *, after: int = -1, group: str = "", text: str = "") -> Found:
    """Return the newest events whose `seq` is larger than `after`, of this group (empty: of all).

    `text` must be in the topic or in the payload, written exactly so.
    """
    wanted = text.encode()
    events: list[Delivery] = []
    size = 0
    for count, delivery in enumerate(history.newest_first()):
        if delivery.seq <= after:
            break
        if count >= SEARCHED or len(events) >= MAX_EVENTS or size >= SEARCHED_BYTES:
            return Found(events, complete=False)
        topic = delivery.topic
        if topic in WITHHELD or (group and topic.partition(".")[0] != group):
            continue
        if wanted and text not in topic:
            size += len(delivery.payload)
            if wanted not in delivery.payload:
                continue
        events.append(delivery)
    return Found(events, complete=True)


def count_topics(history: History) -> list[tuple[str, int, Delivery]]:
    """Return the topics of the newest `SEARCHED` deliveries, at most `MAX_TOPICS`: each with its events there, and the newest one."""
    counts: Counter[str] = Counter()
    newest: dict[str, Delivery] = {}
    for delivery, _ in zip(history.newest_first(), range(SEARCHED), strict=False):
        if delivery.topic not in WITHHELD:
            counts[delivery.topic] += 1
            newest.setdefault(delivery.topic, delivery)
    return [(topic, counts[topic], delivery) for topic, delivery in list(newest.items())[:MAX_TOPICS]]
