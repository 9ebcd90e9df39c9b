"""Another clock for one process: libfaketime, which the process loads before everything else."""

from __future__ import annotations

from pathlib import Path

from tests.faults.brokers import MissingError


def shifted(seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is so far from ours. Its monotonic clock stays right.

    `MissingError` without the library.

    A node of another Debian release loads the library of that release, which is at the same path.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise MissingError("another clock needs libfaketime: apt-get install faketime")
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
