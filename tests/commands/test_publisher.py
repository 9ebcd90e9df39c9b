from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from private_rabbitmq import free_port

from tests.kit.rows import each_row
from towerws.commands.publisher import BACKOFF_MAX_S, AdminPublisher, AmqpPublisher, Retry
from towerws.config.addresses import parse_broker_url
from towerws.core.errors import BrokerError


class Admin(HTTPServer):
    """A stand-in for the admin port: notes bodies and connections, answers what it is told to (202 when told nothing)."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.bodies: list[Any] = []
        self.connections: set[Any] = set()
        self.answers: list[int] = []
        self.warning = ""
        self.outcome = ""
        self.hang_up = False
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Admin

    def do_POST(self) -> None:
        """Take a publication."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, json.loads(body), body))
        self.server.connections.add(self.client_address)
        status = self.server.answers.pop(0) if self.server.answers else 202
        answer = b'{"error": "no such thing"}' if status != 202 else b'{"position": "1-a"}'
        if self.server.outcome:
            answer = json.dumps({"outcome": self.server.outcome, "error": "no such thing"}).encode()
        if self.server.warning:
            answer = json.dumps({"position": "1-a", "warning": self.server.warning}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.close_connection = self.server.hang_up

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


@pytest.fixture
def admin() -> Iterator[Admin]:
    """A running stand-in."""
    server = Admin()
    yield server
    server.stop()


def test_payload_passes_untouched(admin: Admin) -> None:
    """The payload's bytes stand in the envelope as they are, on one connection for all."""
    said: list[str] = []
    publisher = AdminPublisher(admin.url, said.append)
    publisher.publish("job_events.42", b'{"a":  "\\ud800"}')
    publisher.publish("jobs.summary", b"{}")
    publisher.close()
    assert [path for path, _, _ in admin.bodies] == ["/publish", "/publish"]
    assert admin.bodies[0][2] == b'{"topic":"job_events.42","payload":{"a":  "\\ud800"}}'
    assert len(admin.connections) == 1
    assert said == []


def test_hung_up_between_two(admin: Admin) -> None:
    """A kept-alive connection that the other end closed is replaced without a word."""
    said: list[str] = []
    admin.hang_up = True
    publisher = AdminPublisher(admin.url, said.append)
    for _ in range(3):
        publisher.publish("jobs.summary", b"{}")
    publisher.close()
    assert len(admin.bodies) == 3
    assert said == []


def test_refused_for_good(admin: Admin) -> None:
    """A refusal is an error with the daemon's own text."""
    admin.answers = [404]
    publisher = AdminPublisher(admin.url, lambda text: None)
    with pytest.raises(BrokerError, match="no such thing"):
        publisher.publish("jobs.summary", b"{}")
    publisher.close()


def test_busy_is_tried_again(admin: Admin) -> None:
    """A 503 is tried again until it is taken; both are said in a line."""
    said: list[str] = []
    admin.answers = [503, 503]
    publisher = AdminPublisher(admin.url, said.append)
    publisher.publish("jobs.summary", b"{}")
    publisher.close()
    assert len(admin.bodies) == 3
    assert said == [f"{admin.url} answers 503: no such thing; trying again until it works", "publishing again"]


def test_daemon_that_comes_later() -> None:
    """Nobody listening is waited out."""
    port = free_port()
    servers: list[Admin] = []
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        if not servers:
            servers.append(Admin(port))

    publisher = AdminPublisher(f"http://127.0.0.1:{port}", tell)
    publisher.publish("jobs.summary", b"{}")
    publisher.close()
    servers[0].stop()
    assert "refused" in said[0]
    assert said[1:] == ["publishing again"]


@each_row("url", ["", "localhost:9051", "https://h:1", "http://", "http://h:1/publish", "http://u:p@h:1"])
def test_bad_admin_url(url: str) -> None:
    """What is not http://host:port is refused at once."""
    with pytest.raises(ValueError, match="http://host:port"):
        AdminPublisher(url, lambda text: None)


def test_pauses_grow_and_are_bounded() -> None:
    """Pauses grow to their bound and start small after a success; a loss is told once."""
    said: list[str] = []
    retry = Retry(said.append)
    pauses = [retry.lost("gone") for _ in range(50)]
    assert max(pauses) <= BACKOFF_MAX_S
    assert max(pauses[10:]) > 2
    retry.works()
    assert retry.lost("gone again") <= 0.5
    assert said == ["gone; trying again until it works", "publishing again", "gone again; trying again until it works"]


def test_broker_that_is_not_there() -> None:
    """A broker that can't be reached is named without its password, with the system's reason, and tried again."""

    class EnoughAttempts(Exception):
        """Ends the endless attempts."""

    def tell(text: str) -> None:
        raise EnoughAttempts(text)

    url = parse_broker_url(f"amqp://me:hidden@127.0.0.1:{free_port()}")
    with pytest.raises(EnoughAttempts, match=r"amqp://me:\*\*\*@127.0.0.1:[0-9]+/%2F: .*refused; trying again"):
        AmqpPublisher([url], "towerws", tell).publish("jobs.summary", b"{}")


def test_addresses_of_admin_ports_that_are_none() -> None:
    """Each raises `ValueError` with the rule, before anything is sent."""
    rows: list[tuple[str, str]] = [
        ("", "http://host:port"),
        ("127.0.0.1:9051", "http://host:port"),
        ("https://h:9051", "http://host:port"),
        ("http://", "http://host:port"),
        ("http://user@h", "without a user"),
        ("http://:secret@h", "without a user"),
        ("http://h/status", "or a path"),
        ("http://h?a", "http://host:port"),
        ("http://h#a", "http://host:port"),
        ("http://h o:9051", "http://host:port"),
        ("http://h\u00e4", "http://host:port"),
        ("http://h\x7f", "http://host:port"),
        ("http://h:0", "1 to 65535"),
        ("http://h:65536", "Port out of range"),
        ("http://h:x", "Port could not be cast"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://a..b", "1 to 63 characters"),
        (f"http://{'x' * 64}.example", "1 to 63 characters"),
    ]
    for url, rule in rows:
        with pytest.raises(ValueError, match=re.escape(rule)):
            AdminPublisher(url, lambda text: None)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for url in ("http://h", "http://h:9051/", "HTTP://h", "http://[::1]:9051", f"http://{letters}", f"http://{'x' * 63}.example."):
        AdminPublisher(url, lambda text: None).close()
