"""Another wall clock for one process: libfaketime, which the process loads first."""

from __future__ import annotations

from pathlib import Path

from tests.faults.brokers import MissingError


def shifted(seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is this many seconds off. Its monotonic clock stays right.

    Raises `MissingError` without the library.

    A node of another Debian release loads that release's library, which has the same path.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise MissingError("another clock needs libfaketime: apt-get install faketime")
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
