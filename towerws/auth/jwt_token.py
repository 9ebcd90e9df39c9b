"""Finds a JSON Web Token in a handshake, takes it apart strictly (RFC 7515, compact form), and reads its claims.

A token's length is checked before it is decoded. Only its header is parsed before its signature is checked. A text that two
readers could read differently is refused: base64url that is not canonical, a key that occurs twice in one object, `NaN`. No error
repeats any part of the token.

In an opening handshake, a token that the client wrote (`Authorization`, then `token=` in the URL) comes before the one that a
browser sends by itself (the cookie). A value that isn't in the form of a token belongs to another method and is ignored.

The claims are read after the signature was verified. A token's `aud` is checked even if no `aud` is configured. A token for
another service of the same issuer is then refused, as the RFC demands.

One claim lists the topics that the user may subscribe to. There are two forms with the same meaning:
`{"jobs": ["status_changed"], "job_events": ["*"]}` and `["jobs.status_changed", "job_events.*"]`. A token may also have the list as
text, with spaces between the names, as the claim `scope` has (RFC 8693 section 4.2). The event `*` grants all topics of a group. There
is no other pattern, and none for groups, so that a token never grants a group that it doesn't name.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from towerws.auth.base import Refused, list_cookies
from towerws.core.http_head import Head
from towerws.core.settings import JwtSettings, Secret
from towerws.core.strict_json import decode
from towerws.core.topics import is_group, is_routing_key

MAX_TOKEN_BYTES = 8 * 1024
MAX_KID_CHARACTERS = 256

_is_shaped = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*").fullmatch
_TOKEN_TYPES = {"JWT", "AT+JWT", "APPLICATION/JWT", "APPLICATION/AT+JWT"}
"""RFC 7519 section 5.1 and RFC 9068 section 2.1; any other (`logout+jwt`) was made for another purpose (RFC 8725 section 3.11)."""

MAX_NAME_CHARACTERS = 255  # of sub and jti: OpenID Connect Core section 2
MAX_AUDIENCES = 100
MAX_INSTANT = 253402300799  # the end of the year 9999, in seconds since 1970
MAX_GRANTS = 10_000


@dataclass(frozen=True, slots=True)
class Token:
    """A token whose signature has not been checked."""

    algorithm: str
    kid: str | None
    signed: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def is_shaped_like_token(text: str) -> bool:
    """Whether this is three parts of base64url with dots between. The last may be empty, as in a token without a signature."""
    return _is_shaped(text) is not None


def parse_token(text: str) -> Token:
    """Take a token apart and read its header. `Refused` if it is not a plain token.

    `jku`, `jwk`, `x5c`, `x5u` and the like are ignored, since a token must not choose its own key.
    """
    if len(text) > MAX_TOKEN_BYTES:
        raise Refused(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    if not is_shaped_like_token(text):
        raise Refused("this is not a token: header.payload.signature")
    signed, _, signature = text.rpartition(".")
    first, _, payload = signed.partition(".")
    header = read_object(_decode(first))
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str):
        raise Refused("the token names no algorithm")
    if "kid" in header and not (isinstance(kid, str) and len(kid) <= MAX_KID_CHARACTERS):
        raise Refused(f"the token's kid is not text of up to {MAX_KID_CHARACTERS} characters")
    if not (isinstance(kind, str) and kind.upper() in _TOKEN_TYPES):
        raise Refused("the token is not meant for authentication: its typ is another one")
    for name in ("crit", "b64"):  # extensions that a reader must know (RFC 7515 section 4.1.11, RFC 7797), and we know none
        if name in header:
            raise Refused(f"the token's header has {name}")
    return Token(algorithm, kid if isinstance(kid, str) else None, signed.encode("ascii"), _decode(payload), _decode(signature))


def read_object(raw: bytes) -> dict[str, object]:
    """Read one JSON object in UTF-8, without duplicate keys, NaN and infinity. `Refused` for any other text."""
    try:
        value = decode(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    # Raised outside of `except`: the error above contains the text.
    if not isinstance(value, dict):
        raise Refused("a part of the token is not a plain JSON object")
    return value


def _decode(part: str) -> bytes:
    raw = None
    with contextlib.suppress(binascii.Error):  # a length of 4n + 1
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if raw is None or base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode("ascii"):
        raise Refused("a part of the token is not canonical base64url")
    return raw


@dataclass(frozen=True, slots=True)
class SentToken:
    """A token as a client sent it, and where it was."""

    token: str = field(repr=False)
    kind: str
    """The kind in a few words, for the log."""
    from_url: bool = False
    from_cookie: bool = False
    csrftoken: Secret | None = None


def find_token(head: Head, cookie: str) -> SentToken | None:
    """Return the token in a handshake, or None. `cookie` is the name of the cookie to look at. If it is empty, no cookie counts.

    `Refused` if one place has two different tokens. A proxy in front of us may have read the other one, and another site of the
    same domain may have set a cookie.
    """
    scheme, _, value = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_shaped_like_token(value.strip(" \t")):
        return SentToken(value.strip(" \t"), "bearer token")
    # No limit on their number, since the head's size is bounded.
    in_query = [value for name, value in parse_qsl(head.query, keep_blank_values=True) if name == "token"]
    if (token := _single_token(in_query)) is not None:
        return SentToken(token, "token in the URL", from_url=True)
    cookies = list_cookies(head.headers.get("cookie", ""))
    if cookie and (token := _single_token([value for name, value in cookies if name == cookie])) is not None:
        csrftoken = dict(cookies).get("csrftoken")
        return SentToken(token, "token cookie", from_cookie=True, csrftoken=Secret(csrftoken) if csrftoken else None)
    return None


def _single_token(values: list[str]) -> str | None:
    tokens = {value for value in values if is_shaped_like_token(value)}
    if len(tokens) > 1:
        raise Refused("more than one token was sent", "token")
    return next(iter(tokens), None)


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims that we use. `expires_at` is in seconds since 1970."""

    subject: str
    token_id: str | None
    expires_at: float
    grants: Grants
    ignored: int
    """How many entries of the list of topics are no topics."""


