"""The admin port: health, readiness, status, publishing, and the live page. Never public; loopback by default.

  GET  /         the live page
  GET  /healthz  200 as long as the reactor turns
  GET  /readyz   200 while the source is consuming, else 503 with the reason
  GET  /status   figures, JSON
  GET  /topics   for the live page: the topics of the configuration's own groups that history holds, the newest first, and the
                 position of the newest delivery
  POST /publish  {"topic": "job_events.42", "payload": {…}} or {"group": "job_events", "event": "42", "payload": {…}}: 202 with
                 the position; only with the embedded source
  POST /disconnect  {"user": 7} or {"session": "<hash>"}: closes the connections of a user or a credential, here and on the other
                 daemons of the broker; 202 with how many they were here, or 503 with that when the others could not be told
Every answer but the page is one JSON object; an error is {"error": …}. HEAD works wherever GET does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from towerws.core.errors import BadDelivery
from towerws.core.origins import is_local
from towerws.core.publication import parse_publication
from towerws.core.revocation import Disconnection, Revocation, parse_revocation
from towerws.core.sources import SourceStatus

ENVELOPE_BYTES = 1024
"""What a publish request may hold around its payload."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self' ws: wss:; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


MAX_PROBES = 32
"""Connections to the port for probes at once; they share the descriptors that browsers leave (service.py, RESERVED_DESCRIPTORS)."""

PROBE_S = 10
"""How long such a connection may be silent."""

DISCARDED_BODIES = 8
"""How many times the limit is read and thrown away before a client that sends on is cut off.

Most clients read an answer only once they have sent everything; cut off at once they would see a reset instead of the 413.
"""


class Refusal(Exception):
    """A request that is answered with an error: the HTTP status and what to say."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class AdminRequest(Request):
    """A request whose body is bounded while it arrives."""

    _received = 0
    _refused = False

    def handleContentChunk(self, data: bytes) -> None:
        """Take in a piece of the body; refuse one that is too long as soon as it is, and keep nothing more of it."""
        self._received += len(data)
        channel: Any = self.channel
        limit: int = channel.site.max_body_bytes  # `self.site` is there only once the body is whole
        if self._received <= limit:
            super().handleContentChunk(data)
        elif not self._refused:
            self._refused = True
            error = json.dumps({"error": f"the body is longer than {limit} bytes"}).encode("ascii")
            head = f"HTTP/1.1 413 Payload Too Large\r\nContent-Type: application/json\r\nContent-Length: {len(error)}\r\n"
            channel.transport.write(head.encode("ascii") + b"Connection: close\r\n\r\n" + error)
        elif self._received > DISCARDED_BODIES * limit:
            channel.loseConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer, unless that is done already."""
        if self._refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)


class _Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


@implementer(IResource)
class _Page(Resource):
    """One path: its method, and what makes its answer. `guarded`: the Host and Origin of a request must be our own."""

    isLeaf = True
    _log = Logger()

    def __init__(self, method: bytes, answer: Callable[[Request], _Answer | Deferred[_Answer]], *, guarded: bool = True) -> None:
        super().__init__()
        self._guarded = guarded
        self._method = method
        self._answer = answer

    def render(self, request: Request) -> bytes | int:
        """The answer to one request, now or later. An error of ours is logged, and a 500 that tells nothing."""
        try:
            if request.method != self._method and (request.method, self._method) != (b"HEAD", b"GET"):
                request.setHeader(b"allow", self._method)
                raise Refusal(405, f"this path takes {self._method.decode()} only")
            if self._guarded:
                _own_host(request)
                _same_origin(request)
            answer = self._answer(request)
        except Refusal as refusal:
            answer = _json(refusal.status, {"error": str(refusal)})
        except Exception:  # noqa: BLE001 - Twisted's own answer would be a page of HTML
            answer = self._failed(Failure())
        if isinstance(answer, Deferred):
            gone: list[Failure] = []
            request.notifyFinish().addErrback(gone.append)
            answer.addErrback(self._failed).addCallback(self._answer_late, request, gone)
            return NOT_DONE_YET
        return self._write(request, answer)

    def _failed(self, failure: Failure) -> _Answer:
        self._log.failure("a request to the admin port failed", failure)
        return _json(500, {"error": "internal error; the log says more"})

    def _answer_late(self, answer: _Answer, request: Request, gone: list[Failure]) -> None:
        if not gone:
            request.write(self._write(request, answer))
            request.finish()

    def _write(self, request: Request, answer: _Answer) -> bytes:
        """The head goes into the request; what is given is its body."""
        request.setResponseCode(answer.status)
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        request.setHeader(b"content-type", answer.content_type)
        request.setHeader(b"content-length", b"%d" % len(answer.body))
        return b"" if request.method == b"HEAD" else answer.body


