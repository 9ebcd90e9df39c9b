"""One bounded GET of a key set: within a deadline, up to a size, no redirects, TLS verified."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers

from towerws.auth import http_get
from towerws.core.errors import ConfigError, TowerwsError

DEADLINE_S = 2  # the web UI of AWX waits 3 s for an answer to its handshake
MAX_BODY_BYTES = 256 * 1024

_HEADERS = Headers({"User-Agent": ["towerws"], "Accept": ["application/jwk-set+json, application/json"]})
_max_age = re.compile(r"(?:^|[,\s])max-age=\"?([0-9]{1,9})\b", re.IGNORECASE).search


class FetchError(TowerwsError):
    """The key set could not be had. The text says why, and repeats nothing of what was answered."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer's body, and for how many seconds it says that it is good (None: it does not say)."""

    body: bytes = field(repr=False)
    max_age_s: int | None


def check_url(url: str) -> SplitResult:
    """The URL, taken apart. `ConfigError` unless it is https, or http to this machine, and holds no password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or not re.fullmatch(r"[!-~]+", url):
        raise ConfigError("jwt.jwks_url: must be https://host/path")
    if "@" in parts.netloc:
        raise ConfigError("jwt.jwks_url: must not hold a user or a password")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(f"jwt.jwks_url = {parts.scheme}://{host}…: must be https; http is for 127.0.0.1, ::1 and localhost only")
    return parts


def make_agent(reactor: Any, ca_file: str) -> Any:
    """What GETs are sent with. The authorities in `ca_file` (PEM) replace the system's; `ConfigError` when it can't be used."""
    trust = None
    if ca_file:
        try:
            trust = http_get.authorities(ca_file)
        except (OSError, ValueError):
            raise ConfigError(f"jwt.jwks_ca_file = {ca_file!r}: must be a file with certificates in PEM") from None
    return http_get.make_agent(reactor, http_get.make_pool(reactor, 0, 0), trust, DEADLINE_S)


def fetch(agent: Any, url: str, clock: Any) -> Deferred[Fetched]:
    """GET the URL. Fails with `FetchError`, within the deadline, or with what Twisted says about the connection."""
    asked = http_get.get(agent, url, _HEADERS, MAX_BODY_BYTES).addCallbacks(_fetched, _cut)
    return asked.addTimeout(DEADLINE_S, clock, _late)


def _fetched(response: http_get.Response) -> Fetched | Failure:
    if response.body is None:
        return Failure(FetchError(f"the answer is longer than {MAX_BODY_BYTES} bytes"))
    if response.status != 200:
        return Failure(FetchError(f"the answer was {response.status}, not 200"))
    said = ", ".join(response.headers.getRawHeaders("cache-control", []))
    if re.search(r"\bno-(?:store|cache)\b", said, re.IGNORECASE):
        return Fetched(response.body, 0)
    found = _max_age(said)
    return Fetched(response.body, int(found[1]) if found else None)


def _cut(failure: Failure) -> Failure:
    if failure.check(ResponseFailed) and not failure.check(ResponseNeverReceived):
        return Failure(FetchError("the answer was cut short"))
    return failure


def _late(result: object, timeout: float) -> NoReturn:
    raise FetchError(f"no answer within {timeout:g} s")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
