"""Authentication by AWX or Tower: its REST API says who a client is and what it may see.

A credential is valid if `/api/v2/me/` returns its user. `tower_objects.py` decides what that user may see.

Answers are cached for the times in `TowerSettings`. A change in AWX takes effect that much later at most. A revalidation ignores the
cache. After a revocation, answers from before it are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, Throttled, parse_cookies
from towerws.auth.tower_api import Fetcher, HttpFetcher, Me, api_base, read_me, read_visible
from towerws.auth.tower_calls import Kind, Question, TowerCalls
from towerws.auth.tower_credentials import ApiCredential, Caller, cache_key, find_caller, find_credential, token_credential
from towerws.auth.tower_limits import SignInThrottle, SingleFlight, TtlCache, handshake_wait_s
from towerws.auth.tower_objects import AWX_OBJECTS, CheckedUser, VisibleObjects
from towerws.core.client_address import address_key
from towerws.core.http_head import Head
from towerws.core.identity import Identity, RecentRevocations, Revocation
from towerws.core.settings import Secret, TowerSettings
from towerws.logs import FoldedLog

BACKGROUND_WAIT_S: Final = 2.0
"""How long a question may wait to be sent if no handshake depends on it."""


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
        self._log = FoldedLog(self._logger, reactor)
        self._calls = TowerCalls(settings, fetcher or HttpFetcher(reactor, settings.calls, settings.tls_ca), reactor, self._log)
        # Two caches, so that invalid credentials can't evict valid ones.
        self._valid: TtlCache[_Validation] = TtlCache(settings.valid_s, settings.cache_entries)
        self._invalid: TtlCache[bool] = TtlCache(settings.invalid_s, settings.cache_entries)
        self._revocations = RecentRevocations(max(settings.valid_s, settings.allowed_s))
        self._validations: SingleFlight[_Validation] = SingleFlight()
        self._sign_ins = SignInThrottle(settings.cache_entries, settings.sharers)
        self._hits = {"valid": 0, "invalid": 0}
        self._objects = VisibleObjects(settings, objects, self._ask_visible, self._calls.pause, reactor)

    def figures(self) -> Mapping[str, object]:
        """Return the cache hits of each kind, the delayed and refused sign-ins, and the calls to the API."""
        return {
            "cache_hits": {**self._hits, **self._objects.hits},
            "throttled": dict(self._sign_ins.counts),
            "calls": self._calls.figures(),
        }

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
            private=CheckedUser(credential, caller, key, validation.me, since=validation.at),
        )

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Ask about a few objects at a time. Failed calls are retried for `retry_s`, then the topic is unavailable."""
        return self._objects.refusals(_checked_user(identity), topics)

    def tell_refusals(self, identity: Identity, topics: Sequence[str], tell: Callable[[dict[str, str]], object]) -> Deferred[None]:
        """Do the same as `refusals`, and tell each refusal within a second of the API's answer."""
        return self._objects.tell_refusals(_checked_user(identity), topics, tell)

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Return the objects that are not in the cache."""
        return self._objects.undecided(_checked_user(identity), topics)

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Ask the API again and ignore the cache. Later `refusals` of the new identity ignore cached answers from before this call."""
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

    def take_over(self, before: TowerMethod) -> None:
        """Keep the counts since the start, and those of failed sign-ins: a reload gives a client that guesses passwords no new attempts."""
        self._sign_ins = before._sign_ins
        self._hits = before._hits
        self._objects.hits = before._objects.hits
        self._calls.take_over(before._calls)

    def stop(self) -> Deferred[None]:
        """Fail all questions with `Unavailable`, later ones too. Fires when the idle connections are closed."""
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
            delay_s, record = self._sign_ins.begin(credential, key, caller.address, self._clock.seconds())
        except Throttled as error:
            return fail(error)

        def ended(result: _Validation | Failure) -> _Validation | Failure:
            record(isinstance(result, Failure) and result.check(Refused) is not None, self._clock.seconds())
            return result

        waited: Deferred[None] = self._calls.pause(delay_s) if delay_s else succeed(None)
        return waited.addCallback(lambda _: validate(delay_s)).addBoth(ended)

    def _validate(self, credential: ApiCredential, caller: Caller, key: bytes, kind: Kind, waited_s: float = 0) -> Deferred[_Validation]:
        asked_at = self._clock.seconds()

        def valid(me: Me) -> _Validation | Failure:
            if self._invalid.has_newer(key, asked_at):
                return Failure(Refused("the API rejected the credential after it had given this answer"))
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
        # Each guess is another credential, so the client of all guesses is their address.
        client = key if self._sign_ins.was_good(key, asked_at) else address_key(caller.address)
        question = self._question("/api/v2/me/", credential, caller, kind, wait_s, client)
        return self._calls.get(question, read_me).addCallbacks(valid, invalid)

    def _question(self, path: str, credential: ApiCredential, caller: Caller, kind: Kind, wait_s: float, client: Hashable) -> Question:
        headers = caller.headers() + credential.headers
        return Question(self._base + path, headers, kind, caller.address, wait_s, bool(credential.account), client)

    def _ask_visible(self, user: CheckedUser, path: str) -> Deferred[bool]:
        """Ask whether the user sees the object at this path."""

        def ended(failure: Failure) -> Failure:
            if failure.check(Refused):
                self._valid.discard(user.key)
            return failure

        question = self._question(path, user.credential, user.caller, Kind.OBJECT, BACKGROUND_WAIT_S, user.me.user_id)
        return self._calls.get(question, read_visible).addErrback(ended)


def _checked_user(identity: Identity) -> CheckedUser:
    assert isinstance(identity.private, CheckedUser), "an identity of another method"
    return identity.private
