"""HTTP GET with bounds, over persistent connections. Redirects are not followed; certificates are verified.

What the API's answers mean. Whatever is not one of the known answers means that the question could not be put.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error as net_error
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed as _ResponseFailed
from twisted.web.http_headers import Headers

from towerws.auth import http_client
from towerws.auth.base import Refused, Unavailable
from towerws.core.errors import ConfigError

MAX_BODY_BYTES: Final = 1024**2
IDLE_S: Final = 30.0
"""How long a connection is kept for the next question; less than nginx's 65 to 75 s."""


class Fetcher(Protocol):
    """Something that asks over HTTP."""

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Fires with the answer, whatever its status. Fails with `Unavailable`. Cancelling it lets go of the connection at once."""

    def stop(self) -> Deferred[None]:
        """Let go of the connections that are kept. Fires when they are closed."""


class HttpFetcher:
    """A `Fetcher` with at most `connections` connections kept open. `tls_ca` (PEM) replaces the system's authorities.

    Raises `ConfigError` when `tls_ca` can't be used.
    """

    def __init__(self, reactor: Any, connections: int, tls_ca: str = "") -> None:
        trust = _authorities(tls_ca) if tls_ca else None
        self._pool = http_client.make_pool(reactor, connections, IDLE_S)
        self._agent = http_client.make_agent(reactor, self._pool, trust)

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Ask. The body is read to its end, so that the connection serves the next question, or given up when it is too long."""
        sent = Headers()
        for name, value in headers:
            sent.addRawHeader(name.encode("ascii"), value.encode("ascii"))
        return http_client.get(self._agent, url, sent, MAX_BODY_BYTES).addCallbacks(_answer, _unavailable)

    def stop(self) -> Deferred[None]:
        """Close what is kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def _answer(response: http_client.Response) -> Answer:
    return Answer(response.status, response.body)


def _unavailable(failure: Failure) -> Failure:
    return Failure(Unavailable(f"the API can't be reached: {_why(failure)}"))


def _why(failure: Failure) -> str:
    """In a few words, none of them the client's."""
    error = failure.value
    while isinstance(error, _ResponseFailed) and error.reasons:
        error = error.reasons[-1].value
    if isinstance(error, net_error.ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, net_error.DNSLookupError):
        return "the host's name can't be resolved"
    if isinstance(error, (net_error.ConnectionDone, net_error.ConnectionLost)):
        return "the connection was closed before the answer"
    if isinstance(error, VerificationError):
        return "TLS failed: the certificate is for another name"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args and isinstance(error.args[0], (list, tuple)) else ()
        words = "; ".join(str(entry[-1]) for entry in details if isinstance(entry, tuple))
        return f"TLS failed: {words or 'no reason given'}"
    return type(error).__name__.lstrip("_")


def check_url(url: str) -> str:
    """The address of an API without the slash at its end. Raises `ConfigError` for what is none."""
    rule = "tower.url is http://host or https://host, with a port and a path if need be, without user, query or fragment"
    try:
        parts = urlsplit(url)
        plain = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        raise ConfigError(rule) from None
    if not plain or "@" in parts.netloc or "?" in url or "#" in url or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(rule)
    return url.rstrip("/")


def _authorities(path: str) -> Any:
    try:
        return http_client.authorities(path)
    except OSError as error:
        why = f"can't be read: {error.strerror}"
    except ValueError as error:
        why = str(error) if path.isprintable() else "can't be read: not a path"
    raise ConfigError(f"tower.tls_ca = {path!r}: {why}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, and its body, or None when that was longer than is read."""

    status: int
    body: bytes | None

    @property
    def is_fault(self) -> bool:
        """Whether the API itself is at fault. Not so a redirect: AWX sends one while it migrates its database, but a gateway in front
        of it does so for whoever it does not know.
        """
        return self.status >= 500


@dataclass(frozen=True, slots=True)
class Me:
    """What `/api/v2/me/` says of a user: the id, and whether it may read everything (superusers and auditors)."""

    user_id: int
    reads_all: bool


def read_me(answer: Answer) -> Me:
    """Who it is. `Refused` when the credential is not good, `Unavailable` when the answer says neither."""
    if answer.status in (401, 403):
        raise Refused("the API rejected the credential")
    if answer.status != 200:
        raise Unavailable(_unexpected(answer))
    try:
        content = json.loads(answer.body or b"")
        count, results = content["count"], content["results"]
        if type(count) is int and count == 0:
            raise Refused("the API knows no user for the credential")
        user = results[0]
        user_id = user["id"]
        if type(user_id) is not int or count != 1:
            raise ValueError("not one user with a number")
        return Me(user_id, user.get("is_superuser") is True or user.get("is_system_auditor") is True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # Without the error that says where: it holds what was read.
        raise Unavailable("the API's answer to /api/v2/me/ is not understood: is tower.url the API's own address?") from None


def read_visible(answer: Answer) -> bool:
    """Whether the object is visible to the user. `Refused` when the credential has ended, `Unavailable` when the answer says nothing."""
    if answer.status == 200:
        return True
    if answer.status in (403, 404):
        return False
    if answer.status == 401:
        raise Refused("the API rejects the credential now")
    raise Unavailable(_unexpected(answer))


def _unexpected(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return f"the API answered {answer.status}, a redirect: AWX is migrating its database, or tower.url is not the API's own address"
    return f"the API answered {answer.status}"
