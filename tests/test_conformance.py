"""RFC 6455 conformance by the Autobahn cases, which kosoku runs natively (the original needs Python 2)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kosoku import FailureError, run_fuzzingclient

GROUPS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
"""Without 9 (messages up to 16 MiB, beyond our limit), 12 and 13 (compression, which is off)."""

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

EXPLAINED: dict[str, str] = {}
"""Cases that may fail, each with the reason why that is right. There are none."""


@pytest.fixture
def echo_url() -> Iterator[str]:
    """An echo server of our own connections, in a process of its own."""
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-m", "tests.echo_server"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as server:
        assert server.stdout is not None
        yield f"ws://127.0.0.1:{int(server.stdout.readline())}/websocket"
        server.kill()
        assert server.stderr is not None
        errors = server.stderr.read().decode()
        assert "Traceback" not in errors, errors


async def run(url: str) -> list[Any]:
    """All cases, with their results also when some failed."""
    try:
        results: list[Any] = await run_fuzzingclient(url, cases=GROUPS, concurrency=4)
    except FailureError as failure:
        results = failure.results
    return results


def test_conformance(echo_url: str) -> None:
    """No case of groups 1 to 7 and 10 fails, has a wrong close code or an unclean end, except for those explained above."""
    results = asyncio.run(run(echo_url))
    assert len(results) > 240
    bad = {
        result.case_id: (result.behavior.value, result.behavior_close.value)
        for result in results
        if result.behavior.value not in GOOD or result.behavior_close.value not in {"OK", "INFORMATIONAL"}
    }
    assert bad.keys() <= EXPLAINED.keys(), bad
    assert EXPLAINED.keys() <= bad.keys(), "what no longer fails needs no explanation"
