"""Runs the checks one after the other, each under a deadline.

A check blocks. So each runs in a thread of its own, and a check that hangs is left behind: the next one starts, and the process ends
without waiting for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from towerws.doctor.findings import Check, Doing, Finding, Level, Step

FIRST_STEP_S = 10.0
"""Time for the first step of a check, which says what it does."""

TICK_S = 0.2
"""How often the progress is shown."""


def examine(checks: Sequence[Check], tell: Callable[[Finding], None], show: Callable[[str], None]) -> list[Finding]:
    """Run the checks. `tell` gets each finding at once, and `show` the progress several times a second. Returns all findings."""
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    for check in checks:
        _run(check, found, show)
    return findings


def _run(check: Check, found: Callable[[Finding], None], show: Callable[[str], None]) -> None:
    steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(check, steps), daemon=True).start()
    doing = Doing(check.area, FIRST_STEP_S)
    began = time.monotonic()
    while True:
        try:
            step = steps.get(timeout=TICK_S)
        except queue.Empty:
            passed = time.monotonic() - began
            if passed > doing.within_s:
                found(
                    Finding(
                        Level.UNKNOWN, check.area, "deadline", f"{doing.text}: no answer within {doing.within_s:g} s, so it is left out"
                    )
                )
                return
            show(f"{check.area}: {doing.text} ({passed:.0f} of at most {doing.within_s:.0f} s)")
            continue
        if step is None:
            return
        began = time.monotonic()
        if isinstance(step, Doing):
            doing = step
            show(f"{check.area}: {doing.text}")
        else:
            found(step)


def _work(check: Check, steps: queue.SimpleQueue[Step | None]) -> None:
    try:
        for step in check.run():
            steps.put(step)
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        steps.put(Finding(Level.UNKNOWN, check.area, "failed", f"the check itself failed: {type(error).__name__}: please report it"))
    steps.put(None)
