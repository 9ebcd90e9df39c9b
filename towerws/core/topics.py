"""Topics: what an event is about, and the three ways to write that down.

A topic is a *group* (`job_events`) and an *event* (`42`, `status_changed`). Producers write it as an AMQP routing key,
`job_events.42`; AWX and its clients as a flat name, `job_events-42`, split at the first `-` since a group never holds one.
The core uses the routing key as the topic's identity: it is what every delivery brings along, so that the hot path neither
builds nor hashes anything else.

Names are plain data: printable ASCII without `.`, `*`, `#`, quotes or backslashes, so that none of them can ever be a
pattern on the broker or needs escaping in JSON.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_GROUP_BYTES = 64
MAX_EVENT_BYTES = 128
MAX_ROUTING_KEY_BYTES = 255  # AMQP 0-9-1 section 4.2.5.3, short string

_GROUP = rf"[A-Za-z0-9_]{{1,{MAX_GROUP_BYTES}}}"
_EVENT = rf"""[!$-)+,/-\[\]-~-]{{1,{MAX_EVENT_BYTES}}}"""  # printable, without " # * . \

_is_group = re.compile(_GROUP).fullmatch
_is_event = re.compile(_EVENT).fullmatch
_is_routing_key = re.compile(rf"{_GROUP}\.{_EVENT}").fullmatch


class Topic(NamedTuple):
    """A group and an event. Both follow this module's rules when made by `parse_routing_key` or `parse_flat_name`."""

    group: str
    event: str

    @property
    def routing_key(self) -> str:
        """`job_events.42`: the topic's identity in the core and on the broker."""
        return f"{self.group}.{self.event}"

    @property
    def flat_name(self) -> str:
        """`job_events-42`: the name that AWX's `groups_…` replies use (awx/main/consumers.py)."""
        return f"{self.group}-{self.event}"


def is_group(text: str) -> bool:
    """Whether `text` can be a group's name."""
    return _is_group(text) is not None


def is_event(text: str) -> bool:
    """Whether `text` can be an event's name."""
    return _is_event(text) is not None


def is_routing_key(text: str) -> bool:
    """Whether `text` is the routing key of a topic. A bare group (AWX's `metrics`) is not: nobody can subscribe to it."""
    return _is_routing_key(text) is not None


def parse_routing_key(text: str) -> Topic:
    """The topic of a routing key; `ValueError` names what is wrong with any other text."""
    return _parse(text, ".", "routing key")


def parse_flat_name(text: str) -> Topic:
    """The topic of AWX's flat name, split at the first `-`; `ValueError` names what is wrong with any other text."""
    return _parse(text, "-", "flat name")


def flat_name(routing_key: str) -> str:
    """AWX's flat name of a topic that is given by its routing key."""
    return routing_key.replace(".", "-", 1)


def _parse(text: str, separator: str, kind: str) -> Topic:
    group, found, event = text.partition(separator)
    if not found:
        raise ValueError(f"{kind} {text[:80]!r} has no {separator!r}: expected group{separator}event")
    if not is_group(group):
        raise ValueError(f"group {group[:80]!r}: expected 1 to {MAX_GROUP_BYTES} of A-Z a-z 0-9 _")
    if not is_event(event):
        raise ValueError(f'event {event[:80]!r}: expected 1 to {MAX_EVENT_BYTES} printable ASCII characters without . * # " \\')
    return Topic(group, event)
