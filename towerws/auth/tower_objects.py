"""What a user of AWX or Tower may see: the API is asked about each object, and its answers are cached.

A user may subscribe to an object's events if the API shows the object to that user. Superusers and auditors see everything, so the API
is not asked for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, drop_frames, run
from towerws.auth.tower_api import Me
from towerws.auth.tower_credentials import ApiCredential, Caller
from towerws.auth.tower_limits import SingleFlight, TtlCache
from towerws.core.settings import GroupSettings, TowerSettings
from towerws.core.wire import UNAVAILABLE

AWX_OBJECTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "job_events": "/api/v2/jobs/{id}/",
        "workflow_events": "/api/v2/workflow_jobs/{id}/",
        "ad_hoc_command_events": "/api/v2/ad_hoc_commands/{id}/",
        "project_update_events": "/api/v2/project_updates/{id}/",
        "inventory_update_events": "/api/v2/inventory_updates/{id}/",
        "system_job_events": "/api/v2/system_jobs/{id}/",
    }
)
"""The groups whose events belong to an object, and the object's path in the API. AWX itself checks only the first three."""

RETRY_PAUSE_S: Final = 0.5

PARALLEL_CHECKS: Final = 4
"""Calls in flight for one request. 200 objects at 50 ms take 2.5 s, and calls are left for other clients."""

MAX_UNANSWERED: Final = 20
"""Questions of one request, or of one check, that may stay without an answer. After that the other objects are not asked about, which
spares an API that is down or overloaded. At the API's deadline (2 s) these take 10 s, four at a time."""

TELL_S: Final = 1.0
"""How long a refusal waits for others, so that they are told together: to withdraw a topic costs more with more topics."""

FAILED_S: Final = 300.0
"""How long we remember that an object could not be asked about. The next check asks about it last, so that it delays no other."""

_ENDED: Final = "the credential has ended"
_NOT_VISIBLE: Final = "not visible to this user"

_is_id = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch


def checked_objects(groups: Mapping[str, GroupSettings]) -> dict[str, str]:
    """Return the path of the object for each group whose events belong to one. `groups` are those of the configuration."""
    awx = {name: path for name, path in AWX_OBJECTS.items() if name not in groups}
    return awx | {name: group.object_url for name, group in groups.items() if group.object_url}


class CheckedUser(NamedTuple):
    """The private part of an identity: what later calls need. A tuple, as `ApiCredential` is."""

    credential: ApiCredential
    caller: Caller
    key: bytes
    me: Me
    since: float
    """When the credential was last validated. Cached answers from before that are ignored, so each check asks about all topics again.

    All connections of a credential that are checked at the same time have the same value, and so share the answers.
    """

    def __repr__(self) -> str:
        return "<a user's>"