def check_claims(claims: dict[str, object], settings: JwtSettings, default: Grants, now: float, *, from_url: bool) -> Claims:
    """Return the claims if the token is valid at `now` (seconds since 1970). `Refused`, with a fixed text, names the claim that is not.

    A token without the list of topics grants `default`. With `from_url` the token must also be short-lived.
    """
    _check_parties(claims, settings)
    expires_at = _check_times(claims, settings, now, from_url=from_url)
    subject = _name(claims, "sub")
    if subject is None:
        raise Refused("the token has no sub")
    return Claims(subject, _name(claims, "jti"), expires_at, *_grants(claims, settings.claim, default))


def _check_parties(claims: dict[str, object], settings: JwtSettings) -> None:
    if settings.issuer and claims.get("iss") != settings.issuer:
        raise Refused("the token's iss is another one")
    audiences = claims.get("aud", [])
    if isinstance(audiences, str):
        audiences = [audiences]
    if not isinstance(audiences, list) or len(audiences) > MAX_AUDIENCES or not all(isinstance(name, str) for name in audiences):
        raise Refused(f"the token's aud is neither text nor a list of up to {MAX_AUDIENCES}")
    if ("aud" in claims or settings.audience) and not set(audiences) & set(settings.audience):
        raise Refused("the token is meant for another service: its aud is another one")


