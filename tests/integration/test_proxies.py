"""towerws behind Debian's HAProxy and Caddy with the configurations of `deploy/`. test_nginx.py has more, for nginx."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import websocket
from websockets.sync.client import connect

from tests.integration.conftest import NO_CADDY, NO_HAPROXY, require
from tests.integration.test_nginx import CANARY, PLAIN_ANSWERS, Answer, Way, _addresses, tower_api
from tests.integration.test_start_and_stop import V1
from tests.kit.awx_nodes import awx_node, check_nodes
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.hostile_heads import COOKIE, FORGED
from tests.kit.proxies import DEPLOY, Caddy, HAProxy, Proxy, found
from tests.kit.ws_kit import close, request
from tests.test_outgoing import certificate
from towerws.core.settings import TowerSettings, WebSocketSettings

MISSING = {HAProxy: NO_HAPROXY, Caddy: NO_CADDY}


class PatientWay(Way):
    """A way for clients that wait for the 101 before they send more. Caddy before 2.6.3 loses what comes earlier."""

    def open(self, raw: bytes, address: str = "") -> Answer:
        """Send an opening handshake. If it succeeds, close the connection and wait for its end."""
        self._api.asked.clear()
        before = self._opened()
        number = next(_addresses)
        self.client = address or f"127.0.{1 + number // 250}.{1 + number % 250}"
        with socket.create_connection(("127.0.0.1", self._port), DEADLINE_S, (self.client, 0)) as client:
            client.sendall(raw)
            found = client.recv(65536)
            if found.startswith(b"HTTP/1.1 101 "):  # with any other answer the proxy keeps the connection for a next request
                client.sendall(close())
                while piece := client.recv(65536):
                    found += piece
        return Answer(int(found[9:12]), found, list(self._api.asked), self._opened() - before)


class Place(NamedTuple):
    """A daemon that asks a Tower API, and a proxy in front of it."""

    way: Way
    proxy: Proxy


@pytest.fixture(scope="module", params=[HAProxy, Caddy], ids=lambda kind: kind.program)
def kind(request: pytest.FixtureRequest) -> type[Proxy]:
    """One proxy after the other."""
    proxy: type[Proxy] = request.param
    require(MISSING[proxy], found(proxy.program))
    return proxy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, kind: type[Proxy]) -> Iterator[Place]:
    """Both processes. At the end no connection is left, and no forged address was believed."""
    with ExitStack() as leave:
        api = leave.enter_context(tower_api())
        flags = ("--tower-url", f"http://127.0.0.1:{api.server_port}", "--tower-valid-s", "0", "--trusted-proxies", "127.0.0.1")
        daemon = leave.enter_context(Daemon(tmp_path_factory.mktemp("daemon"), "embedded:", *flags, auth="tower"))
        proxy = leave.enter_context(kind(tmp_path_factory.mktemp(kind.program), daemon))
        yield Place(PatientWay(daemon, api, proxy.port, None), proxy)
        assert daemon.get("/status")[1]["connections"]["present"] == 0
        assert FORGED not in daemon.log.read_text()


def test_the_upgrade_and_the_client_s_address(place: Place) -> None:
    """A handshake gets through, and the API and the log have the client's own address."""
    way = place.way
    answer = way.open(request(added=[COOKIE]))
    assert (answer.status, answer.opened) == (101, 1)
    assert [asked["x-forwarded-for"] for asked in answer.asked] == [way.client]
    assert f"user 7 from {way.client}, by tower" in way.daemon.log.read_text()


@pytest.mark.parametrize(
    "line",
    [
        f"X-Forwarded-For: {FORGED}",
        f"X-Forwarded-For: 127.0.0.1, {FORGED}, 127.0.0.1",
        f"x-forwarded-for: {FORGED}",
        f"X-Real-IP: {FORGED}",
        f"Forwarded: for={FORGED};host={FORGED}",
        f"X-Forwarded-Host: {FORGED}",
    ],
)
def test_a_forged_address_is_not_used(place: Place, line: str) -> None:
    """Whichever address a client claims, its own one counts."""
    answer = place.way.open(request(added=[COOKIE, line]))
    assert (answer.status, answer.opened) == (101, 1)
    assert [asked["x-forwarded-for"] for asked in answer.asked] == [place.way.client]


def test_origins(place: Place) -> None:
    """Pages of the host connect, with its port. Foreign ones don't, even if the client claims their host as X-Forwarded-Host."""

    def ask(host: str, *lines: str) -> int:
        return place.way.open(request(host=host, added=[COOKIE, *lines])).status

    assert ask("tower.example.com", "Origin: https://tower.example.com") == 101
    assert ask("tower.example.com:8043", "Origin: https://tower.example.com:8043") == 101
    assert ask("tower.example.com", "Origin: https://evil.example") == 403
    assert ask("tower.example.com", "Origin: https://evil.example", "X-Forwarded-Host: evil.example") == 403


@pytest.mark.parametrize(
    ("path", "towerws"),
    [
        ("/websocket/", True),
        ("/websocket", True),
        ("/websocket/?token=x", True),
        ("/jobs/playbook/42/output/websocket/", True),
        ("/websocket/events", True),
        ("/websocket/history?limit=1", True),
        ("/websocket/client-000000000000.js", True),
        ("/", False),
        ("/api/v2/me/", False),
        ("/websocket/relay/", False),
        ("/xwebsocket/", False),
        ("/?a=/websocket/", False),
    ],
)
def test_what_goes_to_whom(place: Place, path: str, towerws: bool) -> None:
    """Each websocket path of pages leads to towerws, with its own answer to a plain GET. All other paths lead to AWX."""
    answer = place.way.open(request(path, without=["Upgrade", "Connection"], added=["Connection: close"]))
    own = PLAIN_ANSWERS.get(path.rpartition("/")[2], 426)
    assert answer.status == (own if towerws else place.proxy.gateway_error)


