"""The scenario that measures what a credential costs whose answer is kept: sign_in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.client import HOST, Spec
from benchmarks.connections import WARM, measured
from benchmarks.world import World

if TYPE_CHECKING:
    from benchmarks.load import Load
    from benchmarks.servers import Towerws

ROUNDS = 9


def sign_in(world: World) -> None:
    """2,000 clients connect, with a session that the daemon knows already, and in turns with `auth = open`; medians."""
    count = world.scaled(2000, 50)
    costs: dict[str, list[float]] = {"open": [], "tower": []}
    with ExitStack() as leave:
        url = leave.enter_context(tower_api())
        servers = {
            "open": leave.enter_context(world.towerws()),
            "tower": leave.enter_context(world.towerws("--auth", "tower", "--tower-url", url, "--tower-valid-s", "300")),
        }
        load = leave.enter_context(world.clients())
        for server in servers.values():
            connecting_s(server, load, WARM)
        for _ in range(ROUNDS):
            for name, server in servers.items():
                costs[name].append(connecting_s(server, load, count) * 1e6 / count)
    world.row("sign_in", "CPU per client, auth open", median(costs["open"]), "µs")
    world.row("sign_in", "CPU per client, a known session", median(costs["tower"]), "µs")
    ratios = [signed_in / cost for signed_in, cost in zip(costs["tower"], costs["open"], strict=True)]
    world.row("sign_in", "a known session, times open", median(ratios), "x", "<= 1.3")


def connecting_s(server: Towerws, load: Load, count: int) -> float:
    """What it costs to let so many clients in, in seconds of CPU. They have left afterwards."""
    cpu_s = measured(server, load, [Spec()] * count)[1]
    load.close()
    return cpu_s


@contextmanager
def tower_api() -> Iterator[str]:
    """The URL of an API that knows everybody, as one superuser."""
    with ThreadingHTTPServer((HOST, 0), _Answers) as api:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{HOST}:{api.server_port}"
        finally:
            api.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """http.server calls this."""
        user = {"id": 7, "type": "user", "username": "ada", "is_superuser": True, "is_system_auditor": False}
        body = json.dumps({"count": 1, "results": [user]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """No log."""
