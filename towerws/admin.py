"""The admin port: health, readiness, status, publishing, and the live page. Never public; loopback by default.

  GET  /         the live page
  GET  /healthz  200 as long as the reactor turns
  GET  /readyz   200 while the source is consuming, else 503 with the reason
  GET  /status   figures, JSON
  POST /publish  {"topic": "job_events.42", "payload": {…}} or {"group": "job_events", "event": "42", "payload": {…}}: 202 with
                 the position; only with the embedded source
Every answer but the page is one JSON object; an error is {"error": …}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from urllib.parse import urlsplit

from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site
from zope.interface import implementer

from towerws.errors import BadDelivery
from towerws.publication import parse_publication
from towerws.sources import SourceStatus


ENVELOPE_OCTETS = 1024
"""What a publish request may hold around its payload."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refusal(Exception):
    """A request that is answered with an error: the HTTP status and what to say."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class AdminRequest(Request):
    """A request whose body is bounded while it arrives."""

    _received = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Take in a piece of the body, or give the connection up."""
        self._received += len(data)
        limit: int = self.channel.site.max_body_octets  # `self.site` is there only once the body is whole
        if self._received > limit:
            error = json.dumps({"error": f"the body is longer than {limit} octets"}).encode("ascii")
            head = f"HTTP/1.1 413 Payload Too Large\r\nContent-Type: application/json\r\nContent-Length: {len(error)}\r\n"
            self.channel.transport.write(head.encode("ascii") + b"Connection: close\r\n\r\n" + error)
            self.channel.loseConnection()
            return
        super().handleContentChunk(data)


@implementer(IResource)
class _Page(Resource):
    """One path: its method, and what makes its answer."""

    isLeaf = True

    def __init__(self, method: bytes, answer: Callable[[Request], tuple[int, Mapping[str, object]]]) -> None:
        super().__init__()
        self._method = method
        self._answer = answer

    def render(self, request: Request) -> bytes:
        """The answer to one request."""
        try:
            if request.method != self._method and (request.method, self._method) != (b"HEAD", b"GET"):
                request.setHeader(b"allow", self._method)
                raise Refusal(405, f"this path takes {self._method.decode()} only")
            _same_origin(request)
            status, body = self._answer(request)
        except Refusal as refusal:
            status, body = refusal.status, {"error": str(refusal)}
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        return json.dumps(body).encode("ascii") + b"\n"


class _LivePage(Resource):
    """The page that shows what happens, with the websocket's port written into it."""

    isLeaf = True

    def __init__(self, websocket_port: Callable[[], int]) -> None:
        super().__init__()
        self._websocket_port = websocket_port

    def render_GET(self, request: Request) -> bytes:
        """The page."""
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"content-security-policy", PAGE_POLICY.encode("ascii"))
        request.setHeader(b"x-content-type-options", b"nosniff")
        request.setHeader(b"cache-control", b"no-store")
        page = files("towerws").joinpath("static/live.html").read_text(encoding="utf-8")
        return page.replace("{{WEBSOCKET_PORT}}", str(self._websocket_port())).encode()


class AdminSite(Site):
    """The admin port's resources.

    `status` gives the figures, `source_status` the source's state, `publish` takes a routing key and a payload and gives the
    position, or raises `BadDelivery`; None when the source takes no messages from here.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, object]],
        source_status: Callable[[], SourceStatus],
        publish: Callable[[str, bytes], str] | None,
        websocket_port: Callable[[], int],
        max_payload_octets: int,
    ) -> None:
        root = Resource()
        super().__init__(root, requestFactory=AdminRequest)
        self.displayTracebacks = False
        self.max_body_octets = max_payload_octets + ENVELOPE_OCTETS
        self._source_status = source_status
        self._publish = publish
        root.putChild(b"", _LivePage(websocket_port))
        root.putChild(b"healthz", _Page(b"GET", lambda request: (200, {"healthy": True})))
        root.putChild(b"readyz", _Page(b"GET", self._ready))
        root.putChild(b"status", _Page(b"GET", lambda request: (200, status())))
        root.putChild(b"publish", _Page(b"POST", self._take))

    def getResourceFor(self, request: Request) -> IResource:
        """The resource of a path; anything unknown is a 404 in JSON like every other error."""
        name = request.path.strip(b"/")
        found = self.resource.children.get(name)
        return found if found is not None else _Page(request.method, _nothing_here)

    def log(self, request: Request) -> None:
        """No access log: it would hold URLs, and Twisted's takes its dates from the reactor's clock, which is monotonic."""

    def buildProtocol(self, addr: object) -> HTTPChannel:
        """A connection of the admin port."""
        channel: HTTPChannel = super().buildProtocol(addr)
        return channel

    def _ready(self, request: Request) -> tuple[int, Mapping[str, object]]:
        status = self._source_status()
        answer: dict[str, object] = {"ready": status.ready, "state": status.state.value}
        if status.reason is not None:
            answer["reason"] = status.reason
        return (200 if status.ready else 503), answer

    def _take(self, request: Request) -> tuple[int, Mapping[str, object]]:
        if self._publish is None:
            raise Refusal(404, "this daemon reads from a broker: publish to its exchange there (towerws publish, or any AMQP client)")
        body = request.content.read() if request.content is not None else b""
        try:
            publication = parse_publication(body)
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        try:
            position = self._publish(publication.topic.routing_key, publication.payload)
        except BadDelivery as bad:
            raise Refusal(413 if bad.reason == "too_large" else 400, str(bad)) from None
        return 202, {"position": position}


def _nothing_here(request: Request) -> tuple[int, Mapping[str, object]]:
    raise Refusal(404, "there is nothing here; try /healthz, /readyz, /status, /publish or the page at /")


def _same_origin(request: Request) -> None:
    """Pages from elsewhere can make a browser post here; their Origin is not the Host they post to."""
    origin = request.getHeader(b"origin")
    host = request.getHeader(b"host")
    if origin is not None and (host is None or urlsplit(origin).netloc != host):
        raise Refusal(403, "requests from pages of another origin are not taken")
