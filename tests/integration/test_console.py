"""The console in a real browser."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import NO_LANGUAGE, require
from tests.integration.test_live_page import DESK, HOSTILE, PHONE, Screen
from tests.kit.chromium import Chromium
from tests.kit.daemon import Daemon, V1Client
from tests.kit.linear import LONG_BYTES
from tests.languages import Node

GROUPS = """
[groups.orders]
events = "any"
[groups.inbox]
events = "any"
policy = "own"
[groups.constructor]
events = ["made"]
[groups.hidden]
events = "any"
policy = "never"
"""

BIDI = "\u202egnp.exe\u2066\u200f\u0085\u2028\u0007"
VIEWS = ("overview", "events", "clients", "publish", "explain")


@pytest.fixture(scope="module")
def axe() -> str:
    """The program that checks a page's accessibility."""
    node = Node()
    require(NO_LANGUAGE, node.here())
    node.prepare()
    return (node.folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with groups of its own, two clients, and hostile events."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "towerws.toml").write_text(GROUPS)
    with Daemon(folder, "embedded:", "--config", str(folder / "towerws.toml")) as served:
        clients = [V1Client(served.url, {"orders": ["1042", str(number)]}).open() for number in range(2)]
        for payload in HOSTILE:
            served.publish("jobs.status_changed", payload)
        served.publish("orders.large", {"text": "<b>" + "w" * 1_000_000})
        served.publish("orders.hostile", {BIDI: f"<img src=x onerror='document.title=1'>{BIDI}", "n": "</script><script>document.title=2"})
        served.publish("constructor.made", {"__proto__": {"toString": 1}})
        served.publish("orders.1042", {"status": "shipped", "total": 12345678901234567890})
        yield served
        for client in clients:
            client.close()


class Console(Screen):
    """The console on a screen."""

    def __init__(self, chromium: Chromium, daemon: Daemon, width: int = DESK, *, dark: bool = False) -> None:
        super().__init__(chromium, daemon, width, dark=dark, path="")

    def view(self, name: str) -> None:
        """Open a view, as its link does."""
        self.page.run(f"location.hash = {json.dumps('#' + name)}")
        self.until(f"!document.getElementById({json.dumps(name.partition('?')[0])}).hidden")

    def violations(self, axe: str) -> list[Any]:
        """What axe finds on the page as it is shown now: each rule with the elements that break it."""
        if not self.page.run("'axe' in window"):
            self.page.run(f"{axe}; 0")
        found: list[Any] = self.page.run(
            "axe.run({resultTypes: ['violations']})"
            ".then(found => found.violations.map(({id, nodes}) => [id, nodes.map(node => [node.target, node.failureSummary])]))"
        )
        return found

    def focused(self) -> str:
        """The text or the id of the focused element."""
        return str(self.page.run("document.activeElement.id || document.activeElement.textContent"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_accessible_and_fits(chromium: Chromium, daemon: Daemon, axe: str, tmp_path: Path, width: int, dark: bool) -> None:
    """axe finds nothing on any view, nothing has to be scrolled sideways, and hostile payloads change nothing."""
    console = Console(chromium, daemon, width, dark=dark)
    console.until_shown("state", "live")
    for name in VIEWS:
        console.view("explain?user=&topic=orders.1042" if name == "explain" else name)
        if name == "events":
            console.until_shown("topics", "orders.large")
            console.until("document.querySelectorAll('#event-list li').length >= 15")
            console.page.run("document.querySelectorAll('#event-list details').forEach(details => { details.open = true; })")
            console.until("document.querySelectorAll('#event-list pre').length === document.querySelectorAll('#event-list li').length")
            shown = console.text("event-list")
            assert not set(BIDI[0] + BIDI[8:]) & set(shown), "marks of direction and control characters are shown as escapes"
            assert "<img src=x onerror='document.title=1'>\\u202e" in shown
            assert "12345678901234567890" in shown, "a number is shown as it was sent"
            assert "The first 200,000 of 1,000,0" in shown
            assert len(shown) < 1_000_000
        elif name == "clients":
            console.until("document.querySelectorAll('#client-rows tr').length === 2")
        elif name == "explain":
            console.until_shown("explain-answer", "The client gets it.")
        assert console.violations(axe) == []
        if name == "clients":
            console.page.run("document.querySelector('#client-rows button').click()")
            console.until("document.getElementById('confirm').open")
            assert console.violations(axe) == []
            console.page.run("document.getElementById('confirm').close()")
        console.fits()
        console.picture(tmp_path / f"{name}-{width}.png")
        closed = "document.querySelectorAll('main > section:not([hidden]) details:not([open])')"
        if console.page.run(f"[...{closed}].map(details => details.open = true).length"):
            assert console.violations(axe) == [], "with everything opened"
    assert console.page.run("document.title").endswith("towerws console")
    assert console.page.run("document.querySelectorAll('main img, main script, main b').length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_answers_are_accessible(chromium: Chromium, daemon: Daemon, axe: str, width: int, dark: bool) -> None:
    """axe finds nothing on the answers of Publish and Explain, and on a search without a result."""
    console = Console(chromium, daemon, width, dark=dark)
    console.until_shown("state", "live")
    console.view("explain?user=&topic=hidden.1")
    console.until_shown("explain-answer", "Not so:")
    assert console.violations(axe) == []
    for payload, kind in (("{}", "good"), ("{", "bad")):
        console.view("publish")
        for field, text in (("publish-topic", "orders.1042"), ("publish-payload", payload)):
            console.page.run(f"document.getElementById('{field}').value = {json.dumps(text)}")
        console.page.run("document.querySelector('#publish button.primary').click()")
        console.until(f"document.getElementById('publish-result').dataset.kind === '{kind}'")
        assert console.violations(axe) == []
    console.view("events")
    console.page.run("document.getElementById('events-search').focus()")
    console.type_text("nothing-has-this")
    console.until("document.querySelectorAll('#event-list li').length === 0")
    assert console.violations(axe) == []
    console.fits()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_live_page_is_accessible(chromium: Chromium, daemon: Daemon, axe: str, width: int, dark: bool) -> None:
    """axe finds nothing on the console's view of AWX's jobs."""
    page = Console(chromium, daemon, width, dark=dark)
    page.page.go(f"http://127.0.0.1:{daemon.admin_port}/live")
    page.until_live()
    assert page.violations(axe) == []
    daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
    page.until_shown("jobs", "job 42")
    daemon.publish(
        "job_events.42",
        {
            "counter": 1,
            "stdout": "\u001b[0;32mok\u001b[0m \u001b[1;31mfailed\u001b[0m \u001b[0;33mchanged\u001b[0m",
            "event": "runner_on_ok",
        },
    )
    page.until_shown("output", "changed")
    page.until_shown("events", "runner_on_ok")
    assert page.violations(axe) == []
    page.fits()


def test_a_payload_that_is_cut(chromium: Chromium, daemon: Daemon) -> None:
    """A string without its end is laid out in linear time (tests/kit/linear.py), and nothing of it changes."""
    console = Console(chromium, daemon)
    laid_out = """(async (text) => (await import("/console-events.js")).pretty(text))"""
    for text in ("\\", '"', "x", "{,:"):
        assert console.page.run(f"""{laid_out}({json.dumps('{"a":"' + text)})""") == '{\n  "a": "' + text
    length = console.page.run(f"""{laid_out}('{{"a":"' + '\\\\"'.repeat({LONG_BYTES})).then((found) => found.length)""")
    assert length == 2 * LONG_BYTES + 10


def test_by_keyboard(chromium: Chromium, daemon: Daemon) -> None:
    """Every view is reached and used with the keyboard alone. The focus moves to the view's title, and into the dialog and back."""
    console = Console(chromium, daemon)
    console.until_shown("state", "live")
    console.press("Tab", 9)
    assert console.focused() == "Skip to the content"
    for name in ("Overview", "Events", "Clients"):
        console.press("Tab", 9)
        assert console.focused() == name
    daemon.until_connections(2)  # a page of an earlier test may be closing
    console.press("Enter", 13)
    console.until("document.activeElement.id === 'clients-title'")
    console.until("document.querySelectorAll('#client-rows tr').length === 2")
    for _ in range(3):
        console.press("Tab", 9)
    assert console.focused() == "clients-reload"
    console.press("Tab", 9)
    assert console.focused() == "End"
    console.press("Enter", 13)
    console.until("document.getElementById('confirm').open && document.activeElement.id === 'confirm-no'")
    console.press("Escape", 27)
    console.until("!document.getElementById('confirm').open && document.activeElement.textContent === 'End'")
    console.view("events")
    console.until("document.querySelectorAll('#event-list li').length >= 15")
    console.page.run("document.querySelector('#event-list summary').focus()")
    console.press("Enter", 13)
    console.until("document.querySelector('#event-list pre')")
    console.until_shown("events-note", "paused")


def test_publish_search_and_pause(chromium: Chromium, daemon: Daemon) -> None:
    """An event that the page publishes is found by its payload. While the list is paused, nothing is added."""
    console = Console(chromium, daemon)
    console.view("publish")
    console.page.run("document.getElementById('publish-topic').focus()")
    console.type_text("orders.77")
    console.page.run("document.getElementById('publish-payload').value = '{\"needle\": 1.50}'")
    console.press("Tab", 9)
    console.press("Tab", 9)
    assert console.focused() == "publish-go"
    console.press("Enter", 13)
    console.until_shown("publish-result", "Published on orders.77 at position")
    for payload, text in (("{", "no JSON"), ("[1]", "one JSON object"), ('{"a": NaN}', "no JSON")):
        console.page.run(f"document.getElementById('publish-payload').value = {json.dumps(payload)}")
        console.page.run("document.getElementById('publish-go').click()")
        console.until_shown("publish-result", text)
    console.view("events")
    console.page.run("document.getElementById('events-search').focus()")
    console.type_text("needle")
    console.until("document.querySelectorAll('#event-list li').length === 1")
    console.page.run("document.getElementById('events-pause').click()")
    daemon.publish("orders.77", {"needle": 2})
    console.until("document.getElementById('events-pause').getAttribute('aria-pressed') === 'true'")
    assert console.page.run("document.querySelectorAll('#event-list li').length") == 1
    console.page.run("document.getElementById('events-pause').click()")
    console.until("document.querySelectorAll('#event-list li').length === 2")
    console.page.run("document.getElementById('events-search').value = 'no such text'")
    console.page.run("document.getElementById('events-search').dispatchEvent(new Event('input'))")
    console.until_shown("events-empty", "No event in history matches.")


def test_end_a_connection(chromium: Chromium, daemon: Daemon) -> None:
    """One connection is ended after a confirmation. Its client is told to come back."""
    console = Console(chromium, daemon)
    client = V1Client(daemon.url, {"orders": ["to-be-ended"]}).open()
    console.view("clients")
    console.page.run("document.getElementById('clients-search').focus()")
    console.type_text("to-be-ended")
    console.until("document.querySelectorAll('#client-rows tr').length === 1")
    console.page.run("document.querySelector('#client-rows button').click()")
    console.until_shown("confirm-text", "an anonymous client, 127.0.0.1")
    console.page.run("document.getElementById('confirm-yes').click()")
    console.until_shown("clients-note", "was ended")
    console.until_shown("clients-empty", "No connection matches.")
    client.until_lost()


def test_end_of_a_row_from_before_a_restart(chromium: Chromium, tmp_path: Path) -> None:
    """The new process has another connection of the same number. The row of the old one does not end it, and the page loads the list."""
    with Daemon(tmp_path, "embedded:") as daemon:
        console = Console(chromium, daemon)
        before = V1Client(daemon.url, {"jobs": ["summary"]}).open()
        console.view("clients")
        console.until_shown("client-rows", "jobs.summary")
        daemon.kill()
        before.until_lost()
        daemon.start()
        after = V1Client(daemon.url, {"jobs": ["status_changed"]}).open()
        console.page.run("document.querySelector('#client-rows button').click()")
        console.until_shown("confirm-text", "Connection 1:")
        console.page.run("document.getElementById('confirm-yes').click()")
        console.until_shown("clients-note", "connection 1 was listed by another process")
        console.until_shown("client-rows", "jobs.status_changed")
        daemon.publish("jobs.status_changed", {"still": "connected"})
        after.until({"still": "connected"})
        after.close()


def test_payload_of_a_row_from_before_a_restart(chromium: Chromium, tmp_path: Path) -> None:
    """The new process has another event of the same number. Its payload is not shown as that of the old row."""
    with Daemon(tmp_path, "embedded:") as daemon:
        daemon.publish("jobs.summary", {"text": "before"})
        console = Console(chromium, daemon)
        console.view("events")
        console.until_shown("event-list", "before")
        console.page.run("document.getElementById('events-pause').click()")
        daemon.kill()
        daemon.start()
        daemon.publish("jobs.summary", {"text": "after"})
        console.page.run("document.querySelector('#event-list summary').click()")
        console.until_shown("event-list", "This row is from before a restart of the daemon.")
        assert "after" not in console.text("event-list")


def test_next_page_after_a_restart(chromium: Chromium, tmp_path: Path) -> None:
    """A page of the list that begins at a number of another process begins at the first connection instead."""
    with Daemon(tmp_path, "embedded:") as daemon, ExitStack() as leave:
        console = Console(chromium, daemon)
        before = [V1Client(daemon.url, {"jobs": ["summary"]}).open() for _ in range(51)]
        console.view("clients")
        console.until_shown("clients-note", "51 connections, 50 shown")
        daemon.kill()
        for client in before:
            client.until_lost()
        daemon.start()
        leave.callback(V1Client(daemon.url, {"jobs": ["status_changed"]}).open().close)
        console.page.run("document.getElementById('clients-next').click()")
        console.until_shown("client-rows", "jobs.status_changed")
        assert not console.is_visible("clients-pager")


@pytest.mark.parametrize("width", [DESK, 760])
def test_clients_with_long_topics(chromium: Chromium, tmp_path: Path, width: int) -> None:
    """A long topic leaves room for the other columns: an address, a user and an age are in one line. The page fits."""
    config = tmp_path / "towerws.toml"
    config.write_text("[groups.orders]\nevents = 'any'\n")
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon, ExitStack() as leave:
        leave.callback(V1Client(daemon.url, {"orders": ["x" * 128, "y" * 128]}).open().close)
        console = Console(chromium, daemon, width)
        console.view("clients")
        console.until_shown("client-rows", "orders.x")
        lines = """[1, 2, 6].map(column => {
            const range = document.createRange();
            range.selectNodeContents(document.querySelector('#client-rows tr').children[column].firstChild);
            return range.getClientRects().length;
        })"""
        assert console.page.run(lines) == [1, 1, 1]
        console.fits()


def test_the_skip_link_keeps_the_view(chromium: Chromium, daemon: Daemon) -> None:
    """It moves the focus, and a reload of the page shows the same view. The address had `#content`, and a reload showed no view by name."""
    console = Console(chromium, daemon)
    console.view("events")
    console.page.run("document.querySelector('.skip').focus()")
    console.press("Enter", 13)
    console.until("document.activeElement.id === 'content'")
    address = console.page.run("location.href")
    console.page.go("about:blank")  # not `location.reload()`: it would end the next expression
    console.page.go(address)
    console.until("document.querySelector('nav [aria-current]')?.textContent === 'Events'")
    assert console.is_visible("events")


def test_a_chart_of_rare_events(chromium: Chromium, tmp_path: Path) -> None:
    """A single event among samples without one is visible in the chart of delivery times. Its line was a point without a size."""
    with Daemon(tmp_path, "embedded:") as daemon, ExitStack() as leave:
        leave.callback(V1Client(daemon.url, {"jobs": ["summary"]}).open().close)
        console = Console(chromium, daemon)
        console.until("document.querySelector('.card .waiting').hidden")
        daemon.publish("jobs.summary", {"text": "the only event"})
        lines = (
            "[...document.querySelectorAll('.card')].find(card => card.textContent.includes('Time to deliver')).querySelectorAll('.line')"
        )
        console.until(f"[...{lines}].every(line => line.getTotalLength() > 1)")


def test_a_double_click_on_next_page(chromium: Chromium, tmp_path: Path) -> None:
    """The second click comes while the next page is loading, and does nothing. It asked for connections after `null`."""
    with Daemon(tmp_path, "embedded:") as daemon, ExitStack() as leave:
        for _ in range(51):
            leave.callback(V1Client(daemon.url, {"jobs": ["summary"]}).open().close)
        console = Console(chromium, daemon)
        console.view("clients")
        console.until_shown("clients-note", "51 connections, 50 shown")
        console.page.run("(button => { button.click(); button.click(); })(document.getElementById('clients-next'))")
        console.until_shown("clients-note", "51 connections, 1 shown")
        assert console.page.run("document.querySelectorAll('#client-rows tr').length") == 1
        assert not console.is_visible("clients-empty")


def test_groups_that_change(chromium: Chromium, tmp_path: Path) -> None:
    """After a reload, each group is shown once, and the chosen group stays. If it is gone, the events of all groups are shown."""
    config = tmp_path / "towerws.toml"
    mine = "filter(name => /^(one|two|six)$/.test(name))"
    own = f"[...document.getElementById('events-group').options].map(option => option.value).{mine}"
    terms = f"[...document.querySelectorAll('#groups dt')].map(term => term.textContent).{mine}"
    config.write_text('[groups.one]\nevents = "any"\n')
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon:
        console = Console(chromium, daemon)
        console.view("events")
        console.until(f"({own}).join() === 'one'")
        console.page.run("document.getElementById('events-group').value = 'one'")
        console.page.run("document.getElementById('events-group').dispatchEvent(new Event('change'))")
        for names in (["one", "two"], ["one", "six"]):
            config.write_text("".join(f'[groups.{name}]\nevents = "any"\n' for name in names))
            os.kill(daemon.pid, signal.SIGHUP)
            console.until(f"({own}).includes({json.dumps(names[1])})")
            daemon.publish(f"{names[1]}.again", {"n": 1})
            console.until_shown("topics", f"{names[1]}.again")
            assert console.page.run(own) == console.page.run(terms) == names
            assert console.page.run("document.getElementById('events-group').value") == "one"
        assert "six.again" not in console.text("event-list")
        config.write_text('[groups.six]\nevents = "any"\n')
        os.kill(daemon.pid, signal.SIGHUP)
        console.until(f"({own}).join() === 'six'")
        console.until_shown("event-list", "six.again")
        config.write_text('[groups.six]\nevents = "any"\npolicy = "never"\n')
        os.kill(daemon.pid, signal.SIGHUP)
        console.until("document.querySelector('#groups dd').textContent.includes('no client')")


SAMPLED = """
    const ask = window.fetch;
    window.fetch = async (path, ...more) => {
        const answer = await ask(path, ...more);
        if (!String(path).startsWith("console/samples")) return answer;
        const found = await answer.json(), counted = { 172: { gaps: 7 }, 171: { refusals: 2, api_failures: 4 }, 100: { refusals: 3 } };
        found.present.api = true;
        found.samples = path.endsWith("after=-1") ? Array.from({ length: 180 }, (_, index) =>
            [found.now - 5 * (179 - index), ...found.names.map(name => counted[index]?.[name] ?? 0)]) : [];
        return new Response(JSON.stringify(found));
    };
"""
"""The daemon's answer with 180 samples, of which three count something."""


def test_counts_of_a_minute(chromium: Chromium, daemon: Daemon) -> None:
    """The table of figures has each gap notice and refusal of a minute, not only those of its last 5 s. So do the cards of their time."""
    console = Console(chromium, daemon)
    console._call("Page.addScriptToEvaluateOnNewDocument", source=SAMPLED)
    console.page.go(console.url)
    console.until("document.getElementById('cards').textContent.includes('Gap notices7')")
    console.page.run("document.getElementById('figures').open = true")
    console.until("document.querySelectorAll('#figures-body tr').length === 15")
    column = """((title) => { const at = [...document.querySelectorAll('#figures-head th')].findIndex(cell => cell.textContent === title);
        return [...document.querySelectorAll('#figures-body tr')].map(row => row.children[at].textContent); })"""
    assert console.page.run(f"{column}('Gap notices')") == ["7"] + 14 * ["0"]
    assert console.page.run(f"{column}('Refused clients')") == ["2", *(5 * ["0"]), "3", *(8 * ["0"])]
    assert console.page.run(f"{column}('Connections')") == 15 * ["0"]
    label = "document.querySelector('#cards svg[aria-label^=\"{}\"]').getAttribute('aria-label')"
    refused = "Refused clients over the last 15 minutes: 5 in all, at most 3 in 5 s"
    assert console.page.run(label.format("Refused")) == refused
    assert console.page.run(label.format("Connections")) == "Connections over the last 15 minutes: now 0, at most 0"
    assert "4 failed in 15 min" in console.text("cards")


def test_daemon_goes_and_comes_back(chromium: Chromium, tmp_path: Path) -> None:
    """The page says that the daemon is gone, and shows the new one's events once it is back."""
    with Daemon(tmp_path, "embedded:") as daemon:
        daemon.publish("jobs.summary", {"text": "before"})
        console = Console(chromium, daemon)
        console.view("events")
        console.until_shown("event-list", "before")
        daemon.kill()
        console.until_shown("banner", "has not answered since")
        console.until_shown("state", "no answer")
        daemon.start()
        daemon.publish("jobs.summary", {"text": "after"})
        console.until_shown("banner", "answers again")
        console.until_shown("event-list", "after")
        assert "before" not in console.text("event-list")
        console.until_shown("state", "live")
