"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import time

from hypothesis import settings

# A deadline per example measures the machine: CI's two cores are shared. pytest-timeout catches what hangs.
settings.register_profile("towerws", deadline=None)
settings.load_profile("towerws")

os.environ.setdefault("FUZZ_SEED", str(time.time_ns() % 2**32))

# A suite that a script started in the background has SIGINT ignored, and every process it starts inherits that: none would
# end on Ctrl-C. A handler of ours is back to the default in what is started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """What it takes to have the clients of tests/test_fuzz.py again."""
    return f"generated clients: FUZZ_SEED={os.environ['FUZZ_SEED']}"
