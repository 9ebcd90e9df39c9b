"""The claim that lists what may be listened to.

Two ways to write the same: `{"jobs": ["status_changed"], "job_events": ["*"]}` or `["jobs.status_changed", "job_events.*"]`.
A topic is granted as it stands, or with all others of its group by `*` as event. There is no other pattern, and none for
groups: a token can't grant what did not exist when somebody decided about it, but in a group that it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """The grants that a setting lists. `ValueError`, with a fixed text, when it is not written as said above."""
    names: Iterable[object]
    if isinstance(value, dict):
        names = _flatten(value)
    elif isinstance(value, list | tuple):
        names = value
    else:
        raise ValueError('neither {"group": ["event"]} nor ["group.event"]')
    grants, others = _collect(names)
    if others:
        raise ValueError(others[0])
    return grants


def read_claim(value: object) -> tuple[Grants, int]:
    """The grants in a token's claim, and how many of its entries are no topics: those grant nothing.

    Identity providers write groups of their own into the same claim (`/keycloak/group`). `ValueError` when the whole is neither a
    table nor a list, or too long.
    """
    if not isinstance(value, dict | list):
        raise ValueError('neither {"group": ["event"]} nor ["group.event"]')
    grants, others = _collect(_flatten(value) if isinstance(value, dict) else value)
    return grants, len(others)


def _collect(names: Iterable[object]) -> tuple[Grants, list[str]]:
    """What is granted by the entries that are topics, and what is wrong with each of the others."""
    topics, groups, others = set(), set(), []
    for count, name in enumerate(names):
        if count >= MAX_GRANTS:
            raise ValueError(f"more than {MAX_GRANTS} topics")
        if not isinstance(name, str):
            others.append("a topic that is not text, or a group whose events are not a list of text and whole numbers")
            continue
        group, _, event = name.partition(".")
        if event == "*" and is_group(group):
            groups.add(group)
        elif is_routing_key(name):
            topics.add(name)
        else:
            others.append("a name that is no topic: expected group.event or group.*")
    return Grants(frozenset(topics), frozenset(groups)), others


def _flatten(table: dict[object, object]) -> Iterator[str | None]:
    """The names of a table; None for what can be none."""
    for group, events in table.items():
        if not isinstance(events, list):
            yield None
            continue
        for event in events:
            plain = isinstance(event, str | int) and not isinstance(event, bool)
            yield f"{group}.{event}" if plain else None
