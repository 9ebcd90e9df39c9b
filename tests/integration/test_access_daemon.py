"""The daemon with its real authentication methods: who may connect and subscribe, how access ends, and what is logged."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.integration.tower_api import CANARY, OAUTH, Api
from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, TOWERWS, Daemon
from towerws.commands.config import check_command

SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "canary0csrftoken0value"


@contextmanager
def enter(daemon: Daemon, query: str = "", **headers: str) -> Iterator[ClientConnection]:
    """A client whose connection is open. Its first frame has been read."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with connect(daemon.url + query, additional_headers=sent, open_timeout=DEADLINE_S) as client:
        assert json.loads(client.recv(DEADLINE_S))["accept"] is True
        yield client


def status(daemon: Daemon, query: str = "", **headers: str) -> int:
    """The HTTP status of a refused handshake."""
    with pytest.raises(InvalidStatus) as refused, enter(daemon, query, **headers):
        pass
    return refused.value.response.status_code


def ask(client: ClientConnection, message: object, answers: int = 1) -> list[Any]:
    """Send a request, and read this many frames."""
    client.send(json.dumps(message))
    return [json.loads(client.recv(DEADLINE_S)) for _ in range(answers)]


def close_code(client: ClientConnection) -> int:
    """Read until the connection ends. Returns the close code."""
    with pytest.raises(ConnectionClosed) as ended:
        list(client)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code


def test_tower_session(tmp_path: Path, tower: tuple[type[Api], str]) -> None:
    """From AWX's cookie to a revocation each rule holds. No secret and no hostile byte gets into the log."""
    api, url = tower
    cookie = f"sessionid={CANARY}; csrftoken={TOKEN}"
    flags = ("--tower-url", url, "--revalidate-s", "1", "--trusted-proxies", "127.0.0.1", "--tower-valid-s", "0")
    with Daemon(tmp_path, "embedded:", *flags, auth="tower") as daemon:
        origin = f"https://127.0.0.1:{daemon.port}"
        assert status(daemon) == 403
        assert status(daemon, "?token=canary_in_the_url") == 403
        assert status(daemon, Cookie="sessionid=canary_that_is_unknown") == 403
        assert status(daemon, Cookie=cookie, Origin="https://evil.example") == 403
        with enter(daemon, Cookie=cookie, Origin=origin, X_Forwarded_For="forged, 203.0.113.5") as client:
            assert api.asked[-1] == "/api/v2/me/ for 203.0.113.5"
            assert ask(client, {"groups": {"jobs": ["summary"]}}) == [{"error": "access denied to channel"}]
            wanted = {"job_events": [42, 43], "control": ["limit_reached_7", "limit_reached_8"]}
            answers = ask(client, {"groups": wanted, "xrftoken": TOKEN}, 3)
            assert sorted(answer["error"] for answer in answers[:2]) == [
                "access denied to channel control for resource id limit_reached_8",
                "access denied to channel job_events for resource id 43",
            ]
            assert answers[2]["groups_current"] == ["control-limit_reached_7", "job_events-42"]
            daemon.publish("job_events.42", {"n": 1})
            assert json.loads(client.recv(DEADLINE_S)) == {"n": 1}

            with enter(daemon, Cookie=cookie) as other:
                assert daemon.ask("POST", "/disconnect", b'{"user": 8}') == (202, {"disconnected": 0})
                assert daemon.ask("POST", "/disconnect", b'{"user": 7}') == (202, {"disconnected": 2})
                assert close_code(other) == close_code(client) == 1008

        with enter(daemon, Cookie=cookie) as client:
            api.sessions.clear()
            logged_out = time.monotonic()
            assert close_code(client) == 1008
            assert time.monotonic() - logged_out < 10
        assert status(daemon, Cookie=cookie) == 403
        figures = daemon.get("/status")[1]
        connections, asked = figures["connections"], figures["auth"]["tower"]
        assert connections["refused_for"] == {"no_credential": 1, "credential": 3, "origin": 1}
        assert (asked["accepted"], asked["refused"], asked["unavailable"]) == (3, 3, 0)
        assert asked["calls"].pop("seconds")["buckets"]["+Inf"] == len(api.asked)
        assert asked["calls"]["passwords"].pop("seconds")["buckets"]["+Inf"] == 0
        none = {"made": 0, "failed": 0, "turned_away": 0, "in_flight": 0, "waiting": 0, "breaker": "closed"}
        assert asked["calls"] == {**none, "made": len(api.asked), "object_breaker": "closed", "passwords": none}
        assert connections["revoked"] == 3
        log = daemon.log.read_text()
    assert "user 7 from 203.0.113.5" in log
    assert "credential no longer valid" in log
    assert "canary" not in log
    assert "forged" not in log


