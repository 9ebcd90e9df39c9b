from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("run.txt", "tools.txt")


def locked(name: str) -> dict[str, str]:
    """The packages of a lock file with the rest of their entries."""
    entries = re.split(r"^(?=[a-z])", (ROOT / "requirements" / name).read_text(), flags=re.MULTILINE)[1:]
    return {canonicalize_name(entry.partition("==")[0]): entry.partition("==")[2] for entry in entries}


def version(entry: str) -> str:
    """The version of a locked package."""
    return re.split(r"[\s;]", entry, maxsplit=1)[0]


@pytest.mark.parametrize("name", LOCKS)
def test_each_has_hashes(name: str) -> None:
    """pip refuses a file that is not one of these."""
    packages = locked(name)
    assert packages
    assert [package for package, entry in packages.items() if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_no_registry_is_named(name: str) -> None:
    """Where packages come from is for the machine to say that installs them."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text


def test_every_dependency_is_locked_in_a_version_that_it_may_have() -> None:
    """After a change in setup.cfg: `make lock`."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    packages = locked("run.txt")
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(version(packages[canonicalize_name(requirement.name)])), requirement


class Advisories(ThreadingHTTPServer):
    """A database of vulnerabilities that speaks as OSV does. `known` has them by package; `fails` says at which packages it breaks down."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.known: dict[str, dict[str, object]] = {}
        self.fails: Callable[[str], bool] = lambda package: False
        self.asked: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.server_port}/v1/query"


class _Query(BaseHTTPRequestHandler):
    server: Advisories

    def do_GET(self) -> None:
        """Whether it is there."""
        self._answer(405, {})

    def do_POST(self) -> None:
        """One question about one package."""
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
        """No log."""


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    """One that knows of nothing."""
    with Advisories() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def audit(url: str, *more: str) -> tuple[int, str]:
    """What `script/supply audit` says about what this database knows, and its status."""
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
    """Every locked package is asked about, in the version that is locked."""
    status, said = audit(advisories.url)
    assert status == 0, said
    assert said.count("No known vulnerabilities found") == len(LOCKS)
    for name in LOCKS:
        wanted = {package: version(entry) for package, entry in locked(name).items() if is_for_us(entry)}
        assert wanted
        assert wanted.items() <= advisories.asked.items()


def test_an_audit_with_a_finding(advisories: Advisories) -> None:
    """It is named with its cure, the other file is audited too, and the status is 1, wherever that runs."""
    advisories.known["twisted"] = vulnerability("twisted", "99.1.0")
    for more in ((), ("--if-reachable",)):
        status, said = audit(advisories.url, *more)
        assert status == 1, said
        (line,) = [line for line in said.splitlines() if "PYSEC-2099-1" in line]
        assert line.split() == ["twisted", version(locked("run.txt")["twisted"]), "PYSEC-2099-1", "99.1.0"]
        assert "auditing requirements/tools.txt" in said


def test_an_audit_that_can_not_be_made(advisories: Advisories) -> None:
    """No database, or one that breaks down on the way, is no clean bill: status 3, or 0 where that was asked for, and always said."""
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
