"""The JavaScript client of `clients/js`, in Node and in a page of a browser, as tests drive it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Final, Self

from tests.kit.chromium import Chromium, Page
from tests.kit.daemon import DEADLINE_S

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "js"
FOLLOW = Path(__file__).with_name("js_follow.mjs")

FILES: Final = {"/towerws.js": CLIENT / "towerws.js", "/follow.mjs": FOLLOW}


def node_command() -> list[str] | None:
    """Node with a WebSocket class, None if it is not installed. Before Node 22 the class is behind a flag."""
    if (node := shutil.which("node")) is None:
        return None
    version = subprocess.run([node, "--version"], stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S).stdout
    return [node] if int(version[1:].partition(".")[0]) >= 22 else [node, "--experimental-websocket"]


class JsClient(ABC):
    """A client that follows topics. Use it as a context manager. `lines` is what `js_follow.mjs` wrote so far."""

    def __init__(self, url: str, groups: dict[str, list[int | str]], **more: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._config = json.dumps({"url": url, "groups": groups, **more})

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    @abstractmethod
    def _more(self, within_s: float) -> list[dict[str, Any]]:
        """Wait for further lines, at most this long."""

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items that the subscription got."""
        return [line["item"] for line in self.lines if "item" in line]

    @property
    def numbers(self) -> list[Any]:
        """The numbers in the payloads of its events."""
        return [item["payload"]["n"] for item in self.items if item["type"] == "event"]

    @property
    def notices(self) -> list[str]:
        """The types of its other items."""
        return [item["type"] for item in self.items if item["type"] != "event"]

    @property
    def states(self) -> list[str]:
        """The states of the connection."""
        return [line["state"] for line in self.lines if "state" in line]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """What `onerror` was told."""
        return [line["error"] for line in self.lines if "error" in line]

    def until(self, condition: Callable[[], object], within_s: float = DEADLINE_S) -> None:
        """Read lines until the condition is true."""
        give_up = time.monotonic() + within_s
        while not condition():
            left = give_up - time.monotonic()
            assert left > 0, f"it did not come within {within_s} s; the newest lines: {self.lines[-10:]}"
            self.lines += self._more(left)

    def until_subscribed(self) -> None:
        """Wait for the first notice of the subscription."""
        self.until(lambda: self.notices)

    def until_recovered(self, count: int) -> None:
        """Wait until it has resumed this many times."""
        self.until(lambda: self.notices.count("recovered") >= count)

    def until_number(self, number: int, within_s: float = DEADLINE_S) -> None:
        """Wait for the event with this number, or a later one."""

        def arrived() -> bool:
            newest = next((line["item"] for line in reversed(self.lines) if line.get("item", {}).get("type") == "event"), None)
            return newest is not None and newest["payload"]["n"] is not None and newest["payload"]["n"] >= number

        self.until(arrived, within_s)

    def until_state(self, state: str) -> None:
        """Wait until the newest state is this one."""
        self.until(lambda: self.states and self.states[-1] == state)


class NodeClient(JsClient):
    """The client in a Node process."""

    def __enter__(self) -> Self:
        command = node_command()
        assert command is not None
        self._process = subprocess.Popen(
            [*command, "--no-warnings", str(FOLLOW), self._config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._queue: Queue[dict[str, Any]] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(DEADLINE_S) == 0, "after close() nothing keeps Node alive"
        finally:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            self._reader.join(DEADLINE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._queue.put(json.loads(line))

    def _more(self, within_s: float) -> list[dict[str, Any]]:
        try:
            found = [self._queue.get(timeout=within_s)]
        except Empty:
            return []
        while not self._queue.empty():
            found.append(self._queue.get())
        return found


class PageClient(JsClient):
    """The client in a page of Chromium. The page's own URL is that of the daemon's port, so that it is of the same origin.

    With `shared` it is the client that the daemon serves for all tabs. `beside` is a page of the same profile, `before` a script that
    runs first.
    """

    def __init__(
        self,
        browser: Chromium,
        url: str,
        groups: dict[str, list[int | str]],
        *,
        shared: bool = False,
        beside: Page | None = None,
        before: str = "",
        **more: Any,
    ) -> None:
        super().__init__(url, groups, **more)
        self._browser = browser
        self._url = url
        self._shared = shared
        self._beside = beside
        self._before = before
        self.closed = False

    def close_tab(self) -> None:
        """Close the page, as a user closes a tab."""
        self.closed = True
        self.page.close()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        # The daemon answers 404 here. For the browser that is a page like any other.
        self.page = self._browser.open(self._url.replace("ws://", "http://").replace("/websocket/", "/page"), beside=self._beside)
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.closed:
            self.page.run("client.close()")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)

    def _start(self) -> None:
        base = f"http://127.0.0.1:{self._server.server_port}"
        self.page.run(f"""(async () => {{
            {self._before};
            window.lines = [];
            window.arrived = () => {{}};
            const {{ connect }} = await import("{"/client-shared.js" if self._shared else f"{base}/towerws.js"}");
            const {{ follow }} = await import("{base}/follow.mjs");
            window.client = follow(connect, {self._config}, (line) => {{ lines.push(line); arrived(); }});
        }})()""")

    def reload(self) -> None:
        """Load the page again. The new page's client starts; the old one's unread lines are lost."""
        self.page.go(self._url.replace("ws://", "http://").replace("/websocket/", "/page"))
        self._start()

    def call(self, method: str, **params: object) -> Any:
        """Run a command of the DevTools protocol for this page."""
        return self._browser.call(method, self.page._session, **params)

    def _more(self, within_s: float) -> list[dict[str, Any]]:
        script = f"""new Promise((done) => {{
            const timer = setTimeout(done, {int(min(within_s, DEADLINE_S / 2) * 1000)});
            window.arrived = () => {{ clearTimeout(timer); done(); }};
            if (lines.length) arrived();
        }}).then(() => JSON.stringify(lines.splice(0)))"""
        found: list[dict[str, Any]] = json.loads(self.page.run(script))
        return found


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file = FILES.get(self.path)
        body = b"" if file is None else file.read_bytes()
        self.send_response(404 if file is None else 200)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """No log."""
