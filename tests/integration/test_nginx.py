"""towerws behind Debian's nginx with the configuration of `deploy/nginx` keeps its promises."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import websocket

from tests.kit.awx_nodes import awx_node, check_nodes
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.hostile_heads import COOKIE, FORGED, LISTED, PAGE_ORIGINS, Hostile, PageOrigin, hostile_heads
from tests.kit.nginx import Nginx, directive, shipped
from tests.kit.rows import each_row
from tests.kit.ws_kit import close, request, text
from tests.test_outgoing import certificate
from towerws.core.settings import LimitSettings, TowerSettings, WebSocketSettings

SESSION = "s3ss10n"
PASSWORD = "Basic YWRhOnBhc3N3b3Jk"
PLAIN_ANSWERS = {"?token=x": 403, "events": 400, "history?limit=1": 400, "client-000000000000.js": 404}
"""The status of a plain GET, by its last segment. That of the websocket's path is 426."""

TOKENS = ("t0ken", CANARY := "canary0token0in0the0url")


class Tower(ThreadingHTTPServer):
    """A Tower API that knows one session, of user 7. It keeps the headers of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[dict[str, str]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Tower

    def do_GET(self) -> None:
        """http.server calls this."""
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        user = {"id": 7, "type": "user", "username": "ada", "is_superuser": False, "is_system_auditor": False}
        known = f"sessionid={SESSION}" in self.headers.get("Cookie", "") or self.headers.get("Authorization") in [
            *(f"Bearer {token}" for token in TOKENS),
            PASSWORD,
        ]
        body = json.dumps({"count": 1, "results": [user]} if known else {}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


@contextmanager
def tower_api() -> Iterator[Tower]:
    """The API, at `server_port`."""
    with Tower() as api:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join(DEADLINE_S)


_addresses = count(2)


class Answer(NamedTuple):
    """The answer to an opening handshake (status 0: HTTP 0.9, which has none), and its effects behind nginx."""

    status: int
    raw: bytes
    asked: list[dict[str, str]]
    opened: int


class Way:
    """A daemon that asks the Tower API, and a way to it: directly or through nginx."""

    def __init__(self, daemon: Daemon, api: Tower, port: int, nginx: Nginx | None) -> None:
        self.daemon = daemon
        self.nginx = nginx
        self._api = api
        self._port = port
        self.client = ""
        """The address of the last client. Each client has its own, so that no limit per address is reached."""

    def open(self, raw: bytes, address: str = "") -> Answer:
        """Send an opening handshake. If it succeeds, close the connection and wait for its end."""
        self._api.asked.clear()
        before = self._opened()
        number = next(_addresses)
        self.client = address or f"127.0.{1 + number // 250}.{1 + number % 250}"
        with socket.create_connection(("127.0.0.1", self._port), DEADLINE_S, (self.client, 0)) as client:
            client.sendall(raw + close())
            found = b""
            try:
                while piece := client.recv(65536):
                    found += piece
            except ConnectionResetError:
                assert found, "reset before an answer"
        head, end, rest = found.partition(b"\r\n\r\n")
        if length := re.search(rb"Content-Length: (\d+)", head):  # nginx answers the close frame, too, as if it were a request
            found = head + end + rest[: int(length[1])]
        return Answer(int(found[9:12]) if found.startswith(b"HTTP/") else 0, found, list(self._api.asked), self._opened() - before)

    def _opened(self) -> int:
        return int(self.daemon.get("/status")[1]["connections"]["opened"])


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, nginx: Callable[..., Nginx]) -> Iterator[dict[str, Way]]:
    """Both ways to one daemon. At the end no connection is left in it, and no forged value reached the API or the log."""
    with ExitStack() as leave:
        api = leave.enter_context(tower_api())
        flags = ["--tower-url", f"http://127.0.0.1:{api.server_port}", "--tower-valid-s", "0", "--origins", ",".join(LISTED)]
        folder = tmp_path_factory.mktemp("daemon")
        daemon = leave.enter_context(Daemon(folder, "embedded:", *flags, "--trusted-proxies", "127.0.0.1", auth="tower"))
        proxy = nginx(f"127.0.0.1:{daemon.port}")
        yield {"directly": Way(daemon, api, daemon.port, None), "through nginx": Way(daemon, api, proxy.port, proxy)}
        figures = daemon.get("/status")[1]
        assert (figures["connections"]["present"], figures["hub"]["subscribers"], figures["hub"]["topics"]) == (0, 0, 0)
        assert FORGED not in daemon.log.read_text()


@pytest.fixture(params=["directly", "through nginx"])
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    """One way after the other."""
    return ways[request.param]


def test_a_plain_opening(way: Way) -> None:
    """Promise 30: the opening from which the hostile ones are made is accepted, and the API gets the client's true address."""
    answer = way.open(request(added=[COOKIE]))
    assert answer.status == 101
    assert b'{"accept":true,"user":7}' in answer.raw.replace(b" ", b"")
    assert [asked["x-forwarded-for"] for asked in answer.asked] == [way.client]
    assert answer.opened == 1
    assert f"user 7 from {way.client}, by tower" in way.daemon.log.read_text()


