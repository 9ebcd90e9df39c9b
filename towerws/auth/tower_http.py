"""HTTP GET with bounds, over persistent connections. Redirects are not followed; certificates are verified."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import error as net_error
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone
from twisted.web.client import ResponseFailed as _ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from towerws.auth.base import Unavailable
from towerws.auth.tower_answers import Answer
from towerws.core.errors import ConfigError

MAX_BODY_BYTES: Final = 1024**2
IDLE_S: Final = 30.0
"""How long a connection is kept for the next question; less than nginx's 65 to 75 s."""

_PEM_END: Final = b"-----END CERTIFICATE-----"


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
        pool: Any = HTTPConnectionPool(reactor)
        pool.maxPersistentPerHost = connections
        pool.cachedConnectionTimeout = IDLE_S
        pool._factory = _quiet_factory  # noqa: SLF001
        self._pool = pool
        self._agent: Any = Agent(reactor, BrowserLikePolicyForHTTPS(_authorities(tls_ca) if tls_ca else None), pool=self._pool)

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Ask. The body is read to its end, so that the connection serves the next question, or given up when it is too long."""
        sent = Headers()
        for name, value in headers:
            sent.addRawHeader(name.encode("ascii"), value.encode("ascii"))
        asked: Deferred[Any] = self._agent.request(b"GET", url.encode("ascii"), sent)
        return asked.addCallback(_read_body).addErrback(_unavailable)

    def stop(self) -> Deferred[None]:
        """Close what is kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def _quiet_factory(*args: Any) -> Any:
    """Twisted's, without its two log lines for each connection."""
    factory = HTTPConnectionPool._factory(*args)  # noqa: SLF001
    factory.noisy = False
    return factory


class _Body(TwistedProtocol):
    """Collects a response's body."""

    transport: Any

    def __init__(self, status: int) -> None:
        self.done: Deferred[Answer] = Deferred(self._cancel)
        self._status = status
        self._body: bytearray = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:  # what was read together with the last that counted
            return
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self._body.clear()
            self._abort()
            self.done.callback(Answer(self._status, None))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without Content-Length nobody can tell an end from a cut; a body that was cut is not understood.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(Answer(self._status, bytes(self._body)))
        else:
            self.done.errback(reason)

    def _cancel(self, _: object) -> None:
        self._abort()

    def _abort(self) -> None:
        # Twisted's proxy of the transport offers loseConnection only, which over TLS waits for a peer that may never answer.
        connection = self.transport._producer  # noqa: SLF001
        if connection is not None:
            connection.abortConnection()


def _read_body(response: Any) -> Deferred[Answer]:
    body = _Body(response.code)
    response.deliverBody(body)
    return body.done


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
        parts = Path(path).read_bytes().split(_PEM_END)[:-1]
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except (OSError, ValueError) as error:
        raise ConfigError(f"tower.tls_ca = {path!r}: can't be read: {getattr(error, 'strerror', None) or 'not a path'}") from None
    except crypto.Error:
        raise ConfigError(f"tower.tls_ca = {path!r}: holds a certificate that is damaged") from None
    if not certificates:
        raise ConfigError(f"tower.tls_ca = {path!r}: must be a file with certificates in PEM")
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)
