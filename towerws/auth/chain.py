"""Makes the methods of the settings, and joins them.

The handshake tries each method. Later calls go to the method that authenticated the user. `Open` is the method without authentication.

A reload makes only those methods again whose settings or files changed. The others keep their caches and counts. A method that was replaced
answers what it was asked, and is stopped when its last question has ended, or after `RETIRED_S`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import (
    Method,
    ReadsAgain,
    Refused,
    Reports,
    TakesOver,
    Unavailable,
    recognizes,
    result_if_ready,
    takes_tokens,
    tell_refusals,
    undecided,
    waits_for_token,
    without_frames,
)
from towerws.auth.jwt import JwtMethod
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_objects import checked_objects
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import Settings
from towerws.core.topics import GroupTable

RETIRED_S: Final = 600.0
"""How long a method that was replaced may take to answer what it was asked. 400 objects of a slow API take 100 s (docs/security.md)."""

MAX_FILE_BYTES: Final = 16 * 1024**2

Answer = TypeVar("Answer")
Result = TypeVar("Result", Identity, Identity | None)


def make_methods(settings: Settings, reactor: Any) -> Iterator[Method]:
    """Yield the methods in the order of `auth`. Reads their files, and uses no network. Raises `ConfigError` for unusable settings."""
    for name in settings.auth:
        yield _make_method(name, settings, reactor)


def _make_method(name: str, settings: Settings, reactor: Any) -> Method:
    if name == "tower" and settings.tower is not None:
        return TowerMethod(settings.tower, reactor, checked_objects(settings.groups))
    if name == "jwt" and settings.jwt is not None:
        return JwtMethod(settings.jwt, reactor, by_name_only=_by_name_only(settings))
    assert name == "open", "config/rules.py allows no other method"
    return Open()


def _by_name_only(settings: Settings) -> frozenset[str]:
    """Return the groups of which a JWT must name each topic, since users of another method may have the same ids."""
    return GroupTable(settings.groups).own if settings.tower is not None else frozenset()


class _Origin(NamedTuple):
    """Everything that a method is made from. Equal origins make equal methods. `files` maps each path to the digest of its content."""

    settings: object = None
    groups: object = None
    files: Mapping[str, bytes | None] = MappingProxyType({})


def _origin(name: str, settings: Settings) -> _Origin:
    if name == "tower" and (tower := settings.tower) is not None:
        return _Origin(tower, checked_objects(settings.groups), _digests(tower.tls_ca))
    if name == "jwt" and (jwt := settings.jwt) is not None:
        return _Origin(jwt, _by_name_only(settings), _digests(jwt.secret_file, jwt.public_key_file, jwt.jwks_ca_file))
    return _Origin()


def _digests(*paths: str) -> dict[str, bytes | None]:
    return {path: _digest(path) for path in paths if path}


def _digest(path: str) -> bytes | None:
    try:
        with Path(path).open("rb") as file:
            return hashlib.blake2b(file.read(MAX_FILE_BYTES)).digest()
    except (OSError, ValueError):
        return None  # making the method gives the reason


class Replacements(NamedTuple):
    """What `Chain.replace` puts in force, by the name of the method: what each method is made from, and the new methods.

    `other_files` names the methods that have a file with the same path as before and other content.
    """

    origins: Mapping[str, _Origin]
    methods: Mapping[str, Method]
    other_files: Sequence[str] = ()


def make_chain(settings: Settings, reactor: Any) -> Chain:
    """Return the methods of the settings as one, which a reload can replace. Raises as `make_methods`."""
    origins = {name: _origin(name, settings) for name in settings.auth}  # read first: a file that changes meanwhile counts as changed later
    return Chain(tuple(make_methods(settings, reactor)), origins)


class Chain:
    """A `Method` that consists of several. The first method that finds a credential of its kind decides. On None, the next one tries."""

    name = "chain"

    _log = Logger()

    def __init__(self, methods: Sequence[Method], origins: Mapping[str, _Origin] | None = None) -> None:
        """`origins` says what each method was made from, by its name. `make_replacements` compares with it."""
        self._counts = {method.name: {"accepted": 0, "refused": 0, "unavailable": 0} for method in methods}
        self._retired: dict[Method, Any] = {}  # the methods that were replaced, each with the timer that stops it
        self._open: Counter[Method] = Counter()
        """How many questions each method has not answered yet. A method with none is left out."""
        self._origins = origins or {}
        self._use(methods)

    def _use(self, methods: Sequence[Method]) -> None:
        self._methods = tuple(methods)
        self._by_name = {method.name: method for method in methods}
        self._token_methods = tuple(filter(takes_tokens, self._methods))
        self.takes_tokens = bool(self._token_methods)
        self.tokens_from_awx_clients = any(waits_for_token(method, awx_client=True) for method in self._methods)

    def make_replacements(self, settings: Settings, reactor: Any) -> Replacements:
        """Make new methods where settings or files have changed. Raises as `make_methods`. `auth` must be the same. Changes nothing."""
        origins = {name: _origin(name, settings) for name in self._by_name}
        changed = [name for name in self._by_name if origins[name] != self._origins.get(name)]
        other_files = [name for name in changed if self._has_other_files(name, origins[name])]
        return Replacements(origins, {name: _make_method(name, settings, reactor) for name in changed}, other_files)

    def _has_other_files(self, name: str, origin: _Origin) -> bool:
        before = self._origins.get(name, _Origin()).files
        return any(before.get(path, digest) != digest for path, digest in origin.files.items())

    def replace(self, replacements: Replacements, reactor: Any) -> None:
        """Put new methods in force. Each replaced method answers what it was asked, for `RETIRED_S` at most, and is stopped."""
        for name, method in replacements.methods.items():
            before = self._by_name[name]
            if isinstance(method, TakesOver):
                method.take_over(before)
            self._retired[before] = reactor.callLater(RETIRED_S if before in self._open else 0, self._stop_retired, before)
        self._use([replacements.methods.get(name, method) for name, method in self._by_name.items()])
        self._origins = replacements.origins
        for method in self._methods:
            if isinstance(method, ReadsAgain):
                method.read_again()

    def _stop_retired(self, method: Method) -> Deferred[Any]:
        call = self._retired.pop(method)
        if call.active():
            call.cancel()
        return maybeDeferred(method.stop).addErrback(lambda failure: self._log.failure("a method that was replaced did not stop", failure))

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires with the first identity, or with None if there is no credential of any kind. Fails as the methods do."""
        if len(self._methods) == 1:
            (method,) = self._methods
            return self._counted(method, method.authenticate(head, address))
        return self._first(head, address).addErrback(without_frames)

    @inlineCallbacks
    def _first(self, head: Head, address: str) -> Generator[Deferred[Any], Any, Identity | None]:
        for name in tuple(self._by_name):
            method = self._by_name[name]  # looked up when it is asked: a reload may have replaced it
            identity: Identity | None = yield self._counted(method, maybeDeferred(method.authenticate, head, address))
            if identity is not None:
                return identity
        return None

    def recognizes(self, token: str) -> bool:
        """Whether any method recognizes the token."""
        return any(recognizes(method, token) for method in self._token_methods)

    def identify(self, token: str, address: str = "") -> Deferred[Identity]:
        """Ask the first method that recognizes the token, otherwise the last that takes tokens. Call this only if `takes_tokens` is set."""
        method = next((method for method in self._token_methods if recognizes(method, token)), self._token_methods[-1])
        return self._counted(self._by_name[method.name], method.identify(token, address))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Ask the method that authenticated this user."""
        method = self._by_name[identity.method]
        return self._followed(method, method.refusals(identity, topics))

    def tell_refusals(self, identity: Identity, topics: Sequence[str], tell: Callable[[dict[str, str]], object]) -> Deferred[None]:
        """Ask the method that authenticated this user."""
        method = self._by_name[identity.method]
        return self._followed(method, tell_refusals(method, identity, topics, tell))

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Ask the method that authenticated this user."""
        return undecided(self._by_name[identity.method], identity, topics)

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Ask the method that authenticated this user."""
        method = self._by_name[identity.method]
        return self._followed(method, method.revalidate(identity))

    def forget(self, revocation: Revocation | None) -> None:
        """Make every method drop its cached answers."""
        for method in (*self._methods, *self._retired):
            method.forget(revocation)

    def figures(self) -> Mapping[str, Mapping[str, object]]:
        """Return, for each method, how many credentials it accepted, refused and could not check, and its own figures."""
        return {
            name: {**counts, **(method.figures() if isinstance(method := self._by_name[name], Reports) else {})}
            for name, counts in self._counts.items()
        }

    def _counted(self, method: Method, asked: Deferred[Result]) -> Deferred[Result]:
        counts = self._counts[method.name]
        if result_if_ready(asked) is not None:
            counts["accepted"] += 1
            return asked
        return self._followed(method, asked).addCallbacks(_accepted, _failed, callbackArgs=(counts,), errbackArgs=(counts,))

    def _followed(self, method: Method, asked: Deferred[Answer]) -> Deferred[Answer]:
        """Count the question until it ends."""
        if asked.called and not asked.paused:
            return asked
        self._open[method] += 1
        return asked.addBoth(self._ended, method)

    def _ended(self, result: Answer, method: Method) -> Answer:
        self._open[method] -= 1
        if not self._open[method]:
            del self._open[method]
            if method in self._retired:
                self._retired[method].reset(0)  # not at once: the method is about to call others that wait for the same answer
        return result

    def stop(self) -> Deferred[None]:
        """Stop all methods. Fires when all have ended, even if one of them fails."""
        stopping = [self._stop_retired(method) for method in list(self._retired)]
        stopping += [maybeDeferred(method.stop) for method in self._methods]
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


ANONYMOUS = Identity()


class Open:
    """A `Method` that admits every client, as an anonymous user."""

    name = "open"

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(ANONYMOUS)

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once with no refusals."""
        return succeed({})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Fires at once. An anonymous user has no credential that could end."""
        return succeed(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Do nothing, since nothing is cached."""

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        return succeed(None)
