"""HTTP for the admin port: one endpoint per path, bounded request bodies, and errors in JSON.

Its checks keep pages of other sites away from the port, by Host and Origin, and other machines away from events and users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from towerws.core.client_address import is_loopback
from towerws.core.errors import printable
from towerws.core.origins import is_local

IDLE_S = 60
"""Seconds that a connection may be silent, unless a site sets another time."""

DISCARDED_BODIES = 8
"""How many times `max_body_bytes` a client may send before it is disconnected.

Most clients read an answer only after they have sent everything. If they were disconnected at the first byte above the limit, they would
see a reset and not the 413.
"""

_POLICY = {
    "default-src": "'none'",
    "style-src": "'self'",
    "script-src": "'self'",
    "connect-src": "'self' ws: wss:",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
PAGE_POLICY = "; ".join(f"{name} {value}" for name, value in _POLICY.items())
"""The Content-Security-Policy: the live page loads only its own files, and connects to websockets anywhere."""

_HEADERS = {
    b"server": b"towerws",
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": PAGE_POLICY.encode("ascii"),
}


class HttpError(Exception):
    """A request is answered with an error: the HTTP status, and the text for `{"error": …}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Answer(NamedTuple):
    """A response: status, body, content type, and for a 405 the methods that the path takes."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    allow: bytes = b""


def json_answer(status: int, body: Mapping[str, object]) -> Answer:
    """Return a response with one JSON object, in ASCII."""
    return Answer(status, json.dumps(body).encode("ascii") + b"\n")


def body_of(request: Request) -> bytes:
    """Return the body of a request, empty if it has none."""
    return request.content.read() if request.content is not None else b""


@implementer(IResource)
class Endpoint(Resource):
    """One path: the method that it takes, and the function that answers.

    `answer` may return a Deferred. It raises `HttpError` for a mistake of the client. `check` is called first, and raises `HttpError` to
    refuse the request.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        method: bytes,
        answer: Callable[[Request], Answer | Deferred[Answer]],
        check: Callable[[Request], None] = lambda request: None,
    ) -> None:
        super().__init__()
        self._method = method
        self._answer = answer
        self._check = check

    def render(self, request: Request) -> bytes | int:
        """Answer one request, now or later. An unexpected exception is logged, and the client gets a 500 without details."""
        try:
            if request.method != self._method and (request.method, self._method) != (b"HEAD", b"GET"):
                request.setHeader(b"allow", self._method)
                raise HttpError(405, f"this path takes {self._method.decode()} only")
            self._check(request)
            answer = self._answer(request)
        except HttpError as error:
            answer = json_answer(error.status, {"error": str(error)})
        except Exception:  # noqa: BLE001 - Twisted would answer with a page of HTML
            answer = self._internal_error(Failure())
        if isinstance(answer, Deferred):
            gone: list[Failure] = []
            request.notifyFinish().addErrback(gone.append)
            answer.addErrback(self._internal_error).addCallback(self._finish, request, gone)
            return NOT_DONE_YET
        return self._write_head(request, answer)

    def _internal_error(self, failure: Failure) -> Answer:
        self._log.failure("a request to the admin port failed", failure)
        return json_answer(500, {"error": "internal error: the daemon's log has the traceback"})

    def _finish(self, answer: Answer, request: Request, gone: list[Failure]) -> None:
        if not gone:
            request.write(self._write_head(request, answer))
            request.finish()

    def _write_head(self, request: Request, answer: Answer) -> bytes:
        """Set status and headers on the request. Returns the bytes of the body that the client gets: none for HEAD."""
        request.setResponseCode(answer.status)
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        request.setHeader(b"content-type", answer.content_type)
        if answer.allow:
            request.setHeader(b"allow", answer.allow)
        request.setHeader(b"content-length", b"%d" % len(answer.body))
        return b"" if request.method == b"HEAD" else answer.body


class BoundedRequest(Request):
    """A request whose body is bounded while it arrives, by `EndpointSite.max_body_bytes`."""

    _received = 0
    _refused = False

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory. Twisted would open a temporary file for a long one, or one of unknown length: a descriptor."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body. Above the limit, answer 413 once and keep nothing more."""
        self._received += len(data)
        channel: Any = self.channel
        limit: int = channel.site.max_body_bytes  # `self.site` is set only when the body is complete
        if self._received <= limit:
            super().handleContentChunk(data)
        elif not self._refused:
            self._refused = True
            error = json.dumps({"error": f"the body is longer than {limit} bytes, the most that this port reads"}).encode("ascii")
            head = f"HTTP/1.1 413 Payload Too Large\r\nContent-Type: application/json\r\nContent-Length: {len(error)}\r\n"
            channel.transport.write(head.encode("ascii") + b"Connection: close\r\n\r\n" + error)
        elif self._received > DISCARDED_BODIES * limit:
            channel.loseConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer a complete request. If it has been answered with 413, only close the connection."""
        if self._refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)


class EndpointSite(Site):
    """Serves endpoints by path. Any other path is a 404 in JSON, with `help_text`."""

    def __init__(
        self,
        endpoints: Mapping[bytes, Endpoint],
        *,
        help_text: str,
        max_body_bytes: int,
        check: Callable[[Request], None] = lambda request: None,
        timeout_s: float = IDLE_S,
    ) -> None:
        """`check` is for paths without an endpoint, because each endpoint has its own check."""
        # No endpoint takes a form. Twisted would parse one in one turn of the reactor, before any check: a second for 4 MiB.
        super().__init__(Resource(), requestFactory=BoundedRequest, timeout=timeout_s, parsePOSTFormSubmission=False)
        self.displayTracebacks = False
        self.max_body_bytes = max_body_bytes
        self._endpoints = endpoints
        self._help_text = help_text
        self._check = check

    def getResourceFor(self, request: Request) -> IResource:
        """Return the endpoint of a path."""
        found = self._endpoints.get(request.path.strip(b"/"))
        return found if found is not None else Endpoint(request.method, self._not_found, self._check)

    def log(self, request: HTTPRequest) -> None:
        """Write no access log. It would hold URLs, and Twisted takes its dates from the reactor's clock, which is monotonic."""

    def _not_found(self, request: Request) -> Answer:
        raise HttpError(404, f"nothing is at {printable(request.path.decode('latin-1'))}: {self._help_text}")


def check_browser(request: Request) -> None:
    """Raise `HttpError` 403 for a request that a page of another site may have sent."""
    _check_host(request)
    _check_origin(request)


def check_reader(request: Request) -> None:
    """Raise `HttpError` 403 for a request that a page of another site may have sent, also for one without an Origin.

    A browser sends no Origin for an image, for example. The page can't read the answer, but it must not cause the work either. Browsers say
    in Sec-Fetch-Site whether the page is of another site (W3C Fetch Metadata).
    """
    check_browser(request)
    site = request.getHeader(b"sec-fetch-site")
    if site not in {None, b"same-origin", b"none"}:
        raise HttpError(
            403,
            f"Sec-Fetch-Site is '{printable(site.decode('latin-1'))}': a page of another site asked for this; "
            "open the console of this port, or use a client that is no browser",
        )


def details_check(*, shown: bool) -> Callable[[Request], None]:
    """Return the check of a path whose answer has events, topics or users. `shown` is `admin_details`.

    The check raises `HttpError` 403 if `shown` is false, and on any address but loopback and UNIX sockets.
    """

    def check(request: Request) -> None:
        check_reader(request)
        if not shown:
            raise HttpError(403, "events and users are not shown here: admin_details is false in the daemon's configuration")
        listening = request.getHost()
        if not isinstance(listening, UNIXAddress) and not is_loopback(listening.host):
            raise HttpError(
                403,
                f"events and users are not shown on {listening.host}: this port has no authentication, and shows them only on loopback or "
                "a UNIX socket; listen there, and use an SSH tunnel",
            )

    return check


def _check_host(request: Request) -> None:
    """Refuse a foreign host name for a loopback address (DNS rebinding).

    Anyone can make a name point to 127.0.0.1. To a browser on this machine, a page of that name would have the same origin as ours.
    """
    listening = request.getHost()
    if not isinstance(listening, (IPv4Address, IPv6Address)) or not is_loopback(listening.host):
        return
    host = (request.getHeader(b"host") or b"localhost").decode("latin-1")
    if not is_local(host):
        raise HttpError(
            403,
            f"the Host is '{printable(host)}': on this machine's own address the admin port answers to localhost and IP addresses only; "
            f"use http://localhost:{listening.port}/",
        )


def _check_origin(request: Request) -> None:
    """Refuse a page of another origin: it can make a browser post here, but its Origin isn't the Host that it posts to."""
    origin = request.getHeader(b"origin")
    if origin is None:
        return
    found, host = _split(origin), request.getHeader(b"host")
    if host is None or found is None or found.netloc != host.decode("latin-1"):
        raise HttpError(
            403,
            f"the Origin is '{printable(origin.decode('latin-1'))}': the admin port refuses pages of another origin; "
            "open the live page of this port, or use a client that is no browser",
        )


def _split(url: bytes) -> SplitResult | None:
    """Split a URL into its parts. None for bytes that are no URL."""
    try:
        return urlsplit(url.decode("ascii"))
    except ValueError:
        return None
