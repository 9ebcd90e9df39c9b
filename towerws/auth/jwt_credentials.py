"""Where in an opening handshake a token may stand, and which one counts.

What the page wrote itself (`Authorization`, then `token=` in the URL) goes before what the browser sends by itself (the
cookie). What is not shaped like a token belongs to another method and is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from towerws.auth.base import Refused
from towerws.auth.jwt_token import is_shaped_like_token
from towerws.core.http_head import Head
from towerws.core.settings import Secret


@dataclass(frozen=True, slots=True)
class Credential:
    """A token as it was sent, and by which way."""

    token: str = field(repr=False)
    kind: str
    """In a few words, for the log."""
    from_url: bool = False
    from_cookie: bool = False
    csrftoken: Secret | None = None


def find_credential(head: Head, cookie: str) -> Credential | None:
    """The token that a handshake brings, if any. `cookie` is the name of the cookie to look at; empty: none.

    `Refused` when there are two different ones in one place: a reader before us may have looked at the other, and a cookie
    may have been set by another site of the same domain.
    """
    scheme, _, value = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_shaped_like_token(value.strip(" \t")):
        return Credential(value.strip(" \t"), "bearer token")
    # As many as there are: the head's size is bounded.
    in_query = [value for name, value in parse_qsl(head.query, keep_blank_values=True) if name == "token"]
    if (token := _only(in_query)) is not None:
        return Credential(token, "token in the URL", from_url=True)
    cookies = _cookies(head.headers.get("cookie", ""))
    if cookie and (token := _only([value for name, value in cookies if name == cookie])) is not None:
        csrftoken = dict(cookies).get("csrftoken")
        return Credential(token, "token cookie", from_cookie=True, csrftoken=Secret(csrftoken) if csrftoken else None)
    return None


def _only(values: list[str]) -> str | None:
    tokens = {value for value in values if is_shaped_like_token(value)}
    if len(tokens) > 1:
        raise Refused("more than one token was sent", "token")
    return next(iter(tokens), None)


def _cookies(header: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in header.split(";"))
    return [(name.strip(" \t"), value.strip(" \t").strip('"')) for name, _, value in pairs]
