"""The daemon's rules for topics: a group, a dot, an event (`job_events.42`). AWX writes `job_events-42`.

The producer checks the rules, too, so that the publisher gets an error for a wrong name, and not only the daemon skips the message. An
event is printable ASCII without `.`, `*`, `#`, double quotes and backslashes, so that no topic is a pattern on the broker.
"""

import re

from towerws_producer.errors import BadTopic

MAX_GROUP_BYTES = 64
MAX_EVENT_BYTES = 128

_GROUP = r"[A-Za-z0-9_]{1,%d}" % MAX_GROUP_BYTES
_EVENT = r"[!$-)+,/-\[\]-~-]{1,%d}" % MAX_EVENT_BYTES  # printable, without " # * . \

_is_topic = re.compile(_GROUP + r"\." + _EVENT).fullmatch
_is_group = re.compile(_GROUP).fullmatch


def check_topic(topic: str) -> str:
    """Return the topic. Raises `BadTopic` with the broken rule."""
    if not isinstance(topic, str):
        raise BadTopic(f"a topic is text, group.event; this is a {type(topic).__name__}")
    if _is_topic(topic):
        return topic
    group, dot, event = topic.partition(".")
    if not dot:
        raise BadTopic(f"topic {topic[:80]!r} has no dot: expected group.event")
    if not _is_group(group):
        raise BadTopic(f"group {group[:80]!r}: expected 1 to {MAX_GROUP_BYTES} of A-Z a-z 0-9 _")
    raise BadTopic(f'event {event[:80]!r}: expected 1 to {MAX_EVENT_BYTES} printable ASCII characters without . * # " \\')


def topic_of_flat_name(name: str) -> str:
    """Return the topic of a name with a dash: `job_events.42` for `job_events-42`. It is split at the first dash. Raises `BadTopic`."""
    group, dash, event = name.partition("-")
    if not dash:
        raise BadTopic(f"name {name[:80]!r} has no '-': expected group-event")
    return check_topic(group + "." + event)
