"""Which groups exist, and which events a client may name in each.

The defaults are AWX's (its emitters, by version: awx/main/models/*.py, awx/main/signals.py); a configuration adds its own.
An item is what a client wrote in a group's list. It is data: looked up or matched as a whole, never a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from towerws.core.identity import Identity
from towerws.core.markers import MARKER_TOPIC
from towerws.core.settings import GroupSettings
from towerws.core.topics import is_event

MAX_ID_DIGITS = 18  # every such number fits a signed 64-bit integer, and a URL

_is_id = re.compile(rf"[0-9]{{1,{MAX_ID_DIGITS}}}", re.ASCII).fullmatch


class UnknownItem(ValueError):
    """An item of a request names no topic. The text says why; it never repeats the item."""


@dataclass(frozen=True, slots=True)
class Group:
    """The events of one group: some `words`, any number (`ids`), a prefix with a number, or any name at all."""

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
        """The event that a client's item names; `UnknownItem` when it names none.

        Numbers come as integers (React, awxkit) and as text (AngularJS takes them from the URL): both are the same event.
        Booleans and fractions are neither, though Python and JSON would let them pass for numbers.
        """
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            raise UnknownItem("an event is a word or a number")
        text = str(item) if isinstance(item, str) or 0 <= item < 10**MAX_ID_DIGITS else ""
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
"""Routing keys whose messages go nowhere: one is for AWX's nodes only, the second (AWX 1.0 to 1.0.6) holds session keys, the third is
for the daemons themselves."""


class GroupTable:
    """All groups that may be subscribed to."""

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
        """The topic that `item` names in `group`, by its routing key; `UnknownItem` when there is no such group or event."""
        if (known := self._groups.get(group)) is None:
            raise UnknownItem("no such group")
        if known.policy == "never":
            raise UnknownItem("nobody may listen to this group")
        routing_key = f"{group}.{known.event(item)}"
        if routing_key in WITHHELD:
            raise UnknownItem("no such event in this group")
        return routing_key

    @property
    def configured(self) -> dict[str, dict[str, object]]:
        """The groups of the configuration that a client can subscribe to, for the live page.

        `events` is `"id"`, `"any"` or a list of words; `own` is true where the event must be the user's id.
        """
        found: dict[str, dict[str, object]] = {}
        for name, group in self._groups.items():
            if name in self._added and group.policy != "never":
                events = "id" if group.ids else "any" if group.anything else sorted(group.words)
                found[name] = {"events": events, "own": group.policy == "own"}
        return found

    def why_nobody(self, group: str, event: str) -> str | None:
        """Why no client can subscribe to this, for the one who publishes it; None when one can."""
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
            return f"no client can subscribe to {group}.{event}: whoever asks for it gets {found}; publish on that"
        return None

    def refusals(self, identity: Identity, routing_keys: Iterable[str]) -> dict[str, str]:
        """Those topics that are another user's own, each with a reason. Nobody in particular (auth open) has no others."""
        if identity.user_id is None:
            return {}
        refused = {}
        for routing_key in routing_keys:
            group, _, event = routing_key.partition(".")
            known = self._groups[group]
            if known.policy == "own" and event != f"{known.id_prefix}{identity.user_id}":
                refused[routing_key] = "another user's"
        return refused
