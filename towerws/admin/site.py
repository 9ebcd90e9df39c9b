"""The paths of the admin port, the paths that take a POST, and the live page.

- `POST /publish`: see `admin.publish`.
- `POST /restart`: hands all connections to a new process. The answer comes when the hand-over is complete or has failed.
- `POST /disconnect`: closes the connections of a user or a credential, on this daemon and on the broker's other daemons. The body is
  `{"user": 7}` or `{"session": "<hash>"}`.
- `POST /probe`: tells how a handshake of `towerws doctor` arrived. The body is `{"probe": "<32 hexadecimal digits>"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.resources import files

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from towerws.admin.endpoint import Answer, Endpoint, EndpointSite, HttpError, body_of, check_browser, details_check, json_answer
from towerws.admin.health import healthy, readiness
from towerws.admin.metrics import MetricsPage
from towerws.admin.publish import Publish, PublishEndpoint
from towerws.core.errors import TowerwsError
from towerws.core.handshake_probes import HandshakeProbes, parse_probe
from towerws.core.history import History
from towerws.core.identity import Disconnection, Revocation, parse_revocation
from towerws.core.sources import SourceStatus

ENVELOPE_BYTES = 1024
"""Bytes that the body of a request may have in addition to its payload."""

DELIVERIES = 2000
"""How many of the newest deliveries are searched for the live page's topics, in 0.08 ms."""

TOPICS = 100
"""Most topics that the live page gets."""

CONTENT_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
}
"""The types of the files in `towerws/static`, by the ends of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """The daemon's settings and figures that the live page uses.

    `groups` are those of the configuration (`GroupTable.configured`). `auth` has the names of the methods of authentication. `takes_tokens`
    says whether a client may send its token in a message. A connection may have `max_topics` topics. `topics` returns the newest topics of
    the configured groups, and `position` the position of the newest delivery.
    """

    groups: Mapping[str, object] = field(default_factory=dict)
    auth: Sequence[str] = ("open",)
    takes_tokens: bool = False
    max_topics: int = 1000
    topics: Callable[[], Sequence[str]] = list
    position: Callable[[], str | None] = lambda: None


def topics_of(groups: Container[str], history: History) -> list[str]:
    """Return the newest topics of these groups, the newest first, for `PageContent.topics`."""
    return [topic for topic in history.recent_topics(DELIVERIES) if topic.partition(".")[0] in groups][:TOPICS]


def live_page(content: PageContent, websocket_port: int) -> Answer:
    """Return the live page, with the daemon's settings in its `data-` attributes."""
    page = files("towerws").joinpath("static/live.html").read_text(encoding="utf-8")
    values = {
        "WEBSOCKET_PORT": str(websocket_port),
        "GROUPS": json.dumps(content.groups),
        "AUTH": " ".join(content.auth),
        "TAKES_TOKENS": "yes" if content.takes_tokens else "no",
        "MAX_TOPICS": str(content.max_topics),
    }
    for name, value in values.items():
        page = page.replace(f"{{{{{name}}}}}", escape(value))
    return Answer(200, page.encode(), CONTENT_TYPES["html"])


def static_file(name: str) -> Endpoint:
    """Return the endpoint of a file of `towerws/static`."""
    content_type = CONTENT_TYPES[name.rpartition(".")[2]]
    return Endpoint(
        b"GET", lambda request: Answer(200, files("towerws").joinpath(f"static/{name}").read_bytes(), content_type), check_browser
    )


def newest_topics(content: PageContent) -> Answer:
    """Return the topics that the page can't list from the configuration, and the newest position."""
    return json_answer(200, {"topics": list(content.topics()), "position": content.position()})


