"""The live page in a real browser."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.integration.tower_api import CANARY, OAUTH, Api, serve_tower
from tests.kit.chromium import Chromium, Page
from tests.kit.daemon import Daemon

HOSTILE = [
    {"unified_job_id": "9" * 70_000, "status": "running", "type": "job"},
    {"unified_job_id": 7, "status": "x" * 70_000, "type": "job"},
    {"unified_job_id": 8, "status": "\u202egnp.exe", "type": "\u2066job"},
    {"unified_job_id": {"a": [1]}, "status": None},
    {"unified_job_id": 1e300, "status": ["running"], "type": 5},
    {"unified_job_id": 9, "status": "<img src=x onerror='document.title=1'>", "type": "__proto__"},
    {"unified_job_id": -1, "status": "constructor", "type": "constructor"},
    {"unified_job_id": {"toString": 1, "valueOf": 1}, "status": "running"},
    {"unified_job_id": 1, "status": {"toString": None}, "type": {"toString": None}},
    {"inventory_id": {"toString": 1}, "status": [{"toString": 1}]},
    {"stdout": "x", "event": {"toString": 1}},
    {"unified_job_id": 2, "status": "\u001b[2Jrunning\u0085\u2028", "type": "job\u0000"},
    {"unified_job_id": 3, "status": "running", "type": "toString"},
    {"__proto__": {"status": "running"}, "unified_job_id": 4},
]

HOSTILE_OUTPUT = [
    {"counter": 1e308, "stdout": "a"},
    {"counter": -1, "stdout": ["a"]},
    {"counter": {"toString": 1}, "stdout": "b", "event": {"toString": 1}},
    {"counter": 2, "status": {"toString": 1}, "type": {"toString": 1}},
    {"counter": 3, "stdout": "\u001b[38;5m\u001b[38;2;1m\u001b[;;;;m\u001b[999999999mc"},
    {"counter": 4, "stdout": "d\n" * 20_000},
    {"counter": 5, "stdout": "e" * 3_000_000},
]

ODD_GROUPS = """
[groups.constructor]
events = ["made"]
[groups.__proto__]
events = "any"
[groups.toString]
events = "id"
"""

SECRET = "0123456789abcdef0123456789abcdef"

GROUPS = """
[groups.orders]
events = ["created", "paid"]
[groups.sensors]
events = "id"
[groups.things]
events = "any"
[groups.inbox]
events = "any"
policy = "own"
[groups.hidden]
events = "any"
policy = "never"
"""

PHONE, DESK = 390, 1280


class Screen:
    """A page of a daemon's admin port on a screen. Each wait has a timeout of 20 seconds."""

    def __init__(self, chromium: Chromium, daemon: Daemon, width: int = DESK, *, dark: bool = False, path: str = "live") -> None:
        self.url = f"http://127.0.0.1:{daemon.admin_port}/{path}"
        self.page: Page = chromium.open("about:blank")
        self._chromium = chromium
        self.width = width
        mobile = width < 800
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=mobile)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        # Otherwise a violation of the page's policy would go unnoticed.
        watch = (
            "window.broken = []; addEventListener('securitypolicyviolation', e => broken.push(`${e.violatedDirective} ${e.blockedURI}`))"
        )
        self._call("Page.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", source=watch)
        self.page.go(self.url)

    def _call(self, method: str, **params: object) -> Any:
        return self._chromium.call(method, self.page._session, **params)

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true. It is evaluated with each frame that the page renders."""
        found = self.page.run(f"""new Promise(done => {{
            const end = performance.now() + 20000;
            const look = () => {{
                if ({condition}) done("");
                else if (performance.now() > end) done(document.body.innerText || "an empty page");
                else requestAnimationFrame(look);
            }};
            look();
        }})""")
        assert found == "", f"{condition} did not come:\n{found}"

    def until_live(self) -> None:
        """Wait until the page is live."""
        self.until("document.getElementById('state').dataset.state === 'live'")

    def until_shown(self, element: str, text: str) -> None:
        """Wait until an element contains a text."""
        self.until(f"document.getElementById({json.dumps(element)}).textContent.includes({json.dumps(text)})")

    def text(self, element: str) -> str:
        """The text of an element."""
        return str(self.page.run(f"document.getElementById({json.dumps(element)}).textContent"))

    def is_visible(self, element: str) -> bool:
        """Whether an element is visible."""
        return bool(self.page.run(f"document.getElementById({json.dumps(element)}).getClientRects().length > 0"))

    def sign_in(self, token: str, *, by: str = "click") -> None:
        """Type a token, and send it with the button or the Enter key."""
        self.until("document.getElementById('sign-in').getClientRects().length > 0")
        self.page.run("document.getElementById('token').focus()")
        self._call("Input.insertText", text=token)
        if by == "click":
            self.page.run("document.getElementById('sign-in-go').click()")
        else:
            self.press("Enter", 13)

    def press(self, key: str, code: int) -> None:
        """Press a key that has a name."""
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def type_text(self, text: str) -> None:
        """Type into the focused element."""
        self._call("Input.insertText", text=text)

    def fits(self) -> None:
        """Check that nothing has to be scrolled sideways, neither the page nor a part of it, and that no policy was violated."""
        wide = """[document.documentElement, ...document.querySelectorAll('body *')]
            .filter(e => e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
            .map(e => `${e.tagName}#${e.id}: ${e.scrollWidth} of ${e.clientWidth}`)"""
        assert self.page.run("document.documentElement.scrollWidth") <= self.width
        assert self.page.run(wide) == []
        assert self.page.run("broken") == []

    def picture(self, path: Path) -> None:
        """Save a picture for a person to look at."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """A maker of daemons with their own groups. Each is stopped at the end."""
    with ExitStack() as leave:

        def make(*flags: str, **more: Any) -> Daemon:
            config = tmp_path / "towerws.toml"
            config.write_text(GROUPS)
            return leave.enter_context(Daemon(tmp_path, "embedded:", "--config", str(config), *flags, **more))

        yield make


@pytest.fixture
def with_jwt(served: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    """A daemon that takes JSON Web Tokens."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    return served("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--jwt-leeway-s", "0", auth="jwt")


def token(*, groups: list[str], lasts_s: float = 3600, key: str = SECRET) -> str:
    """A token for the user anna."""
    return jwt.encode({"sub": "anna", "exp": time.time() + lasts_s, "groups": groups}, key, "HS256")


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_hostile_payloads(tmp_path: Path, chromium: Chromium, width: int) -> None:
    """Hostile payloads don't break the page. It shows direction marks as escapes, runs no script in a payload, and keeps its width."""
    with Daemon(tmp_path, "embedded:") as daemon:
        screen = Screen(chromium, daemon, width)
        screen.until_live()
        for payload in HOSTILE:
            daemon.publish("jobs.status_changed", payload)
        daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
        screen.until_shown("jobs", "job 42")
        screen.until_shown("events", "job 42")
        for text in (
            '{"toString":1,"valueOf":1} running',
            '{"toString":null} 1 {"toString":null}',
            'inventory {"toString":1}',
            '{"toString":1} x',
        ):
            screen.until_shown("events", text)
        for payload in HOSTILE_OUTPUT:
            daemon.publish("job_events.42", payload)
        daemon.publish("job_events.42", {"counter": 6, "stdout": "the last line"})
        screen.until_shown("events", "the last line")
        screen.page.run("[...document.querySelectorAll('#jobs button')].find(e => e.textContent.includes('job 42')).click()")
        screen.until_shown("output", "the last line")
        assert len(screen.text("output")) < 500_000
        daemon.publish("jobs.status_changed", {"unified_job_id": 43})
        screen.until_shown("events", '{"unified_job_id":43}')
        assert "43" not in screen.text("jobs"), "a job without a status is none"
        shown = screen.page.run("document.body.textContent")
        assert "\u202e" not in shown
        assert "\u2066" not in shown
        assert "native code" not in shown
        assert screen.page.run("document.title") == "towerws live"
        assert screen.page.run("document.querySelectorAll('img').length") == 0
        screen.fits()
        screen.picture(tmp_path / f"hostile-{width}.png")


@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (PHONE, True), (DESK, False), (DESK, True)])
def test_groups_of_one_s_own(chromium: Chromium, served: Callable[..., Daemon], tmp_path: Path, width: int, dark: bool) -> None:
    """Findings O13: events of configured groups are shown, with listed names or with names that only appear in publications."""
    daemon = served()
    screen = Screen(chromium, daemon, width, dark=dark)
    screen.until_live()
    assert not screen.is_visible("jobs-panel"), "there is no job"
    assert "sensors, things are added" in screen.text("listening")
    daemon.publish("orders.paid", {"order": 1042, "status": "paid"})
    screen.until_shown("events", '{"order":1042,"status":"paid"}')
    daemon.publish("sensors.7", {"celsius": 21.5})
    daemon.publish("things.x" + "-x" * 40, {"long": "v" * 3000})
    daemon.publish("hidden.thing", {"a": 1})
    screen.until_shown("events", '{"celsius":21.5}')
    screen.until_shown("events", '{"long":"vvv')
    screen.until_shown("listening", "sensors.7")
    daemon.publish("sensors.7", {"celsius": 22.5})
    screen.until_shown("events", '{"celsius":22.5}')
    assert screen.text("events").count('{"celsius":21.5}') == 1
    assert screen.text("total") == "4"
    assert screen.text("notices") == ""
    screen.fits()
    screen.picture(tmp_path / f"own-{width}-{dark}.png")
    daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
    screen.until_shown("jobs", "job 42")
    assert screen.is_visible("jobs-panel")
    screen.fits()