@each_row("hostile", list(hostile_heads()), ids=lambda hostile: hostile.name)
def test_header_smuggling(way: Way, hostile: Hostile) -> None:
    """Promise 30: it gets 400 before any question to the API. If nginx removes the hostile part, that part is seen nowhere.

    Bytes beyond ASCII are opaque in a value: the bytes after them belong to that value only.
    """
    answer = way.open(hostile.raw)
    if hostile.opaque:
        assert answer.status == 101
        (asked,) = answer.asked
        assert asked["x-forwarded-for"] == way.client
        assert "x-remote-user" not in asked
        assert FORGED not in str({name: value for name, value in asked.items() if name != "user-agent"})
    elif hostile.name.startswith("origin-") and answer.status == 403:
        assert not hostile.raw.isascii()
        assert answer.opened == 0
    elif way.nginx is not None and hostile.harmless and answer.status == 101:
        assert [asked["x-forwarded-for"] for asked in answer.asked] == [way.client]
        assert FORGED not in str(answer.asked)
    else:
        assert answer.status == 400 or (way.nginx is not None and answer.status == (413 if hostile.name == "body" else 0))
        assert answer.asked == []
        assert answer.opened == 0
    assert FORGED.encode() not in answer.raw


@each_row(
    "lines",
    [
        [f"X-Forwarded-For: {FORGED}"],
        [f"X-Forwarded-For: {FORGED}", f"X-Forwarded-For: {FORGED}"],
        [f"X-Forwarded-For: {FORGED}, 127.0.0.1"],
        [f"X-Forwarded-For: 127.0.0.1, {FORGED}, 127.0.0.1"],
        [f"x-forwarded-for: {FORGED}"],
        [f"X_Forwarded_For: {FORGED}"],
        [f"X-Real-IP: {FORGED}"],
        [f"Forwarded: for={FORGED};host={FORGED}"],
        [f"X-Forwarded-Host: {FORGED}"],
        [f"True-Client-IP: {FORGED}", f"X-Client-IP: {FORGED}", f"X-Cluster-Client-IP: {FORGED}"],
        [f"Connection: X-Forwarded-For, Upgrade, X-Forwarded-For: {FORGED}"],
    ],
    ids=range(11),
)
def test_a_forged_address_is_not_used(way: Way, lines: list[str]) -> None:
    """Promise 33: whichever address a client claims, its own address is limited, sent to the API and logged."""
    answer = way.open(request(added=[COOKIE, *lines]))
    assert (answer.status, answer.opened) in ((101, 1), (400, 0))
    assert answer.status == 101 or "Connection" in lines[0]
    assert all(asked["x-forwarded-for"] == way.client for asked in answer.asked)
    assert FORGED not in str(answer.asked)


@each_row("page", PAGE_ORIGINS, ids=lambda page: f"{page.origin!s:.40} on {page.host:.40}")
@each_row("credential", [COOKIE, f"Authorization: {PASSWORD}", "Authorization: Bearer t0ken"], ids=["cookie", "basic", "bearer"])
def test_origins(way: Way, page: PageOrigin, credential: str) -> None:
    """Promise 31: the host's own pages and listed ones connect. Another page gets a 403 that reveals nothing, with any credential."""
    origin = [] if page.origin is None else [f"Origin: {page.origin}"]
    answer = way.open(request(without=["Host"], added=[f"Host: {page.host}", credential, *origin]))
    # A value that is no host or no URL is refused before it is compared.
    malformed = page.host in ("", "2001:db8::1") or len(page.host) > 255 or page.origin == "tower.example.com"
    if page.allowed:
        assert (answer.status, answer.opened) == (101, 1)
    elif malformed:
        assert (answer.status, answer.opened) in ((400, 0), (403, 0))
    else:
        assert (answer.status, answer.opened) == (403, 0)
        assert answer.raw.endswith(b"\r\n\r\na page of this origin may not connect here\n")


