"""What holds for all tests."""

from __future__ import annotations

import os
import time

from hypothesis import settings

# A deadline per example measures the machine: CI's two cores are shared. pytest-timeout catches what hangs.
settings.register_profile("towerws", deadline=None)
settings.load_profile("towerws")

os.environ.setdefault("FUZZ_SEED", str(time.time_ns() % 2**32))


def pytest_report_header() -> str:
    """What it takes to have the clients of tests/test_fuzz.py again."""
    return f"generated clients: FUZZ_SEED={os.environ['FUZZ_SEED']}"
