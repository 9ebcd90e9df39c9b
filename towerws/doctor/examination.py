"""Runs the checks one after the other, each under a deadline. A check yields findings: one line each, with what to change.

A check blocks, so it runs in a thread of its own. If a check hangs, the next one starts, and the process ends without waiting for the
thread.
"""

from __future__ import annotations

import enum
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

FIRST_STEP_S = 10.0
"""How long a check may take until it yields its first step."""

TICK_S = 0.2
"""Interval between two updates of the progress."""


class Level(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    """The thing was checked, and is in order."""
    WARNING = "warning"
    """The thing works now, and may fail later."""
    PROBLEM = "problem"
    """The thing does not work."""
    UNKNOWN = "unknown"
    """The check could not be made. The text says why."""
    SKIPPED = "skipped"
    """The check was not asked for, or does not apply. The text says how to ask for it."""


FINE, PROBLEMS, WARNINGS = 0, 1, 3
"""Exit codes. 2 is for a command line or a configuration that can't be used, as in the other commands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `area` and `check` name the check. `change` says what to change, and is empty if nothing has to change."""

    level: Level
    area: str
    check: str
    text: str
    change: str = ""


@dataclass(frozen=True, slots=True)
class Doing:
    """What a check does next, for the status line. The check's next step must come within `within_s` seconds."""

    text: str
    within_s: float


Step = Finding | Doing


@dataclass(frozen=True, slots=True)
class Check:
    """A check with the name of its area. `run` yields what the check does and what it finds."""

    area: str
    run: Callable[[], Iterator[Step]]


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code: `PROBLEMS` before `WARNINGS`. A check that could not be made counts as a warning."""
    levels = {finding.level for finding in findings}
    if Level.PROBLEM in levels:
        return PROBLEMS
    return WARNINGS if levels & {Level.WARNING, Level.UNKNOWN} else FINE


class Area:
    """Makes the findings of one area."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ok(self, check: str, text: str) -> Finding:
        """Return a finding that says that the thing is in order."""
        return Finding(Level.OK, self._name, check, text)

    def warning(self, check: str, text: str, change: str) -> Finding:
        """Return a warning, with what to change."""
        return Finding(Level.WARNING, self._name, check, text, change)

    def problem(self, check: str, text: str, change: str) -> Finding:
        """Return a problem, with what to change."""
        return Finding(Level.PROBLEM, self._name, check, text, change)

    def unknown(self, check: str, why: str, change: str = "") -> Finding:
        """Return a finding that says why a check could not be made."""
        return Finding(Level.UNKNOWN, self._name, check, why, change)

    def skipped(self, check: str, why: str) -> Finding:
        """Return a finding that says that a check was not asked for, or does not apply."""
        return Finding(Level.SKIPPED, self._name, check, why)


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
                        Level.UNKNOWN,
                        check.area,
                        "deadline",
                        f"{doing.text}: no answer within {doing.within_s:g} s, so the check ends here",
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
