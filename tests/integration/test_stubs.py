"""The stubs agree with the installed libraries."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.insides.uses import ROOT

STUBS = ROOT / "stubs"

WHOLE = ["pika"]
"""Packages whose stubs are checked as a whole."""

MODULES = sorted(
    ".".join(path.relative_to(STUBS).with_suffix("").parts) for path in (STUBS / "autobahn").rglob("*.pyi") if path.name != "__init__.pyi"
)
"""Autobahn can't be checked as a whole: its other modules import packages that are not installed."""

LEFT_OUT = (
    "stub does not have parameter",  # a stub has only the parameters that we pass
    "is not keyword-only",  # and those by name
    "has a default value of type type, which is incompatible",  # pika's marker for "not given"
)


def test_the_stubs_agree_with_the_libraries() -> None:
    """mypy's stubtest finds no name that is gone, and no changed signature."""
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--ignore-missing-stub", "--concise", *WHOLE, *MODULES],
        env={**os.environ, "MYPYPATH": str(STUBS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode in {0, 1}, result.stdout
    assert [line for line in result.stdout.splitlines() if not any(words in line for words in LEFT_OUT)] == []
