"""Authentication by AWX or Tower: its REST API says who a client is and what it may see.

A credential is valid if `/api/v2/me/` returns its user. A user may subscribe to an object's events if the API shows the object to
that user. Superusers and auditors see everything, so the API is not asked for them.

Answers are cached for the times in `TowerSettings`. A change in AWX takes effect that much later at most. Revalidation and a
revocation ignore answers from before them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, FirstError, fail, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, Throttled, Unavailable, drop_frames, parse_cookies, run
from towerws.auth.cache import SingleFlight, TtlCache
from towerws.auth.tower_api import Fetcher, HttpFetcher, Me, api_base, read_me, read_visible
from towerws.auth.tower_calls import Kind, Question, TowerCalls
from towerws.auth.tower_credentials import ApiCredential, Caller, cache_key, find_caller, find_credential, token_credential
from towerws.auth.tower_limits import SignInThrottle, handshake_wait_s
from towerws.core.addresses import address_key
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.revocation import RecentRevocations, Revocation
from towerws.core.settings import Secret, TowerSettings
from towerws.logs import FoldedLog

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

BACKGROUND_WAIT_S: Final = 2.0
"""How long a question may wait to be sent if no handshake depends on it."""

_UNAVAILABLE: Final = "unavailable"
_ENDED: Final = "the credential has ended"
_NOT_VISIBLE: Final = "not visible to this user"

_is_id = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch


class _CheckedUser(NamedTuple):
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


class _Validation(NamedTuple):
    """The user of a credential, and when the API was asked."""

    me: Me
    at: float


class TowerMethod:
    """A `towerws.auth.base.Method`. `objects` maps the groups checked per object to a path of the API with `{id}` in it.

    Raises `ConfigError` if the URL or the CA file can't be used. It does not use the network before the first question.
    """

    name = "tower"
    takes_tokens = True
    tokens_from_awx_clients = False

    _logger = Logger()

    def __init__(
        self, settings: TowerSettings, reactor: Any, objects: Mapping[str, str] = AWX_OBJECTS, fetcher: Fetcher | None = None
    ) -> None:
        self._settings = settings
        self._base = api_base(settings.url)
        self._clock = reactor
        self._objects = dict(objects)
        self._log = FoldedLog(self._logger, reactor)
        self._calls = TowerCalls(settings, fetcher or HttpFetcher(reactor, settings.calls, settings.tls_ca), reactor, self._log)
        # Four caches, so that invalid credentials and denied objects can't evict good answers.
        self._valid: TtlCache[_Validation] = TtlCache(settings.valid_s, settings.cache_entries)
        self._invalid: TtlCache[bool] = TtlCache(settings.invalid_s, settings.cache_entries)
        self._allowed: TtlCache[bool] = TtlCache(settings.allowed_s, settings.cache_entries)
        self._denied: TtlCache[bool] = TtlCache(settings.denied_s, settings.cache_entries)
        self._revocations = RecentRevocations(max(settings.valid_s, settings.allowed_s))
        self._validations: SingleFlight[_Validation] = SingleFlight()
        self._checks: SingleFlight[bool] = SingleFlight()
        self._sign_ins = SignInThrottle(settings.cache_entries)
        self._hits = {"valid": 0, "invalid": 0, "allowed": 0, "denied": 0}

    def figures(self) -> Mapping[str, object]:
        """Return the cache hits of each kind, the delayed and refused sign-ins, and the calls to the API."""
        return {"cache_hits": dict(self._hits), "throttled": dict(self._sign_ins.counts), "calls": self._calls.figures()}

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Ask the API for the credential's user, unless the cache has it. A failed call is not retried here, but by the client's page."""
        cookies = parse_cookies(head.headers.get("cookie", ""))
        credential = find_credential(head, self._settings.cookies, cookies)
        if credential is None:
            return succeed(None)
        csrftoken = cookies.get("csrftoken", "") if credential.by_browser else ""
        return self._identify(credential, find_caller(head, address), csrftoken)

    def recognizes(self, token: str) -> bool:
        """Return true for every text, since only the API knows the form of its tokens."""
        return True

    def identify(self, token: str, address: str = "") -> Deferred[Identity]:
        """Do the same as `authenticate` for an OAuth token that came in a message."""
        credential = token_credential(token)
        if credential is None:
            return fail(Refused("this can't be a token of the API's", "token in a message"))
        return self._identify(credential, Caller(address, ""), "")

    def _identify(self, credential: ApiCredential, caller: Caller, csrftoken: str) -> Deferred[Any]:
        key = cache_key(credential, caller)
        if (kept := self._cached(credential, key)) is not None:  # the usual case: callbacks on a Deferred cost more than the answer
            return succeed(self._identity(kept, credential, caller, key, csrftoken))

        def identify(validation: _Validation) -> Identity:
            return self._identity(validation, credential, caller, key, csrftoken)

        def not_admitted(failure: Failure) -> Failure:
            if isinstance(failure.value, NotAdmitted):
                return Failure(failure.value.about(credential.kind, credential.session))
            return failure

        return self._validated(credential, caller, key).addCallbacks(identify, not_admitted)

    def _identity(self, validation: _Validation, credential: ApiCredential, caller: Caller, key: bytes, csrftoken: str) -> Identity:
        return Identity(
            user_id=validation.me.user_id,
            method=self.name,
            session=credential.session,
            also=credential.also,
            cookie=credential.by_browser,
            csrftoken=Secret(csrftoken) if csrftoken else None,
            checked_at=validation.at,
            private=_CheckedUser(credential, caller, key, validation.me, since=validation.at),
        )

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Ask about a few objects at a time. A failed call is retried for `retry_s`, then the topic is refused as unavailable."""
        user = _checked_user(identity)
        refused: dict[str, str] = {}
        to_ask: dict[str, str] = {}
        for topic in topics:
            match self._cached_reason(user, identity, topic):
                case None:
                    group, _, event = topic.partition(".")
                    to_ask[topic] = self._objects[group].replace("{id}", event)
                case "":
                    continue
                case reason:
                    refused[topic] = reason
        if not to_ask:
            return succeed(refused)
        return run(self._ask_about(user, to_ask, refused))

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Return the objects that are not in the cache."""
        user, hits = _checked_user(identity), dict(self._hits)
        found = frozenset(topic for topic in topics if self._cached_reason(user, identity, topic) is None)
        self._hits = hits  # a look into the cache is no hit: no question was answered
        return found

    def _cached_reason(self, user: _CheckedUser, identity: Identity, topic: str) -> str | None:
        """Return why this user may not subscribe to a topic, "" if it may, or None if the API must be asked."""
        group, _, event = topic.partition(".")
        if group == "control" and event != f"limit_reached_{identity.user_id}":
            return "another user's"
        if group not in self._objects:
            return ""
        if not _is_id(event):
            return "not an object's number"
        if user.me.reads_all:
            return ""
        now = self._clock.seconds()
        if self._allowed.get((user.key, topic), now, user.since):
            self._hits["allowed"] += 1
            return ""
        if self._denied.get((user.key, topic), now, user.since):
            self._hits["denied"] += 1
            return _NOT_VISIBLE
        return None

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Ask the API again and ignore the cache. The first `refusals` of the new identity ignores it too."""
        user = _checked_user(identity)

        def renew(validation: _Validation) -> Identity:
            if validation.me.user_id != identity.user_id:
                raise Refused("the credential belongs to another user now")
            return dataclasses.replace(identity, checked_at=validation.at, private=user._replace(me=validation.me, since=validation.at))

        # Not shared with handshakes: the answer to an earlier call may be from before a revocation.
        flight = (user.key, "again", self._revocations.count)
        validate = partial(self._validate, user.credential, user.caller, user.key, Kind.REVALIDATION)
        return self._validations.ask(flight, validate).addCallback(renew)

    def forget(self, revocation: Revocation | None) -> None:
        """Ignore cached answers and the answers to calls in flight."""
        self._revocations.add(revocation, self._clock.seconds())

    def stop(self) -> Deferred[None]:
        """Fail all questions with `Unavailable`, from now on."""
        return self._calls.stop()

    def _cached(self, credential: ApiCredential, key: bytes) -> _Validation | None:
        """Return the cached user of the credential, unless a revocation came after the answer."""
        validation = self._valid.get(key, self._clock.seconds())
        if validation is None or validation.at <= self._revocations.latest(validation.me.user_id, *credential.sessions):
            return None
        self._hits["valid"] += 1
        return validation

    def _validated(self, credential: ApiCredential, caller: Caller, key: bytes) -> Deferred[_Validation]:
        if self._invalid.get(key, self._clock.seconds()):
            self._hits["invalid"] += 1
            return fail(Refused("the API rejected the credential a moment ago"))
        # Not shared with calls from before the latest revocation of any user: we don't know the credential's user yet.
        flight = (key, self._revocations.count)
        return self._validations.ask(flight, partial(self._sign_in, credential, caller, key))

    def _sign_in(self, credential: ApiCredential, caller: Caller, key: bytes) -> Deferred[_Validation]:
        """Ask for the user of a handshake's credential. A credential that was never tried before may be a guess, and may have to wait."""
        validate = partial(self._validate, credential, caller, key, Kind.SIGN_IN)
        try:
            delay_s, note = self._sign_ins.begin(credential, key, caller.address, self._clock.seconds())
        except Throttled as error:
            return fail(error)

        def ended(result: _Validation | Failure) -> _Validation | Failure:
            note(isinstance(result, Failure) and result.check(Refused) is not None, self._clock.seconds())
            return result

        waited: Deferred[None] = self._calls.pause(delay_s) if delay_s else succeed(None)
        return waited.addCallback(lambda _: validate(delay_s)).addBoth(ended)

    def _validate(self, credential: ApiCredential, caller: Caller, key: bytes, kind: Kind, waited_s: float = 0) -> Deferred[_Validation]:
        asked_at = self._clock.seconds()

        def valid(me: Me) -> _Validation:
            self._invalid.discard(key)
            self._valid.put(key, validation := _Validation(me, asked_at), asked_at)
            self._sign_ins.note(key, asked_at, good=True)
            return validation

        def invalid(failure: Failure) -> Failure:
            # `trap` would raise the error again and leave frames that form a cycle.
            if failure.check(Refused):
                self._valid.discard(key)
                self._invalid.put(key, answer=True, now=asked_at)
                self._sign_ins.note(key, asked_at, good=False)
            return failure

        wait_s = handshake_wait_s(credential) - waited_s if kind is Kind.SIGN_IN else BACKGROUND_WAIT_S
        # Each guess of a password is another credential, so their client is the address.
        client = address_key(caller.address) if credential.account else key
        question = self._question("/api/v2/me/", credential, caller, kind, wait_s, client)
        return self._calls.get(question, read_me).addCallbacks(valid, invalid)

    def _question(self, path: str, credential: ApiCredential, caller: Caller, kind: Kind, wait_s: float, client: Hashable) -> Question:
        headers = caller.headers() + credential.headers
        return Question(self._base + path, headers, kind, caller.address, wait_s, bool(credential.account), client)

    async def _ask_about(self, user: _CheckedUser, to_ask: Mapping[str, str], refused: dict[str, str]) -> dict[str, str]:
        """Ask a few questions at a time, so that one client's list leaves calls for the others."""
        until = self._clock.seconds() + self._settings.retry_s
        left = iter(to_ask.items())
        answers: dict[str, str] = {}
        verdict = ""

        async def ask() -> None:
            nonlocal verdict
            for topic, path in left:  # a shared iterator: each worker takes the next topic
                if not verdict:
                    try:
                        if not await self._visible_by(until, user, topic, path):
                            answers[topic] = _NOT_VISIBLE
                        continue
                    except Refused as error:
                        drop_frames(error)
                        verdict = _ENDED
                    except Unavailable as error:
                        drop_frames(error)
                        verdict = _UNAVAILABLE
                answers[topic] = verdict  # the rest would fail in the same way, after another timeout each

        fault: Failure | None = None
        try:
            await gatherResults([run(ask()) for _ in range(min(PARALLEL_CHECKS, len(to_ask)))], consumeErrors=True)
        except FirstError as error:  # cancelled, or a fault in our code
            drop_frames(error)
            fault = error.subFailure
        if fault is not None:
            fault.raiseException()  # outside of `except`: its context would be the other error, a cycle
        return refused | {topic: answers[topic] for topic in to_ask if topic in answers}

    async def _visible_by(self, until: float, user: _CheckedUser, topic: str, path: str) -> bool:
        while True:
            try:
                return await self._checks.ask((user.key, topic, user.since), lambda: self._ask_visible(user, topic, path))
            except Unavailable as error:
                drop_frames(error)
                if self._clock.seconds() + RETRY_PAUSE_S > until:
                    raise
            await self._calls.pause(RETRY_PAUSE_S)

    def _ask_visible(self, user: _CheckedUser, topic: str, path: str) -> Deferred[bool]:
        asked_at = self._clock.seconds()

        def answered(visible: bool) -> bool:
            kept = self._allowed if visible else self._denied
            kept.put((user.key, topic), answer=True, now=asked_at)
            return visible

        def ended(failure: Failure) -> Failure:
            if failure.check(Refused):
                self._valid.discard(user.key)
            return failure

        question = self._question(path, user.credential, user.caller, Kind.OBJECT, BACKGROUND_WAIT_S, user.me.user_id)
        return self._calls.get(question, read_visible).addCallbacks(answered, ended)


def _checked_user(identity: Identity) -> _CheckedUser:
    assert isinstance(identity.private, _CheckedUser), "an identity of another method"
    return identity.private
