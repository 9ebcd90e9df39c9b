"""One connection for all tabs (clients/js/shared.js), in several pages of one origin in Chromium, as the daemon serves it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from private_rabbitmq import PrivateRabbit

from tests.faults.proxy import FaultProxy
from tests.kit.chromium import Chromium
from tests.kit.daemon import DEADLINE_S, Daemon, NumberedLoad, publish_all
from tests.kit.js_client import PageClient

SECRET = "0123456789abcdef0123456789abcdef"
FAST = {"retryMinMs": 50, "retryMaxMs": 1000}
"""A shorter backoff than the default, so that the tests take less time."""

Tab = Callable[..., PageClient]


@pytest.fixture
def tab(chromium: Chromium) -> Iterator[Tab]:
    """Opens a tab. All tabs of a test are of one profile, so they share a worker."""
    tabs: list[PageClient] = []
    with ExitStack() as leave:

        def open_tab(url: str, groups: dict[str, list[int | str]], **more: Any) -> PageClient:
            beside = tabs[0].page if tabs else None
            options = {**FAST, **more.pop("options", {})}
            tabs.append(leave.enter_context(PageClient(chromium, url, groups, shared=True, beside=beside, options=options, **more)))
            return tabs[-1]

        yield open_tab


def until_one_worker(chromium: Chromium, daemon: Daemon) -> list[dict[str, Any]]:
    """Wait until the tabs have one worker. They may just be replacing a lost one, whose file comes from the daemon."""
    give_up = time.monotonic() + DEADLINE_S
    while True:
        targets = chromium.call("Target.getTargets")["targetInfos"]
        workers = [target for target in targets if target["type"] == "shared_worker" and f":{daemon.port}/" in target["url"]]
        if len(workers) == 1:
            return workers
        assert time.monotonic() < give_up, workers
        time.sleep(0.02)


def kill_worker(chromium: Chromium, daemon: Daemon) -> None:
    """End the worker of the tabs, as a browser does that runs out of memory: nobody is told."""
    workers = until_one_worker(chromium, daemon)
    session = chromium.call("Target.attachToTarget", targetId=workers[0]["targetId"], flatten=True)["sessionId"]
    chromium.call("Runtime.evaluate", session, expression="self.close()")


def test_one_connection(tmp_path: Path, tab: Tab) -> None:
    """Tabs with different topics share one connection. Each gets its own events. A tab that is closed leaves, and the last one ends it."""
    with Daemon(tmp_path, "embedded:") as daemon:
        tabs = [tab(daemon.url, {"job_events": [1, 10 + number]}) for number in range(3)]
        for each in tabs:
            each.until_subscribed()
        daemon.until_connections(1)
        for number in range(30):
            daemon.publish("job_events.1", {"n": number})
        daemon.publish("job_events.12", {"n": 30})
        tabs[2].until_number(30)
        for each in tabs[:2]:
            each.until_number(29)
        assert [each.numbers for each in tabs] == [list(range(30)), list(range(30)), list(range(31))]
        tabs[0].close_tab()
        give_up = time.monotonic() + DEADLINE_S
        while "job_events.10" in json.dumps(daemon.get("/connections")[1]):
            assert time.monotonic() < give_up, "the closed tab's topic is still subscribed"
            time.sleep(0.02)  # polled: nothing announces it
        daemon.publish("job_events.1", {"n": 31})
        for each in tabs[1:]:
            each.until_number(31)
            assert each.errors == []
            assert each.states == ["connecting", "open"]
        for each in tabs[1:]:
            each.close_tab()
        daemon.until_connections(0)


def test_a_lost_connection(tmp_path: Path, tab: Tab) -> None:
    """The shared connection breaks. Each tab is told so, and gets each event once and in order."""
    with Daemon(tmp_path, "embedded:") as daemon, FaultProxy(("127.0.0.1", daemon.port)) as proxy:
        tabs = [tab(f"ws://127.0.0.1:{proxy.port}/websocket/", {"job_events": [1]}) for _ in range(3)]
        for each in tabs:
            each.until_subscribed()
        for number in range(5):
            daemon.publish("job_events.1", {"n": 2 * number})
            for each in tabs:
                each.until_number(2 * number)
            before = [each.states.count("waiting") for each in tabs]
            proxy.reset()
            for each, count in zip(tabs, before, strict=True):
                each.until(lambda each=each, count=count: each.states.count("waiting") > count)  # type: ignore[misc]
            daemon.publish("job_events.1", {"n": 2 * number + 1})
            for each in tabs:
                each.until_number(2 * number + 1)
        for each in tabs:
            assert each.numbers == list(range(10))
            assert each.notices == ["subscribed"]
            assert each.errors == []
            assert each.states[-1] == "open"


@pytest.mark.timeout(600)
def test_kills_of_the_daemon_and_of_the_worker(rabbit: PrivateRabbit, tmp_path: Path, chromium: Chromium, tab: Tab) -> None:
    """Under load the daemon is killed, then the worker. Each tab gets each event once, in order, and then there is one connection again."""
    names = ["--exchange", "t.js", "--stream", "t.js.shared"]
    options = {"pingMs": 500, "pongMs": 1000}
    with Daemon(tmp_path, rabbit.url, *names) as daemon:
        tabs = [tab(daemon.url, {"job_events": [1]}, options=options) for _ in range(3)]
        for each in tabs:
            each.until_subscribed()
        with NumberedLoad(rabbit.url, "job_events.1", exchange="t.js", stream="t.js.shared", per_s=20) as load:
            for _ in range(2):
                load.wait_for(20)
                daemon.kill()
                daemon.start()
                load.wait_for(20)
                kill_worker(chromium, daemon)
            load.wait_for(60)
            count = load.finish()
        for each in tabs:
            each.until_number(count - 1)
            assert each.numbers == list(range(count))
            assert set(each.notices) <= {"subscribed", "recovered"}
        # A tab that resumed shares the connection again with the first event that both connections have.
        publish_all(rabbit.url, [("job_events.1", b'{"n": %d}' % count)], exchange="t.js")
        for each in tabs:
            each.until_number(count)
            assert each.numbers == list(range(count + 1))
        daemon.until_connections(1)


def test_a_worker_that_dies(tmp_path: Path, chromium: Chromium, tab: Tab) -> None:
    """The tabs notice it by their pings, and resume with a connection each. They share one again with the first event that both have."""
    with Daemon(tmp_path, "embedded:") as daemon:
        tabs = [tab(daemon.url, {"job_events": [1]}, options={"pingMs": 500, "pongMs": 1000}) for _ in range(3)]
        for each in tabs:
            each.until_subscribed()
        daemon.publish("job_events.1", {"n": 0})
        for each in tabs:
            each.until_number(0)
        kill_worker(chromium, daemon)
        daemon.publish("job_events.1", {"n": 1})
        for each in tabs:
            each.until_number(1)
        daemon.publish("job_events.1", {"n": 2})
        for each in tabs:
            each.until_number(2)
            assert each.numbers == [0, 1, 2]
            assert each.notices == ["subscribed", "recovered"], each.lines
        daemon.until_connections(1)


def test_a_handler_that_throws_and_a_frozen_tab(tmp_path: Path, tab: Tab) -> None:
    """A handler that throws in one tab, and a tab that is frozen, change nothing for the others. The frozen one gets all of it later."""
    with Daemon(tmp_path, "embedded:") as daemon:
        good, bad, frozen = (tab(daemon.url, {"job_events": [1]}) for _ in range(3))
        for each in (good, bad, frozen):
            each.until_subscribed()
        bad.page.run("void client.subscribe({ job_events: [1] }, () => { throw new Error('mine'); })")
        frozen.call("Page.enable")
        frozen.call("Page.setWebLifecycleState", state="frozen")
        for number in range(20):
            daemon.publish("job_events.1", {"n": number})
        for each in (good, bad):
            each.until_number(19)
            assert each.numbers == list(range(20))
        frozen.call("Page.setWebLifecycleState", state="active")
        frozen.until_number(19)
        assert frozen.numbers == list(range(20))
        assert good.errors == []
        assert {error["code"] for error in bad.errors} <= {"handler"}
        daemon.until_connections(1)


def test_a_tab_that_is_frozen_for_long(tmp_path: Path, tab: Tab) -> None:
    """More than 4 MiB wait for a frozen tab, so the worker lets it go. It comes back with its own position, and misses nothing."""
    with Daemon(tmp_path, "embedded:") as daemon:
        good, frozen = (tab(daemon.url, {"job_events": [1]}) for _ in range(2))
        for each in (good, frozen):
            each.until_subscribed()
        daemon.publish("job_events.1", {"n": 0})
        frozen.until_number(0)
        frozen.call("Page.enable")
        frozen.call("Page.setWebLifecycleState", state="frozen")
        for number in range(1, 31):
            daemon.publish("job_events.1", {"n": number, "pad": "x" * 200_000})
        good.until_number(30)
        frozen.call("Page.setWebLifecycleState", state="active")
        frozen.until_number(30)
        frozen.until(lambda: "recovered" in frozen.notices)
        daemon.publish("job_events.1", {"n": 31})
        for each in (good, frozen):
            each.until_number(31)
            assert each.numbers == list(range(32))
        daemon.until_connections(1)


def test_tokens_of_the_tabs(tmp_path: Path, tab: Tab) -> None:
    """The worker asks a tab for a token: when it connects, and when the token ends. Nothing is missed."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    flags = ["--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--jwt-leeway-s", "0"]

    def token(lasts_s: float) -> str:
        claims = {"sub": "anna", "exp": time.time() + lasts_s, "groups": ["job_events.*"], "jti": str(time.monotonic_ns())}
        return jwt.encode(claims, SECRET, "HS256")

    with Daemon(tmp_path, "embedded:", *flags, auth="jwt") as daemon:
        tokens = [(token(3600), 0) for _ in range(10)]
        tabs = [tab(daemon.url, {"job_events": [1]}, tokens=tokens) for _ in range(2)]
        for each in tabs:
            each.until_subscribed()
            assert [line["user"] for line in each.lines if line.get("state") == "open"] == ["anna"]
        daemon.until_connections(1)
        daemon.publish("job_events.1", {"n": 0})
        for each in tabs:
            each.until_number(0)
        assert daemon.ask("POST", "/disconnect", b'{"user": "anna"}')[0] == 202
        daemon.publish("job_events.1", {"n": 1})
        for each in tabs:
            each.until_number(1)
            assert each.numbers == [0, 1]
            assert each.states[-1] == "open"


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("delete window.SharedWorker", {}),
        ("window.SharedWorker = class { constructor() { throw new Error('none'); } }", {}),
        ("", {"worker": "/nothing.js"}),
    ],
    ids=["missing", "refused", "no-script"],
)
def test_without_a_shared_worker(tmp_path: Path, tab: Tab, before: str, options: dict[str, str]) -> None:
    """Where there is no SharedWorker, or it may not run, each tab has a connection of its own."""
    with Daemon(tmp_path, "embedded:") as daemon:
        tabs = [tab(daemon.url, {"job_events": [1]}, before=before, options=options) for _ in range(2)]
        for each in tabs:
            each.until_subscribed()
        daemon.until_connections(2)
        daemon.publish("job_events.1", {"n": 0})
        for each in tabs:
            each.until_number(0)
            assert each.errors == []