class AdminSite(EndpointSite):
    """Answers the requests to the admin port, with the functions that the service passes in.

    - `status` returns the figures, `source_status` the source's state.
    - `publish`, `flush`, `why_no_subscriber` and `later` are those of `PublishEndpoint`.
    - `disconnect` closes connections on all daemons, and fires with the result.
    - `disconnect_here` closes connections of this process only, and returns their number. Only a worker has it, for its parent.
    - `restart` fires with the figures of a hand-over, or fails with a `TowerwsError`. None: the answer is 404.
    - `page` returns the contents of the live page.
    - `websocket_port` returns the TCP port of the websockets, 0 if there is none.
    - `console` has the endpoints of `console_endpoints`. `show_details` is `admin_details`.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, object]],
        source_status: Callable[[], SourceStatus],
        publish: Publish,
        disconnect: Callable[[Revocation], Deferred[Disconnection]],
        disconnect_here: Callable[[Revocation], int] | None = None,
        restart: Callable[[], Deferred[dict[str, object]]] | None = None,
        websocket_port: Callable[[], int],
        max_payload_bytes: int,
        later: Callable[[Callable[[], None]], object],
        flush: Callable[[], None] = lambda: None,
        why_no_subscriber: Callable[[str, str], str | None] = lambda group, event: None,
        page: Callable[[], PageContent] = PageContent,
        metrics: MetricsPage | None = None,
        console: Mapping[bytes, Endpoint] | None = None,
        probes: HandshakeProbes | None = None,
        show_details: bool = True,
    ) -> None:
        figures = metrics or MetricsPage(status, lambda: 0.0)
        handshakes = probes or HandshakeProbes()

        def get(answer: Callable[[], Answer]) -> Endpoint:
            return Endpoint(b"GET", lambda request: answer(), check_browser)

        def post(answer: Callable[[Request], Answer | Deferred[Answer]]) -> Endpoint:
            return Endpoint(b"POST", answer, check_browser)

        check_details = details_check(shown=show_details)

        def live(request: Request) -> Answer:
            try:
                check_details(request)
            except HttpError:
                return live_page(replace(page(), groups={}), websocket_port())
            return live_page(page(), websocket_port())

        self.publishing = PublishEndpoint(publish, flush, why_no_subscriber, later)

        worker: dict[bytes, Endpoint] = {}
        if disconnect_here is not None:
            worker[b"disconnect/here"] = post(
                lambda request: json_answer(202, {"disconnected": disconnect_here(revocation_of(body_of(request)))})
            )
        super().__init__(
            {
                **(console or {}),
                **worker,
                b"live": Endpoint(b"GET", live, check_browser),
                b"live/topics": Endpoint(b"GET", lambda request: newest_topics(page()), check_details),
                b"live.css": static_file("live.css"),
                b"live.js": static_file("live.js"),
                b"healthz": get(healthy),
                b"readyz": get(lambda: readiness(source_status())),
                b"status": get(lambda: json_answer(200, status())),
                b"metrics": get(figures.present),
                b"publish": post(self.publishing.answer),
                b"disconnect": post(lambda request: disconnect(revocation_of(body_of(request))).addCallback(_report)),
                b"restart": post(lambda request: restart_daemon(restart)),
                b"probe": post(lambda request: probed_handshake(body_of(request), handshakes)),
            },
            help_text="try /healthz, /readyz, /status, /metrics, /publish, /disconnect, /restart, /console/explain or the page at /",
            max_body_bytes=max_payload_bytes + ENVELOPE_BYTES,
            check=check_browser,
        )


def revocation_of(body: bytes) -> Revocation:
    """Parse the body of `POST /disconnect`. Raises `HttpError` 400."""
    try:
        return parse_revocation(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None


def restart_daemon(restart: Callable[[], Deferred[dict[str, object]]] | None) -> Deferred[Answer]:
    """Hand all connections to a new process. Answers 200 with the figures, or 503 with the reason, and then this process goes on.

    Raises `HttpError` 404 without `restart`.
    """
    if restart is None:
        raise HttpError(404, "this daemon can't hand over its connections")

    def failed(failure: Failure) -> Answer:
        failure.trap(TowerwsError)
        return json_answer(503, {"error": failure.getErrorMessage()})

    return restart().addCallbacks(lambda figures: json_answer(200, figures), failed)


def probed_handshake(body: bytes, probes: HandshakeProbes) -> Answer:
    """Answer with how the newest handshake with the probe of the body arrived. `seen` is null until one has. Raises `HttpError` 400."""
    try:
        name = parse_probe(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    return json_answer(200, {"seen": probes.ask(name)})


def _report(done: Disconnection) -> Answer:
    """Answer 202 with the number closed here. 503 if other daemons may still have such connections."""
    answer: dict[str, object] = {"disconnected": done.closed}
    if done.told is not None:
        answer["others_told"] = done.told
    if done.told is not False:
        return json_answer(202, answer)
    if done.no_answer:
        answer["no_answer"] = [{"id": daemon, "name": name} for daemon, name in done.no_answer]
        error = f"not every daemon has said that it ended the connections: {done.reason}"
    else:
        error = f"connections were ended on this daemon only; the others could not be told: {done.reason}"
    return json_answer(503, {**answer, "error": error})
