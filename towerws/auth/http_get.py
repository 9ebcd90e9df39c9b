"""HTTP GET through Twisted's client, with bounds: for a process that asks for months.

Redirects are not followed. Certificates are verified. The body has a bound.

Twisted's client leaves cyclic garbage, which only a full collection frees (towerws/collector.py). Measured for each question:

what                                        | with Twisted's own parts  | here
a chunked answer                            | 20 objects, 3 KiB         | none
a new connection                            | 55 objects, 7.4 KiB       | 42 objects, 5.8 KiB
a new connection with TLS                   | 141 objects, 91 KiB       | 57 objects, 7.9 KiB
the same, ended without TLS's closing alert | the same                  | 121 objects, 75 KiB
a failed handshake, the system's authorities| 98 objects, 870 KiB       | 57 objects, 8.6 KiB

Twisted makes a TLS context for each question, with all authorities in it (5 ms for the system's). Here all questions share one.
What is left for each new connection is in Twisted's endpoints, out of reach. Connections are kept for the next question where the
other side allows it, so that new ones are rare. `tests/cycles_cases.py` holds these numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HostnameCachingHTTPSPolicy,
    HTTPConnectionPool,
    ResponseDone,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from towerws.auth.base import drop_frames
from towerws.sockets import release

_PEM_END: Final = b"-----END CERTIFICATE-----"


class Response(NamedTuple):
    """An answer. `body` is None where it was longer than the bound."""

    status: int
    headers: Headers
    body: bytes | None


def make_pool(reactor: Any, kept: int, idle_s: float) -> Any:
    """Connections for `make_agent`: at most `kept` stay open when they are idle, for `idle_s` each. With 0 none is used again."""
    pool: Any = HTTPConnectionPool(reactor, persistent=kept > 0)
    pool.maxPersistentPerHost = kept
    pool.cachedConnectionTimeout = idle_s
    pool._factory = _Factory  # noqa: SLF001
    return pool


def make_agent(reactor: Any, pool: Any, trust: Any = None, connect_s: float | None = None) -> Any:
    """Asks through these connections. `trust` (of `authorities`) replaces the system's authorities, which are read once."""
    policy: Any = HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))
    return Agent(reactor, policy, connectTimeout=connect_s, pool=pool)


def authorities(path: str) -> Any:
    """What a PEM file's certificates vouch for. Raises OSError or ValueError when it can't be read or holds none that can be used."""
    parts = Path(path).read_bytes().split(_PEM_END)[:-1]
    try:
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except crypto.Error:
        raise ValueError("holds a certificate that is damaged") from None
    if not certificates:
        raise ValueError("must be a file with certificates in PEM")
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)


def get(agent: Any, url: str, headers: Headers, max_body_bytes: int) -> Deferred[Response]:
    """Ask. The body is read to its end, so that the connection serves the next question, or given up when it is too long.

    Fails with what Twisted says about the connection. Cancelling it lets go of the connection at once.
    """
    asked: Deferred[Any] = agent.request(b"GET", url.encode("ascii"), headers)
    return asked.addCallback(_read_body, max_body_bytes).addErrback(_without_frames)


class _Connection(HTTP11ClientProtocol):
    """Twisted's, which lets go of what it is done with."""

    transport: Any
    _parser: Any

    def _disconnectParser(self, reason: Failure) -> None:
        parser = self._parser
        super()._disconnectParser(reason)
        if parser is not None:
            parser.bodyDecoder = None  # that of a chunked answer refers to the parser: a cycle

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        _without_frames(reason)  # TLS that was cut off: the frames hold the failure that holds them
        release(self.transport)


class _Factory:
    """Makes connections for the pool. Twisted's writes two log lines for each."""

    noisy = False

    def __init__(self, quiescent: Any, _metadata: object) -> None:
        self._quiescent = quiescent

    def buildProtocol(self, _address: object) -> _Connection:
        return _Connection(self._quiescent)

    def doStart(self) -> None:
        """Nothing to prepare."""

    def doStop(self) -> None:
        """Nothing to let go of."""


class _Body(Protocol):
    """Collects a response's body."""

    transport: Any

    def __init__(self, status: int, headers: Headers, max_bytes: int) -> None:
        self.done: Deferred[Response] = Deferred(self._cancel)
        self._status = status
        self._headers = headers
        self._max_bytes = max_bytes
        self._body = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:  # what was read together with the last that counted
            return
        self._body += data
        if len(self._body) > self._max_bytes:
            self._body.clear()
            self._abort()
            self.done.callback(Response(self._status, self._headers, None))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without Content-Length nobody can tell an end from a cut; a body that was cut is not understood.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(Response(self._status, self._headers, bytes(self._body)))
        else:
            self.done.errback(reason)

    def _cancel(self, _: object) -> None:
        self._abort()

    def _abort(self) -> None:
        # Twisted's proxy of the transport offers loseConnection only, which over TLS waits for a peer that may never answer.
        connection = self.transport._producer  # noqa: SLF001
        if connection is not None:
            connection.abortConnection()


def _read_body(response: Any, max_bytes: int) -> Deferred[Response]:
    body = _Body(response.code, response.headers, max_bytes)
    response.deliverBody(body)
    return body.done


def _without_frames(failure: Failure) -> Failure:
    """What came of the network, and the failures within: their stack frames say nothing, and hold the failures that hold them."""
    failure.tb = None
    error: Any = failure.value
    drop_frames(error)
    for inner in getattr(error, "reasons", ()):
        _without_frames(inner)
    return failure
