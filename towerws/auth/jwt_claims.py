"""What a token says, once its signature is known to be good (RFC 7519 section 4.1).

`aud` of a token is checked even where none is configured: a token that is meant for somebody else is then refused, as the
RFC demands, so that a token for another service of the same issuer opens nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from towerws.auth.base import Refused
from towerws.auth.jwt_grants import Grants, read_claim
from towerws.core.settings import JwtSettings

MAX_NAME_CHARACTERS = 255  # of sub and jti: OpenID Connect Core section 2
MAX_AUDIENCES = 100
MAX_INSTANT = 253402300799  # the end of the year 9999, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Claims:
    """What of a token matters here. `expires_at` is in seconds since 1970."""

    subject: str
    token_id: str | None
    expires_at: float
    grants: Grants
    ignored: int
    """How many entries of the claim that lists topics are none."""


def check_claims(claims: dict[str, object], settings: JwtSettings, default: Grants, now: float, *, from_url: bool) -> Claims:
    """What the token says, if it is good at `now` (seconds since 1970). `Refused`, with a fixed text, says which claim is not.

    `default` is granted by a token without the claim that lists topics. `from_url` demands a short life as well.
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
        raise Refused("the token is meant for somebody else: its aud is another one")


def _check_times(claims: dict[str, object], settings: JwtSettings, now: float, *, from_url: bool) -> float:
    expires_at, not_before, issued_at = (_instant(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at is None:
        raise Refused("the token has no exp")
    if expires_at <= now:  # no leeway: a token is renewed in time, or it has ended
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
