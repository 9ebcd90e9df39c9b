"""Authentication by JSON Web Token. A token that an issuer signed names the user and the topics that it may subscribe to.

PyJWT checks signatures. This package checks the form of a token and its claims, with a clock that tests can set.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, execute, succeed

from towerws.auth.base import Refused, Unavailable, drop_frames, run
from towerws.auth.jwt_key_set import Jwks, check_key_set_url, fetch, make_agent
from towerws.auth.jwt_keys import KeySource, check_algorithms, read_public_key, read_secret, use_secret
from towerws.auth.jwt_token import Grants, SentToken, Token, check_claims, find_token, parse_grants, parse_token, read_object
from towerws.core.errors import ConfigError
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import JwtSettings

NOT_GRANTED = "not granted"
NO_KEY = "there is no key for the token's kid and algorithm"
"""A rotation can cause it. So fail2ban's filter (deploy/fail2ban) doesn't count it as an attack, as it does a bad signature."""

_is_cookie_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{0,128}").fullmatch  # RFC 6265 section 4.1.1


class JwtMethod:
    """A `Method`. `wall` returns seconds since 1970, the time that tokens use.

    `by_name_only`: groups in which a token must name each topic, because `group.*` grants nothing there. In these groups each user has
    a topic. If another method has users, too, its user with the same id is another person, whose topic must not be granted.

    Raises `ConfigError` if the settings can't be used. Files are read once, here. The network is not used before the first token.
    """

    name = "jwt"
    takes_tokens = True
    tokens_from_awx_clients = True

    def __init__(
        self, settings: JwtSettings, reactor: Any, *, wall: Callable[[], float] = time.time, by_name_only: Container[str] = ()
    ) -> None:
        self._settings = settings
        self._by_name_only = by_name_only
        self._wall = wall
        check_algorithms(settings.algorithms)
        self._default = _check(settings)
        self._ignored_grants = 0
        self._keys, self._key_counts = _key_source(settings, reactor)

    def figures(self) -> Mapping[str, object]:
        """Return how many entries in the tokens' lists of topics were no topics. With a key set's URL, add the counts of `Jwks`."""
        counts: dict[str, object] = {"ignored_grants": self._ignored_grants}
        return {**counts, "keys": dict(self._key_counts)} if self._key_counts else counts

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires with the token's user, or with None if the handshake has no text in the form of a token.

        Fails with `Refused`, or with `Unavailable` if the key can't be fetched.
        """
        return run(self._authenticate(head))

    def recognizes(self, token: str) -> bool:
        """Whether the text has the three parts of a JSON Web Token (RFC 7515 section 3.1)."""
        return token.count(".") == 2

    def identify(self, token: str, address: str = "") -> Deferred[Identity]:
        """Fires with the token's user, as `authenticate` does. The token came in a message, as the first one or as a renewal."""
        return run(self._identify(SentToken(token, "token in a message")))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once, since the token lists the topics."""
        grants = identity.private if isinstance(identity.private, Grants) else Grants()
        return succeed({topic: NOT_GRANTED for topic in topics if not grants.allow(topic, self._by_name_only)})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Fires at once. Fails with `Refused` if the token has expired by the wall clock."""
        return execute(self._revalidate, identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Do nothing, since nothing is cached. A token says the same until it expires."""

    def take_over(self, before: JwtMethod) -> None:
        """Keep the counts, and the keys that were fetched from the same URL."""
        self._ignored_grants = before._ignored_grants
        same = (self._settings.jwks_url, self._settings.algorithms) == (before._settings.jwks_url, before._settings.algorithms)
        if isinstance(self._keys, Jwks) and isinstance(before._keys, Jwks):
            self._keys.counts.update(before._keys.counts)
            if same:
                self._keys.take_over(before._keys)

    def read_again(self) -> None:
        """Fetch keys before the next token is checked."""
        if isinstance(self._keys, Jwks):
            self._keys.read_again()

    def stop(self) -> Deferred[None]:
        """Cancel a fetch of keys in flight."""
        return self._keys.stop()

    async def _authenticate(self, head: Head) -> Identity | None:
        credential = find_token(head, self._settings.cookie)
        return None if credential is None else await self._identify(credential)

    async def _identify(self, credential: SentToken) -> Identity:
        try:
            return await self._read(credential)
        except (Refused, Unavailable) as error:
            problem = error.about(credential.kind)
            drop_frames(error)
        raise problem  # outside of `except`, so that it doesn't refer to the other error

    async def _read(self, credential: SentToken) -> Identity:
        token = parse_token(credential.token)
        if token.algorithm not in self._settings.algorithms:
            raise Refused("the token's algorithm is not one of those configured")
        if not any(key.verifies(token) for key in await self._keys.find(token.algorithm, token.kid)):  # noqa: SIM102 - two steps
            if not any(key.verifies(token) for key in await self._keys.find_newer(token.algorithm, token.kid)):
                known = self._keys.knows(token.algorithm, token.kid)
                raise Refused("the token's signature is not good" if known else NO_KEY)
        claims = check_claims(read_object(token.payload), self._settings, self._default, self._wall(), from_url=credential.from_url)
        self._ignored_grants += claims.ignored
        return Identity(
            user_id=claims.subject,
            method=self.name,
            session=_session(token, claims.token_id),
            cookie=credential.from_cookie,
            csrftoken=credential.csrftoken,
            expires_at=claims.expires_at,
            private=claims.grants,
        )

    def _revalidate(self, identity: Identity) -> Identity:
        if identity.expires_at is None or identity.expires_at <= self._wall():
            raise Refused("the token has expired")
        return identity


def _session(token: Token, token_id: str | None) -> str:
    """Return a name for the token that doesn't reveal it: a hash of its `jti`, or else of its signed part.

    The signature is left out, because anyone can turn an ECDSA signature into a second valid one.
    """
    raw = b"token " + token.signed if token_id is None else b"jti " + token_id.encode("utf-8")
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _check(settings: JwtSettings) -> Grants:
    """Check the settings that no other module checks. Return the grants of a token without the claim."""
    if not _is_cookie_name(settings.cookie):
        raise ConfigError("jwt.cookie: must be a cookie's name, of letters, digits and !#$%&'*+-.^_`|~")
    if not settings.claim:
        raise ConfigError("jwt.claim: must name the claim that lists topics")
    for name in ("leeway_s", "url_lifetime_s", "jwks_max_age_s", "jwks_stale_s"):
        if not 0 <= (value := getattr(settings, name)) < float("inf"):
            raise ConfigError(f"jwt.{name} = {value!r}: must be 0 or more seconds")
    try:
        return parse_grants(settings.default_topics)
    except ValueError as error:
        raise ConfigError(f"jwt.default_topics: holds {error}") from None


def _key_source(settings: JwtSettings, reactor: Any) -> tuple[KeySource, Mapping[str, int]]:
    named = [name for name in ("secret_file", "public_key_file", "jwks_url") if getattr(settings, name)]
    if use_secret(settings.algorithms):
        if named != ["secret_file"]:
            raise ConfigError(f"jwt.secret_file: must be given, and no other key, for {', '.join(settings.algorithms)}")
        return read_secret(settings.secret_file, settings.algorithms), {}
    if named == ["public_key_file"]:
        return read_public_key(settings.public_key_file, settings.algorithms), {}
    if named == ["jwks_url"]:
        url = check_key_set_url(settings.jwks_url)
        agent = make_agent(reactor, settings.jwks_ca_file)
        keys = Jwks(
            lambda: fetch(agent, settings.jwks_url, reactor),
            url,
            settings.algorithms,
            reactor,
            max_age_s=settings.jwks_max_age_s,
            stale_s=settings.jwks_stale_s,
        )
        return keys, keys.counts
    raise ConfigError(
        f"jwt.public_key_file or jwt.jwks_url: one of them must be given for {', '.join(settings.algorithms)}, and no secret_file"
    )