def test_the_websockets_between_awxs_nodes(place: Place, kind: type[Proxy], tmp_path: Path) -> None:
    """Their Upgrade reaches AWX."""
    with awx_node() as awx, kind(tmp_path, place.way.daemon, awx=awx) as proxy:
        check_nodes(proxy.port)


def test_tokens_stay_out_of_the_log(place: Place) -> None:
    """Accepted, refused and malformed requests leave their path in the log, and no token."""
    path = f"/websocket/?token={CANARY}"
    lines = [f"Referer: https://tower.example.com/?token={CANARY}", f"Cookie: token={CANARY}"]
    for expected, raw in (
        (101, request(path, added=lines)),
        (403, request(f"{path}x", added=lines)),
        (426, request(path, without=["Upgrade"], added=["Connection: close"])),
    ):
        assert place.way.open(raw).status == expected
    logs = "".join(place.proxy.logs().values())
    assert "/websocket/" in logs
    assert CANARY not in logs


def test_events_and_the_close(tmp_path: Path, kind: type[Proxy]) -> None:
    """Over the shipped server's TLS: a large event arrives unchanged, and the client hears `bye` and 1012 when the daemon stops."""
    files = certificate(tmp_path)
    with Daemon(tmp_path, "embedded:", "--trusted-proxies", "127.0.0.1") as daemon:
        folder = tmp_path / "proxy"
        folder.mkdir()
        with kind(folder, daemon, certificate=files) as proxy, ExitStack() as leave:
            trust = ssl.create_default_context(cafile=str(files[0]))
            sock = socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S)
            # Not `websockets.sync`: its threads share a TLS connection, and CPython lets them damage its state (cpython#143756).
            tls = leave.enter_context(trust.wrap_socket(sock, server_hostname="127.0.0.1"))
            client = websocket.create_connection(proxy.url, timeout=DEADLINE_S, socket=tls, subprotocols=["towerws.v1"])  # type: ignore[no-untyped-call, unused-ignore]
            client.recv()
            client.send(json.dumps({"groups": {"job_events": [1]}}))
            client.recv()
            payload = {"x": "y" * 3_000_000}
            daemon.publish("job_events.1", payload)
            assert json.loads(client.recv())["payload"] == payload
            daemon.begin_stop()
            assert json.loads(client.recv())["type"] == "bye"
            opcode, reason = client.recv_data(control_frame=True)
            assert (opcode, reason[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1012).to_bytes(2))


def test_a_daemon_that_is_down(tmp_path: Path, kind: type[Proxy]) -> None:
    """The proxy answers for it. When the daemon is back, clients get through again."""
    with Daemon(tmp_path, "embedded:") as daemon:
        folder = tmp_path / "proxy"
        folder.mkdir()
        with kind(folder, daemon) as proxy:
            daemon.kill()
            with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as client:
                client.sendall(request(f"/websocket/?token={CANARY}", host="localhost"))
                assert re.match(rb"HTTP/1.1 50[23] ", client.recv(65536))
            assert CANARY not in str(proxy.logs())
            daemon.start()
            give_up, answer = time.monotonic() + DEADLINE_S, b""
            while not answer.startswith(b"HTTP/1.1 101 "):
                assert time.monotonic() < give_up, answer
                with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as client:
                    client.sendall(request(host="localhost"))
                    answer = client.recv(65536)
                time.sleep(0.1)  # the proxy's own check finds the daemon within two seconds, and announces it nowhere


SILENCE_S = 2


def test_a_quiet_connection_stays_open(tmp_path: Path) -> None:
    """HAProxy ends a silent websocket after `timeout tunnel`. towerws's pings keep it open. Caddy has no such timeout."""
    require(NO_HAPROXY, found("haproxy"))
    with Daemon(tmp_path, "embedded:", "--websocket-ping-s", "0.5", "--trusted-proxies", "127.0.0.1") as daemon:
        folder = tmp_path / "proxy"
        folder.mkdir()
        proxy = HAProxy(folder, daemon)
        text = proxy.configuration.read_text()
        assert text.count("timeout tunnel 75s") == 1
        proxy.configuration.write_text(text.replace("timeout tunnel 75s", f"timeout tunnel {SILENCE_S}s"))
        with proxy, connect(proxy.url.replace("127.0.0.1", "localhost"), subprotocols=[V1], open_timeout=DEADLINE_S) as client:
            client.recv(DEADLINE_S)
            with pytest.raises(TimeoutError):
                client.recv(2 * SILENCE_S)
            client.send(json.dumps({"groups": {"job_events": [1]}}))
            assert json.loads(client.recv(DEADLINE_S))["type"] == "subscribed"


def test_the_shipped_figures_fit_the_daemons() -> None:
    """HAProxy is never the first to give up: its timeouts are wider than towerws's own."""
    text = (DEPLOY / "haproxy" / "towerws.cfg").read_text()
    seconds = {name: float(value) for name, value in re.findall(r"^\s+timeout ([\w-]+) (\d+)s$", text, re.MULTILINE)}
    options = WebSocketSettings()
    for name in ("tunnel", "client", "server"):
        assert seconds[name] > options.ping_s + options.pong_s
    assert seconds["http-request"] == options.handshake_s
    assert seconds["connect"] + TowerSettings(url="").deadline_s <= 3, "AWX's pages wait no longer"
    assert seconds["client-fin"] > options.linger_s
