"""A Tower with one user, one session and one token: the parts that a daemon asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kit.daemon import DEADLINE_S

CANARY = "canary0session0id"
OAUTH = "canary0oauth0token"


class Api(BaseHTTPRequestHandler):
    """The user is 7, and may see job 42. `sessions` and `tokens` are the valid ones."""

    sessions: set[str]
    tokens: set[str]
    asked: list[str]

    def do_GET(self) -> None:
        """http.server calls this."""
        self.asked.append(f"{self.path} for {self.headers['X-Forwarded-For']}")
        known = any(f"sessionid={session}" in self.headers.get("Cookie", "") for session in self.sessions)
        known = known or self.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens
        if not known:
            self._answer(401, {"detail": "Authentication credentials were not provided."})
        elif self.path == "/api/v2/me/":
            user = {"id": 7, "type": "user", "username": "ada", "is_superuser": False, "is_system_auditor": False}
            self._answer(200, {"count": 1, "next": None, "previous": None, "results": [user]})
        else:
            self._answer(200 if self.path == "/api/v2/jobs/42/" else 404, {})

    def _answer(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Connections that may wait to be accepted: with the default of 5 the kernel would drop some under load."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the daemon cuts off calls whose client has gone."""


@contextmanager
def serve_tower(kind: type[Api] = Api) -> Iterator[tuple[type[Api], str]]:
    """The API's class, and its URL."""

    class OwnApi(kind):  # type: ignore[valid-type,misc]
        pass

    OwnApi.sessions, OwnApi.tokens, OwnApi.asked = {CANARY}, {OAUTH}, []
    with _Server(("127.0.0.1", 0), OwnApi) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield OwnApi, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(DEADLINE_S)
