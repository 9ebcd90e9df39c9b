"""Shared code of the programs here: their report, and payloads of AWX's shape."""

import json
import sys
import time
from typing import Any, Callable, Dict

EXIT_S = 10
"""For `exit_s`: a loaded machine may need more than 0.8 s for a confirm, and these programs must lose nothing."""


def job_event(number: int, **more: Any) -> Dict[str, Any]:
    """A small event of job 42."""
    event = {"job": 42, "counter": number, "event": "runner_on_ok", "stdout": "ok: [web01]", "group_name": "job_events"}
    event.update(more)
    return event


def timed(call: Callable[[int], None], count: int) -> Dict[str, float]:
    """Call it with 1 to `count`. Returns microseconds for each call: the mean, and the longest."""
    longest = 0.0
    began = time.perf_counter()
    for number in range(1, count + 1):
        start = time.perf_counter()
        call(number)
        longest = max(longest, time.perf_counter() - start)
    return {"mean_us": (time.perf_counter() - began) / count * 1e6, "max_us": longest * 1e6}


def report(**figures: Any) -> None:
    """The last line of a program's output."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
