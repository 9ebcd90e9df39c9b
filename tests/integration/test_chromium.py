"""Chromium as the client: what a page receives, and what it learns of a closed connection."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import NO_CHROMIUM, require
from tests.kit.chromium import Chromium, Page, chromium_binary
from tests.kit.daemon import Daemon
from tests.kit.nginx import Nginx

CONNECT = """
(url => new Promise(done => {
  const socket = window.socket = new WebSocket(url);
  window.ended = new Promise(end => socket.onclose = ({code, reason, wasClean}) => end({code, reason, wasClean}));
  window.ended.then(done);
  socket.onmessage = ({data}) => done(JSON.parse(data));
}))
"""
"""Connects. Gives the first message, or how the connection ended."""


def connect(page: Page, url: str) -> Any:
    """The first message, or how the connection ended."""
    return page.run(f"{CONNECT}({json.dumps(url)})")


@pytest.fixture(scope="module")
def session_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The whole browser, as users have it."""
    require(NO_CHROMIUM, chromium_binary("chromium"))
    with Chromium(tmp_path_factory.mktemp("chromium"), "chromium") as browser:
        yield browser


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """A maker of daemons. Each is stopped at the end."""
    with ExitStack() as leave:

        def make(*flags: str, **more: Any) -> Daemon:
            return leave.enter_context(Daemon(tmp_path, "embedded:", *flags, **more))

        yield make


@pytest.fixture(params=["directly", "through nginx"])
def way(request: pytest.FixtureRequest, nginx: Callable[..., Nginx]) -> Callable[[Daemon], str]:
    """The URL by which a page reaches a daemon."""
    if request.param == "directly":
        return lambda daemon: daemon.url
    return lambda daemon: nginx(f"127.0.0.1:{daemon.port}").url


def test_a_cookie_beyond_ascii_locks_nobody_out(chromium: Chromium, served: Callable[..., Daemon], way: Callable[[Daemon], str]) -> None:
    """Findings P2: a page gets in with any cookie that another application of the same host has set."""
    daemon = served()
    url = way(daemon)
    page = chromium.open(f"http://127.0.0.1:{daemon.admin_port}/healthz")
    for number, cookie in enumerate(
        ("city=M\u00fcnchen", "n\u00e9v=\u00e9rt\u00e9k", "title=\U0001f680", "name=\u5f20\u4f1f", "odd=\u0085\u00a0\u2028\u00ff")
    ):
        page.run(f"document.cookie = {json.dumps(cookie)}")
        assert len(page.run("document.cookie").split("; ")) == number + 1
        assert connect(page, url) == {"accept": True, "user": 0}
        page.run("socket.close()")


class Blank(BaseHTTPRequestHandler):
    """Another web server of this machine. All its pages are empty."""

    def do_GET(self) -> None:
        """http.server calls this."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


@pytest.fixture
def another_port() -> Iterator[int]:
    """The port of a web server that is not towerws's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_site_hears_nothing(chromium: Chromium, served: Callable[..., Daemon], another_port: int) -> None:
    """Findings S1: without authentication, too, a page of another host or port is refused. So is a name that was made to lead here."""
    daemon = served()
    for number, (page, url, reason) in enumerate(
        (
            (f"http://127.0.0.1:{another_port}/", daemon.url, "origin"),
            (f"http://evil.localhost:{another_port}/", daemon.url, "origin"),
            (f"http://evil.localhost:{daemon.port}/", daemon.url.replace("127.0.0.1", "evil.localhost"), "host"),
        )
    ):
        before = refused(daemon, reason)
        assert connect(chromium.open(page), url)["code"] == 1006, page
        assert refused(daemon, reason) == before + 1, page
        assert daemon.get("/status")[1]["connections"]["opened"] == number
        own = chromium.open(f"http://127.0.0.1:{daemon.admin_port}/healthz")
        assert connect(own, daemon.url) == {"accept": True, "user": 0}


def refused(daemon: Daemon, reason: str) -> int:
    """How many handshakes were refused for this reason."""
    counts: dict[str, int] = daemon.get("/status")[1]["connections"]["refused_for"]
    return counts.get(reason, 0)


ENDS: dict[str, tuple[str, int]] = {
    "the page closes": ("socket.close()", 1005),
    "the page closes with 1000": ("socket.close(1000)", 1000),
    "the page closes with 4001": ("socket.close(4001, 'gr\u00fcn')", 4001),
    "policy": ("for (let n = 0; n < 10; n++) socket.send('[]')", 1008),
    "too big": ("socket.send('x'.repeat(65537))", 1009),
    "too big, with more behind it": ("socket.send('x'.repeat(65537)); for (let n = 0; n < 20; n++) socket.send('{}')", 1009),
}


@pytest.mark.parametrize(("script", "code"), ENDS.values(), ids=ENDS)
def test_a_close_is_clean(chromium: Chromium, served: Callable[..., Daemon], way: Callable[[Daemon], str], script: str, code: int) -> None:
    """Findings P5: the page sees an answered close as clean, with its code."""
    daemon = served()
    page = chromium.open(f"http://127.0.0.1:{daemon.admin_port}/healthz")
    assert connect(page, way(daemon)) == {"accept": True, "user": 0}
    page.run(script)
    ended = page.run("ended")
    assert (ended["code"], ended["wasClean"]) == (code, True)


def test_a_restart_is_clean(chromium: Chromium, served: Callable[..., Daemon], way: Callable[[Daemon], str]) -> None:
    """Findings P5: 1012, which a page gets when the daemon stops, is clean."""
    daemon = served()
    page = chromium.open(f"http://127.0.0.1:{daemon.admin_port}/healthz")
    assert connect(page, way(daemon)) == {"accept": True, "user": 0}
    daemon.begin_stop()
    assert page.run("ended") == {"code": 1012, "reason": "restart", "wasClean": True}


def test_a_credential_that_can_not_be_checked_is_clean(
    chromium: Chromium, served: Callable[..., Daemon], way: Callable[[Daemon], str]
) -> None:
    """Findings P5: 1013, here for tokens whose keys can't be fetched, is clean."""
    daemon = served(
        "--jwt-algorithms", "ES256", "--jwt-jwks-url", "http://127.0.0.1:9/keys", "--jwt-issuer", "https://issuer.example", auth="jwt"
    )
    page = chromium.open(f"http://127.0.0.1:{daemon.admin_port}/healthz")
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm5hIiwgImV4cCI6IDQxMDI0NDQ4MDAsICJpc3MiOiAiaHR0cHM6Ly9pc3N1ZXIuZXhhbXBsZSJ9.c2lnbmF0dXJl"
    ended = page.run(
        f"""new Promise(done => {{
          const opened = new WebSocket({json.dumps(way(daemon))});
          opened.onclose = ({{code, reason, wasClean}}) => done({{code, reason, wasClean}});
          opened.onopen = () => {{ for (let n = 0; n < 3; n++) opened.send({json.dumps(json.dumps({"token": token}))}); }};
        }})"""
    )
    assert ended == {"code": 1013, "reason": "credential can't be checked", "wasClean": True}
