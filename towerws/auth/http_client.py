"""HTTP GET through Twisted's client, within bounds and with little garbage, for a process that runs for months.

The client follows no redirects, verifies certificates, and bounds the body.

Twisted's client leaves cyclic garbage, which only a full collection frees (towerws/process.py). Measured for each request:

what                                        | with Twisted's own parts  | here
a chunked answer                            | 20 objects, 3 KiB         | none
a new connection                            | 55 objects, 7.4 KiB       | 42 objects, 5.8 KiB
a new connection with TLS                   | 141 objects, 91 KiB       | 57 objects, 7.9 KiB
the same, ended without TLS's closing alert | the same                  | 121 objects, 75 KiB
a failed handshake, the system's authorities| 98 objects, 870 KiB       | 57 objects, 8.6 KiB

Twisted makes a TLS context for each request, with all authorities in it (5 ms for the system's). Here all requests share one. The
rest of each new connection's garbage is in Twisted's endpoints, where we can't free it. A connection is kept for the next request if
the server allows it, so new connections are rare. `tests/kit/cycles_cases.py` checks these numbers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import wrapClientTLS
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
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from towerws.auth.base import drop_frames
from towerws.core.errors import ConfigError
from towerws.core.host_names import check_host
from towerws.outgoing import read_bounded, release, tcp_endpoint, trust_root

_is_printable = re.compile(r"[!-~]+").fullmatch


class Response(NamedTuple):
    """An HTTP response. `body` is None if it was longer than the bound."""

    status: int
    headers: Headers
    body: bytes | None


def make_pool(reactor: Any, kept: int, idle_s: float) -> Any:
    """Return a pool for `make_agent`. At most `kept` idle connections stay open, for `idle_s` each. With 0 no connection is reused."""
    pool: Any = HTTPConnectionPool(reactor, persistent=kept > 0)
    pool.maxPersistentPerHost = kept
    pool.cachedConnectionTimeout = idle_s
    pool._factory = _Factory  # noqa: SLF001
    return pool


def make_agent(reactor: Any, pool: Any, trust: Any = None, connect_s: float = 30) -> Any:
    """Return an agent that sends requests through this pool. `trust` (from `read_authorities`) replaces the system's authorities."""
    policy: Any = HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))
    return Agent.usingEndpointFactory(reactor, _Endpoints(reactor, policy, connect_s), pool)


def read_authorities(option: str, path: str) -> Any:
    """Read the certificate authorities in a PEM file. `ConfigError`, with the option's name, if the file can't be used."""
    try:
        return trust_root(read_bounded(path))
    except ValueError as error:
        raise ConfigError(f"{option} = {path!r}: {error}") from None


def split_url(url: str) -> SplitResult | None:
    """Return the parts of a URL. Return None unless it is printable ASCII without spaces and has a host.

    Raises `ValueError` with the reason if no connection to the host can be made.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port out of range is a ValueError
    except ValueError:
        return None
    if not host or not _is_printable(url):
        return None
    check_host(host, tls=parts.scheme == "https")
    return parts


def shown_url(url: str) -> str:
    """Return a bad URL for an error text, or `…` if it may hold a password."""
    return "…" if set(url) & set("@?#") else repr(url[:80])


def get(agent: Any, url: str, headers: Headers, max_body_bytes: int) -> Deferred[Response]:
    """Send a GET. The body is read to its end, so that the connection can be reused. If it is too long, the connection is aborted.

    Fails with Twisted's error about the connection. Cancelling it closes the connection at once.
    """
    asked: Deferred[Any] = maybeDeferred(agent.request, b"GET", url.encode("ascii"), headers)  # raises if TLS can't use the host's name
    return asked.addCallback(_read_body, max_body_bytes).addErrback(_without_frames)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoints of an agent. Twisted's own factory refuses host names with `_`."""

    def __init__(self, reactor: Any, policy: Any, connect_s: float) -> None:
        self._reactor = reactor
        self._policy = policy
        self._connect_s = connect_s

    def endpointForURI(self, uri: Any) -> Any:
        """See `IAgentEndpointFactory`."""
        tcp = tcp_endpoint(self._reactor, uri.host.decode("ascii"), uri.port, self._connect_s)
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), tcp) if uri.scheme == b"https" else tcp


class _Connection(HTTP11ClientProtocol):
    """Twisted's connection, without the cycles that it leaves when it ends."""

    transport: Any
    _parser: Any

    def _disconnectParser(self, reason: Failure) -> None:
        parser = self._parser
        super()._disconnectParser(reason)
        if parser is not None:
            parser.bodyDecoder = None  # the decoder of a chunked body refers to the parser: a cycle

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        _without_frames(reason)  # if TLS was cut off, the frames refer to the failure: a cycle
        release(self.transport)


class _Factory:
    """Makes connections for the pool. Twisted's factory writes two log lines for each."""

    noisy = False

    def __init__(self, quiescent: Any, _metadata: object) -> None:
        self._quiescent = quiescent

    def buildProtocol(self, _address: object) -> _Connection:
        return _Connection(self._quiescent)

    def doStart(self) -> None:
        """Do nothing. Twisted calls it before the first connection."""

    def doStop(self) -> None:
        """Do nothing. Twisted calls it after the last connection."""


class _BodyCollector(Protocol):
    """Collects a response's body."""

    transport: Any

    def __init__(self, status: int, headers: Headers, max_bytes: int) -> None:
        self.done: Deferred[Response] = Deferred(self._cancel)
        self._status = status
        self._headers = headers
        self._max_bytes = max_bytes
        self._body = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:  # the rest of a read that went beyond the bound
            return
        self._body += data
        if len(self._body) > self._max_bytes:
            self._body.clear()
            self._abort()
            self.done.callback(Response(self._status, self._headers, None))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without Content-Length a complete body can't be told from one that was cut off. JSON that was cut off can't be parsed.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(Response(self._status, self._headers, bytes(self._body)))
        else:
            self.done.errback(reason)

    def _cancel(self, _: object) -> None:
        self._abort()

    def _abort(self) -> None:
        # Twisted's proxy of the transport has only loseConnection, which over TLS waits for a peer that may never answer.
        connection = self.transport._producer  # noqa: SLF001
        if connection is not None:
            connection.abortConnection()


def _read_body(response: Any, max_bytes: int) -> Deferred[Response]:
    body = _BodyCollector(response.code, response.headers, max_bytes)
    response.deliverBody(body)
    return body.done


def _without_frames(failure: Failure) -> Failure:
    """Errback: remove the frames from a network failure and the failures inside it. The frames say nothing, and they form cycles."""
    failure.tb = None
    error: Any = failure.value
    drop_frames(error)
    for inner in getattr(error, "reasons", ()):
        _without_frames(inner)
    return failure
