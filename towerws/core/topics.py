"""Topics: the three ways to write one, and the groups with the events that a client may name in each.

A topic is a *group* (`job_events`) and an *event* (`42`, `status_changed`). Producers write it as an AMQP routing key,
`job_events.42`. AWX and its clients write it as a flat name, `job_events-42`, split at the first `-`: a group never holds one. The
core knows a topic by its routing key. Each delivery has it already, so the hot path builds and hashes nothing else.

Names are plain data: printable ASCII without `.`, `*`, `#`, quotes or backslashes. So a name is never a pattern on the broker, and
needs no escaping in JSON.

The default groups are AWX's (its emitters, by version: awx/main/models/*.py, awx/main/signals.py). A configuration adds its own. An
*item* is what a client wrote in a group's list. It is looked up or matched as a whole, and never used as a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from towerws.core.deliveries import MARKER_TOPIC
from towerws.core.identity import Identity
from towerws.core.settings import GroupSettings

MAX_GROUP_BYTES = 64
MAX_EVENT_BYTES = 128  # with the group and the dot less than the 255 of a short string (AMQP 0-9-1 section 4.2.5.3)

_GROUP = rf"[A-Za-z0-9_]{{1,{MAX_GROUP_BYTES}}}"
_EVENT = rf"""[!$-)+,/-\[\]-~-]{{1,{MAX_EVENT_BYTES}}}"""  # printable, without " # * . \

_is_group = re.compile(_GROUP).fullmatch
_is_event = re.compile(_EVENT).fullmatch
_is_routing_key = re.compile(rf"{_GROUP}\.{_EVENT}").fullmatch


class Topic(NamedTuple):
    """A group and an event. `parse_routing_key` and `parse_flat_name` make them by this module's rules."""

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
    """Return whether `text` can be a group's name."""
    return _is_group(text) is not None


def is_event(text: str) -> bool:
    """Return whether `text` can be an event's name."""
    return _is_event(text) is not None


def is_routing_key(text: str) -> bool:
    """Return whether `text` is the routing key of a topic. A bare group, such as AWX's `metrics`, is not."""
    return _is_routing_key(text) is not None


def parse_routing_key(text: str) -> Topic:
    """Return the topic of a routing key. For any other text, raises `ValueError` that says what is wrong with it."""
    return _parse(text, ".", "routing key")


def parse_flat_name(text: str) -> Topic:
    """Return the topic of AWX's flat name, split at the first `-`. For any other text, raises `ValueError` that says what is wrong."""
    return _parse(text, "-", "flat name")


def flat_name(routing_key: str) -> str:
    """Return AWX's flat name of the topic with this routing key."""
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


MAX_ID_DIGITS = 18  # every such number fits a signed 64-bit integer, and a URL

_is_id = re.compile(rf"[0-9]{{1,{MAX_ID_DIGITS}}}", re.ASCII).fullmatch


class UnknownItem(ValueError):
    """An item of a request names no topic. The text says why, and never repeats the item."""


@dataclass(frozen=True, slots=True)
class Group:
    """The events of one group: some `words`, any number (`ids`), a prefix with a number, or any name."""

    words: frozenset[str] = frozenset()
    ids: bool = False
    id_prefix: str = ""
    anything: bool = False
    policy: str = "authenticated"

    @property
    def description(self) -> str:
        """The events in words."""
        if self.anything:
            return "any word"
        if self.ids:
            return f"numbers of 1 to {MAX_ID_DIGITS} digits"
        return f"{self.id_prefix}<number>" if self.id_prefix else ", ".join(sorted(self.words))

    def event(self, item: object) -> str:
        """Return the event that a client's item names. Raise `UnknownItem` if there is none.

        Numbers come as integers (React, awxkit) and as text (AngularJS takes them from the URL). Both name the same event.
        Booleans and fractions name none.
        """
        if isinstance(item, str):
            text = item
        elif isinstance(item, int) and not isinstance(item, bool):
            text = str(item) if 0 <= item < 10**MAX_ID_DIGITS else ""
        else:
            raise UnknownItem("an event is a word or a number")
        if self.ids and _is_id(text):
            return text.lstrip("0") or "0"
        if text in self.words:
            return text
        if self.id_prefix and text.startswith(self.id_prefix) and _is_id(text[len(self.id_prefix) :]):
            return text
        if self.anything and is_event(text):
            return text
        raise UnknownItem("no such event in this group")


_IDS = Group(ids=True)

