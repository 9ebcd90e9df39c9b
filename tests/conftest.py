"""Settings for all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent
INTEGRATION = TESTS / "integration"

LONGEST_FILES = (
    *("revocation_daemon", "js_client", "private_cluster", "benchmark_scenarios", "console", "live_page", "workers", "producer"),
    *("amqp_broker", "end_to_end", "start_and_stop", "breaks", "handover", "js_shared", "cycles", "private_rabbitmq"),
)
"""Test files in `tests/integration` that take about a minute or more, the longest first.

Processes that share the files begin with them, so that none of them is left alone with a long file at the end.
"""

LONGEST_UNIT_FILES = (
    "test_fuzz.py",
    "websocket/test_revocation_in_time.py",
    "tail/test_session.py",
    "test_promises.py",
    "demo/test_events.py",
)
"""The same for files that start no processes: they take some seconds."""

RANKS = {
    path: rank
    for rank, path in enumerate(
        [*(INTEGRATION / f"test_{name}.py" for name in LONGEST_FILES), *(TESTS / name for name in LONGEST_UNIT_FILES)],
    )
}
if missing := [path.name for path in RANKS if not path.exists()]:
    raise FileNotFoundError(f"no such test files: {', '.join(missing)}")

# A deadline per example would measure the machine: CI's two cores are shared. pytest-timeout catches tests that hang.
# CI runs the same generated inputs each time, so that a failure is caused by the change. Other runs look for new inputs.
IN_CI = os.environ.get("CI") == "true"

_examples = int(os.environ.get("HYPOTHESIS_EXAMPLES", "100"))  # script/unit tries fewer
settings.register_profile("towerws", deadline=None, max_examples=_examples)
settings.register_profile("ci", deadline=None, max_examples=_examples, derandomize=True)
settings.load_profile("ci" if IN_CI else "towerws")

os.environ.setdefault("FUZZ_SEED", "1" if IN_CI else str(time.time_ns() % 2**32))

# Tests start hundreds of Python processes. Where nothing may write bytecode, each of them compiles towerws again: 1.24 s of CPU for the
# imports of a daemon instead of 0.90 s. pytest compiles the tests again, too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Under pytest-xdist each worker process has a port range of its own, so that no two take the same port (script/private_rabbitmq.py).
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    size = (32000 - 15000) // workers
    lowest = 15000 + int(worker.removeprefix("gw")) * size
    os.environ["PRIVATE_RABBITMQ_PORTS"] = f"{lowest}-{lowest + size}"

# Under a script in the background SIGINT is ignored, and under `nohup` SIGHUP. Each process that a test starts would inherit that: it would
# not end on Ctrl-C, and not reload. With a handler of our own, both signals have their default in those processes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those first that start processes, and of these and of the others the longest files first."""
    items.sort(key=lambda item: (item.path.parent != INTEGRATION, RANKS.get(item.path, len(RANKS))))


def pytest_collection_finish() -> None:
    """Exempt what is loaded by now from garbage collections: the unit tests need 7 % less CPU."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def reactor_without_timers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a unit test that leaves a timer in Twisted's reactor. Later tests of its process would wait for that timer."""
    yield
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is not None and request.path.parent != INTEGRATION:  # fixtures of a whole module have timers there
        calls = reactor.getDelayedCalls()
        left = list(map(str, calls))
        for call in calls:
            call.cancel()
        assert not left


def pytest_report_header() -> str:
    """The seed with which tests/test_fuzz.py makes the same clients again."""
    return f"generated clients: FUZZ_SEED={os.environ['FUZZ_SEED']}"