def test_tower_is_down(tmp_path: Path) -> None:
    """A credential that can't be checked opens nothing, and is not called bad: 503 asks the client to retry."""
    with Daemon(tmp_path, "embedded:", "--tower-url", "http://127.0.0.1:9", auth="tower") as daemon:
        assert status(daemon, Cookie=f"sessionid={CANARY}") == 503
        figures = daemon.get("/status")[1]
        assert figures["connections"]["refused_for"] == {"unavailable": 1}
        assert (figures["auth"]["tower"]["unavailable"], figures["auth"]["tower"]["calls"]["failed"]) == (1, 1)


def test_jwt(tmp_path: Path) -> None:
    """A token opens the connection, grants the topics that it lists, and ends the connection at its expiry."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    flags = ("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--jwt-leeway-s", "0")

    def bearer(lifetime_s: float, key: str = SECRET) -> str:
        claims = {"sub": "ada", "exp": time.time() + lifetime_s, "iat": time.time(), "groups": ["job_events.*"]}
        return f"Bearer {jwt.encode(claims, key, 'HS256')}"

    with Daemon(tmp_path, "embedded:", *flags, auth="jwt") as daemon:
        assert status(daemon, Authorization=bearer(60, "x" * 32)) == 403
        assert status(daemon, Authorization=bearer(-60)) == 403
        assert status(daemon, Authorization=bearer(60), Origin="https://portal.example.com") == 403
        with enter(daemon, Authorization=bearer(3)) as client:
            answers = ask(client, {"groups": {"job_events": [42], "jobs": ["summary"]}}, 2)
            assert answers[0] == {"error": "access denied to channel jobs for resource id summary"}
            assert answers[1]["groups_current"] == ["job_events-42"]
            assert close_code(client) == 1008


def test_jwt_in_messages(tmp_path: Path) -> None:
    """The first token opens the connection, the next one renews it, and without a third the connection ends."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    flags = ("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--jwt-leeway-s", "0", "--websocket-token-s", "1.5")

    def token(lifetime_s: float, user: str = "ada", group: str = "job_events") -> str:
        claims = {"sub": user, "exp": time.time() + lifetime_s, "iat": time.time(), "groups": [f"{group}.*"], "canary": CANARY}
        return jwt.encode(claims, SECRET, "HS256")

    def tell(client: ClientConnection, message: object) -> Any:
        client.send(json.dumps(message))
        return json.loads(client.recv(DEADLINE_S))

    with Daemon(tmp_path, "embedded:", *flags, auth="jwt") as daemon:
        with (
            connect(daemon.url, open_timeout=DEADLINE_S) as nobody,
            connect(daemon.url, open_timeout=DEADLINE_S) as rude,
            connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client,
        ):
            assert daemon.get("/status")[1]["hub"]["subscribers"] == 0
            assert tell(rude, {"groups": {"job_events": [42]}}) == {"error": "no credential was brought: a token must be sent first"}
            assert close_code(rude) == 1008
            assert tell(client, {"token": token(-1)})["code"] == "token"
            assert tell(client, {"token": token(4)})["type"] == "welcome"
            assert tell(client, {"groups": {"job_events": [42], "jobs": ["summary"]}})["groups_current"] == ["job_events.42"]
            daemon.publish("job_events.42", {"n": 1})
            assert json.loads(client.recv(DEADLINE_S))["payload"] == {"n": 1}
            assert tell(client, {"token": token(60, user="eve")})["message"] == "the token is another user's"
            renewed_at = time.time()
            assert tell(client, {"token": token(6, group="jobs"), "id": 7})["groups_left"] == ["job_events.42"]
            assert json.loads(client.recv(DEADLINE_S)) == {"type": "renewed", "id": 7, "user": "ada"}
            assert tell(client, {"groups": {"jobs": ["summary"]}})["groups_current"] == ["jobs.summary"]
            daemon.publish("job_events.42", {"n": 2})
            daemon.publish("jobs.summary", {"n": 3})
            assert json.loads(client.recv(DEADLINE_S))["payload"] == {"n": 3}
            assert close_code(nobody) == 1008
            bye = json.loads(client.recv(DEADLINE_S))
            assert (bye["type"], bye["reason"], close_code(client)) == ("bye", "credential no longer valid", 1008)
            assert time.time() - renewed_at > 5
        connections = daemon.get("/status")[1]["connections"]
        assert (connections["opened"], connections["closed"], connections["renewed"]) == (1, 1, 1)
        assert connections["refused_for"] == {"no_token": 2}
        log = daemon.log.read_text()
    assert log.count("connection opened: user ada") == log.count("connection ended") == 1
    assert token(1).split(".", maxsplit=1)[0] not in log
    assert SECRET not in log


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--auth", "tower"], "tower.url"),
        (["--auth", "tower", "--tower-url", "ftp://tower"], "tower.url = 'ftp://tower': must be http://host or https://host"),
        (["--auth", "jwt"], "jwt.algorithms"),
        (["--auth", "jwt", "--jwt-algorithms", "HS256"], "jwt.jwks_url"),
        (["--auth", "jwt", "--jwt-algorithms", "HS256", "--jwt-secret-file", "/nowhere"], "/nowhere"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, flags: list[str], said: str) -> None:
    """The daemon does not start, and one line names the reason, the same as `towerws check` gives."""
    daemon = Daemon(tmp_path, "embedded:", *flags)
    with pytest.raises(AssertionError, match="the daemon ended with 2"):
        daemon.start()
    (line,) = daemon.log.read_text().splitlines()
    assert line.startswith("towerws: ")
    assert said in line
    checked = CliRunner().invoke(check_command, ["--auth", "open", *flags])
    assert (checked.exit_code, checked.stderr) == (2, f"{line}\n")