def test_the_host_that_a_client_claims(way: Way) -> None:
    """Promise 31: a client's X-Forwarded-Host, which towerws would believe from the proxy, lets no foreign page in."""
    evil = ["Origin: https://evil.example", "X-Forwarded-Host: evil.example"]
    assert way.open(request(added=[COOKIE, *evil])).status == 403
    assert way.open(request(added=[COOKIE, *evil, "X-Forwarded-Host: tower.example.com"])).status == 403


def test_tokens_stay_out_of_nginxs_logs(tmp_path: Path, nginx: Callable[..., Nginx]) -> None:
    """Promise 39: no log of nginx has a token of a URL: not for accepted, refused, throttled or malformed requests, nor in an outage."""
    with tower_api() as api, Daemon(tmp_path, "embedded:", "--tower-url", f"http://127.0.0.1:{api.server_port}", auth="tower") as daemon:
        proxy = nginx(f"127.0.0.1:{daemon.port}")
        way = Way(daemon, api, proxy.port, proxy)
        path = f"/websocket/?token={CANARY}"
        asks = [
            (101, request(path)),
            (403, request(f"{path}x")),
            (403, request(f"/websocket/?session_key={CANARY}")),
            (101, request(path, added=[f"Referer: https://tower.example.com/?token={CANARY}"])),
            (426, request(path, without=["Upgrade"])),
            (400, request(path, without=["Sec-WebSocket-Key"])),
            (400, request(path, added=["User-Agent: \x0b"])),
            (400, request(path, added=["Bad\x00: x"])),
            (400, request(path, added=[f"X-Long: {'x' * 40_000}"])),
            (413, request(path, added=["Content-Length: 100000"])),
            (414, request(f"{path}{'x' * 40_000}")),
            (405, request(path).replace(b"GET", b"HEAD")),
            (502, request(f"/elsewhere/?token={CANARY}")),
        ]
        for status, raw in asks:
            assert way.open(raw).status == status, raw[:80]
        # 20 requests a second make room for as many more. So a slow machine needs more than the burst of 1,000.
        busy = (way.open(request(path, without=["Upgrade"]), "127.0.0.9").status for _ in range(5000))
        assert next((status for status in busy if status != 426), None) == 503, "beyond the burst nginx says 503"
        daemon.kill()
        with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as client:
            client.sendall(request(path))
            assert client.recv(65536).startswith(b"HTTP/1.1 502 ")
    logs = proxy.logs()
    for status in (101, 403, 426, 400, 413, 405, 503, 502):
        assert re.search(rf'"(GET|HEAD) /websocket/" {status} ', logs["towerws.log"])
    for status in (400, 414):
        assert f" {status} " in logs["access.log"]
    leaks = {name: log for name, log in logs.items() if CANARY in log and name != "error.log"}
    assert not leaks
    # The server's own error log is AWX's: requests for `location /` are logged there as always.
    assert all("/elsewhere/" in line for line in logs["error.log"].splitlines() if CANARY in line)


def test_an_event_over_tls_and_a_unix_socket(tmp_path: Path, nginx: Callable[..., Nginx]) -> None:
    """The shipped server speaks TLS, passes large frames, hands on addresses over a socket file, and closes as towerws does."""
    files = certificate(tmp_path)
    listen = f"unix:{tmp_path}/websocket.sock:mode=600"
    flags = ("--listen", listen, "--trusted-proxies", "unix", "--limits-per-address", "2")
    with Daemon(tmp_path, "embedded:", *flags) as daemon:
        proxy = nginx(f"unix:{tmp_path}/websocket.sock", certificate=files)
        trust = ssl.create_default_context(cafile=str(files[0]))
        url = proxy.url.replace("/websocket/", "/api/controller/v2/websocket")

        def enter(address: str, subprotocols: Any = None) -> websocket.WebSocket:
            sock = socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S, (address, 0))
            # Not `websockets.sync`: its threads share a TLS connection, and CPython lets them damage its state (cpython#143756).
            tls = leave.enter_context(trust.wrap_socket(sock, server_hostname="127.0.0.1"))
            offer = ["Sec-WebSocket-Extensions: permessage-deflate"]
            return websocket.create_connection(url, timeout=DEADLINE_S, socket=tls, subprotocols=subprotocols, header=offer)

        with ExitStack() as leave:
            client, neighbour = enter("127.0.4.1"), enter("127.0.4.1", ["towerws.v1"])
            for _ in range(2):
                with pytest.raises(websocket.WebSocketBadStatusException) as refused:
                    enter("127.0.4.1")
                assert refused.value.status_code == 503
                assert (refused.value.resp_headers or {})["retry-after"] == "2"
                assert refused.value.resp_body == b"there are too many connections from this address\n"
            other = enter("127.0.4.2")
            for each in (client, neighbour, other):
                each.recv()
                each.send(json.dumps({"groups": {"job_events": [1]}}))
                each.recv()
            large = "y" * 3_000_000
            for payload in ({"n": 1}, {"n": 2, "x": large}, {"n": 3}):
                daemon.publish("job_events.1", payload)
                assert json.loads(client.recv()) == payload
                assert json.loads(neighbour.recv())["payload"] == payload
                assert json.loads(other.recv()) == payload
            daemon.begin_stop()
            assert json.loads(neighbour.recv())["type"] == "bye"
            for each in (client, neighbour, other):
                opcode, reason = each.recv_data(control_frame=True)
                assert (opcode, reason[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1012).to_bytes(2))
        log = daemon.log.read_text()
    assert "from 127.0.4.1, by open" in log
    assert "from 127.0.4.2, by open" in log