def _check_times(claims: dict[str, object], settings: JwtSettings, now: float, *, from_url: bool) -> float:
    expires_at, not_before, issued_at = (_instant(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at is None:
        raise Refused("the token has no exp")
    if expires_at <= now:  # no leeway: a client must renew its token in time
        raise Refused("the token has expired")
    if not_before is not None and not_before > now + settings.leeway_s:
        raise Refused("the token is not valid yet: its nbf is to come")
    if issued_at is not None and issued_at > now + settings.leeway_s:
        raise Refused("the token is not valid yet: its iat is to come")
    if from_url and (issued_at is None or expires_at - issued_at > settings.url_lifetime_s):
        raise Refused(f"a token in the URL must have an iat, and an exp at most {settings.url_lifetime_s:g} s after it")
    return expires_at


def _instant(claims: dict[str, object], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_INSTANT:
        raise Refused(f"the token's {name} is not a number of seconds since 1970")
    return float(value)


def _name(claims: dict[str, object], name: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS or not value.isprintable():
        raise Refused(f"the token's {name} is not 1 to {MAX_NAME_CHARACTERS} printable characters")
    return value


def _grants(claims: dict[str, object], claim: str, default: Grants) -> tuple[Grants, int]:
    if claim not in claims:
        return default, 0
    try:
        return read_claim(claims[claim])
    except ValueError as error:
        reason = str(error)
    raise Refused(f"the token's list of topics is not one: {reason}")


@dataclass(frozen=True, slots=True)
class Grants:
    """The topics (by routing key) and whole groups that a credential allows."""

    topics: frozenset[str] = field(default=frozenset(), repr=False)
    groups: frozenset[str] = field(default=frozenset(), repr=False)

    def allow(self, routing_key: str, by_name_only: Container[str] = ()) -> bool:
        """Whether the topic is granted. `job_events.*` (all of a group) is granted if the whole group is.

        For groups in `by_name_only` that is not enough: the topic itself must be named.
        """
        if routing_key in self.topics:
            return True
        group = routing_key.partition(".")[0]
        return group in self.groups and group not in by_name_only


def parse_grants(value: object) -> Grants:
    """Return the grants in a setting. `ValueError`, with a fixed text, if it is in neither of the forms above."""
    names: Iterable[object]
    if isinstance(value, dict):
        names = _flatten(value)
    elif isinstance(value, list | tuple):
        names = value
    else:
        raise ValueError('neither {"group": ["event"]} nor ["group.event"]')
    grants, faults = _collect(names)
    if faults:
        raise ValueError(faults[0])
    return grants


def read_claim(value: object) -> tuple[Grants, int]:
    """Return the grants in a token's claim, and the number of its entries that are no topics and grant nothing.

    Identity providers write their own groups into the same claim (`/keycloak/group`). Some write a list of one as text.
    `ValueError` if the claim is neither a table nor a list nor text, or too long.
    """
    names: Iterable[object]
    match value:
        case dict():
            names = _flatten(value)
        case list():
            names = value
        case str():
            names = value.split(" ") if value else ()
        case _:
            raise ValueError('neither {"group": ["event"]} nor ["group.event"] nor text')
    grants, faults = _collect(names)
    return grants, len(faults)


def _collect(names: Iterable[object]) -> tuple[Grants, list[str]]:
    """Return the grants of the entries that are topics, and the fault of each other entry."""
    topics, groups, faults = set(), set(), []
    for count, name in enumerate(names):
        if count >= MAX_GRANTS:
            raise ValueError(f"more than {MAX_GRANTS} topics")
        if not isinstance(name, str):
            faults.append("a topic that is not text, or a group whose events are not a list of text and whole numbers")
            continue
        group, _, event = name.partition(".")
        if event == "*" and is_group(group):
            groups.add(group)
        elif is_routing_key(name):
            topics.add(name)
        else:
            faults.append("a name that is no topic: expected group.event or group.*")
    return Grants(frozenset(topics), frozenset(groups)), faults


def _flatten(table: dict[object, object]) -> Iterator[str | None]:
    """Yield the names in a table, and None for an entry that can't be a name."""
    for group, events in table.items():
        if not isinstance(events, list):
            yield None
            continue
        for event in events:
            plain = isinstance(event, str | int) and not isinstance(event, bool)
            yield f"{group}.{event}" if plain else None
