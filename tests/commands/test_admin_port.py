"""`towerws explain` and `towerws restart`. A restart of a real daemon is in `tests/integration/test_handover.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result
from private_rabbitmq import free_port

from tests.kit.rows import each_row
from tests.test_outgoing import certificate
from towerws.cli import main
from towerws.commands.admin_port import restart_command

ANSWER = {
    "user": "7",
    "topic": "job_events.42",
    "steps": [{"rule": "events come from the source", "passes": True, "text": "the source is consuming"}],
    "connections": [{"connection": 5, "steps": [{"rule": "the client has subscribed to it", "passes": False, "text": "it has not"}]}],
    "more_connections": 2,
    "verdict": {"rule": "the client has subscribed to it", "passes": False, "text": "it has not", "connection": 5},
}


class Port(ThreadingHTTPServer):
    """An admin port with one answer. `paths` are those that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, bytes] = 200, json.dumps(ANSWER).encode()
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Port

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """No log."""


@pytest.fixture
def port() -> Iterator[Port]:
    """A daemon's admin port."""
    with Port() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def explain(*arguments: str) -> Result:
    """One call of the command."""
    return CliRunner().invoke(main, ["explain", *arguments])


def test_not_delivered(port: Port) -> None:
    """The deciding rule comes first, then all rules. The exit code says that the client does not get it."""
    result = explain("job_events.42", "a b", "--admin", port.url)
    assert result.exit_code == 3
    assert port.paths == ["/console/explain?user=a+b&topic=job_events.42"]
    assert result.stdout.splitlines() == [
        "NO: the client has subscribed to it (connection 5)",
        "     it has not",
        "",
        "  yes  events come from the source: the source is consuming",
        "connection 5",
        "  NO   the client has subscribed to it: it has not",
        "and 2 more connections, which were not looked at",
    ]


def test_delivered_as_json(port: Port) -> None:
    """`--json` prints the answer. The exit code is 0 if the client gets the events."""
    port.answer = 200, json.dumps({**ANSWER, "verdict": {"rule": "r", "passes": True, "text": "t"}}).encode()
    result = explain("job_events.42", "--admin", port.url, "--json")
    assert (result.exit_code, json.loads(result.stdout)["topic"]) == (0, "job_events.42")


def test_bad_topic(port: Port) -> None:
    """The daemon's 400 is a usage error."""
    port.answer = 400, b"{\"error\": \"routing key 'x' has no '.'\"}"
    result = explain("x", "--admin", port.url)
    assert result.exit_code == 2
    assert "has no '.'" in result.stderr


def test_no_daemon(port: Port) -> None:
    """One line says what is wrong, and what to check."""
    for status, body in (
        (404, b'{"error": "nothing is at /console/explain"}'),
        (200, b"<html>"),
        (200, b"[]"),
        (403, b'{"error": "\\u001b[2J"}'),
    ):
        port.answer = status, body
        result = explain("a.b", "--admin", port.url)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"towerws: {port.url} answers")
        assert "\x1b" not in result.stderr
        assert result.stderr.count("\n") == 1
    result = explain("a.b", "--admin", f"http://127.0.0.1:{free_port()}")
    assert (result.exit_code, "is the daemon running" in result.stderr) == (1, True)
    assert explain("a.b", "--admin", "localhost:9051").exit_code == 2


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's, for a certificate
@each_row(
    ("admin", "why"),
    [
        ("ssl:9051:privateKey=KEY:certKey=PEM:interface=127.0.0.1", "it speaks TLS"),
        (r"tls:/etc/towerws/certs:9051:interface=\:\:1", "it speaks TLS"),
        ("haproxy:tcp:9051:interface=127.0.0.1", "it expects the PROXY protocol"),
        ("systemd:domain=UNIX:name=admin", "the address of a systemd socket is in its unit"),
    ],
)
def test_an_admin_port_that_it_cannot_ask(tmp_path: Path, admin: str, why: str) -> None:
    """One line says why, and what to do instead."""
    if "PEM" in admin:
        pem, key = certificate(tmp_path)
        admin = admin.replace("PEM", str(pem)).replace("KEY", str(key))
    done = CliRunner().invoke(restart_command, ["--auth", "open", "--broker", "embedded:", "--admin", admin])
    assert done.stderr == f"towerws: admin = {admin!r}: this command can't ask there: {why}; use kill -USR2, and read the log\n"
    assert done.exit_code == 3


MOVED = {"pid": 7, "moved": 3, "closed": {}, "seconds": 0.5}
NOBODY = 65534


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file that this process may not read: root's, seen by another user, or one without rights."""
    file = tmp_path / "secret"
    file.write_text("s3cret-s3cret-s3cret")
    file.chmod(0)
    if os.geteuid():
        yield file
        return
    tmp_path.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        yield file
    finally:
        os.seteuid(0)


@each_row("broker", ["amqp://towerws@localhost/v", "amqps://towerws@localhost/v"])
def test_a_restart_reads_no_secret(port: Port, secret: Path, broker: str) -> None:
    """systemd gives credentials to the service, and not to the command of `systemctl reload`. It needs the admin port only."""
    port.answer = 200, json.dumps(MOVED).encode()
    names = ("TOWERWS_BROKER_PASSWORD_FILE", "TOWERWS_POSITION_KEY_FILE", "TOWERWS_JWT_SECRET_FILE", "TOWERWS_TLS_CA")
    environ = {**dict.fromkeys(names, str(secret)), "TOWERWS_BROKER": broker, "TOWERWS_LISTEN": f"ssl:8051:privateKey={secret}"}
    admin = f"tcp:{port.server_port}:interface=127.0.0.1"
    with pytest.raises(PermissionError):
        secret.read_text()
    done = CliRunner().invoke(
        restart_command, ["--auth", "jwt", "--jwt-algorithms", "HS256", "--admin", admin], env=environ, catch_exceptions=False
    )
    assert (done.exit_code, done.output) == (0, "Process 7 serves now: 3 connections moved in 0.500 s, 0 not moved.\n")
    assert port.paths.pop() == "/restart"


def test_a_restart_refuses_a_configuration_that_breaks_a_rule(port: Port) -> None:
    """That needs no secret. The daemon is not asked."""
    arguments = ["--auth", "open", "--admin", f"tcp:{port.server_port}:interface=127.0.0.1", "--websocket-ping-s", "x"]
    done = CliRunner().invoke(restart_command, arguments)
    assert (done.exit_code, port.paths) == (2, [])
    assert done.stderr.startswith("towerws: --websocket-ping-s")
