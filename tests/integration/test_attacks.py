"""Clients that attack a daemon with the real methods of authentication, while others use it. The tables name the variants."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.auth.jwt_kit import sign
from tests.integration.tower_api import OAUTH, Api, serve_tower
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.rows import each_row
from tests.kit.ws_kit import request, text

MALLORY, OFFICE = "203.0.113.66", "198.51.100.7"
AT_ONCE = 20
"""Handshakes that an attacker keeps going."""

PASSWORD_S, JOB_S = 0.2, 0.6
"""Seconds that the API takes to check a password, and to show a job."""


class Slow(Api):
    """Checks a password slowly, as Django's hash does. What else it does with a wrong one, `fault` says."""

    fault: str

    def do_GET(self) -> None:
        """http.server calls this."""
        authorization = self.headers.get("Authorization", "")
        if authorization.startswith("Basic "):
            time.sleep(PASSWORD_S)
            match self.fault:
                case "redirect":
                    self.send_response(302)
                    self.send_header("Location", "/login/")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                case "broken":
                    self._answer(500, {})
                    return
                case "no JSON":
                    self.send_response(200)
                    self.send_header("Content-Length", "5")
                    self.end_headers()
                    self.wfile.write(b"hello")
                    return
                case "hangs up":
                    self.close_connection = True
                    return
        elif self.fault == "broken at strangers" and "wrong" in authorization + self.headers.get("Cookie", ""):
            self._answer(502, {})
            return
        if self.path.startswith("/api/v2/jobs/"):
            time.sleep(JOB_S)
        super().do_GET()


class Site:
    """A daemon behind a trusted proxy (the test), with its API."""

    def __init__(self, daemon: Daemon, api: type[Slow]) -> None:
        self.daemon, self.api = daemon, api
        self.fresh = 0

    def status(self, *lines: str, address: str = OFFICE, path: str = "/websocket/") -> int:
        """The status of one handshake."""
        return asyncio.run(asyncio.wait_for(self.handshake(address, path, *lines), DEADLINE_S))

    async def handshake(self, address: str, path: str, *lines: str, v1: bool = False, then: bytes = b"", leave_after_s: float = 0) -> int:
        """Connect, send a head and more, and return the status. With `leave_after_s` don't wait for it longer than that."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.daemon.port)
        try:
            writer.write(request(path, v1=v1, added=[f"X-Forwarded-For: {address}", *lines]) + then)
            if leave_after_s:
                await asyncio.sleep(leave_after_s)  # the attack: it leaves in the middle
                return 0
            head = await reader.read(12)
            if then:
                await reader.read(65536)
            return int(head[9:12] or b"0")
        finally:
            writer.close()

    def good(self) -> int:
        """The status of a handshake with a session that is valid and new to the daemon, from another address."""
        self.fresh += 1
        session = f"good{self.fresh}"
        self.api.sessions.add(session)
        return self.status(f"Cookie: sessionid={session}; csrftoken=x")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One daemon for all attacks. Its limits in seconds are long, because the machine may be busy. The number of calls is the default."""
    folder = tmp_path_factory.mktemp("attacks")
    flags = ("--trusted-proxies", "127.0.0.1", "--tower-deadline-s", "30", "--tower-password-deadline-s", "30", "--tower-valid-s", "0")
    with serve_tower(Slow) as (api, url):
        assert issubclass(api, Slow)
        api.fault = ""
        with Daemon(folder, "embedded:", "--tower-url", url, "--websocket-handshake-s", "60", *flags, auth="tower") as daemon:
            yield Site(daemon, api)


Attack = Callable[[Site, int], Any]


def basic(user: str, password: str) -> str:
    """A header with a password."""
    return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def password(number: int, user: str = "admin") -> str:
    """A header with a wrong password, another one for each number."""
    return basic(user, f"wrong{number}")


MALLORYS = f"Authorization: Bearer {OAUTH}"


def jobs(number: int) -> list[int]:
    """A hundred jobs, others for each number."""
    return list(range(number * 100, number * 100 + 100))


ATTACKS: dict[str, tuple[str, Attack]] = {
    "passwords of one user": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n))),
    "passwords of many users": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n, f"u{n}"))),
    "from many addresses": ("", lambda site, n: site.handshake(f"203.0.{n // 250 % 250}.{n % 250}", "/websocket/", password(n))),
    "from many addresses of one network": ("", lambda site, n: site.handshake(f"2001:db8::{n:x}", "/websocket/", password(n))),
    "who leave before the answer": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n), leave_after_s=0.05)),
    "a gateway that redirects": ("redirect", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n))),
    "an API that fails at passwords": ("broken", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n, f"v{n}"))),
    "an API that answers no JSON": ("no JSON", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n, f"w{n}"))),
    "an API that hangs up": ("hangs up", lambda site, n: site.handshake(MALLORY, "/websocket/", password(n, f"x{n}"))),
    "bearer tokens": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", f"Authorization: Bearer wrong{n}")),
    "session cookies": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", f"Cookie: sessionid=wrong{n}")),
    "sessions in the URL": ("", lambda site, n: site.handshake(MALLORY, f"/websocket/?session_key=wrong{n}")),
    "tokens in the URL": ("", lambda site, n: site.handshake(MALLORY, f"/websocket/?token=wrong{n}")),
    "tokens in messages": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", v1=True, then=text({"token": f"wrong{n}"}) * 3)),
    "long tokens at which a gateway fails": (
        "broken at strangers",
        lambda site, n: site.handshake(MALLORY, "/websocket/", f"Authorization: Bearer wrong{n}"),
    ),
    "long cookies at which a gateway fails": (
        "broken at strangers",
        lambda site, n: site.handshake(MALLORY, "/websocket/", f"Cookie: sessionid=wrong{n}"),
    ),
    "objects that are slow": (
        "",
        lambda site, n: site.handshake(MALLORY, "/websocket/", MALLORYS, then=text({"groups": {"job_events": jobs(n)}}), leave_after_s=2),
    ),
    "silence": ("", lambda site, n: site.handshake(MALLORY, "/websocket/", "X-Half: yes", leave_after_s=0.2)),
}


