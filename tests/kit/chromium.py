"""A headless Chromium for tests. Its pages are driven over its DevTools protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any, Self

from private_rabbitmq import tied_to_us
from websockets.sync.client import ClientConnection, connect

from tests.kit.daemon import DEADLINE_S

FLAGS = (
    "--headless",
    "--no-sandbox",  # root has no sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


_listens = re.compile(rb"DevTools listening on (ws://\S+)").match


SHELL = "chromium-headless-shell"
"""Chromium without windows: the same engine and network. It needs a third of the CPU."""


def chromium_binary(program: str = SHELL) -> str | None:
    """The path of Chromium, None if it is not installed. Without the headless shell it is the whole browser.

    `PRIVATE_CHROMIUM` names another program.
    """
    return shutil.which(os.environ.get("PRIVATE_CHROMIUM") or program) or shutil.which("chromium")


class Chromium:
    """A browser with an empty profile. It ends with the test's process, however that ends."""

    def __init__(self, folder: Path, program: str = SHELL) -> None:
        self._folder = folder
        self._program = program
        self._numbers = count(1)
        self._leave = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: ClientConnection | None = None
        self._contexts: set[str] = set()

    def __enter__(self) -> Self:
        program = chromium_binary(self._program)
        assert program is not None
        self._process = subprocess.Popen(
            tied_to_us([program, *FLAGS, f"--user-data-dir={self._folder / 'profile'}", "about:blank"], "KILL"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        found: Queue[str] = Queue()
        self._reader = Thread(target=self._read, args=(self._process.stdout, found), daemon=True)
        self._reader.start()
        try:
            url = found.get(timeout=DEADLINE_S)
        except Empty:
            url = ""
        if not url:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            raise AssertionError(f"it ended, or did not listen within {DEADLINE_S} s:\n{self._log()}")
        way = connect(url, open_timeout=DEADLINE_S, max_size=None, compression=None, ping_interval=None)
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
        finally:
            self._reader.join(DEADLINE_S)

    def _read(self, output: IO[bytes], found: Queue[str]) -> None:
        """Keep its output, and look for its port. Puts an empty text when the output ends."""
        with output, (self._folder / "chromium.log").open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                if match := _listens(line):
                    found.put(match[1].decode())
        found.put("")

    def open(self, url: str, *, beside: Page | None = None) -> Page:
        """A page in its own profile, without the cookies of other pages, or in the profile of the page `beside` it."""
        context = self.call("Target.createBrowserContext")["browserContextId"] if beside is None else beside.context
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._contexts.add(context)
        page = Page(self, session, context, target)
        page.go(url)
        return page

    def close_pages(self) -> None:
        """Close all pages and their profiles. A page that stays open goes on with its work."""
        while self._contexts:
            self.call("Target.disposeBrowserContext", browserContextId=self._contexts.pop())

    def call(self, method: str, session: str | None = None, **params: object) -> Any:
        """Run one command of the DevTools protocol. Returns its result."""
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

    def __init__(self, browser: Chromium, session: str, context: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self.context = context
        self.target = target

    def close(self) -> None:
        """Close it, as a user closes a tab."""
        self._browser.call("Target.closeTarget", targetId=self.target)

    def go(self, url: str) -> None:
        """Load a URL, and wait until its document is loaded."""
        loaded = self._browser.call("Page.navigate", self._session, url=url)
        assert "errorText" not in loaded, loaded
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', () => done()))")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self._browser.call("Runtime.evaluate", self._session, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")
