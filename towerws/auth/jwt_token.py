"""Finds a JSON Web Token in a handshake, and takes it apart strictly (RFC 7515, compact form).

A token's length is checked before it is decoded. Only its header is parsed before its signature is checked. A text that two
readers could read differently is refused: base64url that is not canonical, a key that occurs twice in one object, `NaN`. No error
repeats any part of the token.

In an opening handshake, a token that the page wrote (`Authorization`, then `token=` in the URL) comes before the one that the
browser sends by itself (the cookie). A value that isn't in the form of a token belongs to another method and is ignored.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from towerws.auth.base import Refused, list_cookies
from towerws.core.http_head import Head
from towerws.core.settings import Secret
from towerws.core.strict_json import decode

MAX_TOKEN_BYTES = 8 * 1024
MAX_KID_CHARACTERS = 256

_is_shaped = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*").fullmatch
_TOKEN_TYPES = {"JWT", "AT+JWT", "APPLICATION/JWT", "APPLICATION/AT+JWT"}
"""RFC 7519 section 5.1 and RFC 9068 section 2.1; any other (`logout+jwt`) was made for another purpose (RFC 8725 section 3.11)."""


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
    if (token := _only(in_query)) is not None:
        return SentToken(token, "token in the URL", from_url=True)
    cookies = list_cookies(head.headers.get("cookie", ""))
    if cookie and (token := _only([value for name, value in cookies if name == cookie])) is not None:
        csrftoken = dict(cookies).get("csrftoken")
        return SentToken(token, "token cookie", from_cookie=True, csrftoken=Secret(csrftoken) if csrftoken else None)
    return None


def _only(values: list[str]) -> str | None:
    tokens = {value for value in values if is_shaped_like_token(value)}
    if len(tokens) > 1:
        raise Refused("more than one token was sent", "token")
    return next(iter(tokens), None)
