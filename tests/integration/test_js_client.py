"""The JavaScript client (clients/js) in Node and in Chromium, with real daemons, a real RabbitMQ, and a proxy that breaks connections."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from private_rabbitmq import PrivateRabbit

from tests.faults.proxy import DOWN, FaultProxy
from tests.integration.conftest import NO_LANGUAGE, require
from tests.kit.chromium import Chromium
from tests.kit.client_file import BUILT, STATIC, first_line, minified
from tests.kit.daemon import Daemon, NumberedLoad
from tests.kit.followers import SECRET, jwt_flags, through_faults, token, url_of
from tests.kit.js_client import CLIENT, JsClient, NodeClient, PageClient, node_command
from tests.languages import Node
from towerws import __version__

README = (CLIENT / "README.md").read_text()
FAST = {"retryMinMs": 50, "retryMaxMs": 1000}
"""A shorter backoff than the default, so that the tests take less time."""

MAX_BYTES = 5 * 1024

Follow = Callable[..., JsClient]


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder with tsc and terser."""
    require(NO_LANGUAGE, True if Node().here() else None)
    Node().prepare()
    return Node().folder / "node_modules" / ".bin"


@pytest.fixture(params=["node", "chromium"])
def follow(request: pytest.FixtureRequest) -> Iterator[Follow]:
    """Starts a client, in Node or in a page."""
    if request.param == "node":
        require(NO_LANGUAGE, node_command())
        browser = None
    else:
        browser = request.getfixturevalue("chromium")
    with ExitStack() as leave:

        def start(url: str, groups: dict[str, list[int | str]], **more: Any) -> JsClient:
            client = NodeClient(url, groups, **more) if browser is None else PageClient(browser, url, groups, **more)
            return leave.enter_context(client)

        yield start


# The package


def run(command: list[str], folder: Path = CLIENT) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_unit_tests() -> None:
    """The client's own tests, with fake timers."""
    command = node_command()
    require(NO_LANGUAGE, command)
    assert command is not None
    run([*command, "--test", "test/client.test.js", "test/model.test.js", "test/shared.test.js"])


def test_types(tools: Path) -> None:
    """The types compile, a user's code compiles with them, and tsc finds nothing wrong in the client itself."""
    run([str(tools / "tsc"), "--skipDefaultLibCheck", "--project", "."])
    lib = "ES2023,DOM,DOM.Iterable"
    flags = ["--checkJs", "--noEmit", "--skipDefaultLibCheck", "--target", "ES2023", "--module", "NodeNext", "--lib", lib]
    run([str(tools / "tsc"), *flags, "towerws.js", "shared.js"])


def test_the_served_file(tools: Path) -> None:
    """The daemon serves exactly what the sources build to. As a page loads it, each is smaller than 5 KB."""
    for name, source in BUILT.items():
        served = (STATIC / f"{name}.js").read_text()
        assert served == first_line(source) + minified(source), "run `python -m tests.kit.client_file`"
        assert len(gzip.compress(served.encode())) < MAX_BYTES


def test_package() -> None:
    """The package has the daemon's version, no dependencies, and only the files that a user needs."""
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["version"] == __version__
    assert not [key for key in package if "ependencies" in key]
    if Node().here():
        (packed,) = json.loads(run(["npm", "pack", "--dry-run", "--json", "--ignore-scripts"]))
        assert sorted(file["path"] for file in packed["files"]) == [
            "README.md",
            "package.json",
            "shared.d.ts",
            "shared.js",
            "towerws.d.ts",
            "towerws.js",
        ]


def test_options_are_documented() -> None:
    """The README's table has each option with its default, and each error code."""
    script = (CLIENT / "towerws.js").read_text()
    block = re.search(r"const DEFAULTS = \{(.*?)\};", script, re.DOTALL)
    assert block is not None
    for name in [*re.findall(r"(\w+):", block[1]), "name", "worker"]:
        assert f"| `{name}` |" in README, name
    for code in set(re.findall(r'TowerwsError\("(\w+)"', script)):
        assert re.search(rf"^\| `[^|]*\b{code}`[^|]*\|", README, re.MULTILINE), code