AWX_GROUPS: Mapping[str, Group] = {
    "jobs": Group(words=frozenset({"status_changed", "summary"})),
    "schedules": Group(words=frozenset({"changed"})),
    "inventories": Group(words=frozenset({"status_changed"})),
    "job_events": _IDS,
    "ad_hoc_command_events": _IDS,
    "project_update_events": _IDS,
    "inventory_update_events": _IDS,
    "system_job_events": _IDS,
    "workflow_events": _IDS,
    "control": Group(id_prefix="limit_reached_", policy="own"),
}

WITHHELD = frozenset({"metrics", "control.limit_reached", MARKER_TOPIC})
"""Routing keys that are never forwarded to clients. `metrics` is for AWX's nodes. `control.limit_reached` holds session keys (AWX 1.0
to 1.0.6). `towerws.marker` is for the daemons' own markers."""


class GroupTable:
    """All groups to which clients can subscribe: AWX's, and those of the configuration (`added`)."""

    def __init__(self, added: Mapping[str, GroupSettings] | None = None) -> None:
        self._groups = dict(AWX_GROUPS)
        self._added = frozenset(added or {})
        for name, settings in (added or {}).items():
            if settings.events == "id":
                self._groups[name] = Group(ids=True, policy=settings.policy)
            elif settings.events == "any":
                self._groups[name] = Group(anything=True, policy=settings.policy)
            else:
                self._groups[name] = Group(words=frozenset(settings.events), policy=settings.policy)

    def routing_key(self, group: str, item: object) -> str:
        """Return the routing key of the topic that `item` names in `group`. Raise `UnknownItem` if there is none."""
        if (known := self._groups.get(group)) is None:
            raise UnknownItem("no such group")
        if known.policy == "never":
            raise UnknownItem("no client may subscribe to this group")
        routing_key = f"{group}.{known.event(item)}"
        if routing_key in WITHHELD:
            raise UnknownItem("no such event in this group")
        return routing_key

    @property
    def own(self) -> frozenset[str]:
        """The groups of which each user gets only the topic with its own id."""
        return frozenset(name for name, group in self._groups.items() if group.policy == "own")

    @property
    def configured(self) -> dict[str, dict[str, object]]:
        """The groups of the configuration to which a client can subscribe, for the live page.

        `events` is `"id"`, `"any"` or a list of words. `own` is true if the event must be the user's id.
        """
        found: dict[str, dict[str, object]] = {}
        for name, group in self._groups.items():
            if name in self._added and group.policy != "never":
                events = "id" if group.ids else "any" if group.anything else sorted(group.words)
                found[name] = {"events": events, "own": group.policy == "own"}
        return found

    @property
    def listing(self) -> list[dict[str, str]]:
        """All groups with their events in words and their policy, those of the configuration first."""
        names = sorted(self._groups, key=lambda name: name not in self._added)
        return [{"group": name, "events": self._groups[name].description, "policy": self._groups[name].policy} for name in names]

    def why_no_subscriber(self, group: str, event: str) -> str | None:
        """Return why no client can subscribe to this topic, as a hint for its producer. None if clients can."""
        known = self._groups.get(group)
        try:
            found = self.routing_key(group, event)
        except UnknownItem as problem:
            if known is None:
                advice = f"the groups are {', '.join(self._groups)}, and [groups.NAME] in the configuration adds one"
            elif known.policy == "never":
                advice = f'its policy is "never" in [groups.{group}] of the configuration'
            else:
                advice = f"its events are {known.description}"
            return f"no client can subscribe to {group}.{event}: {problem}; {advice}"
        if found != f"{group}.{event}":
            return f"no client can subscribe to {group}.{event}: a client that asks for it gets {found}; publish on that"
        return None

    def withdrawn(self, identity: Identity, routing_keys: Iterable[str]) -> dict[str, str]:
        """Return those topics that this table does not allow the user, each with a reason. An earlier table allowed them."""
        refused, known = {}, []
        for routing_key in routing_keys:
            group, _, event = routing_key.partition(".")
            try:
                known.append(self.routing_key(group, event))
            except UnknownItem as problem:
                refused[routing_key] = str(problem)
        return refused | self.refusals(identity, known)

    def refusals(self, identity: Identity, routing_keys: Iterable[str]) -> dict[str, str]:
        """Return the topics that belong to another user, each with a reason. For an anonymous user (auth open) there are none.

        The table must have the group of each topic.
        """
        if identity.user_id is None:
            return {}
        refused = {}
        for routing_key in routing_keys:
            group, _, event = routing_key.partition(".")
            known = self._groups[group]
            if known.policy == "own" and event != f"{known.id_prefix}{identity.user_id}":
                refused[routing_key] = "another user's"
        return refused
