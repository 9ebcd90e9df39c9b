"""Makes the methods of the settings, and joins them.

The handshake tries each method. Later calls go to the method that authenticated the user.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.python.failure import Failure

from towerws.auth.base import (
    Method,
    Refused,
    Reports,
    Unavailable,
    recognizes,
    result_if_ready,
    takes_tokens,
    undecided,
    waits_for_token,
    without_frames,
)
from towerws.auth.jwt import JwtMethod
from towerws.auth.open import Open
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_objects import AWX_OBJECTS
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.revocation import Revocation
from towerws.core.settings import Settings
from towerws.core.topics import GroupTable

Result = TypeVar("Result", Identity, Identity | None)


def make_methods(settings: Settings, reactor: Any) -> Iterator[Method]:
    """Yield the methods in the order of `auth`. Reads their files, and uses no network. Raises `ConfigError` for unusable settings."""
    for name in settings.auth:
        if name == "tower" and settings.tower is not None:
            own = {group: each.object_url for group, each in settings.groups.items() if each.object_url}
            objects = {group: url for group, url in AWX_OBJECTS.items() if group not in settings.groups}
            yield TowerMethod(settings.tower, reactor, {**objects, **own})
        elif name == "jwt" and settings.jwt is not None:
            own_groups = GroupTable(settings.groups).own if settings.tower is not None else frozenset()
            yield JwtMethod(settings.jwt, reactor, by_name_only=own_groups)
        else:
            assert name == "open", "config/rules.py knows the methods there are"
            yield Open()


class Chain:
    """A `Method` that consists of several. The first method that finds a credential of its kind decides. On None, the next one tries."""

    name = "chain"

    def __init__(self, methods: Sequence[Method]) -> None:
        self._methods = tuple(methods)
        self._by_name = {method.name: method for method in methods}
        self._counts = {method.name: {"accepted": 0, "refused": 0, "unavailable": 0} for method in methods}
        self._token_methods = tuple(filter(takes_tokens, self._methods))
        self.takes_tokens = bool(self._token_methods)
        self.tokens_from_awx_clients = any(waits_for_token(method, awx_client=True) for method in self._methods)

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires with the first identity, or with None if there is no credential of any kind. Fails as the methods do."""
        if len(self._methods) == 1:
            (method,) = self._methods
            return self._counted(method.name, method.authenticate(head, address))
        return self._first(head, address).addErrback(without_frames)

    @inlineCallbacks
    def _first(self, head: Head, address: str) -> Generator[Deferred[Any], Any, Identity | None]:
        for method in self._methods:
            identity: Identity | None = yield self._counted(method.name, maybeDeferred(method.authenticate, head, address))
            if identity is not None:
                return identity
        return None

    def recognizes(self, token: str) -> bool:
        """Whether any method recognizes the token."""
        return any(recognizes(method, token) for method in self._token_methods)

    def identify(self, token: str, address: str = "") -> Deferred[Identity]:
        """Ask the first method that recognizes the token, otherwise the last that takes tokens. Call this only if `takes_tokens` is set."""
        method = next((method for method in self._token_methods if recognizes(method, token)), self._token_methods[-1])
        return self._counted(method.name, method.identify(token, address))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Ask the method that authenticated this user."""
        return self._by_name[identity.method].refusals(identity, topics)

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Ask the method that authenticated this user."""
        return undecided(self._by_name[identity.method], identity, topics)

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Ask the method that authenticated this user."""
        return self._by_name[identity.method].revalidate(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Make every method drop its cached answers."""
        for method in self._methods:
            method.forget(revocation)

    def figures(self) -> Mapping[str, Mapping[str, object]]:
        """Return, for each method, how many credentials it accepted, refused and could not check, and its own figures."""
        return {
            name: {**counts, **(method.figures() if isinstance(method := self._by_name[name], Reports) else {})}
            for name, counts in self._counts.items()
        }

    def _counted(self, name: str, asked: Deferred[Result]) -> Deferred[Result]:
        if result_if_ready(asked) is not None:
            self._counts[name]["accepted"] += 1
            return asked
        counts = (self._counts[name],)
        return asked.addCallbacks(_accepted, _failed, callbackArgs=counts, errbackArgs=counts)

    def stop(self) -> Deferred[None]:
        """Stop all methods. Fires when all have ended, even if one of them fails."""
        stopping = [maybeDeferred(method.stop) for method in self._methods]
        return DeferredList(stopping, consumeErrors=True).addCallback(lambda _: None)


def _accepted(identity: Result, counts: dict[str, int]) -> Result:
    if identity is not None:
        counts["accepted"] += 1
    return identity


def _failed(failure: Failure, counts: dict[str, int]) -> Failure:
    if failure.check(Refused):
        counts["refused"] += 1
    elif failure.check(Unavailable):
        counts["unavailable"] += 1
    return failure
