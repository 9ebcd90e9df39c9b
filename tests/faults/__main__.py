"""`script/stress [--only NAME,…] [--seed N] [--repeat N] [--broker 3|4] [--lanes N] [--list]`: run scenarios, print a table.

Exit status: 0 if every promise held, 3 if one broke or a scenario failed, 4 if a requested part is missing on this machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import importlib
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.brokers import VERSIONS, MissingError
from tests.faults.case import Brokers, Case
from tests.faults.scenario import SCENARIOS, Outcome, Scenario

MODULES: Final = ("broker", "link", "topology", "daemon", "handover", "clients", "blackhole", "clocks", "cluster")
EXIT_BROKEN: Final = 3
EXIT_MISSING: Final = 4
REPORT: Final = Path(__file__).parents[2] / "build" / "stress.md"


@dataclass
class Result:
    """One run of one scenario. `missing` names the parts that the machine lacks for it."""

    name: str
    seed: str
    outcome: Outcome
    seconds: float
    missing: str = ""

    @property
    def verdict(self) -> str:
        """The result in one word."""
        return "missing" if self.missing else "BROKEN" if self.outcome.broken else "ok"


class Screen:
    """Shows progress: one line that is overwritten on a terminal, plain lines in a pipe."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._written = False
        self._lock = threading.Lock()

    def line(self, *lines: str) -> None:
        """Print lines that stay."""
        with self._lock:
            self._clear()
            sys.stdout.write("".join(f"{text}\n" for text in lines))
            sys.stdout.flush()

    def progress(self, text: str) -> None:
        """Show the current step."""
        with self._lock:
            self._clear()
            if self._terminal:
                sys.stdout.write(text[:150])
                self._written = True
            else:
                sys.stdout.write(f"    {text}\n")
            sys.stdout.flush()

    def _clear(self) -> None:
        if self._written:
            sys.stdout.write("\r\x1b[K")
            self._written = False


class Plan:
    """The remaining runs, for lanes that work in parallel. A scenario waits more than it works.

    The first lane runs the cluster's, then it helps the others. Runs that must be alone come when all lanes are done (`take_alone`).
    """

    def __init__(self, scenarios: Sequence[Scenario], repeats: int, lanes: int) -> None:
        runs = [(each, repeat) for repeat in range(repeats) for each in scenarios]
        self._lock = threading.Lock()
        self._alone = deque(run for run in runs if run[0].alone and lanes > 1)
        beside = [run for run in runs if run not in self._alone]
        self._cluster = deque(run for run in beside if run[0].cluster and lanes > 1)
        self._rest = deque(run for run in beside if run not in self._cluster)

    def take(self, lane: int) -> tuple[Scenario, int] | None:
        """The next run for this lane: a scenario and the number of its repeat, or None at the end."""
        with self._lock:
            if not lane and self._cluster:
                return self._cluster.popleft()
            return self._rest.popleft() if self._rest else None

    def take_alone(self) -> tuple[Scenario, int] | None:
        """The same for runs that must be alone."""
        return self._alone.popleft() if self._alone else None

    def stop(self) -> None:
        """Start no further run."""
        with self._lock:
            for runs in (self._cluster, self._rest, self._alone):
                runs.clear()


def load() -> dict[str, Scenario]:
    """Every scenario, by name, in the order of the modules."""
    for module in MODULES:
        importlib.import_module(f"tests.faults.scenarios.{module}")
    return SCENARIOS


def choose(only: Sequence[str]) -> list[Scenario]:
    """The scenarios that match one of the patterns, or all without a pattern. Raises `SystemExit` for a pattern without a match."""
    scenarios = load()
    for pattern in only:
        if not fnmatch.filter(scenarios, pattern):
            raise SystemExit(f"no scenario matches {pattern!r}; `--list` shows their names")
    return [each for name, each in scenarios.items() if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)]


def run(each: Scenario, seed: str, brokers: Brokers, screen: Screen, folder: Path) -> Result:
    """Run one scenario. An error in it counts as a broken promise."""
    started = time.monotonic()

    def say(text: str) -> None:
        screen.progress(f"{each.name}: {time.monotonic() - started:5.1f} s  {text}")

    if each.versions and brokers.version not in each.versions:
        return Result(each.name, seed, Outcome(), 0.0, f"runs with RabbitMQ {', '.join(map(str, each.versions))} only")
    folder.mkdir(parents=True)
    outcome = Outcome()
    try:
        with ExitStack() as leave:
            outcome = each.run(Case(each.name, seed, folder, brokers, say, leave))
    except MissingError as missing:
        return Result(each.name, seed, Outcome(), time.monotonic() - started, str(missing))
    except Exception as error:  # noqa: BLE001 - one scenario that fails must not end the others
        outcome.broken.append(f"{type(error).__name__}: {str(error)[-2000:]}")
        if not isinstance(error, AssertionError):
            outcome.notes.append(traceback.format_exc()[-3000:])
        brokers.spoil()  # the scenario may have left it in any state
    return Result(each.name, seed, outcome, time.monotonic() - started)


