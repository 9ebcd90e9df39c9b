"""The paths of the admin port, and what those do that take a POST.

- `POST /publish`: `admin.publish`.
- `POST /disconnect`: close the connections of a user or a credential, on this daemon and on the others of the broker. The body is
  `{"user": 7}` or `{"session": "<hash>"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from towerws.admin.browser_check import check_browser
from towerws.admin.endpoint import Answer, Endpoint, EndpointSite, HttpError, body_of, json_answer
from towerws.admin.health import healthy, readiness
from towerws.admin.metrics import MetricsPage
from towerws.admin.page import PageContent, live_page, newest_topics, static_file
from towerws.admin.publish import Publish, PublishEndpoint
from towerws.core.revocation import Disconnection, Revocation, parse_revocation
from towerws.core.sources import SourceStatus

ENVELOPE_BYTES = 1024
"""Bytes that the body of a request may have around its payload."""


class AdminSite(EndpointSite):
    """Answers the requests to the admin port, from what the service passes in.

    - `status` returns the figures, `source_status` the source's state.
    - `publish`, `why_no_subscriber` and `later` are those of `PublishEndpoint`.
    - `disconnect` fires with the result of a revocation.
    - `websocket_port` returns the TCP port of the websockets, 0 if there is none.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, object]],
        source_status: Callable[[], SourceStatus],
        publish: Publish,
        disconnect: Callable[[Revocation], Deferred[Disconnection]],
        websocket_port: Callable[[], int],
        max_payload_bytes: int,
        later: Callable[[Callable[[], None]], object],
        why_no_subscriber: Callable[[str, str], str | None] = lambda group, event: None,
        page: PageContent | None = None,
        metrics: MetricsPage | None = None,
    ) -> None:
        content = page or PageContent()
        figures = metrics or MetricsPage(status, lambda: 0.0)

        def get(answer: Callable[[], Answer]) -> Endpoint:
            return Endpoint(b"GET", lambda request: answer(), check_browser)

        def post(answer: Callable[[Request], Answer | Deferred[Answer]]) -> Endpoint:
            return Endpoint(b"POST", answer, check_browser)

        self.publishing = PublishEndpoint(publish, why_no_subscriber, later)

        super().__init__(
            {
                b"": get(lambda: live_page(content, websocket_port())),
                b"live.css": get(lambda: static_file("live.css", b"text/css; charset=utf-8")),
                b"live.js": get(lambda: static_file("live.js", b"text/javascript; charset=utf-8")),
                b"healthz": get(healthy),
                b"readyz": get(lambda: readiness(source_status())),
                b"status": get(lambda: json_answer(200, status())),
                b"metrics": get(figures.present),
                b"topics": get(lambda: newest_topics(content)),
                b"publish": post(self.publishing.answer),
                b"disconnect": post(lambda request: disconnect_clients(body_of(request), disconnect)),
            },
            help_text="try /healthz, /readyz, /status, /metrics, /topics, /publish, /disconnect or the page at /",
            max_body_bytes=max_payload_bytes + ENVELOPE_BYTES,
            check=check_browser,
        )


def disconnect_clients(body: bytes, disconnect: Callable[[Revocation], Deferred[Disconnection]]) -> Deferred[Answer]:
    """Close the connections that the body names. `disconnect` closes them and tells the other daemons."""
    try:
        revocation = parse_revocation(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    return disconnect(revocation).addCallback(_report)


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
