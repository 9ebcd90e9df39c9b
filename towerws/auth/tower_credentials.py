"""Finds the credential that AWX and Tower know in an opening handshake, and makes the headers that show it to the API.

The first of these counts:

1. `session_key` in the URL, which AWX reads before the cookie;
2. `token` in the URL;
3. the session cookie;
4. `Authorization`;
5. the `token` cookie of AWX 1.0.0 to 1.0.4.

So a credential that the client itself wrote into the URL comes before one that its browser added. A session comes before
`Authorization`, which may be meant for a proxy. A value with other characters, or one that is too long, can't be a credential and is
ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from towerws.auth.base import parse_cookies
from towerws.core.http_head import Head

Headers = tuple[tuple[str, str], ...]

MAX_QUERY_FIELDS: Final = 100
MAX_USER_AGENT: Final = 1024
"""Characters passed on. nginx accepts 8 KiB for a header line, and answers 400 to more."""

_is_session_key = re.compile(r"[!#-+\--:<-\[\]-~]{1,2048}").fullmatch  # cookie-bytes (RFC 6265 section 4.1.1)
_is_token = re.compile(r"[A-Za-z0-9._~+/-]{1,4096}={0,2}").fullmatch  # b64token (RFC 6750 section 2.1)
_has_control = re.compile(rb"[\x00-\x1f\x7f]").search

_KEY: Final = secrets.token_bytes(32)
"""A random key of this process. A reader of the log can't test passwords against hashes that were made with it."""

_KEYED: Final = hashlib.blake2b(key=_KEY, digest_size=32)
"""Copied for each hash. A copy takes 0.3 µs, a new hash with its key 1.0."""


class ApiCredential(NamedTuple):
    """A credential in the form that the API wants. Its `repr` shows nothing of it.

    This and `Caller` are tuples because each handshake makes one. A frozen dataclass takes twice the time.
    """

    kind: str
    """The kind in a few words, for the log."""
    headers: Headers
    session: str
    """A name for the credential: the first 32 hexadecimal digits of SHA-256 of the session key or token.

    For a password it is a hash with a key of this process, of no use elsewhere.
    """
    also: tuple[str, ...] = ()
    """The names of the other session cookies in the handshake. AWX may use any one of them."""
    by_browser: bool = False
    """Whether browsers send it by themselves, for a page of any origin."""
    account: str = ""
    """For a password: a name for the user whose password is tried."""
    bound: bool = False
    """Whether it is valid only from the address and with the program that it was issued to."""

    @property
    def sessions(self) -> tuple[str, ...]:
        """All names by which it can be revoked."""
        return (self.session, *self.also)

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Caller(NamedTuple):
    """The client as the API is told: its address and its `User-Agent`."""

    address: str
    user_agent: str

    def headers(self) -> Headers:
        """Return the headers next to the credential. `X-WS-Session-Quiet` stops the call from extending the session (AWX >= 3.0)."""
        headers: Headers = (("Accept", "application/json"), ("X-WS-Session-Quiet", "true"))
        if self.user_agent:
            headers += (("User-Agent", self.user_agent),)
        if _is_address(self.address):
            headers += (("X-Forwarded-For", self.address),)
        return headers


def find_caller(head: Head, address: str) -> Caller:
    """Return the client that sent this head. If the client has no IP address, `address` is other text.

    Only the ASCII of `User-Agent` is passed on. A server behind us may take other bytes for the end of a line.
    """
    user_agent = head.headers.get("user-agent", "")[:MAX_USER_AGENT]
    return Caller(address, user_agent if user_agent.isascii() else user_agent.encode("ascii", "replace").decode("ascii"))


def find_credential(head: Head, cookie_names: Sequence[str], cookies: Mapping[str, str] | None = None) -> ApiCredential | None:
    """Return the credential in this head, or None if it has none of the kinds that AWX knows.

    `cookies` are the head's cookies, if the caller has read them already.
    """
    query = _query(head)
    if cookies is None:
        cookies = parse_cookies(head.headers.get("cookie", ""))
    return (
        (_session_key(query, cookie_names) or _url_token(query) if query else None)
        or _session_cookie(cookies, cookie_names)
        or _authorization(head.headers.get("authorization", ""))
        or _token_cookie(cookies)
    )