class VisibleObjects:
    """Decides which topics a user may subscribe to. `objects` maps groups to a path of the API with `{id}` in it.

    `ask(user, path)` asks whether the user sees the object at this path. `pause(seconds)` fires after that time. Both may fail with
    `Unavailable`, and `ask` with `Refused`.
    """

    def __init__(
        self,
        settings: TowerSettings,
        objects: Mapping[str, str],
        ask: Callable[[CheckedUser, str], Deferred[bool]],
        pause: Callable[[float], Deferred[None]],
        clock: Any,
    ) -> None:
        self._retry_s = settings.retry_s
        self._objects = dict(objects)
        self._ask = ask
        self._pause = pause
        self._clock = clock
        # Two caches, so that denied objects can't evict allowed ones.
        self._allowed: TtlCache[bool] = TtlCache(settings.allowed_s, settings.cache_entries)
        self._denied: TtlCache[bool] = TtlCache(settings.denied_s, settings.cache_entries)
        self._failed: TtlCache[bool] = TtlCache(FAILED_S, settings.cache_entries)
        self._checks: SingleFlight[bool] = SingleFlight()
        self.hits = {"allowed": 0, "denied": 0}
        """Answers that came from the cache."""

    def refusals(self, user: CheckedUser, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Ask about a few objects at a time. Failed calls are retried for `retry_s`, then the topic is unavailable."""
        refused, to_ask = self._split(user, topics)
        if not to_ask:
            return succeed(refused)
        answers: dict[str, str] = {}

        def ended(_: None) -> dict[str, str]:
            return refused | {topic: answers[topic] for topic in to_ask if topic in answers}  # in the order of the request

        return run(self._ask_about(user, to_ask, answers.__setitem__)).addCallback(ended)

    def tell_refusals(self, user: CheckedUser, topics: Sequence[str], tell: Callable[[dict[str, str]], object]) -> Deferred[None]:
        """Do the same as `refusals`, and call `tell` with each refusal at most `TELL_S` after its answer."""
        refused, to_ask = self._split(user, topics)
        told = _Refusals(tell, self._clock)
        for topic, reason in refused.items():
            told.add(topic, reason)
        return run(self._ask_about(user, to_ask, told.add)).addCallbacks(told.flush, told.drop)

    def _split(self, user: CheckedUser, topics: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the topics that are refused without a question, each with the reason, and those to ask about, each with its path."""
        refused: dict[str, str] = {}
        to_ask: dict[str, str] = {}
        for topic in topics:
            match self._cached_reason(user, topic):
                case None:
                    group, _, event = topic.partition(".")
                    to_ask[topic] = self._objects[group].replace("{id}", event)
                case "":
                    continue
                case reason:
                    refused[topic] = reason
        return refused, to_ask

    def undecided(self, user: CheckedUser, topics: Sequence[str]) -> frozenset[str]:
        """Return the objects that are not in the cache."""
        hits = dict(self.hits)
        found = frozenset(topic for topic in topics if self._cached_reason(user, topic) is None)
        self.hits.update(hits)  # nothing was answered from the cache here, so nothing counts as a hit
        return found

    def _cached_reason(self, user: CheckedUser, topic: str) -> str | None:
        """Return why this user may not subscribe to a topic, "" if it may, or None if the API must be asked."""
        group, _, event = topic.partition(".")
        if group == "control" and event != f"limit_reached_{user.me.user_id}":
            return "another user's"
        if group not in self._objects:
            return ""
        if not _is_id(event):
            return "not an object's number"
        if user.me.reads_all:
            return ""
        now = self._clock.seconds()
        if self._allowed.get((user.key, topic), now, user.since):
            self.hits["allowed"] += 1
            return ""
        if self._denied.get((user.key, topic), now, user.since):
            self.hits["denied"] += 1
            return _NOT_VISIBLE
        return None

    async def _ask_about(self, user: CheckedUser, to_ask: Mapping[str, str], refuse: Callable[[str, str], None]) -> None:
        """Ask a few questions at a time, so that one client's list leaves calls for the others. Call `refuse` with a topic and the reason.

        If an object stays without an answer, only its topic is refused, as unavailable. Questions are retried for `retry_s`, counted
        from the start of this call.
        """
        until = self._clock.seconds() + self._retry_s
        left = iter(sorted(to_ask.items(), key=lambda item: self._has_failed(user, item[0])))  # a stable order
        ended = False
        unanswered = 0

        async def ask() -> None:
            nonlocal ended, unanswered
            for topic, path in left:  # a shared iterator: each worker takes the next topic
                if ended:
                    refuse(topic, _ENDED)  # the rest would be refused in the same way
                    continue
                if unanswered >= MAX_UNANSWERED:
                    refuse(topic, UNAVAILABLE)
                    continue
                try:
                    if not await self._visible_by(until, user, topic, path):
                        refuse(topic, _NOT_VISIBLE)
                    self._failed.discard((user.key, topic))
                except Refused as error:
                    drop_frames(error)
                    ended = True
                    refuse(topic, _ENDED)
                except Unavailable as error:
                    drop_frames(error)
                    unanswered += 1
                    refuse(topic, UNAVAILABLE)
                    self._failed.put((user.key, topic), answer=True, now=self._clock.seconds())

        fault: Failure | None = None
        try:
            await gatherResults([run(ask()) for _ in range(min(PARALLEL_CHECKS, len(to_ask)))], consumeErrors=True)
        except FirstError as error:  # cancelled, or a fault in our code
            drop_frames(error)
            fault = error.subFailure
        if fault is not None:
            fault.raiseException()  # outside of `except`: its context would be the other error, a cycle

    def _has_failed(self, user: CheckedUser, topic: str) -> bool:
        return bool(self._failed.get((user.key, topic), self._clock.seconds()))

    async def _visible_by(self, until: float, user: CheckedUser, topic: str, path: str) -> bool:
        while True:
            try:
                return await self._checks.ask((user.key, topic, user.since), lambda: self._ask_visible(user, topic, path))
            except Unavailable as error:
                drop_frames(error)
                if self._clock.seconds() + RETRY_PAUSE_S > until:
                    raise
            await self._pause(RETRY_PAUSE_S)

    def _ask_visible(self, user: CheckedUser, topic: str, path: str) -> Deferred[bool]:
        asked_at, key = self._clock.seconds(), (user.key, topic)

        def answered(visible: bool) -> bool:
            if visible and self._denied.has_newer(key, asked_at):
                return False  # the answer to a later question came first
            kept, other = (self._allowed, self._denied) if visible else (self._denied, self._allowed)
            other.discard(key)
            kept.put(key, answer=True, now=asked_at)
            return visible

        return self._ask(user, path).addCallback(answered)


class _Refusals:
    """Refusals that are told together, `TELL_S` after the first of them at the latest."""

    def __init__(self, tell: Callable[[dict[str, str]], object], clock: Any) -> None:
        self._tell = tell
        self._clock = clock
        self._refused: dict[str, str] = {}
        self._timer: Any = None

    def add(self, topic: str, reason: str) -> None:
        """Tell this refusal with the next ones, at most `TELL_S` from now."""
        self._refused[topic] = reason
        if self._timer is None:
            self._timer = self._clock.callLater(TELL_S, self._expire)

    def flush(self, _: None = None) -> None:
        """Callback: tell what is known."""
        self._stop_timer()
        refused, self._refused = self._refused, {}
        if refused:
            self._tell(refused)

    def drop(self, failure: Failure) -> Failure:
        """Errback: tell no more."""
        self._stop_timer()
        return failure

    def _expire(self) -> None:
        self._timer = None  # a DelayedCall that has fired still refers to its function, a cycle
        self.flush()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
