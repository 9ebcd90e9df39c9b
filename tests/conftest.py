"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import time

from hypothesis import settings

# A deadline per example measures the machine: CI's two cores are shared. pytest-timeout catches what hangs.
# CI runs the same generated inputs each time, so that a change fails for its own faults only. Other runs look for new ones.
IN_CI = os.environ.get("CI") == "true"

settings.register_profile("towerws", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if IN_CI else "towerws")

os.environ.setdefault("FUZZ_SEED", "1" if IN_CI else str(time.time_ns() % 2**32))

# A suite that a script started in the background has SIGINT ignored, and every process it starts inherits that: none would
# end on Ctrl-C. A handler of ours is back to the default in what is started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """What it takes to have the clients of tests/test_fuzz.py again."""
    return f"generated clients: FUZZ_SEED={os.environ['FUZZ_SEED']}"
