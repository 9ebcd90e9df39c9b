"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A deadline per example measures the machine: CI's two cores are shared. pytest-timeout catches what hangs.
settings.register_profile("towerws", deadline=None)
settings.load_profile("towerws")