def test_first_event(tmp_path: Path) -> None:
    """The README's first sample has at most ten lines, and prints an event."""
    command = node_command()
    require(NO_LANGUAGE, command)
    assert command is not None
    sample = re.search(r"```js\n(.*?)```", README, re.DOTALL)
    assert sample is not None
    assert len(sample[1].strip().splitlines()) <= 10
    with Daemon(tmp_path, "embedded:") as daemon:
        script = tmp_path / "first.mjs"
        text = sample[1].replace('from "towerws"', f'from "{CLIENT / "towerws.js"}"')
        script.write_text(re.sub(r"wss?://[^\"]*", daemon.url, text))
        with subprocess.Popen([*command, "--no-warnings", str(script)], stdout=subprocess.PIPE, text=True) as process:
            try:
                until_topics(daemon, 2)
                daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running"})
                assert process.stdout is not None
                assert "running" in process.stdout.readline()
            finally:
                process.kill()


def until_topics(daemon: Daemon, count: int) -> None:
    """Wait until clients have subscribed to this many topics."""
    give_up = time.monotonic() + 30
    while daemon.get("/status")[1]["hub"]["topics"] != count:
        assert time.monotonic() < give_up
        time.sleep(0.02)  # polled: nothing announces it


# With a daemon


@pytest.mark.timeout(900)
def test_twenty_kills(rabbit: PrivateRabbit, tmp_path: Path, chromium: Chromium) -> None:
    """The daemon is killed twenty times while events are published. Each client gets each event once, in order, and no gap."""
    require(NO_LANGUAGE, node_command())
    names = ["--exchange", "t.js", "--stream", "t.js.events"]
    with Daemon(tmp_path, rabbit.url, *names) as daemon:
        more: Any = {"options": FAST}
        groups: Any = {"job_events": [1]}
        with NodeClient(daemon.url, groups, **more) as node, PageClient(chromium, daemon.url, groups, **more) as page:
            node.until_subscribed()
            page.until_subscribed()
            with NumberedLoad(rabbit.url, "job_events.1", exchange="t.js", stream="t.js.events", per_s=50) as load:
                for kill in range(20):
                    load.wait_for(20)
                    if kill % 2:  # In the other rounds the kill may come while the client connects or catches up.
                        for client in (node, page):
                            client.until_recovered(kill // 2 + 1)
                    daemon.kill()
                    load.wait_for(5)
                    daemon.start()
                load.wait_for(20)
                count = load.finish()
            for client in (node, page):
                client.until_number(count - 1)
                assert client.numbers == list(range(count))
                assert client.notices[0] == "subscribed"
                assert set(client.notices[1:]) == {"recovered"}
                assert {error["code"] for error in client.errors} <= {"handshake"}, "the third attempt in vain may be told"


@pytest.mark.timeout(600)
def test_kills_of_the_broker(rabbit_to_kill: PrivateRabbit, tmp_path: Path, chromium: Chromium) -> None:
    """The broker is killed twice while events are published. The clients stay connected, and get each event once and in order."""
    require(NO_LANGUAGE, node_command())
    node = rabbit_to_kill
    names = ["--exchange", "t.js", "--stream", "t.js.events"]
    with Daemon(tmp_path, node.url, *names) as daemon:
        groups: Any = {"job_events": [1]}
        with NodeClient(daemon.url, groups) as first, PageClient(chromium, daemon.url, groups) as second:
            first.until_subscribed()
            second.until_subscribed()
            node.save()
            with NumberedLoad(node.url, "job_events.1", exchange="t.js", stream="t.js.events", per_s=50) as load:
                for _ in range(2):
                    load.wait_for(100)
                    node.kill()
                    node.start()
                load.wait_for(100)
                count = load.finish()
            for client in (first, second):
                client.until_number(count - 1, within_s=120)
                assert client.numbers == list(range(count))
                assert client.notices == ["subscribed"]
                assert client.states == ["connecting", "open"]
                assert client.errors == []


def test_cut_and_frozen_connections(tmp_path: Path, follow: Follow) -> None:
    """Connections are slow, reset, half closed, refused and frozen. The client notices, reconnects and misses nothing."""
    options = {**FAST, "pingMs": 500, "pongMs": 1000, "connectMs": 2000}
    with Daemon(tmp_path, "embedded:") as daemon, FaultProxy(("127.0.0.1", daemon.port)) as proxy:
        client = follow(url_of(proxy), {"job_events": [1]}, options=options)
        client.until_subscribed()
        proxy.delay(DOWN, 0.05)
        through_faults(daemon, proxy, client, "job_events.1")
        assert client.errors == []


def test_a_frozen_page(tmp_path: Path, chromium: Chromium) -> None:
    """A laptop sleeps: the page is frozen, and its connection dies unnoticed. When the network is back, the page asks at once."""
    with Daemon(tmp_path, "embedded:") as daemon, FaultProxy(("127.0.0.1", daemon.port)) as proxy:
        options = {**FAST, "pingMs": 3_600_000, "pongMs": 500}
        with PageClient(chromium, url_of(proxy), {"job_events": [1]}, options=options) as client:
            client.until_subscribed()
            client.call("Page.enable")
            client.call("Page.setWebLifecycleState", state="frozen")
            proxy.black_hole()
            daemon.publish("job_events.1", {"n": 0})
            client.call("Page.setWebLifecycleState", state="active")
            client.page.run("void window.dispatchEvent(new Event('online'))")
            client.until_state("waiting")
            proxy.heal()
            client.until_number(0)
            assert client.notices == ["subscribed", "recovered"]


def test_a_reload(tmp_path: Path, chromium: Chromium) -> None:
    """With its position in sessionStorage a page that was reloaded gets what it missed."""
    more: Any = {"shelf": "position", "options": {"saveMs": 1}}
    with Daemon(tmp_path, "embedded:") as daemon, PageClient(chromium, daemon.url, {"job_events": [1]}, **more) as client:
        client.until_subscribed()
        position = daemon.publish("job_events.1", {"n": 0})
        client.until_number(0)
        client.page.run(f"""new Promise((done) => {{
            const look = () => sessionStorage.getItem("position") === {json.dumps(position)} ? done() : setTimeout(look, 1);
            look();
        }})""")
        client.page.run("void client.close()")
        for n in (1, 2):
            daemon.publish("job_events.1", {"n": n})
        client.reload()
        daemon.publish("job_events.1", {"n": 3})
        client.until_number(3)
        assert client.numbers == [0, 1, 2, 3]
        assert client.notices == ["subscribed", "recovered"]


def test_a_restarted_embedded_log_is_told(tmp_path: Path, follow: Follow) -> None:
    """With a new log the position means nothing any more: the client is told `stale`, and goes on."""
    with Daemon(tmp_path, "embedded:") as daemon:
        client = follow(daemon.url, {"job_events": [1]}, options=FAST)
        client.until_subscribed()
        daemon.publish("job_events.1", {"n": 0})
        client.until_number(0)
        daemon.kill()
        daemon.start()
        client.until(lambda: "stale" in client.notices)
        daemon.publish("job_events.1", {"n": 1})
        client.until_number(1)
        assert client.numbers == [0, 1]
        assert client.notices == ["subscribed", "stale"]


def test_nan(tmp_path: Path, follow: Follow) -> None:
    """A payload that is not plain JSON arrives, and the next one."""
    with Daemon(tmp_path, "embedded:") as daemon:
        client = follow(daemon.url, {"job_events": [1]})
        client.until_subscribed()
        for text in (b'{"n": NaN, "a": [-Infinity, "NaN"]}', b'{"n": 1, "a": "\\ud800"}'):
            assert daemon.ask("POST", "/publish", b'{"topic": "job_events.1", "payload": %b}' % text)[0] == 202
        client.until_number(1)
        first = client.items[1]
        assert first["payload"] == {"n": None, "a": [None, "NaN"]}
        assert first["text"] == '{"n": NaN, "a": [-Infinity, "NaN"]}'


@pytest.fixture
def with_jwt(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that takes JSON Web Tokens."""
    with Daemon(tmp_path, "embedded:", *jwt_flags(tmp_path), auth="jwt") as daemon:
        yield daemon


def test_a_new_token_before_the_old_one_ends(with_jwt: Daemon, follow: Follow) -> None:
    """The connection goes on with each new token, and a new token may grant more."""
    tokens = [(token(groups=("job_events.1",)), 500), (token(groups=("job_events.*",)), 0)]
    client = follow(with_jwt.url, {"job_events": [1, 2]}, tokens=tokens)
    client.until(lambda: client.notices.count("subscribed") == 2)
    assert {"denied", "subscribed"} == set(client.notices)
    with_jwt.publish("job_events.2", {"n": 0})
    client.until_number(0)
    assert client.states == ["connecting", "open"]
    assert [line["user"] for line in client.lines if line.get("state") == "open"] == ["anna"]
    assert client.errors == []


def test_a_token_that_ends(with_jwt: Daemon, follow: Follow) -> None:
    """The daemon ends a connection whose token expired or was revoked. The client returns with another token and misses nothing."""
    tokens = [(token(10), 3_600_000), (token(), 0), (token(), 0)]
    client = follow(with_jwt.url, {"job_events": [1]}, tokens=tokens, options=FAST)
    client.until_subscribed()
    with_jwt.publish("job_events.1", {"n": 0})
    client.until(lambda: client.notices.count("recovered") == 1)
    with_jwt.publish("job_events.1", {"n": 1})
    client.until_number(1)
    assert with_jwt.ask("POST", "/disconnect", b'{"user": "anna"}')[0] == 202
    with_jwt.publish("job_events.1", {"n": 2})
    client.until_number(2)
    assert client.numbers == [0, 1, 2]
    reasons = [line["reason"]["code"] for line in client.lines if line.get("state") == "waiting"]
    assert reasons == ["authenticate", "authenticate"]


def test_refused_tokens(with_jwt: Daemon, follow: Follow) -> None:
    """The client asks for another token, and stops with a reason when the callback has no better one."""
    bad = token(key=SECRET[::-1])
    client = follow(with_jwt.url, {"job_events": [1]}, tokens=[(bad, 0)], options=FAST)
    client.until(lambda: client.errors)
    assert client.states[-1] == "closed"
    assert [error["code"] for error in client.errors] == ["token"]
    assert [line["token"] for line in client.lines if "token" in line] == [1, 2]
    second = follow(with_jwt.url, {"job_events": [1]}, tokens=[(bad, 0), (token(), 0)], options=FAST)
    second.until_subscribed()
    third = follow(with_jwt.url, {"job_events": [1]}, options=FAST)
    third.until(lambda: third.errors)
    assert [error["code"] for error in third.errors] == ["authenticate"], "there is no token callback"


def test_wrong_urls(tmp_path: Path, follow: Follow) -> None:
    """A path without a websocket stops the client with the status. A port without a daemon does not: the daemon may start later."""
    with Daemon(tmp_path, "embedded:") as daemon:
        client = follow(daemon.url.replace("websocket", "nothing"), {"job_events": [1]}, options=FAST)
        client.until(lambda: client.errors)
        assert client.states[-1] == "closed"
        assert [(error["code"], error["status"]) for error in client.errors] == [("handshake", 404)]


def test_the_package_ws(tools: Path, tmp_path: Path) -> None:
    """The class of the package ws does as well. Node before 22 has none of its own."""
    module = str(tools.parent / "ws" / "wrapper.mjs")
    with Daemon(tmp_path, "embedded:") as daemon, FaultProxy(("127.0.0.1", daemon.port)) as proxy:
        more: Any = {"ws": module, "options": {**FAST, "pingMs": 500, "pongMs": 1000}}
        with NodeClient(url_of(proxy), {"job_events": [1]}, **more) as client:
            client.until_subscribed()
            faults: list[Callable[[], object]] = [proxy.reset, proxy.black_hole]
            for number, fault in enumerate(faults):
                fault()
                daemon.publish("job_events.1", {"n": number})
                client.until(lambda number=number: client.states.count("waiting") > number)  # type: ignore[misc]
                proxy.heal()
                client.until_number(number)
            assert client.numbers == [0, 1]
            assert set(client.notices) == {"subscribed", "recovered"}
        with NodeClient(daemon.url.replace("websocket", "nothing"), {"job_events": [1]}, **more) as client:
            client.until(lambda: client.errors)
            assert client.errors[0]["status"] == 404


def test_it_waits_for_the_daemon(tmp_path: Path) -> None:
    """A client that starts before the daemon connects when the daemon is there."""
    require(NO_LANGUAGE, node_command())
    daemon = Daemon(tmp_path, "embedded:")
    with NodeClient(daemon.url, {"job_events": [1]}, options=FAST) as client:
        client.until(lambda: client.states.count("waiting") == 2)
        with daemon:
            client.until_subscribed()
