"""Sends one question to AWX's API over HTTP, and reads the answer. An unknown answer means that the API can't be asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

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
"""How long an idle connection is kept. It is less than nginx's 65 to 75 s."""

_begins_with_object = re.compile(rb"\s*\{").match


class Fetcher(Protocol):
    """Sends GET requests."""

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Fires with the answer, of any status. Fails with `Unavailable`. Cancelling it closes the connection at once."""

    def stop(self) -> Deferred[None]:
        """Close the idle connections. Fires when they are closed."""


class HttpFetcher:
    """A `Fetcher` that keeps at most `connections` idle connections open. `tls_ca` (PEM) replaces the system's authorities.

    Raises `ConfigError` if `tls_ca` can't be used.
    """

    def __init__(self, reactor: Any, connections: int, tls_ca: str = "") -> None:
        trust = http_client.read_authorities("tower.tls_ca", tls_ca) if tls_ca else None
        self._pool = http_client.make_pool(reactor, connections, IDLE_S)
        self._agent = http_client.make_agent(reactor, self._pool, trust)

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Send a GET, with the body bounded by `MAX_BODY_BYTES`."""
        sent = Headers()
        for name, value in headers:
            sent.addRawHeader(name.encode("ascii"), value.encode("ascii"))
        return http_client.get(self._agent, url, sent, MAX_BODY_BYTES).addCallbacks(_answer, _unavailable)

    def stop(self) -> Deferred[None]:
        """Close the idle connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def _answer(response: http_client.Response) -> Answer:
    content_type = ",".join(response.headers.getRawHeaders("content-type", []))
    media_type = content_type.partition(";")[0].strip().lower()
    return Answer(response.status, response.body, is_json=media_type == "application/json")


def _unavailable(failure: Failure) -> Failure:
    return Failure(Unavailable(f"the API can't be reached: {_why(failure)}"))


def _why(failure: Failure) -> str:
    """Return the reason in a few words, none of them from the client."""
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


def api_base(url: str) -> str:
    """Return the API's address without the slash at its end. `ConfigError` if `tower.url` can't be used."""
    try:
        parts = http_client.split_url(url)
    except ValueError as error:
        raise ConfigError(f"tower.url: {error}") from None
    if parts is None or parts.scheme not in {"http", "https"} or parts.port == 0 or "@" in parts.netloc or "?" in url or "#" in url:
        raise ConfigError(
            f"tower.url = {http_client.shown_url(url)}: must be http://host or https://host, "
            "with a port and a path if need be, without user, query or fragment"
        )
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `body` is None if it was longer than `MAX_BODY_BYTES`. `is_json` is what its Content-Type says."""

    status: int
    body: bytes | None
    is_json: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the API itself is at fault.

        A redirect does not count. AWX sends one while it migrates its database, but a gateway also sends one to clients that it
        does not know.
        """
        return self.status >= 500


@dataclass(frozen=True, slots=True)
class Me:
    """A user as `/api/v2/me/` describes it: the id, and whether it may read everything (superusers and auditors)."""

    user_id: int
    reads_all: bool


def read_me(answer: Answer) -> Me:
    """Return the user. `Refused` if the credential is not valid, `Unavailable` if the answer says neither."""
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
        # Without the original error, which holds the text that was read.
        raise Unavailable("the API's answer to /api/v2/me/ is not understood: is tower.url the API's own address?") from None


def read_visible(answer: Answer) -> bool:
    """Whether the object is visible to the user. `Refused` if the credential has ended, `Unavailable` if the answer doesn't say.

    AWX shows an object as a JSON object. A gateway answers 200 with a page of its own, too, for a login or an outage.
    """
    if answer.status == 200:
        if answer.is_json if answer.body is None else _begins_with_object(answer.body):
            return True
        raise Unavailable("the API answered 200 without the JSON of an object: is tower.url the API's own address?")
    if answer.status in (403, 404):
        return False
    if answer.status == 401:
        raise Refused("the API rejects the credential now")
    raise Unavailable(_unexpected(answer))


def _unexpected(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return f"the API answered {answer.status}, a redirect: AWX is migrating its database, or tower.url is not the API's own address"
    return f"the API answered {answer.status}"
