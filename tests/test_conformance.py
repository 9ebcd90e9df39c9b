"""RFC 6455 conformance by the Autobahn cases, which kosoku runs natively (the original needs Python 2)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
GOOD_CLOSE = {"OK", "INFORMATIONAL"}

GROUPS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
"""Without 12 and 13: compression takes minutes."""

EXPLAINED: dict[str, str] = {}
"""Cases that may fail, each with the reason why that is right. There are none."""


@pytest.fixture(params=["own", "autobahn"])
def echo_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An echo server of our own connections, in a process of its own, with our frames or Autobahn's."""
    command = [sys.executable, "-m", "tests.echo_server", request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as server:
        assert server.stdout is not None
        yield f"ws://127.0.0.1:{int(server.stdout.readline())}/websocket"
        server.kill()
        assert server.stderr is not None
        errors = server.stderr.read().decode()
        assert "Traceback" not in errors, errors


def test_conformance(echo_url: str) -> None:
    """Promise 16: no case of groups 1 to 7, 9 and 10 fails, has a wrong close code or an unclean end, but for those explained above."""
    client = [sys.executable, "-m", "tests.conformance_client", echo_url, *GROUPS]
    results = json.loads(subprocess.run(client, cwd=ROOT, capture_output=True, check=True, timeout=100).stdout)
    assert len(results) > 300
    bad = {case: (behaviour, end) for case, behaviour, end in results if behaviour not in GOOD or end not in GOOD_CLOSE}
    assert bad.keys() <= EXPLAINED.keys(), bad
    assert EXPLAINED.keys() <= bad.keys(), "what no longer fails needs no explanation"
