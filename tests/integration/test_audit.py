from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.test_supply import LOCKS, ROOT, locked, version


class Advisories(ThreadingHTTPServer):
    """A vulnerability database that speaks OSV's protocol. `known` is by package, `fails` names packages for which it fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.known: dict[str, dict[str, object]] = {}
        self.fails: Callable[[str], bool] = lambda package: False
        self.asked: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The URL for queries."""
        return f"http://127.0.0.1:{self.server_port}/v1/query"


class _Query(BaseHTTPRequestHandler):
    server: Advisories

    def do_GET(self) -> None:
        """Answer that the server is there."""
        self._answer(405, {})

    def do_POST(self) -> None:
        """Answer a question about one package."""
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = question["package"]["name"]
        assert question["package"]["ecosystem"] == "PyPI"
        self.server.asked[package] = question["version"]
        known = self.server.known.get(package)
        if self.server.fails(package):
            self._answer(503, {})
        else:
            self._answer(200, {} if known is None else {"vulns": [known]})

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    """A database without vulnerabilities."""
    with Advisories() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def audit(url: str, *more: str) -> tuple[int, str]:
    """Run `script/supply audit` with this database. Returns its status and its output."""
    done = subprocess.run(
        ["script/supply", "audit", *more],
        cwd=ROOT,
        env={**os.environ, "OSV_URL": url, "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=110,
    )
    return done.returncode, done.stdout


def is_for_us(entry: str) -> bool:
    """Whether a locked package is for this Python on this platform."""
    marker = Requirement("x==" + entry.partition("\\")[0]).marker
    return marker is None or marker.evaluate()


def vulnerability(package: str, fixed: str) -> dict[str, object]:
    """An entry of the database."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]
    affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": "PYSEC-2099-1", "summary": "it breaks", "affected": affected}


def test_an_audit_without_findings(advisories: Advisories) -> None:
    """Every locked package is checked in its locked version."""
    status, said = audit(advisories.url)
    assert status == 0, said
    assert said.count("No known vulnerabilities found") == len(LOCKS)
    for name in LOCKS:
        wanted = {package: version(entry) for package, entry in locked(name).items() if is_for_us(entry)}
        assert wanted
        assert wanted.items() <= advisories.asked.items()


def test_an_audit_with_a_finding(advisories: Advisories) -> None:
    """It is named with its fix, the other file is checked too, and the status is 1, in any current folder."""
    advisories.known["twisted"] = vulnerability("twisted", "99.1.0")
    for more in ((), ("--if-reachable",)):
        status, said = audit(advisories.url, *more)
        assert status == 1, said
        (line,) = [line for line in said.splitlines() if "PYSEC-2099-1" in line]
        assert line.split() == ["twisted", version(locked("run.txt")["twisted"]), "PYSEC-2099-1", "99.1.0"]
        assert "auditing requirements/tools.txt" in said


def test_an_audit_that_can_not_be_made(advisories: Advisories) -> None:
    """Without a working database the audit is not clean: status 3, or 0 if that was asked for, always with a message."""
    advisories.fails = lambda package: package == "pika"
    with Advisories() as gone:
        unreachable = gone.url
    for url, why in ((unreachable, "can't be reached from here"), (advisories.url, "failed at requirements/run.txt")):
        for more, expected in (((), 3), (("--if-reachable",), 0)):
            status, said = audit(url, *more)
            assert status == expected, said
            assert f"NOT AUDITED: {url} {why}" in said
    advisories.known["pip"] = vulnerability("pip", "99.1")
    assert audit(advisories.url, "--if-reachable")[0] == 1, "what was found counts, whatever else could not be asked"
