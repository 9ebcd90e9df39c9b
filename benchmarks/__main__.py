"""`script/bench [--size N] [--scenario NAME]… [--json FILE]`: measures, and prints a table. Exit status 3 if a limit was missed."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks import compression, connections, fanout, growth, producer, readers, sign_in, tls, workers
from benchmarks.world import Row, world
from towerws import __version__

SCENARIOS = {
    each.__name__: each
    for each in (
        *(fanout.burst, fanout.steady, fanout.unwatched, fanout.drain, fanout.mixed),
        *(connections.memory, connections.storm, sign_in.sign_in, connections.resume),
        *(fanout.large, fanout.v1, fanout.events, growth.growth, tls.tls, compression.compression, producer.producer, readers.readers),
        workers.workers,
    )
}

EXIT_MISSED = 3  # 1 is Python's, for a scenario that did not do its work


def main() -> int:
    """Run the chosen scenarios."""
    parser = argparse.ArgumentParser(prog="script/bench", description="Measure towerws. docs/performance.md says what each scenario does.")
    parser.add_argument("--size", type=float, default=1.0, help="1: the full run. 0.1: under two minutes. 0.01: only shows that it works")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    print(machine(), flush=True)
    with world(args.size) as here:
        for name in args.scenario or SCENARIOS:
            done = len(here.rows)
            SCENARIOS[name](here)
            print("\n".join(map(line, here.rows[done:])), flush=True)
    if args.json:
        figures = [{**asdict(row), "met": row.met} for row in here.rows]
        at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        args.json.write_text(json.dumps({"at": at, "machine": machine(), "size": args.size, "figures": figures}, indent=1) + "\n")
    return EXIT_MISSED if any(row.met is False for row in here.rows) else 0


def machine() -> str:
    """The machine and the versions of this run."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((text.partition(": ")[2] for text in info.splitlines() if text.startswith("model name")), platform.machine())
    packages = ", ".join(f"{name} {version(name)}" for name in ("twisted", "autobahn", "pika"))
    system = f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"
    return f"{system}, Python {platform.python_version()}, towerws {__version__}, {packages}"


def line(row: Row) -> str:
    """One line of the table."""
    mark = {None: "", True: "ok", False: "MISSED"}[row.met]
    return f"{row.scenario:<14} {row.what:<36} {row.value:>11,.2f} {row.unit:<5} {row.bar:>10} {mark}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
