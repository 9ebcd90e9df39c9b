"""Pages of a real browser stay live while the daemon's process is replaced under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from private_rabbitmq import PrivateRabbit

from tests.integration.test_live_page import Screen
from tests.kit.chromium import Chromium, Page
from tests.kit.daemon import NumberedLoad, V1Client
from tests.kit.handed import HandedDaemon
from tests.kit.js_client import PageClient

RESTARTS: Final = 3
WATCH: Final = """
window.opened = 0;
window.closes = [];
window.got = [];
window.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    opened++;
    this.addEventListener("close", ({ code }) => closes.push(code));
    this.addEventListener("message", ({ data }) => {
      const { type, payload } = JSON.parse(data);
      if (type === "event") got.push(payload.n);
    });
  }
};
"""
"""Counts the page's websockets and their ends, and keeps the numbers of the events, before the page's own script runs."""


class WatchedClient(PageClient):
    """A page with the JavaScript client."""

    def _start(self) -> None:
        self.page.run(WATCH)
        super()._start()


class WatchedScreen(Screen):
    """The live page."""

    def _call(self, method: str, **params: object) -> Any:
        if method == "Page.addScriptToEvaluateOnNewDocument":
            params["source"] = f"{WATCH}{params['source']}"
        return super()._call(method, **params)


def sockets(page: Page) -> tuple[int, list[int]]:
    """How many websockets the page has opened, and the codes of those that have closed."""
    opened, closes = page.run("[opened, closes]")
    return opened, closes


@pytest.mark.timeout(300)
def test_pages_do_not_notice_a_hand_over(rabbit: PrivateRabbit, chromium: Chromium, tmp_path: Path) -> None:
    """The live page and a page with the JavaScript client: one socket each, which never closes, and each event once and in order."""
    names = ("--exchange=t.pages", "--stream=t.pages.events")
    with HandedDaemon(tmp_path, rabbit.url, *names) as daemon:
        live = WatchedScreen(chromium, daemon)
        live.until_live()
        with WatchedClient(chromium, daemon.url, {"jobs": ["status_changed"]}) as client:
            client.until_subscribed()
            states = list(client.states)
            with NumberedLoad(rabbit.url, "jobs.status_changed", exchange="t.pages", stream="t.pages.events", per_s=50) as load:
                load.wait_for(10)
                for _ in range(RESTARTS):
                    status, answer = daemon.restart()
                    assert (status, answer["moved"], answer["closed"]) == (200, 2, {}), answer
                    load.wait_for(10)
                count = load.finish()
            client.until_number(count - 1)
            live.until(f"document.getElementById('total').textContent === '{count}'")
            assert client.numbers == client.page.run("got") == live.page.run("got") == list(range(count))
            assert client.notices == ["subscribed"]
            assert (client.states, client.errors) == (states, [])
            assert sockets(client.page) == sockets(live.page) == (1, [])
            assert live.text("notices") == ""
            assert live.page.run("document.getElementById('state').dataset.state") == "live"


def test_a_row_from_before_a_hand_over_ends_nobody(chromium: Chromium, tmp_path: Path) -> None:
    """The successor numbers the connections again. The row of a client does not end the client that has its number now."""
    with HandedDaemon(tmp_path, "embedded:") as daemon:
        gone, first, second = [V1Client(daemon.url, {"jobs": [event]}).open() for event in ("summary", "status_changed", "summary")]
        gone.close()
        console = Screen(chromium, daemon, path="#clients")
        console.until("document.querySelectorAll('#client-rows tr').length === 2")
        before = daemon.get("/console/connections")[1]
        assert [row["connection"] for row in before["connections"]] == [2, 3]
        assert daemon.restart()[0] == 200
        after = daemon.get("/console/connections")[1]
        assert [row["connection"] for row in after["connections"]] == [1, 2]
        assert before["instance"] != after["instance"]
        console.page.run("document.querySelector('#client-rows button').click()")
        console.page.run("document.getElementById('confirm-yes').click()")
        console.until_shown("clients-note", "connection 2 was listed by another process")
        daemon.publish("jobs.status_changed", {"still": "connected"})
        first.until({"still": "connected"})
        daemon.publish("jobs.summary", {"still": "connected"})
        second.until({"still": "connected"})
        first.close()
        second.close()
