"""The Autobahn cases as a client: `python -m tests.kit.conformance_client URL GROUP…` prints the result of each case as a JSON list.

It is a process of its own, because kosoku installs parts of Autobahn under Autobahn's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from kosoku import FailureError, run_fuzzingclient


async def run(url: str, groups: list[str]) -> list[Any]:
    """Run all cases. Returns their results, also if some failed."""
    try:
        results: list[Any] = await run_fuzzingclient(url, cases=groups, concurrency=4)
    except FailureError as failure:
        results = failure.results
    return results


if __name__ == "__main__":
    found = asyncio.run(run(sys.argv[1], sys.argv[2:]))
    rows = [(result.case_id, result.behavior.value, result.behavior_close.value) for result in found]
    print(json.dumps(rows), flush=True)  # noqa: T201 - the test reads it
    os._exit(0)  # kosoku 0.1.0 aborts in one of seven regular exits, while its native threads end
