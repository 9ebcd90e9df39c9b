"""Settings for all tests."""

from __future__ import annotations

import os
import signal
import time

from hypothesis import settings

# A deadline per example would measure the machine: CI's two cores are shared. pytest-timeout catches tests that hang.
# CI runs the same generated inputs each time, so that a failure is caused by the change. Other runs look for new inputs.
IN_CI = os.environ.get("CI") == "true"

settings.register_profile("towerws", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if IN_CI else "towerws")

os.environ.setdefault("FUZZ_SEED", "1" if IN_CI else str(time.time_ns() % 2**32))

# Under a script in the background SIGINT is ignored. Each process that a test starts would inherit that, and not end on Ctrl-C.
# With a handler of our own, SIGINT has its default in those processes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """The seed with which tests/test_fuzz.py makes the same clients again."""
    return f"generated clients: FUZZ_SEED={os.environ['FUZZ_SEED']}"
