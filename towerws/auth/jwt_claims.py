"""The claims of a token whose signature is good (RFC 7519 section 4.1).

A token's `aud` is checked even if no `aud` is configured. A token for another service of the same issuer is then refused, as the
RFC demands.

One claim lists the topics that the user may subscribe to. There are two forms with the same meaning:
`{"jobs": ["status_changed"], "job_events": ["*"]}` and `["jobs.status_changed", "job_events.*"]`. A token may also have the list as
text, with spaces between the names, as the claim `scope` has (RFC 8693 section 4.2). The event `*` grants all topics of a group. There
is no other pattern, and none for groups, so that a token never grants a group that it doesn't name.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from towerws.auth.base import Refused
from towerws.core.settings import JwtSettings
from towerws.core.topics import is_group, is_routing_key

MAX_NAME_CHARACTERS = 255  # of sub and jti: OpenID Connect Core section 2
MAX_AUDIENCES = 100
MAX_INSTANT = 253402300799  # the end of the year 9999, in seconds since 1970


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


MAX_GRANTS = 10_000


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
    grants, others = _collect(names)
    if others:
        raise ValueError(others[0])
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
    grants, others = _collect(names)
    return grants, len(others)


def _collect(names: Iterable[object]) -> tuple[Grants, list[str]]:
    """Return the grants of the entries that are topics, and the fault of each other entry."""
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
    """Yield the names in a table, and None for an entry that can't be a name."""
    for group, events in table.items():
        if not isinstance(events, list):
            yield None
            continue
        for event in events:
            plain = isinstance(event, str | int) and not isinstance(event, bool)
            yield f"{group}.{event}" if plain else None
