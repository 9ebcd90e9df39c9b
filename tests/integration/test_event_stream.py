"""Event streams with real parts: curl, Chromium's EventSource, nginx, a real RabbitMQ, and a reader that freezes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha384
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from private_rabbitmq import PrivateRabbit, free_port

from tests.integration.conftest import require
from tests.integration.test_websocket_transports import tls
from tests.kit.chromium import Chromium
from tests.kit.client_file import SOURCE, STATIC
from tests.kit.daemon import DEADLINE_S, Daemon, NumberedLoad
from tests.kit.event_stream import StreamClient
from tests.kit.js_client import PageClient
from tests.kit.nginx import Nginx
from towerws.websocket.plain_http import load_client_files

TOPIC = "topic=job_events.1"

FOLLOW = """((url, more) => {
  let last;
  window.got = [];
  const keep = (event) => {
    last = event.lastEventId || last;
    got.push({ kind: event.type, id: event.lastEventId, data: event.data && JSON.parse(event.data) });
  };
  (function open() {
    const source = window.source = new EventSource(last ? `${url}&since=${last}` : url, more);
    source.onmessage = keep;
    for (const kind of ["welcome", "subscribed", "gap", "bye"]) source.addEventListener(kind, keep);
    source.onerror = () => {
      got.push({ kind: "error", closed: source.readyState === EventSource.CLOSED });
      if (source.readyState === EventSource.CLOSED && more.again) setTimeout(open, 500);
    };
  })();
})"""
"""Follows an event stream in a page, and keeps its events in `got`. An EventSource that gave up (a proxy said 502) is made again."""


@pytest.fixture(scope="module")
def site() -> int:
    """The port of a site that the daemon of this module lists."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, site: int) -> Iterator[Daemon]:
    """The module's daemon."""
    flags = ["--origins", f"http://localhost:{site}", "--websocket-ping-s", "0.5", "--websocket-pong-s", "1"]
    with Daemon(tmp_path_factory.mktemp("daemon"), "embedded:", *flags) as running:
        yield running


def base(daemon: Daemon) -> str:
    """The URL of the websocket port."""
    return f"http://127.0.0.1:{daemon.port}"


def subscribed(daemon: Daemon, topics: int = 1) -> None:
    """Wait until clients have subscribed."""
    give_up = time.monotonic() + DEADLINE_S
    while daemon.get("/status")[1]["hub"]["topics"] != topics:
        assert time.monotonic() < give_up
        time.sleep(0.02)  # polled: nothing announces it