@each_row(
    ("path", "towerws"),
    [
        ("/websocket/", True),
        ("/websocket", True),
        ("/websocket/?token=x", True),
        ("/api/websocket/", True),
        ("/jobs/playbook/42/output/websocket/", True),
        ("/%77ebsocket/", True),
        ("/websocket/events", True),
        ("/websocket/history?limit=1", True),
        ("/websocket/client-000000000000.js", True),
        ("/", False),
        ("/api/v2/me/", False),
        ("/websocket/relay/", False),
        ("/websocket/broadcast/", False),
        ("/xwebsocket/", False),
        ("/?a=/websocket/", False),
    ],
)
def test_which_paths_go_to_towerws(ways: dict[str, Way], path: str, towerws: bool) -> None:
    """Each websocket path of pages leads to towerws, with its own answer to a plain GET. All other paths lead to AWX."""
    answer = ways["through nginx"].open(request(path, without=["Upgrade", "Connection"]))
    own = PLAIN_ANSWERS.get(path.rpartition("/")[2], 426)
    assert answer.status == (own if towerws else 502)
    if towerws and own == 426:
        assert b"a proxy on the way took the Upgrade and" in answer.raw
        assert b"Upgrade: websocket\r\n" in answer.raw


def test_the_websockets_between_awxs_nodes(tmp_path: Path, nginx: Callable[..., Nginx]) -> None:
    """Their Upgrade reaches AWX."""
    with awx_node() as awx:
        check_nodes(nginx("127.0.0.1:9", awx=awx).port)


def test_the_shipped_figures_fit_the_daemons() -> None:
    """nginx is never the first to give up: its limits for silence, handshake, counts and sizes are wider than towerws's own."""
    location, server = shipped("towerws_location.conf"), shipped("towerws_server.conf")

    def seconds(text: str, name: str) -> float:
        value = directive(text, name)
        assert re.fullmatch(r"[0-9]+s", value), value
        return float(value[:-1])

    websocket = WebSocketSettings()
    for name in ("proxy_read_timeout", "proxy_send_timeout", "send_timeout"):
        assert seconds(location, name) > websocket.ping_s + websocket.pong_s
    assert seconds(location, "proxy_connect_timeout") + TowerSettings(url="").deadline_s <= 3, "AWX's pages wait no longer"
    assert seconds(server, "client_header_timeout") == websocket.handshake_s
    assert directive(location, "limit_conn") == f"towerws_connections {LimitSettings().per_address}"
    assert directive(location, "proxy_http_version") == "1.1"
    assert directive(location, "proxy_buffering") == "off"


def test_clients_of_one_address(tmp_path: Path, nginx: Callable[..., Nginx]) -> None:
    """Beyond 1,000 connections of one address nginx answers 503. Open connections stay, and other addresses are not affected."""
    with Daemon(tmp_path, "embedded:", "--limits-per-address", "2000", "--trusted-proxies", "127.0.0.1") as daemon, ExitStack() as leave:
        proxy = nginx(f"127.0.0.1:{daemon.port}")

        def enter(address: str) -> tuple[socket.socket, bytes]:
            client = leave.enter_context(socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S, (address, 0)))
            client.sendall(request())
            return client, client.recv(12)

        clients = [enter("127.0.4.3") for _ in range(1001)]
        assert [status for _, status in clients] == [b"HTTP/1.1 101"] * 1000 + [b"HTTP/1.1 503"]
        assert enter("127.0.4.4")[1] == b"HTTP/1.1 101"
        first = clients[0][0]
        first.sendall(text({"groups": {"job_events": [1]}}))
        while b"groups_current" not in first.recv(65536):
            pass
