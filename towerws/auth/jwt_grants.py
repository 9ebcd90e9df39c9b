"""The claim that lists what may be listened to.

Two ways to write the same: `{"jobs": ["status_changed"], "job_events": ["*"]}` or `["jobs.status_changed", "job_events.*"]`.
A topic is granted as it stands, or with all others of its group by `*` as event. There is no other pattern, and none for
groups: a token can't grant what did not exist when somebody decided about it, but in a group that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from towerws.core.topics import is_group, is_routing_key

MAX_GRANTS = 10_000


@dataclass(frozen=True, slots=True)
class Grants:
    """What one credential allows: topics by routing key, and whole groups."""

    topics: frozenset[str] = field(default=frozenset(), repr=False)
    groups: frozenset[str] = field(default=frozenset(), repr=False)

    def allow(self, routing_key: str) -> bool:
        """Whether this topic may be listened to. `job_events.*` (all of a group) is allowed where the whole group is granted."""
        return routing_key in self.topics or routing_key.partition(".")[0] in self.groups


def parse_grants(value: object) -> Grants:
    """The grants that a claim or a setting lists. `ValueError`, with a fixed text, when it is not written as said above."""
    if isinstance(value, dict):
        names = _flatten(value)
    elif isinstance(value, list | tuple):
        names = value
    else:
        raise ValueError('neither {"group": ["event"]} nor ["group.event"]')
    topics, groups = set(), set()
    for count, name in enumerate(names):
        if count >= MAX_GRANTS:
            raise ValueError(f"more than {MAX_GRANTS} topics")
        if not isinstance(name, str):
            raise ValueError("a topic that is not text")
        group, _, event = name.partition(".")
        if event == "*" and is_group(group):
            groups.add(group)
        elif is_routing_key(name):
            topics.add(name)
        else:
            raise ValueError("a name that is no topic: expected group.event or group.*")
    return Grants(frozenset(topics), frozenset(groups))


def _flatten(table: dict[object, object]) -> Iterable[str]:
    for group, events in table.items():
        if not isinstance(events, list):
            raise ValueError("a group whose events are not a list")
        for event in events:
            if isinstance(event, bool) or not isinstance(event, str | int):
                raise ValueError("an event that is neither text nor a whole number")
            yield f"{group}.{event}"