def test_curl(daemon: Daemon) -> None:
    """`curl -N` prints each event as it comes, and gets the text of a refusal."""
    require("curl is not installed", shutil.which("curl"))
    refused = subprocess.run(
        ["curl", "-sS", "-w", "%{http_code}", f"{base(daemon)}/events?topic=nothing.1"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert refused.stdout == "topic nothing.1: no such group\n400"
    for flags in ([], ["--http1.0"], ["--http2"]):
        with subprocess.Popen(["curl", "-sSN", *flags, f"{base(daemon)}/events?{TOPIC}"], stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            subscribed(daemon)
            position = daemon.publish("job_events.1", {"n": 1})
            lines = [curl.stdout.readline() for _ in range(10)]
            assert lines[-2] == f"id: {position}\n".encode(), lines
            curl.kill()
        subscribed(daemon, 0)


# A browser


def until(page: Any, condition: str) -> Any:
    """Wait until a condition is true in the page. Returns what the page got."""
    return json.loads(
        page.run(f"""new Promise((done, fail) => {{
            const timer = setTimeout(() => fail(new Error(JSON.stringify(got))), {int(DEADLINE_S * 900)});
            const look = () => {{
                if (!({condition})) return setTimeout(look, 5);
                clearTimeout(timer);
                done(JSON.stringify(got));
            }};
            look();
        }})""")
    )


COUNT = "got.filter(({kind}) => kind === '%s').length"


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("way", ["directly", "through nginx"])
def test_an_event_source_resumes(
    tmp_path: Path, rabbit: PrivateRabbit, chromium: Chromium, nginx: Callable[..., Nginx], way: str, rounds: int
) -> None:
    """The daemon is killed and stopped, once or ten times, while events are published. The page gets each event once, in order."""
    name = f"t.events-{way[0]}-{rounds}"
    with Daemon(tmp_path, rabbit.url, "--exchange", name, "--stream", f"{name}.log") as daemon:
        place = base(daemon)
        if way == "through nginx":
            place = nginx(f"127.0.0.1:{daemon.port}").url.replace("ws", "http", 1).removesuffix("/websocket/")
        page = chromium.open(f"{place}/websocket/client.js")
        page.run(f"{FOLLOW}('/websocket/events?{TOPIC}', {{ again: true }})")
        until(page, f"{COUNT % 'subscribed'} === 1")
        with NumberedLoad(rabbit.url, "job_events.1", exchange=name, stream=f"{name}.log", per_s=50) as load:
            for number, end in enumerate((daemon.kill, daemon.stop) * rounds, 2):
                load.wait_for(10)
                end()
                load.wait_for(5)
                daemon.start()
                until(page, f"{COUNT % 'subscribed'} === {number}")
            count = load.finish()
        got = until(page, f"{COUNT % 'message'} >= {count}")
        assert [event["data"]["payload"]["n"] for event in got if event["kind"] == "message"] == list(range(count))
        assert [event["data"]["recovered"] for event in got if event["kind"] == "subscribed"] == [None] + 2 * rounds * [True]
        assert [event["data"]["action"] for event in got if event["kind"] == "bye"] == rounds * ["reconnect"]
        page.run("source.close()")


class Site:
    """A server of an empty page, for a page of another origin."""

    def __init__(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Page)
        self.url = f"http://localhost:{port}"

    def __enter__(self) -> str:
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self.url

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """No log."""


def test_pages_of_other_origins(daemon: Daemon, site: int, chromium: Chromium) -> None:
    """A listed origin gets events with credentials, history, and the client by its hash. Another one learns why it does not."""
    with Site(site) as listed, Site(free_port()) as other:
        page = chromium.open(listed)
        page.run(f"{FOLLOW}('{base(daemon)}/events?{TOPIC}', {{ withCredentials: true }})")
        until(page, f"{COUNT % 'subscribed'} === 1")
        position = daemon.publish("job_events.1", {"n": 1})
        got = until(page, f"{COUNT % 'message'} === 1")
        assert got[-1]["id"] == position
        ask = "(url, more) => fetch(url, { credentials: 'include', ...more }).then(async (answer) => [answer.status, await answer.text()])"
        status, text = page.run(f"({ask})('{base(daemon)}/history?{TOPIC}', {{ headers: {{ authorization: 'Bearer x' }} }})")
        assert (status, json.loads(text)["events"][-1]["payload"]) == (200, {"n": 1})
        page.run("source.close()")
        load = """(src, integrity) => new Promise((done) => {
            const script = Object.assign(document.createElement("script"), { type: "module", crossOrigin: "anonymous", src, integrity });
            script.onload = () => done(true);
            script.onerror = () => done(false);
            document.head.append(script);
        })"""
        hashed = f"{base(daemon)}/client-{documented('client-([0-9a-f]+)')}.js"
        integrity = documented('integrity="(sha384-[^"]+)"')
        assert page.run(f"({load})('{hashed}', '{integrity}')") is True
        assert page.run(f"({load})('{hashed}?', '{integrity[:-4]}AAAA')") is False
        assert page.run(f"import('{hashed}').then(({{ connect }}) => typeof connect)") == "function"

        page = chromium.open(other)
        assert page.run(f"({ask})('{base(daemon)}/events?{TOPIC}')") == [403, "a page of this origin may not connect here\n"]
        page.run(f"{FOLLOW}('{base(daemon)}/events?{TOPIC}', {{}})")
        assert until(page, "got.length")[0] == {"kind": "error", "closed": True}


def documented(pattern: str) -> str:
    """What the client's README says."""
    found = re.search(pattern, (SOURCE / "README.md").read_text())
    assert found is not None
    return found[1]


def test_the_documented_hash() -> None:
    """A page that copies the README's line loads exactly this client."""
    built = (STATIC / "client.js").read_bytes()
    assert documented('integrity="(sha384-[^"]+)"') == f"sha384-{b64encode(sha384(built).digest()).decode()}"
    assert f"client-{documented('client-([0-9a-f]+)')}.js" in load_client_files()
    assert f"client-shared-{documented('client-shared-([0-9a-f]+)')}.js" in load_client_files()


def test_a_page_learns_why_its_handshake_was_refused(daemon: Daemon, chromium: Chromium) -> None:
    """A browser hides the status of a handshake. The client asks for it, and stops where another attempt would end the same way."""
    with Site(free_port()) as other, PageClient(chromium, daemon.url, {"job_events": [1]}) as client:
        client.until_subscribed()
        client.page.go(other)
        client._start()
        client.until(lambda: client.errors)
        assert client.errors[0]["status"] == 403
        assert "a page of this origin may not connect here" in client.errors[0]["message"]
        assert client.states[-1] == "closed"


# Proxies and sockets


def test_nginx_with_its_defaults_holds_nothing_back(daemon: Daemon, nginx: Callable[..., Nginx]) -> None:
    """nginx buffers answers and speaks HTTP/1.0 to its upstream unless told otherwise. The answer's header switches the buffers off."""
    port = free_port()
    plain = f"server {{ listen 127.0.0.1:{port}; access_log off; location / {{ proxy_pass http://127.0.0.1:{daemon.port}; }} }}"
    nginx(f"127.0.0.1:{daemon.port}", more=plain)
    with StreamClient(port, f"/events?{TOPIC}") as client:
        client.until("subscribed")
        for n in range(3):
            daemon.publish("job_events.1", {"n": n})
            client.until("message", n + 1)
        assert client.numbers == [0, 1, 2]
        while client.reader.comments < 2:
            assert client.read()
        assert b"\r\nServer: nginx" in client.head


def test_a_proxy_that_collects_the_answer(tmp_path: Path, nginx: Callable[..., Nginx]) -> None:
    """A proxy that collects although the header forbids it makes events late. None is lost: the rest comes with the end of the stream."""
    with Daemon(tmp_path, "embedded:", "--websocket-ping-s", "60") as running:
        port = free_port()
        buffers = "proxy_ignore_headers X-Accel-Buffering; proxy_buffer_size 64k; proxy_buffers 4 64k;"
        where = f"proxy_pass http://127.0.0.1:{running.port}; {buffers}"
        nginx(f"127.0.0.1:{running.port}", more=f"server {{ listen 127.0.0.1:{port}; access_log off; location / {{ {where} }} }}")
        client = StreamClient(port, f"/events?{TOPIC}")
        opening = Thread(target=client.open)  # not even the head comes yet
        opening.start()
        subscribed(running)
        for n in range(50):
            running.publish("job_events.1", {"n": n, "pad": "x" * 100})
        assert (client.status, opening.is_alive()) == (0, True)
        assert running.stop() == 0
        opening.join(DEADLINE_S)
        client.until_end()
        assert client.numbers == list(range(50))
        assert client.events[-1].kind == "bye"


def test_a_reader_that_has_gone_is_noticed(daemon: Daemon) -> None:
    """It acknowledges nothing more, as a machine that lost its network: here its window is full. `ping_s` and `pong_s` bound that."""
    with StreamClient(daemon.port, f"/events?{TOPIC}") as client:
        client.until("subscribed")
        before = daemon.get("/status")[1]["connections"]["closed"]
        give_up = time.monotonic() + DEADLINE_S
        while daemon.get("/status")[1]["connections"]["closed"] == before:
            daemon.publish("job_events.1", {"pad": "x" * 200_000})
            time.sleep(0.05)
            assert time.monotonic() < give_up


def test_a_stop_ends_streams_with_the_time_to_come_back(tmp_path: Path) -> None:
    """Each stream gets a `bye` with its own `retry`, and the daemon waits for no reader."""
    with Daemon(tmp_path, "embedded:") as running:
        with StreamClient(running.port, f"/events?{TOPIC}") as client:
            client.until("subscribed")
            running.begin_stop()
            client.until_end()
            bye = client.until("bye")
            assert (bye.frame["reason"], bye.frame["action"]) == ("restart", "reconnect")
            assert bye.retry == bye.frame["reconnect_after_ms"]
        assert running.stop() == 0


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kills(tmp_path: Path, rabbit: PrivateRabbit, kills: int) -> None:
    """A reader that resumes by its last id gets each event once, in order, through kills of the daemon, and no gap."""
    stream = f"t.kills{kills}.log"
    with (
        Daemon(tmp_path, rabbit.url, "--exchange", "t.kills", "--stream", stream) as daemon,
        StreamClient(daemon.port, f"/events?{TOPIC}") as client,
        NumberedLoad(rabbit.url, "job_events.1", exchange="t.kills", stream=stream, per_s=100) as load,
    ):
        client.until("subscribed")
        for number in range(kills):
            load.wait_for(10)
            if number % 2:  # in the other rounds the kill may come while the reader catches up
                client.until("message", len(client.numbers) + 1)
            daemon.kill()
            client.until_end()
            load.wait_for(5)
            daemon.start()
            client.open()
        count = load.finish()
        client.until("message", count)
        assert client.numbers == list(range(count))
        kinds = {event.kind for event in client.events}
        assert kinds == {"welcome", "subscribed", "message"}
        recovered = [event.frame["recovered"] for event in client.events if event.kind == "subscribed"]
        assert recovered[0] is None
        assert set(recovered[1:]) == {True}


def test_tls(tmp_path: Path) -> None:
    """A stream and a page of history over TLS."""
    require("curl is not installed", shutil.which("curl"))
    endpoint, _ = tls(tmp_path)
    with Daemon(tmp_path, "embedded:", "--websocket-ping-s", "0.2", "--listen", endpoint) as daemon:
        url = f"https://localhost:{endpoint.split(':')[1]}"
        ask = ["curl", "-sSN", "--cacert", str(tmp_path / "localhost.pem")]
        with subprocess.Popen([*ask, f"{url}/events?{TOPIC}"], stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            subscribed(daemon)
            daemon.publish("job_events.1", {"n": 1, "pad": "x" * 200_000})
            while not curl.stdout.readline().startswith(b'data: {"group"'):
                pass
            while curl.stdout.readline() != b":\n":
                pass
            curl.kill()
        page = subprocess.run([*ask, f"{url}/history?{TOPIC}"], stdout=subprocess.PIPE, check=True)
        assert len(json.loads(page.stdout)["events"][0]["payload"]["pad"]) == 200_000