@contextmanager
def under(site: Site, attack: Attack, start: int) -> Iterator[list[int]]:
    """Keep `AT_ONCE` handshakes of the attack going, in a thread. Yields the statuses that they got."""
    got: list[int] = []
    numbers = iter(range(start, start + 10**6))
    begun, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def one() -> None:
        while not over.is_set():
            try:
                got.append(await asyncio.wait_for(attack(site, next(numbers)), DEADLINE_S))
            except OSError:
                got.append(0)
            begun.set()

    async def all_of_them() -> None:
        loops.append(asyncio.get_running_loop())
        attackers = [asyncio.create_task(one()) for _ in range(AT_ONCE)]
        await over.wait()
        for each in attackers:
            each.cancel()
        await asyncio.wait(attackers)

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    thread.start()
    try:
        assert begun.wait(DEADLINE_S)
        yield got
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(DEADLINE_S)


@pytest.mark.timeout(280)
def test_good_sessions_are_let_in_under_attack(site: Site) -> None:
    """While an attacker keeps the sign-ins busy, a new valid session from elsewhere is let in, and the breaker of sessions stays closed."""
    failures = []
    for row, (name, (fault, attack)) in enumerate(ATTACKS.items()):
        site.api.fault = fault
        with under(site, attack, row * 10_000) as got:
            found = [site.good() for _ in range(3)]
        site.api.fault = ""
        calls = site.daemon.get("/status")[1]["auth"]["tower"]["calls"]
        expected = {0, 403, 503} if name != "tokens in messages" else {101}
        if found != [101] * 3 or calls["breaker"] != "closed" or not set(got) <= expected:
            failures.append(f"{name}: {found}, the attacker {sorted(set(got))}, breaker {calls['breaker']}")
    assert failures == []
    log = site.daemon.log.read_text()
    assert 'credential="basic authorization"' in log
    assert "reason=throttled" in log
    assert "wrong" not in log.replace("wrong xrftoken", "")


def test_a_known_password_under_attack(site: Site) -> None:
    """A password that was valid before is let in while others guess the same user's: it is no guess."""
    right = basic("ada", "right")
    site.api.tokens.add(right.removeprefix("Authorization: "))
    give_up = time.monotonic() + DEADLINE_S
    while (status := site.status(right)) == 503 and time.monotonic() < give_up:
        pass  # the attacks before may have left the breaker of passwords open: it closes again after a pause
    assert status == 101
    with under(site, lambda site, n: site.handshake(MALLORY, "/websocket/", password(n, "ada")), 10**6) as got:
        assert [site.status(right) for _ in range(3)] == [101] * 3
    assert set(got) <= {403, 503}


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def stalled(daemon: Daemon, leave: ExitStack) -> None:
    """Clients in each state: at their head, at a question to the API, at a fetch of keys, without a token, subscribed and not reading."""
    heads = [
        request()[:-2],
        request(added=["Cookie: sessionid=slow"]),
        request(added=[f"Authorization: Bearer {sign(algorithm='ES256')}"]),
        request(v1=True),
        request(v1=True) + text({"token": sign(algorithm="ES256")}),
        b"\x16\x03\x01",
    ]
    for head in heads:
        client = leave.enter_context(socket.create_connection(("127.0.0.1", daemon.port), DEADLINE_S))
        client.sendall(head)


@each_row(
    ("source", "drain_s", "signals"),
    [("silent", 0.2, [signal.SIGTERM]), ("embedded:", 60, [signal.SIGTERM, signal.SIGINT])],
    ids=["one signal", "two at the same time"],
)
def test_an_end_in_the_middle_of_everything(tmp_path: Path, source: str, drain_s: float, signals: list[signal.Signals]) -> None:
    """The status is 0 while the broker, the API and the issuer don't answer, and while clients wait for them or for nothing."""
    with silent_server() as port, ExitStack() as leave:
        url = f"http://127.0.0.1:{port}"
        flags = ["--tower-url", url, "--jwt-jwks-url", f"{url}/keys", "--jwt-algorithms", "ES256", f"--websocket-drain-s={drain_s}"]
        broker = f"amqp://u:p@127.0.0.1:{port}/v" if source == "silent" else source
        daemon = Daemon(tmp_path, broker, *flags, auth="jwt,tower").start(ready=False)
        stalled(daemon, leave)
        give_up = time.monotonic() + DEADLINE_S
        while daemon.get("/status")[1]["connections"]["accepted"] < 6:
            assert time.monotonic() < give_up
            time.sleep(0.02)  # between two polls: nothing announces that all have arrived
        for each in signals:
            os.kill(daemon.pid, each)
        assert daemon.wait() == 0
        log = daemon.log.read_text()
    assert "towerws stopped" in log
    assert "Traceback" not in log
    assert "Unhandled" not in log