@pytest.mark.parametrize(
    ("length", "flags", "left_out"), [(12, (), 4 + 200), (12, ("--websocket-topics", "50"), 4 + 1150), (120, (), None)]
)
def test_more_topics_than_a_connection_may_have(
    chromium: Chromium, tmp_path: Path, length: int, flags: tuple[str, ...], left_out: int | None
) -> None:
    """The page leaves some out and says so. A request for all of them is refused, or ends the connection, and then no event came."""
    config = tmp_path / "many.toml"
    events = [f"event_{number:04}".ljust(length, "x") for number in range(1200)]
    config.write_text(f"[groups.orders]\nevents = {json.dumps(events)}\n[groups.things]\nevents = 'any'\n")
    with Daemon(tmp_path, "embedded:", "--config", str(config), *flags) as daemon:
        screen = Screen(chromium, daemon)
        screen.until_live()
        screen.until_shown("listening", "too many for one connection" if left_out is None else f"; {left_out} more are too many")
        daemon.publish(f"orders.{events[0]}", {"order": 1042})
        screen.until_shown("events", '{"order":1042}')
        daemon.publish("things.new", {"thing": 7})
        screen.until_shown("events", '{"thing":7}')
        assert screen.text("notices") == ""


def test_groups_with_odd_names(chromium: Chromium, tmp_path: Path) -> None:
    """A group may have the name of a property that every JavaScript object has."""
    config = tmp_path / "odd.toml"
    config.write_text(ODD_GROUPS)
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon:
        screen = Screen(chromium, daemon)
        screen.until_live()
        for topic in ("constructor.made", "__proto__.any", "toString.1"):
            daemon.publish(topic, {"topic": topic})
            screen.until_shown("events", json.dumps({"topic": topic}).replace(" ", ""))