def token_credential(token: str) -> ApiCredential | None:
    """Return the credential for an OAuth token that came in a message, or None if the text can't be a token."""
    return ApiCredential("token in a message", (("Authorization", f"Bearer {token}"),), _digest(token)) if _is_token(token) else None


def cache_key(credential: ApiCredential, caller: Caller) -> bytes:
    """Return the cache key for this credential. It reveals nothing about the credential."""
    parts = [part for header in credential.headers for part in header]
    if credential.bound:
        parts += caller.address, caller.user_agent
    hashed = _KEYED.copy()
    hashed.update("\n".join(parts).encode())
    return hashed.digest()


def _session_key(query: Mapping[str, str], cookie_names: Sequence[str]) -> ApiCredential | None:
    if not _is_session_key(key := query.get("session_key", "")):
        return None
    # We don't know the name of the API's cookie, so we send the value under each name.
    return ApiCredential("session_key in the URL", (_cookie_header(dict.fromkeys(cookie_names, key)),), _digest(key))


def _url_token(query: Mapping[str, str]) -> ApiCredential | None:
    if not _is_token(token := query.get("token", "")):
        return None
    return ApiCredential("token in the URL", (("Authorization", f"Bearer {token}"),), _digest(token))


def _session_cookie(cookies: Mapping[str, str], cookie_names: Sequence[str]) -> ApiCredential | None:
    # All of them. Another application of the same host may use one of these names, and only AWX knows which cookie is its own.
    sessions = {name: value for name in cookie_names if (value := cookies.get(name)) and _is_session_key(value)}
    if len(sessions) == 1:  # the usual case
        ((name, value),) = sessions.items()
        return ApiCredential("session cookie", (("Cookie", f"{name}={value}"),), _digest(value), by_browser=True)
    if not sessions:
        return None
    first, *others = dict.fromkeys([_digest(value) for value in sessions.values()])
    return ApiCredential("session cookie", (_cookie_header(sessions),), first, tuple(others), by_browser=True)


def _authorization(value: str) -> ApiCredential | None:
    scheme, _, rest = value.partition(" ")
    rest = rest.strip(" \t")
    if scheme.lower() == "bearer" and _is_token(rest):
        return ApiCredential("bearer token", (("Authorization", f"Bearer {rest}"),), _digest(rest))
    if scheme.lower() == "basic" and _is_token(rest) and _is_basic(rest):
        user = base64.b64decode(rest).partition(b":")[0].lower()
        return ApiCredential("basic authorization", (("Authorization", f"Basic {rest}"),), _keyed(rest.encode()), account=_keyed(user))
    return None


def _token_cookie(cookies: Mapping[str, str]) -> ApiCredential | None:
    if not _is_token(token := unquote(cookies.get("token", "")).strip('"')):
        return None
    headers = (("Authorization", f"Token {token}"), ("Cookie", f"token=%22{token}%22"))
    return ApiCredential("token cookie", headers, _digest(token), by_browser=True, bound=True)


def _query(head: Head) -> dict[str, str]:
    if not head.query:
        return {}
    try:
        return dict(parse_qsl(head.query, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        return {}


def _is_basic(value: str) -> bool:
    """Whether it is a name and a password. A NUL in either makes Django answer 500, so the API is not asked about it."""
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error:
        return False
    return b":" in decoded and not _has_control(decoded)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _cookie_header(cookies: Mapping[str, str]) -> tuple[str, str]:
    return "Cookie", "; ".join([f"{name}={value}" for name, value in cookies.items()])


def _keyed(value: bytes) -> str:
    return hashlib.blake2b(value, key=_KEY, digest_size=16).hexdigest()


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:32]