def test_an_oauth_token_in_a_message(tmp_path: Path, tower: tuple[type[Api], str]) -> None:
    """In `towerws.v1` a page, which can't set headers, may send AWX's token in a message. AWX's own clients still get a 403."""
    api, url = tower
    with Daemon(tmp_path, "embedded:", "--tower-url", url, auth="tower") as daemon:
        assert status(daemon) == 403
        with connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client:
            (refused,) = ask(client, {"token": "wrong"})
            assert (refused["type"], refused["code"]) == ("error", "token")
            (refused,) = ask(client, {"token": "no token at all"})
            assert (refused["type"], refused["code"]) == ("error", "token")
            (welcome,) = ask(client, {"token": OAUTH})
            assert (welcome["type"], welcome["user"]) == ("welcome", 7)
            (answer,) = ask(client, {"groups": {"job_events": [42, 43], "jobs": ["summary"]}})
            assert answer["groups_current"] == ["job_events.42", "jobs.summary"]
            assert api.asked[0] == "/api/v2/me/ for 127.0.0.1"
            api.tokens.add("another")
            (renewed,) = ask(client, {"token": "another", "id": 2})
            assert renewed == {"type": "renewed", "id": 2, "user": 7}
            assert daemon.ask("POST", "/disconnect", b'{"user": 7}') == (202, {"disconnected": 1})
            assert close_code(client) == 1008
        with connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client:
            (refused, bye) = ask(client, {"groups": {}}, 2)
            assert (refused["code"], bye["reason"], bye["action"]) == ("no_token", "no credential", "authenticate")
            assert close_code(client) == 1008
        assert daemon.get("/status")[1]["auth"]["tower"]["refused"] == 2
    log = daemon.log.read_text()
    assert OAUTH not in log
    assert 'credential="token in a message"' in log


@pytest.mark.parametrize(("flags", "text"), [([], "give a token with --token"), (["--token", "wrong"], "check the token")])
def test_tail_without_a_good_token(tmp_path: Path, tower: tuple[type[Api], str], flags: list[str], text: str) -> None:
    """It reports the refusal at once, not at the timeout for a token."""
    with Daemon(tmp_path, "embedded:", "--tower-url", tower[1], "--websocket-token-s", "300", auth="tower") as daemon:
        command = [*TOWERWS, "tail", "--url", daemon.url, *flags]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (3, True, 1), done.stderr
