"""A Chromium of the tests' own, without a window: its pages are driven over its DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Self

from private_rabbitmq import tied_to_us
from websockets.sync.client import ClientConnection, connect

from tests.daemon import DEADLINE_S

FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def chromium_binary() -> str | None:
    """The program, None where it is not installed. `PRIVATE_CHROMIUM` names another."""
    return shutil.which(os.environ.get("PRIVATE_CHROMIUM") or "chromium")


class Chromium:
    """A browser with an empty profile. It ends when the test's process does, whatever ends that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._leave = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: ClientConnection | None = None

    def __enter__(self) -> Self:
        program = chromium_binary()
        assert program is not None
        profile = self._folder / "profile"
        with (self._folder / "chromium.log").open("ab") as output:
            self._process = subprocess.Popen(
                tied_to_us([program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], "KILL"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        where = profile / "DevToolsActivePort"
        give_up = time.monotonic() + DEADLINE_S
        while not (where.exists() and where.read_text().count("\n") == 1):
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < give_up, self._log()
            time.sleep(0.05)  # nothing announces the file: it is looked for
        port, path = where.read_text().split("\n")
        way = connect(f"ws://127.0.0.1:{port}{path}", open_timeout=DEADLINE_S, max_size=None, compression=None, ping_interval=None)
        self._connection = self._leave.enter_context(way)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self.call("Browser.close")
        self._leave.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def open(self, url: str) -> Page:
        """A page in a profile of its own, so that it has no cookies of others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.go(url)
        return page

    def call(self, method: str, session: str | None = None, **params: object) -> Any:
        """One command of the DevTools protocol; its result."""
        assert self._connection is not None
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(DEADLINE_S))
            if answer.get("id") == number:
                assert "result" in answer, answer
                return answer["result"]

    def _log(self) -> str:
        return (self._folder / "chromium.log").read_text(errors="replace")[-3000:]


class Page:
    """One page."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session

    def go(self, url: str) -> None:
        """Load a URL, and wait until its document is there."""
        loaded = self._browser.call("Page.navigate", self._session, url=url)
        assert "errorText" not in loaded, loaded
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', () => done()))")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self._browser.call("Runtime.evaluate", self._session, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")
