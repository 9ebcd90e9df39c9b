"""One bounded GET of a key set: within a deadline, up to a size, no redirects, TLS verified."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from OpenSSL.crypto import Error as TlsError
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from towerws.auth.base import run
from towerws.core.errors import ConfigError, TowerwsError

DEADLINE_S = 2  # the web UI of AWX waits 3 s for an answer to its handshake
MAX_BODY_BYTES = 256 * 1024

_PEM_END = b"-----END CERTIFICATE-----"
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


def make_agent(reactor: Any, ca_file: str) -> Agent:
    """What GETs are sent with. The authorities in `ca_file` (PEM) replace the system's; `ConfigError` when it can't be used."""
    if not ca_file:
        return Agent(reactor, BrowserLikePolicyForHTTPS(), connectTimeout=DEADLINE_S)
    certificates: list[Any] = []
    try:
        parts = Path(ca_file).read_bytes().split(_PEM_END)[:-1]
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except (OSError, ValueError, TlsError):
        pass
    if not certificates:
        raise ConfigError(f"jwt.jwks_ca_file = {ca_file!r}: must be a file with certificates in PEM")
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return Agent(reactor, BrowserLikePolicyForHTTPS(trust(certificates)), connectTimeout=DEADLINE_S)


def fetch(agent: Agent, url: str, clock: Any) -> Deferred[Fetched]:
    """GET the URL. Fails with `FetchError`, within the deadline, or with what Twisted says about the connection."""
    asked = run(_fetch(agent, url))
    return asked.addTimeout(DEADLINE_S, clock, _late)


async def _fetch(agent: Agent, url: str) -> Fetched:
    response: Any = await agent.request(b"GET", url.encode("ascii"), _HEADERS)
    body = _Body()
    response.deliverBody(body)
    raw = await body.done
    if response.code != 200:
        raise FetchError(f"the answer was {response.code}, not 200")
    said = ", ".join(response.headers.getRawHeaders("cache-control", []))
    if re.search(r"\bno-(?:store|cache)\b", said, re.IGNORECASE):
        return Fetched(raw, 0)
    found = _max_age(said)
    return Fetched(raw, int(found[1]) if found else None)


class _Body(Protocol):
    """Collects a body up to the bound. Cancelling `done` ends the connection."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._leave())
        self._bytes = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """A piece of it."""
        self._bytes += data
        if len(self._bytes) > MAX_BODY_BYTES and not self.done.called:
            self.done.errback(FetchError(f"the answer is longer than {MAX_BODY_BYTES} bytes"))
            self._leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of the body, one way or another. One without a length may be cut short: then it is no JSON."""
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._bytes))
        else:
            self.done.errback(FetchError("the answer was cut short"))

    def _leave(self) -> None:
        assert self.transport is not None  # `deliverBody` has given it one
        self.transport.loseConnection()


def _late(result: object, timeout: float) -> NoReturn:
    raise FetchError(f"no answer within {timeout:g} s")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