_HEADERS = {
    b"server": b"towerws",
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": PAGE_POLICY.encode("ascii"),
}


def _json(status: int, body: Mapping[str, object]) -> _Answer:
    return _Answer(status, json.dumps(body).encode("ascii") + b"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """What the live page needs to know of its daemon.

    `groups` are those of the configuration (`GroupTable.configured`). `auth` names the methods, `takes_tokens` says whether a token
    may come in a message. `topics` gives the newest topics of the configuration's groups, `position` that of the newest delivery.
    """

    groups: Mapping[str, object] = field(default_factory=dict)
    auth: Sequence[str] = ("open",)
    takes_tokens: bool = False
    topics: Callable[[], Sequence[str]] = list
    position: Callable[[], str | None] = lambda: None


class AdminSite(Site):
    """The admin port's resources.

    `why_no_subscriber` says why no client can subscribe to a group's event, or None.
    `status` gives the figures, `source_status` the source's state, `publish` takes a routing key and a payload and gives the
    position, or raises `BadDelivery`; None when the source takes no messages from here. `disconnect` fires with what came of it.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, object]],
        source_status: Callable[[], SourceStatus],
        publish: Callable[[str, bytes], str] | None,
        disconnect: Callable[[Revocation], Deferred[Disconnection]],
        websocket_port: Callable[[], int],
        max_payload_bytes: int,
        why_no_subscriber: Callable[[str, str], str | None] = lambda group, event: None,
        page: PageContent | None = None,
    ) -> None:
        root = Resource()
        super().__init__(root, requestFactory=AdminRequest)
        self.displayTracebacks = False
        self.max_body_bytes = max_payload_bytes + ENVELOPE_BYTES
        self._source_status = source_status
        self._publish = publish
        self._disconnect = disconnect
        self._why_nobody = why_no_subscriber
        self._websocket_port = websocket_port
        self._page = page or PageContent()
        root.putChild(b"", _Page(b"GET", self._live))
        root.putChild(b"live.css", _Page(b"GET", lambda request: _static("live.css", b"text/css; charset=utf-8")))
        root.putChild(b"live.js", _Page(b"GET", lambda request: _static("live.js", b"text/javascript; charset=utf-8")))
        root.putChild(b"healthz", _Page(b"GET", lambda request: _json(200, {"healthy": True})))
        root.putChild(b"readyz", _Page(b"GET", self._ready))
        root.putChild(b"status", _Page(b"GET", lambda request: _json(200, status())))
        root.putChild(b"topics", _Page(b"GET", lambda request: self._topics()))
        root.putChild(b"publish", _Page(b"POST", self._take))
        root.putChild(b"disconnect", _Page(b"POST", self._revoke))

    def getResourceFor(self, request: Request) -> IResource:
        """The resource of a path; anything unknown is a 404 in JSON like every other error."""
        name = request.path.strip(b"/")
        found = self.resource.children.get(name)
        return found if found is not None else _Page(request.method, _nothing_here)

    def log(self, request: HTTPRequest) -> None:
        """No access log: it would hold URLs, and Twisted's takes its dates from the reactor's clock, which is monotonic."""

    def _live(self, request: Request) -> _Answer:
        """The page that shows what happens, with what it needs to know of this daemon written into it."""
        page = files("towerws").joinpath("static/live.html").read_text(encoding="utf-8")
        content = {
            "WEBSOCKET_PORT": str(self._websocket_port()),
            "GROUPS": json.dumps(self._page.groups),
            "AUTH": " ".join(self._page.auth),
            "TAKES_TOKENS": "yes" if self._page.takes_tokens else "no",
        }
        for name, value in content.items():
            page = page.replace(f"{{{{{name}}}}}", escape(value))
        return _Answer(200, page.encode(), b"text/html; charset=utf-8")

    def _topics(self) -> _Answer:
        return _json(200, {"topics": list(self._page.topics()), "position": self._page.position()})

    def _ready(self, request: Request) -> _Answer:
        status = self._source_status()
        answer: dict[str, object] = {"ready": status.ready, "state": status.state.value}
        if status.reason is not None:
            answer["reason"] = status.reason
        if status.unproven:
            answer["unproven"] = status.unproven
        return _json(200 if status.ready else 503, answer)

    def _take(self, request: Request) -> _Answer:
        if self._publish is None:
            raise Refusal(
                404,
                "this daemon reads from a broker: publish to its exchange there, with `towerws publish --broker URL` "
                "or any AMQP client (docs/publish.md)",
            )
        body = request.content.read() if request.content is not None else b""
        try:
            publication = parse_publication(body)
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        try:
            position = self._publish(publication.topic.routing_key, publication.payload)
        except BadDelivery as bad:
            raise Refusal(413 if bad.reason == "too_large" else 400, str(bad)) from None
        answer: dict[str, object] = {"position": position}
        if (warning := self._why_nobody(publication.topic.group, publication.topic.event)) is not None:
            answer["warning"] = warning
        return _json(202, answer)

    def _revoke(self, request: Request) -> Deferred[_Answer]:
        try:
            revocation = parse_revocation(request.content.read() if request.content is not None else b"")
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        return self._disconnect(revocation).addCallback(_disconnected)