def test_no_jobs_in_own_groups(chromium: Chromium, served: Callable[..., Daemon]) -> None:
    """A payload of the user's own that looks like AWX's is shown unchanged."""
    daemon = served()
    screen = Screen(chromium, daemon)
    screen.until_live()
    daemon.publish("orders.created", {"stdout": "text", "status": "running", "unified_job_id": 42})
    screen.until_shown("events", '{"stdout":"text","status":"running","unified_job_id":42}')
    assert screen.text("jobs") == ""


@pytest.mark.parametrize(("width", "by"), [(PHONE, "click"), (DESK, "enter")])
def test_token(chromium: Chromium, with_jwt: Daemon, tmp_path: Path, width: int, by: str) -> None:
    """Findings O13: the page asks for a token, and keeps it for the tab. The token is stored nowhere else."""
    screen = Screen(chromium, with_jwt, width)
    screen.until_shown("state", "a token is needed")
    assert screen.text("sign-in-text") == ""
    screen.fits()
    screen.picture(tmp_path / f"token-{width}.png")
    good = token(groups=["orders.created", "things.*", "inbox.anna"])
    screen.sign_in(f"Bearer {good}\n", by=by)
    screen.until_live()
    assert not screen.is_visible("sign-in")
    assert screen.page.run("document.getElementById('token').value") == ""
    assert screen.text("user") == "as anna"
    # A topic that is not granted is reported once, and the other topics go on.
    assert "orders.paid (not granted)" in screen.text("notices")
    assert screen.page.run("document.getElementById('notices').children.length") == 1
    with_jwt.publish("orders.created", {"order": 1})
    with_jwt.publish("inbox.anna", {"hello": "anna"})
    with_jwt.publish("inbox.bert", {"hello": "bert"})
    screen.until_shown("events", '{"order":1}')
    screen.until_shown("events", '{"hello":"anna"}')
    assert "bert" not in screen.text("events")
    assert screen.page.run("location.href") == screen.url
    assert screen.page.run("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    assert good.rpartition(".")[2] not in with_jwt.log.read_text()
    screen.page.go(screen.url)
    screen.until_live()
    assert screen.text("user") == "as anna", "a reload does not ask again"
    screen.page.run("document.getElementById('forget').click()")
    screen.until_shown("state", "a token is needed")
    assert screen.page.run("sessionStorage.length") == 0
    screen.page.go(screen.url)
    screen.until_shown("state", "a token is needed")


@pytest.mark.parametrize("bad", ["eyJhbGciOiJIUzI1NiJ9.e30.x", "not-a-jwt", "signed by another key", "ended"])
def test_wrong_token(chromium: Chromium, with_jwt: Daemon, bad: str) -> None:
    """The page says that the daemon refused it, keeps nothing, and accepts another one."""
    texts = {"signed by another key": token(groups=[], key=SECRET[::-1]), "ended": token(groups=[], lasts_s=-60)}
    screen = Screen(chromium, with_jwt)
    for _ in range(4):  # the third one ends the connection, and the page opens another with the next token
        screen.sign_in(texts.get(bad, bad))
        screen.until_shown("sign-in-text", "The daemon refused this token")
        assert screen.page.run("sessionStorage.length") == 0
        screen.until_shown("state", "a token is needed")
    screen.sign_in(token(groups=["orders.created"]))
    screen.until_live()


@pytest.mark.parametrize(
    ("typed", "text"), [("", "Enter a token first"), ("two words", "This is no token"), ("gr\u00fcn", "This is no token")]
)
def test_no_token_at_all(chromium: Chromium, with_jwt: Daemon, typed: str, text: str) -> None:
    """Text that can't be a token is not sent."""
    screen = Screen(chromium, with_jwt)
    screen.sign_in(typed)
    screen.until_shown("sign-in-text", text)


def test_token_that_ends(chromium: Chromium, with_jwt: Daemon) -> None:
    """When the token ends, here by revocation, the page asks for another and continues at its position."""
    screen = Screen(chromium, with_jwt)
    screen.sign_in(token(groups=["orders.created"]))
    screen.until_live()
    with_jwt.publish("orders.created", {"order": 1})
    screen.until_shown("events", '{"order":1}')
    assert with_jwt.ask("POST", "/disconnect", b'{"user": "anna"}')[0] == 202
    screen.until_shown("sign-in-text", "The token has expired")
    assert screen.page.run("sessionStorage.length") == 0
    with_jwt.publish("orders.created", {"order": 2})
    screen.sign_in(token(groups=["orders.created"]))
    screen.until_shown("events", '{"order":2}')
    assert "nothing was missed" in screen.text("notices")
    assert screen.text("total") == "2"


def test_token_that_can_not_be_checked(chromium: Chromium, served: Callable[..., Daemon]) -> None:
    """The page says that it could not be checked, not that it was refused."""
    daemon = served(
        "--jwt-algorithms", "ES256", "--jwt-jwks-url", "http://127.0.0.1:9/keys", "--jwt-issuer", "https://i.example", auth="jwt"
    )
    screen = Screen(chromium, daemon)
    screen.sign_in("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm5hIiwgImV4cCI6IDQxMDI0NDQ4MDAsICJpc3MiOiAiaHR0cHM6Ly9pLmV4YW1wbGUifQ.c2lnbmF0dXJl")
    screen.until_shown("sign-in-text", "can't check the token just now")


def test_awx_token(chromium: Chromium, served: Callable[..., Daemon], tower: tuple[type[Api], str]) -> None:
    """With AWX's users the page accepts an OAuth token of AWX."""
    daemon = served("--tower-url", tower[1], auth="tower")
    screen = Screen(chromium, daemon)
    screen.sign_in("wrong")
    screen.until_shown("sign-in-text", "The daemon refused this token")
    screen.sign_in(OAUTH)
    screen.until_live()
    assert screen.text("user") == "as 7"
    daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
    screen.until_shown("jobs", "job 42")
    daemon.publish("job_events.42", {"counter": 1, "stdout": "PLAY [x]"})
    screen.until_shown("output", "PLAY [x]")


class FailingApi(Api):
    """An AWX that can't answer about jobs at first."""

    works = threading.Event()

    def do_GET(self) -> None:
        """http.server calls this."""
        if self.path.startswith("/api/v2/jobs/") and not self.works.is_set():
            self._answer(503, {})
        else:
            super().do_GET()


def test_first_lines_of_a_job_that_awx_was_slow_to_show(chromium: Chromium, served: Callable[..., Daemon]) -> None:
    """The page asks again about a job that could not be checked, and then has its output from the first line on."""
    FailingApi.works.clear()
    with serve_tower(FailingApi) as (_, url):
        daemon = served("--tower-url", url, auth="tower")
        screen = Screen(chromium, daemon)
        screen.sign_in(OAUTH)
        screen.until_live()
        daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
        daemon.publish("job_events.42", {"counter": 1, "stdout": "PLAY [first]"})
        while not daemon.get("/status")[1]["requests"]["denied_topics"]:
            screen.until("document.getElementById('state').dataset.state === 'live'")
        FailingApi.works.set()
        screen.until_shown("output", "PLAY [first]")


def test_awx_session(chromium: Chromium, served: Callable[..., Daemon], tower: tuple[type[Api], str]) -> None:
    """AWX's session opens the page on the same host name. An ended session does not, and the page says what to do."""
    daemon = served("--tower-url", tower[1], auth="tower")
    screen = Screen(chromium, daemon)
    screen.until_shown("state", "a token is needed")
    screen.page.run(f"document.cookie = 'sessionid={CANARY}'; document.cookie = 'csrftoken=abc'")
    screen.page.go(screen.url)
    screen.until_live()
    assert not screen.is_visible("sign-in")
    assert not screen.is_visible("forget")
    assert screen.text("user") == "as 7"
    screen.page.run("document.cookie = 'sessionid=ended'")
    screen.page.go(screen.url)
    screen.until_shown("notices", "sign in to AWX in this browser")
    screen.until_shown("state", "refused")


def test_resumes(chromium: Chromium, served: Callable[..., Daemon]) -> None:
    """The page reconnects to a restarted daemon without a reload."""
    daemon = served()
    screen = Screen(chromium, daemon)
    screen.until_live()
    daemon.kill()
    screen.until_shown("notices", "connection lost")
    daemon.start()
    screen.until_live()
    daemon.publish("orders.paid", {"order": 3})
    screen.until_shown("events", '{"order":3}')


WATCHED = """
    window.sockets = [];
    window.sent = [];
    window.pings = 0;
    window.laterMs = 0;
    const now = performance.now.bind(performance);
    performance.now = () => now() + laterMs;
    window.WebSocket = class extends WebSocket {
        constructor(...parts) { super(...parts); sockets.push(this); }
        send(text) { sent.push(text); pings += text === '{"ping":1}'; super.send(text); }
    };
"""
"""Keeps the page's sockets and messages, and counts its pings. `laterMs` moves its clock."""


@pytest.fixture
def watched(chromium: Chromium, served: Callable[..., Daemon]) -> tuple[Screen, Daemon]:
    """A live page whose clock and sockets are known, and its daemon."""
    daemon = served()
    screen = Screen(chromium, daemon)
    screen._call("Page.addScriptToEvaluateOnNewDocument", source=WATCHED)
    screen.page.go(screen.url)
    screen.until_live()
    return screen, daemon


def test_a_daemon_that_is_silent(watched: tuple[Screen, Daemon]) -> None:
    """The page asks a silent daemon for an answer, says that none comes, and reconnects. Each attempt has a deadline too."""
    screen, daemon = watched
    daemon.publish("orders.paid", {"order": 1})
    screen.until_shown("events", '{"order":1}')
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        screen.page.run("laterMs += 21000")
        screen.until("pings === 1")
        assert screen.page.run("document.getElementById('state').dataset.state") == "live", "the daemon has 10 s for its answer"
        screen.page.run("laterMs += 11000")
        screen.until_shown("notices", "connection lost (no answer)")
        for attempt in (2, 3):
            screen.until(f"sockets.length === {attempt}")
            screen.until_shown("state", "no answer; reconnecting")
            screen.page.run("laterMs += 21000")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    screen.until_live()
    daemon.publish("orders.paid", {"order": 2})
    screen.until_shown("events", '{"order":2}')
    assert screen.text("total") == "2"


def test_pings_that_are_answered(watched: tuple[Screen, Daemon]) -> None:
    """The connection stays. The page's position is that of the answer: the position of its newest event would leave history."""
    screen, daemon = watched
    for number in range(2):
        newest = daemon.publish("hidden.thing", {"n": number}).partition("-")[0]
        screen.page.run("laterMs += 21000")
        screen.until(f"document.getElementById('position').textContent === '{newest}'")
        screen.page.run("laterMs += 11000")
    assert screen.page.run("[pings, sockets.length]") == [2, 1]
    assert screen.text("notices") == ""
    assert screen.page.run("document.getElementById('state').dataset.state") == "live"


def test_more_grants_of_the_same_user(chromium: Chromium, with_jwt: Daemon) -> None:
    """A topic that was denied is requested again on the next connection. The notice of a topic that stays denied is not repeated."""
    screen = Screen(chromium, with_jwt)
    screen._call("Page.addScriptToEvaluateOnNewDocument", source=WATCHED)
    screen.page.go(screen.url)
    screen.sign_in(token(groups=["orders.created"]))
    screen.until_live()
    screen.until_shown("notices", "orders.paid (not granted)")
    screen.page.run("sent.length = 0; sockets.at(-1).close()")
    screen.until_shown("notices", "nothing was missed")
    screen.until("sent.some(text => text.includes('paid'))")
    with_jwt.publish("orders.created", {"order": 1})
    screen.until_shown("events", '{"order":1}')
    notices = "[...document.querySelectorAll('#notices li')].filter(item => item.textContent.includes('orders.paid'))"
    assert screen.page.run(f"{notices}.length") == 1
    screen.page.run("document.getElementById('forget').click()")
    screen.sign_in(token(groups=["orders.*"]))
    screen.until_shown("listening", "orders.paid")
    with_jwt.publish("orders.paid", {"order": 2})
    screen.until_shown("events", '{"order":2}')


LARGEST = """
    window.largest = 0;
    const has = Set.prototype.has;
    Set.prototype.has = function (item) {
        if (typeof item === "string" && item.startsWith("job_events.")) largest = Math.max(largest, this.size);
        return has.call(this, item);
    };
"""
"""The size of the largest set that the page has asked for a job's output."""


def test_many_denied_topics(chromium: Chromium, with_jwt: Daemon) -> None:
    """The page forgets a denied topic that it no longer wants: of a job that has ended."""
    screen = Screen(chromium, with_jwt)
    screen._call("Page.addScriptToEvaluateOnNewDocument", source=LARGEST)
    screen.page.go(screen.url)
    screen.sign_in(token(groups=["jobs.*"]))
    screen.until_live()
    denied = with_jwt.get("/status")[1]["requests"]["denied_topics"]
    for first in range(0, 100, 25):
        for job in range(first, first + 25):
            with_jwt.publish("jobs.status_changed", {"unified_job_id": job, "status": "running", "type": "job"})
        while with_jwt.get("/status")[1]["requests"]["denied_topics"] < denied + first + 25:
            screen.until_live()
    with_jwt.publish("jobs.status_changed", {"unified_job_id": 100, "status": "running", "type": "job"})
    screen.until_shown("jobs", "job 100")
    assert 25 <= screen.page.run("largest") <= 60


def test_rate_after_a_freeze(watched: tuple[Screen, Daemon]) -> None:
    """A frozen tab gets the events of 20 s at once. They count for these 20 s."""
    screen, daemon = watched
    position = daemon.publish("orders.paid", {"order": 1})
    screen.until_shown("total", "1")
    screen.page.run("document.getElementById('rate').textContent = '0.0'")
    event = {"type": "event", "position": position, "group": "orders", "event": "paid", "payload": {"order": 2}}
    screen.page.run(f"""window.rates = [];
        new MutationObserver(() => rates.push(Number(document.getElementById('rate').textContent)))
            .observe(document.getElementById('rate'), {{ childList: true, characterData: true, subtree: true }});
        laterMs += 20000;
        for (let count = 0; count < 100; count++) sockets[0].onmessage({{ data: {json.dumps(json.dumps(event))} }});""")
    screen.until("rates.length > 1 && rates.at(-1) === 0")
    assert 4 <= max(screen.page.run("rates")) <= 6


@pytest.mark.parametrize("event", ["dispatchEvent(new Event('online'))", "document.dispatchEvent(new Event('visibilitychange'))"])
def test_the_page_or_the_network_comes_back(watched: tuple[Screen, Daemon], event: str) -> None:
    """The page asks at once whether its connection still works."""
    screen, daemon = watched
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        screen.page.run(f"laterMs += 2000; {event}")
        assert screen.page.run("pings") == 1
        screen.page.run("laterMs += 11000")
        screen.until_shown("notices", "connection lost (no answer)")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    screen.until_live()


HOLDS_REQUESTS = """
    window.sockets = [];
    window.holdsRequestsFor = null;
    window.heldBack = 0;
    window.WebSocket = class extends WebSocket {
        constructor(...parts) { super(...parts); sockets.push(this); }
        send(text) {
            if (holdsRequestsFor !== null && text.includes(holdsRequestsFor)) heldBack += 1;
            else super.send(text);
        }
    };
"""
"""A request that names the topic is not sent: for the page, its answer never comes."""


def shown(screen: Screen, text: str) -> int:
    """How many rows of the latest events have this text."""
    rows = "[...document.querySelectorAll('#events tr')]"
    return int(screen.page.run(f"{rows}.filter(row => row.textContent.includes({json.dumps(text)})).length"))


@pytest.mark.parametrize("losses", [1, 2])
def test_an_added_topic_whose_request_is_lost(chromium: Chromium, served: Callable[..., Daemon], losses: int) -> None:
    """A connection ends while the request for an added topic waits for its answer. The topic's first event is shown, and no event twice."""
    daemon = served()
    screen = Screen(chromium, daemon)
    screen._call("Page.addScriptToEvaluateOnNewDocument", source=HOLDS_REQUESTS)
    screen.page.go(screen.url)
    screen.until_live()
    daemon.publish("orders.paid", {"order": 1})
    screen.until_shown("events", '{"order":1}')
    screen.page.run("holdsRequestsFor = 'things'")
    daemon.publish("things.lamp", {"first": 1})
    screen.until("heldBack === 1")
    daemon.publish("orders.paid", {"order": 2})
    screen.until_shown("events", '{"order":2}')
    for loss in range(losses):
        if loss:  # The next connection ends before it is resumed.
            screen.page.run("holdsRequestsFor = 'since'; heldBack = 0")
        screen.page.run("sockets.at(-1).close()")
        if loss < losses - 1:
            screen.until("sockets.length > 1 && heldBack === 2")
    screen.page.run("holdsRequestsFor = null")
    screen.until_shown("events", '{"first":1}')
    daemon.publish("things.lamp", {"second": 2})
    screen.until_shown("events", '{"second":2}')
    assert [shown(screen, text) for text in ('{"order":1}', '{"order":2}', '{"first":1}', '{"second":2}')] == [1, 1, 1, 1]


def test_a_job_that_is_not_checked_when_the_connection_ends(chromium: Chromium, served: Callable[..., Daemon]) -> None:
    """AWX was too slow to show a job, and then the connection ends. The page has the job's output from the first line on."""
    FailingApi.works.clear()
    with serve_tower(FailingApi) as (_, url):
        daemon = served("--tower-url", url, auth="tower")
        screen = Screen(chromium, daemon)
        screen._call("Page.addScriptToEvaluateOnNewDocument", source=HOLDS_REQUESTS)
        screen.page.go(screen.url)
        screen.sign_in(OAUTH)
        screen.until_live()
        daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
        daemon.publish("job_events.42", {"counter": 1, "stdout": "PLAY [first]"})
        while not daemon.get("/status")[1]["requests"]["denied_topics"]:
            screen.until("document.getElementById('state').dataset.state === 'live'")
        screen.page.run("holdsRequestsFor = 'job_events'")
        daemon.publish("orders.paid", {"order": 1})
        screen.until_shown("events", '{"order":1}')
        FailingApi.works.set()
        screen.page.run("sockets.at(-1).close(); holdsRequestsFor = null")
        screen.until_shown("output", "PLAY [first]")
