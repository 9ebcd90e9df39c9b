"""The paths of the admin port."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred

from towerws.admin.browser_check import check_browser
from towerws.admin.disconnect import disconnect_clients
from towerws.admin.endpoint import Answer, Endpoint, EndpointSite, body_of, json_answer
from towerws.admin.health import healthy, readiness
from towerws.admin.metrics import MetricsPage
from towerws.admin.page import PageContent, live_page, newest_topics, static_file
from towerws.admin.publish import ENVELOPE_BYTES, publish_event
from towerws.core.revocation import Disconnection, Revocation
from towerws.core.sources import SourceStatus


class AdminSite(EndpointSite):
    """Answers the requests to the admin port, from what the service passes in.

    - `status` returns the figures, `source_status` the source's state.
    - `publish` and `why_no_subscriber` are those of `publish_event`.
    - `disconnect` fires with the result of a revocation.
    - `websocket_port` returns the TCP port of the websockets, 0 if there is none.
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
        metrics: MetricsPage | None = None,
    ) -> None:
        content = page or PageContent()
        figures = metrics or MetricsPage(status, lambda: 0.0)

        def get(answer: Callable[[], Answer]) -> Endpoint:
            return Endpoint(b"GET", lambda request: answer(), check_browser)

        def post(answer: Callable[[bytes], Answer | Deferred[Answer]]) -> Endpoint:
            return Endpoint(b"POST", lambda request: answer(body_of(request)), check_browser)

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
                b"publish": post(lambda body: publish_event(body, publish, why_no_subscriber)),
                b"disconnect": post(lambda body: disconnect_clients(body, disconnect)),
            },
            help_text="try /healthz, /readyz, /status, /metrics, /topics, /publish, /disconnect or the page at /",
            max_body_bytes=max_payload_bytes + ENVELOPE_BYTES,
            check=check_browser,
        )