def _static(name: str, content_type: bytes) -> _Answer:
    return _Answer(200, files("towerws").joinpath(f"static/{name}").read_bytes(), content_type)


class _Bounded(WrappingFactory):
    """At most `MAX_PROBES` connections at once; one more is closed at once."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        """One for a probe, or None."""
        return super().buildProtocol(addr) if len(self.protocols) < MAX_PROBES else None


def health_site(source_status: Callable[[], SourceStatus]) -> WrappingFactory:
    """What the port for probes serves: `/healthz` and `/readyz`, without the reason, which may name machines.

    It may be public: a probe sends any Host, and there is nothing here that a page could do.
    """
    site = _HealthSite(source_status)
    return _Bounded(site)


class _HealthSite(Site):
    """`/healthz` and `/readyz` without reasons."""

    noisy = False

    def __init__(self, source_status: Callable[[], SourceStatus]) -> None:
        super().__init__(Resource(), requestFactory=AdminRequest, timeout=PROBE_S)
        self.displayTracebacks = False
        self.max_body_bytes = 0
        self._source_status = source_status
        self._pages = {
            b"healthz": _Page(b"GET", lambda request: _json(200, {"healthy": True}), guarded=False),
            b"readyz": _Page(b"GET", self._ready, guarded=False),
        }

    def getResourceFor(self, request: Request) -> IResource:
        """The resource of a path."""
        found = self._pages.get(request.path.strip(b"/"))
        return found if found is not None else _Page(request.method, _no_probe, guarded=False)

    def log(self, request: HTTPRequest) -> None:
        """No access log, as on the admin port."""

    def _ready(self, request: Request) -> _Answer:
        ready = self._source_status().ready
        return _json(200 if ready else 503, {"ready": ready})


def _no_probe(request: Request) -> _Answer:
    raise Refusal(404, "there is nothing here; try /healthz or /readyz")


def _disconnected(done: Disconnection) -> _Answer:
    answer: dict[str, object] = {"disconnected": done.closed}
    if done.told is not None:
        answer["others_told"] = done.told
    if done.told is not False:
        return _json(202, answer)
    if done.no_answer:
        answer["no_answer"] = [{"id": daemon, "name": name} for daemon, name in done.no_answer]
        return _json(503, {**answer, "error": f"not every daemon has said that it ended the connections: {done.reason}"})
    return _json(503, {**answer, "error": f"connections were ended on this daemon only; the others could not be told: {done.reason}"})


def _nothing_here(request: Request) -> _Answer:
    raise Refusal(404, "there is nothing here; try /healthz, /readyz, /status, /topics, /publish, /disconnect or the page at /")


def _own_host(request: Request) -> None:
    """On loopback a request comes for an address or for localhost; a name that someone else made point here is refused.

    A page from that name would else count as ours in the browser of whoever looks at it on this machine (DNS rebinding).
    """
    listening = request.getHost()
    if not isinstance(listening, (IPv4Address, IPv6Address)) or not ip_address(listening.host).is_loopback:
        return
    if not is_local((request.getHeader(b"host") or b"localhost").decode("latin-1")):
        raise Refusal(403, "on this machine's own address the admin port answers for localhost and addresses only")


def _same_origin(request: Request) -> None:
    """Pages from elsewhere can make a browser post here; their Origin is not the Host they post to."""
    origin = request.getHeader(b"origin")
    if origin is None:
        return
    found, host = _split(origin), request.getHeader(b"host")
    if host is None or found is None or found.netloc != host.decode("latin-1"):
        raise Refusal(403, "requests from pages of another origin are not taken")


def _split(url: bytes) -> SplitResult | None:
    """A URL in its parts; None for what is none."""
    try:
        return urlsplit(url.decode("ascii"))
    except ValueError:
        return None