HEAD: Final = ("scenario", "injected", "clients", "events", "lost", "repeated", "reordered", "gaps", "false", "worst ms", "s", "verdict")


def cells(result: Result) -> tuple[str, ...]:
    """One row of the table."""
    outcome, tally = result.outcome, result.outcome.tally
    numbers = (tally.clients, tally.events, tally.lost, tally.repeated, tally.reordered, tally.gaps, tally.recovered_false)
    return (
        *(result.name, outcome.injected or result.missing, *(f"{number:,}" for number in numbers)),
        *(f"{outcome.worst_ms:,.0f}", f"{result.seconds:.0f}", result.verdict),
    )


def plain_table(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    rows = [HEAD, *map(cells, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    left = (0, 1, 11)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(results: Sequence[Result], seed: int, version: int) -> str:
    """The same as Markdown, with the broken promises below."""
    lines = [f"`make stress SEED={seed} BROKER={version}`", "", "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(result)) + " |" for result in results]
    for result in results:
        if result.outcome.broken:
            lines += ["", f"**{result.name}** (seed `{result.seed}`)", "", *(f"- {text}" for text in result.outcome.broken)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected scenarios."""
    parser = argparse.ArgumentParser(prog="script/stress", description="Break brokers, links, daemons and clients, and count.")
    parser.add_argument("--list", action="store_true", help="show the scenarios, and end")
    parser.add_argument("--only", action="append", default=[], metavar="NAME[,NAME]", help="only these; * and ? are wildcards")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="repeat the choices of an earlier run")
    parser.add_argument("--repeat", type=int, default=1, help="run each scenario so many times, each with another seed")
    parser.add_argument("--lanes", type=int, default=2, help="how many run side by side; 1: one after another")
    parser.add_argument("--keep", metavar="DIR", help="an empty folder for what daemons and brokers write: it stays, logs included")
    parser.add_argument("--broker", type=int, choices=VERSIONS, default=3, help="the major version of RabbitMQ")
    args = parser.parse_args(arguments)
    screen = Screen()
    chosen = choose([name for names in args.only for name in names.split(",") if name])
    if args.list:
        for each in chosen:
            screen.line(f"{each.name:<28} {each.text.splitlines()[0] if each.text else ''}")
        return 0
    screen.line(f"{len(chosen)} scenarios, seed {args.seed}, RabbitMQ {args.broker}")
    with ExitStack() as leave:
        folder = Path(args.keep or leave.enter_context(tempfile.TemporaryDirectory(prefix="towerws-faults-")))
        results = run_all(Plan(chosen, args.repeat, args.lanes), args, screen, folder)
    names = [each.name for each in chosen]
    results.sort(key=lambda result: (int(result.seed.split("/")[1]), names.index(result.name)))
    screen.line("\n" + plain_table(results))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(markdown(results, args.seed, args.broker))
    broken = [result for result in results if result.outcome.broken]
    missing = [result for result in results if result.missing]
    screen.line(f"\n{len(results)} runs, {len(broken)} broken, {len(missing)} not possible here; seed {args.seed}; table in {REPORT}")
    if broken or len(results) < len(chosen) * args.repeat:
        return EXIT_BROKEN
    return EXIT_MISSING if missing else 0


def run_all(plan: Plan, args: argparse.Namespace, screen: Screen, folder: Path) -> list[Result]:
    """Run the whole plan, in lanes. Each lane has its own brokers, which end with its thread."""
    results: list[Result] = []

    def work(lane: int, take: Callable[[], tuple[Scenario, int] | None]) -> None:
        brokers = Brokers(args.broker, folder / f"lane-{lane}")
        try:
            while (planned := take()) is not None:
                each, repeat = planned
                seed = f"{args.seed}/{repeat}/{each.name}"
                result = run(each, seed, brokers, screen, folder / f"{each.name}-{repeat}")
                results.append(result)
                _tell(screen, result)
        finally:
            brokers.spoil()

    others = [threading.Thread(target=work, args=(lane, functools.partial(plan.take, lane))) for lane in range(1, args.lanes)]
    for thread in others:
        thread.start()
    try:
        work(0, functools.partial(plan.take, 0))
        for thread in others:
            thread.join()
        work(args.lanes, plan.take_alone)
    except KeyboardInterrupt:
        screen.line("interrupted: what runs in other lanes comes to its end")
        plan.stop()
    finally:
        for thread in others:
            thread.join()
    return results


def _tell(screen: Screen, result: Result) -> None:
    screen.line(
        f"{result.name}: {result.verdict} in {result.seconds:.0f} s{f' ({result.missing})' if result.missing else ''}",
        *(f"    broken: {text}" for text in result.outcome.broken),
        *(f"    {text}" for text in result.outcome.notes),
    )


if __name__ == "__main__":
    sys.exit(main())
