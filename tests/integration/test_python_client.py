"""The Python client (towerws.client) with real daemons, a real RabbitMQ, and a proxy that breaks connections."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from private_rabbitmq import PrivateRabbit

from tests.faults.proxy import DOWN, FaultProxy
from tests.kit.daemon import DEADLINE_S, Daemon, NumberedLoad
from tests.kit.followers import SECRET, jwt_flags, through_faults, token, url_of
from tests.kit.py_client import PyClient
from towerws.client import Event, FileStore, Token, sync

ROOT = Path(__file__).parents[2]
README = (ROOT / "docs" / "python-client.md").read_text()
FAST: dict[str, Any] = {"retry_min_s": 0.05, "retry_max_s": 1}
"""A shorter backoff than the default, so that the tests take less time."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a broker. Each test uses its own topics."""
    with Daemon(tmp_path_factory.mktemp("daemon"), "embedded:") as running:
        yield running


def kills(rabbit: PrivateRabbit, folder: Path, count: int) -> None:
    """Kill the daemon so many times while events are published. The client gets each event once, in order, and no gap."""
    names = ["--exchange", "t.py", "--stream", f"t.py.events{count}"]
    with Daemon(folder, rabbit.url, *names) as daemon, PyClient(daemon.url, {"job_events": [1]}, **FAST) as client:
        client.until_subscribed()
        with NumberedLoad(rabbit.url, "job_events.1", exchange="t.py", stream=f"t.py.events{count}", per_s=100) as load:
            for kill in range(count):
                load.wait_for(10)
                if kill % 2:  # In the other rounds the kill may come while the client connects or catches up.
                    client.until_recovered(kill // 2 + 1)
                daemon.kill()
                load.wait_for(5)
                daemon.start()
            load.wait_for(10)
            published = load.finish()
        client.until_number(published - 1)
        assert client.numbers == list(range(published))
        assert client.notices[0] == "subscribed"
        assert set(client.notices[1:]) == {"recovered"}
        assert {error.code for error in client.errors} <= {"handshake"}, "told when the third attempt in a row failed"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_daemon(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """Each event once, in order, and no gap."""
    kills(rabbit, tmp_path, 20)


def test_kills_of_the_daemon(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """Each event once, in order, and no gap."""
    kills(rabbit, tmp_path, 3)


def test_connections_that_are_cut_and_frozen(daemon: Daemon) -> None:
    """Connections are reset, half closed, refused, slow and frozen. The client notices, reconnects and misses nothing."""
    options = {**FAST, "ping_s": 0.3, "pong_s": 0.5, "connect_s": 1}
    with FaultProxy(("127.0.0.1", daemon.port)) as proxy, PyClient(url_of(proxy), {"job_events": [2]}, **options) as client:
        client.until_subscribed()
        proxy.delay(DOWN, 0.05)
        through_faults(daemon, proxy, client, "job_events.2")
        assert {error.code for error in client.errors} <= {"handshake"}, "told when the third attempt in a row failed"


def test_a_restart_with_a_store(daemon: Daemon, tmp_path: Path) -> None:
    """A program that starts again with its store gets what it missed."""
    path = tmp_path / "position"
    store = FileStore(path)
    with PyClient(daemon.url, {"job_events": [3]}, store=store) as client:
        client.until_subscribed()
        daemon.publish("job_events.3", {"n": 0})
        client.until_number(0)
    assert path.stat().st_mode & 0o777 == 0o600
    for number in (1, 2):
        daemon.publish("job_events.3", {"n": number})
    with PyClient(daemon.url, {"job_events": [3]}, store=store) as client:
        daemon.publish("job_events.3", {"n": 3})
        client.until_number(3)
        assert client.numbers == [1, 2, 3]
        assert client.notices == ["recovered"]


def test_a_store_that_fails(daemon: Daemon, tmp_path: Path) -> None:
    """It is told once, and the events go on."""
    with PyClient(daemon.url, {"job_events": [4]}, store=FileStore(tmp_path / "missing" / "position"), save_s=0.01) as client:
        client.until_subscribed()
        for number in range(3):
            daemon.publish("job_events.4", {"n": number})
            client.until_number(number)
            client.until(lambda: client.errors)
    assert [error.code for error in client.errors] == ["store"]
    assert client.numbers == [0, 1, 2]


def test_a_store_with_another_type(daemon: Daemon) -> None:
    """redis-py gives bytes. The program keeps its state, so it gets `stale`, and the error says what is wrong."""

    class Bytes:
        def get(self) -> Any:
            return b"5-a"

        def set(self, position: str, /) -> None:
            """Nothing."""

    with PyClient(daemon.url, {"job_events": [5]}, store=Bytes()) as client:
        client.until(lambda: client.notices)
    assert client.notices[0] == "stale"
    assert [error.code for error in client.errors] == ["store"]


def test_another_log_is_told(tmp_path: Path) -> None:
    """With a new log the position means nothing any more: `stale`."""
    with Daemon(tmp_path, "embedded:") as daemon, PyClient(daemon.url, {"job_events": [1]}, **FAST) as client:
        client.until_subscribed()
        daemon.publish("job_events.1", {"n": 0})
        client.until_number(0)
        daemon.kill()
        client.until(lambda: "waiting" in client.states)
        daemon.start()
        client.until(lambda: "stale" in client.notices)
        daemon.publish("job_events.1", {"n": 1})
        client.until_number(1)
        assert client.numbers == [0, 1]
        assert client.notices == ["subscribed", "stale"]
        assert daemon.stop() == 0
        client.until(lambda: any(change.reason is not None and change.reason.code == "bye" for change in client.changes))


def test_nan(daemon: Daemon) -> None:
    """A payload that is not plain JSON arrives, and the next one."""
    with PyClient(daemon.url, {"job_events": [5]}) as client:
        client.until_subscribed()
        for text in (b'{"n": NaN, "a": [-Infinity, "NaN"]}', b'{"n": 1, "a": "\\ud800"}'):
            assert daemon.ask("POST", "/publish", b'{"topic": "job_events.5", "payload": %b}' % text)[0] == 202
        client.until_number(1)
        first = next(item for item in client.items if isinstance(item, Event))
        assert first.payload == {"n": None, "a": [None, "NaN"]}
        assert first.text == '{"n": NaN, "a": [-Infinity, "NaN"]}'


@pytest.fixture(scope="module")
def with_jwt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that takes JSON Web Tokens."""
    folder = tmp_path_factory.mktemp("jwt")
    with Daemon(folder, "embedded:", *jwt_flags(folder), auth="jwt") as daemon:
        yield daemon


def test_a_new_token_before_the_old_one_ends(with_jwt: Daemon) -> None:
    """The connection goes on with each new token, and a new token may grant more."""
    tokens = iter([token(2.5, groups=("job_events.1",)), token()])
    with PyClient(with_jwt.url, {"job_events": [1, 2]}, token=lambda: next(tokens)) as client:
        client.until(lambda: client.notices.count("subscribed") == 2)
        assert {"denied", "subscribed"} == set(client.notices)
        with_jwt.publish("job_events.2", {"n": 0})
        client.until_number(0)
        assert client.states == ["connecting", "open"]
        assert client.client.user == "anna"
        assert client.errors == []


def test_a_token_that_ends(with_jwt: Daemon) -> None:
    """The daemon ends a connection whose user was disconnected. The client returns with another token and misses nothing."""

    async def fetch() -> str:
        return token(user="bert")

    with PyClient(with_jwt.url, {"job_events": [3]}, token=fetch, **FAST) as client:
        client.until_subscribed()
        with_jwt.publish("job_events.3", {"n": 0})
        client.until_number(0)
        assert with_jwt.ask("POST", "/disconnect", b'{"user": "bert"}')[0] == 202
        with_jwt.publish("job_events.3", {"n": 1})
        client.until_number(1)
        assert client.numbers == [0, 1]
        assert [change.reason.code for change in client.changes if change.reason is not None] == ["authenticate"]


def test_a_token_that_expires(with_jwt: Daemon) -> None:
    """Without a new token in time the daemon ends the connection. The client fetches one, and misses nothing."""
    fetched: list[Token] = []

    def fetch() -> Token:
        fetched.append(Token(token(1, user="cora"), time.time() + 3600))  # the client believes this, and renews too late
        return fetched[-1]

    with PyClient(with_jwt.url, {"job_events": [4]}, token=fetch, **FAST) as client:
        client.until_subscribed()
        published = 0
        while client.notices.count("recovered") < 3:
            with_jwt.publish("job_events.4", {"n": published})
            published += 1
            time.sleep(0.005)  # the load's pace
        client.until_number(published - 1)
        assert client.numbers == list(range(published))
        assert set(client.notices) == {"subscribed", "recovered"}
        assert {change.reason.code for change in client.changes if change.reason is not None} == {"authenticate"}
        assert len({each.token for each in fetched}) == len(fetched) > 3
        assert client.errors == []


def test_refused_tokens(with_jwt: Daemon) -> None:
    """The client asks for another token, and stops with a reason when there is no better one."""
    bad = token(key=SECRET[::-1])
    rows: list[tuple[Any, list[str], int]] = [
        (bad, ["token"], 1),
        (lambda: bad, ["token"], 2),
        (lambda: token(key=SECRET[::-1]), ["token"], 3),
        (lambda: None, ["token"], 1),
        (None, ["authenticate"], 1),
    ]
    for source, codes, attempts in rows:
        with PyClient(with_jwt.url, {"job_events": [1]}, token=source, **FAST) as client:
            client.until(lambda client=client: client.states[-1:] == ["closed"])  # type: ignore[misc]
            client.until(lambda client=client: client.errors)  # type: ignore[misc]
            assert [error.code for error in client.errors] == codes
            assert client.states.count("connecting") == attempts
    good = iter([bad, token()])
    with PyClient(with_jwt.url, {"job_events": [1]}, token=lambda: next(good), **FAST) as client:
        client.until_subscribed()


def test_wrong_urls_and_topics(daemon: Daemon) -> None:
    """A path without a websocket stops the client with the status. An unknown topic is denied, and the others go on."""
    with PyClient(daemon.url.replace("websocket", "nothing"), {"job_events": [1]}, **FAST) as client:
        client.until(lambda: client.errors)
        assert client.states[-1] == "closed"
        assert [(error.code, error.status) for error in client.errors] == [("handshake", 404)]
    with PyClient(daemon.url, {"nonsense": [1], "job_events": [6]}, **FAST) as client:
        client.until(lambda: len(client.notices) == 2)
        assert client.notices == ["subscribed", "denied"]


def test_the_first_event(tmp_path: Path, daemon: Daemon) -> None:
    """The first two samples of docs/python-client.md have at most ten lines of code, and print an event."""
    samples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    assert len(samples) == 2
    for number, sample in enumerate(samples):
        assert len([line for line in sample.splitlines() if line]) <= 10
        script = tmp_path / f"first{number}.py"
        script.write_text(re.sub(r"wss?://[^\"]*", daemon.url, sample))
        with subprocess.Popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                give_up = time.monotonic() + DEADLINE_S
                while daemon.get("/status")[1]["hub"]["topics"] != 1:
                    assert time.monotonic() < give_up
                    time.sleep(0.02)  # polled: nothing announces it
                daemon.publish("job_events.42", {"status": "running"})
                assert process.stdout is not None
                assert "running" in process.stdout.readline()
            finally:
                process.kill()
                process.wait(DEADLINE_S)
        while daemon.get("/status")[1]["hub"]["topics"]:
            assert time.monotonic() < give_up
            time.sleep(0.02)  # polled, as above


def test_iterators_of_both_kinds(daemon: Daemon) -> None:
    """`for` gives items in order. `get` has a deadline, and loses nothing when it passes."""
    with sync.connect(daemon.url) as live, live.subscribe({"job_events": [7]}) as items:
        assert items.get(DEADLINE_S).type == "subscribed"
        with pytest.raises(TimeoutError):
            items.get(0.01)
        for number in range(3):
            daemon.publish("job_events.7", {"n": number})
        got = []
        for item in items:
            assert isinstance(item, Event)
            got.append(item.payload["n"])
            if len(got) == 3:
                break
        assert got == [0, 1, 2]
        items.close()
        assert list(items) == []
