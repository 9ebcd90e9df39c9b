"""One page of history, as JSON: the answer to `GET /history`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from towerws.core.deliveries import Delivery
from towerws.core.payload import is_plain_object
from towerws.core.requests import Denied
from towerws.core.wire import V1, Gap

MAX_EVENTS = 1000
DEFAULT_EVENTS = 100

MAX_PAGE_BYTES = 256 * 1024
"""Bound of a page, as `History.after` counts. A larger event comes alone."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some deliveries, and the position from which the next page goes on ("" where no client can resume)."""

    deliveries: list[Delivery]
    next: str
    gap: Gap | None
    """What is lost between the last delivery and `next`."""
    complete: bool
    """Whether there is nothing more now."""


def page_json(page: HistoryPage, denied: list[Denied], *, recovered: bool | None) -> bytes:
    """Write a page. `recovered` is as in `subscribed`: false if the client's position is not in history, None if it gave none."""
    gap = None if page.gap is None else V1.gap(page.gap)
    rest = {
        "next": page.next or None,
        "complete": page.complete,
        "recovered": recovered,
        "denied": [{"topic": f"{item.group}.{item.item}", "reason": item.reason} for item in denied],
    }
    events = b",".join(map(_event, page.deliveries))
    tail = json.dumps(rest, separators=(",", ":"))[1:].encode("ascii")
    return b'{"events":[%b],"gap":%b,%b\n' % (events, gap or b"null", tail)


def _event(delivery: Delivery) -> bytes:
    """Write the event of `towerws.v1`. One whose payload a strict parser may refuse has it as `text`, so that the page stays JSON."""
    if is_plain_object(delivery.payload):
        return V1.event(delivery)
    text = json.dumps(delivery.payload.decode()).encode("ascii")
    group, _, event = delivery.topic.partition(".")
    head = f'{{"type":"event","position":"{delivery.position}","group":"{group}","event":"{event}","payload":null,"text":'
    return b"%b%b}" % (head.encode("ascii"), text)
