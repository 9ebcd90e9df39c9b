"""`python -m tests.faults.soak [--minutes N] [--broker 3|4] [--seed N]`: runs one daemon under a light load, and measures growth.

Clients of both dialects connect and disconnect, get pings, subscribe again and have their credentials checked again. Events
come steadily, and the link to the broker is cut sometimes. Memory, descriptors, timers and connections are sampled once a
second. The result is the slope of their means over `BLOCK_S` seconds after the warm-up, by ordinary least squares. Means are
used because samples of neighbouring seconds are not independent: their confidence interval would be too narrow.

Exit status: 0 without growth. 3 if a slope is above its limit with confidence, or a client lost something. 4 if the machine
lacks a part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, linear_regression
from typing import Final

from tests.faults.__main__ import EXIT_BROKEN, EXIT_MISSING, Screen
from tests.faults.brokers import VERSIONS, MissingError
from tests.faults.case import Brokers, Case, descriptors, present
from tests.kit.daemon import Daemon
from tests.kit.plain_http import plain_http

REPORT: Final = Path(__file__).parents[2] / "build" / "soak.md"
SAMPLE_S: Final = 1.0
BLOCK_S: Final = 15.0
WARM_UP_S: Final = 600.0
"""Caches with a bound fill in this time. The slowest one is the hub's replay cache: 4 MiB at 8 KiB a second take 9 minutes."""
WARM_UP: Final = 0.5
"""The warm-up takes at most this share of a run. A run below 20 minutes therefore counts a part of that growth."""
CONFIDENCE: Final = 0.95

LEAST_MINUTES: Final = 3.0

V1, TOWER, PER_S = 200, 60, 60.0
WANDER_PER_S: Final = 4.0
AGAIN_EVERY_S: Final = 5.0
CUT_EVERY_S: Final = 45.0


@dataclass(frozen=True)
class Figure:
    """A sampled quantity. It grows if its slope is above `limit` (in units an hour) with confidence."""

    name: str
    unit: str
    limit: float


FIGURES: Final = (
    Figure("rss", "MiB", 4.0),
    Figure("descriptors", "", 30.0),
    Figure("delayed calls", "", 60.0),
    Figure("connections", "", 60.0),
    Figure("subscribers", "", 60.0),
    Figure("full collections", "", 60.0),
)


@dataclass(frozen=True)
class Slope:
    """Units an hour, with the confidence interval."""

    per_hour: float
    low: float
    high: float


def slope(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Ordinary least squares, with Student's interval. Needs four points."""
    line = linear_regression(times_s, values)
    free = len(times_s) - 2
    mean = fmean(times_s)
    spread = sum((each - mean) ** 2 for each in times_s)
    rest = sum((value - line.slope * at - line.intercept) ** 2 for at, value in zip(times_s, values, strict=True))
    error = (rest / free / spread) ** 0.5 * student(free)
    return Slope(line.slope * 3600, (line.slope - error) * 3600, (line.slope + error) * 3600)


def student(free: int) -> float:
    """The quantile of Student's t for `CONFIDENCE`, two-sided: Cornish and Fisher's expansion, within 1 % from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3


def blocks(samples: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Means over `BLOCK_S` seconds, after the warm-up. The first column is the time."""
    begin = min(WARM_UP_S, samples[-1][0] * WARM_UP)
    found: dict[int, list[tuple[float, ...]]] = {}
    for sample in samples:
        if sample[0] >= begin:
            found.setdefault(int((sample[0] - begin) / BLOCK_S), []).append(sample)
    whole = list(found.values())[:-1]  # the last one is incomplete
    return [tuple(map(fmean, zip(*block, strict=True))) for block in whole]


def sample(daemon: Daemon) -> tuple[float, ...]:
    """One sample, in the order of `FIGURES`."""
    _, status = daemon.get("/status")
    process = status["process"]
    return (
        *(daemon.rss_kib() / 1024, descriptors(daemon), process["delayed_calls"]),
        *(present(status), status["hub"]["subscribers"], process["full_collections"]),
    )


def table(samples: Sequence[tuple[float, ...]]) -> tuple[list[str], bool]:
    """Lines of Markdown, and whether a figure grows."""
    means = blocks(samples)
    times = [mean[0] for mean in means]
    lines = ["| figure | first | last | slope per hour | 95 % interval | limit | verdict |", "| --- | --- | --- | --- | --- | --- | --- |"]
    grows = False
    for column, figure in enumerate(FIGURES, 1):
        values = [mean[column] for mean in means]
        found = slope(times, values)
        verdict = "GROWS" if found.low > figure.limit else "ok"
        grows = grows or verdict == "GROWS"
        name = figure.name + (f", {figure.unit}" if figure.unit else "")
        interval = f"{found.low:+.1f} to {found.high:+.1f}"
        lines.append(f"| {name} | {values[0]:.1f} | {values[-1]:.1f} | {found.per_hour:+.1f} | {interval} | {figure.limit:g} | {verdict} |")
    return lines, grows


def soak(case: Case, minutes: float, api: int, screen: Screen) -> tuple[list[tuple[float, ...]], list[str]]:
    """The samples, with the time in seconds first, and the broken promises."""
    proxy = case.proxy(case.rabbit.port)
    flags = (
        *("--auth=tower", f"--tower-url=http://127.0.0.1:{api}", "--tower-valid-s=1", "--revalidate-s=10"),
        *("--websocket-ping-s=5", "--history-max-age-s=20"),
    )
    daemon = case.daemon(proxy.port, flags=flags)
    publisher = case.publisher(case.rabbit.port, per_s=PER_S)
    specs = case.specs(V1 + TOWER, daemon, tower=TOWER, each=3)
    case.swarm.open([replace(spec, headers=f"Authorization: Bearer t{number}\r\n") for number, spec in enumerate(specs)])
    case.swarm.wander(WANDER_PER_S)
    samples: list[tuple[float, ...]] = []
    begin = time.monotonic()
    again_at, cut_at = begin + AGAIN_EVERY_S, begin + CUT_EVERY_S
    while (now := time.monotonic()) < begin + minutes * 60:
        samples.append((now - begin, *sample(daemon)))
        if sys.stdout.isatty() or len(samples) % 60 == 1:
            screen.progress(f"{(now - begin) / 60:5.1f} of {minutes:g} minutes  " + say(samples[-1]))
        if now >= again_at:
            again_at += AGAIN_EVERY_S
            case.swarm.ask_again(0.1)
        if now >= cut_at:
            cut_at += CUT_EVERY_S
            proxy.reset()
        time.sleep(max(0.0, begin + len(samples) * SAMPLE_S - time.monotonic()))
    case.swarm.wander(0)
    status = daemon.get("/status")[1]
    outcome = case.finish(f"{minutes:g} minutes")
    tally = outcome.tally
    screen.line(
        f"{publisher.journal.count:,} events, {tally.events:,} received; {status['connections']['opened']:,} connections, "
        f"{status['requests']['taken']:,} subscriptions, {status['auth']['tower']['calls']['made']:,} calls to the API, "
        f"{status['source']['failures']} links lost"
    )
    return samples, outcome.broken


def say(values: Sequence[float]) -> str:
    """The newest sample as text."""
    return "  ".join(f"{figure.name} {value:.0f}" for figure, value in zip(FIGURES, values[1:], strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="One daemon under a light load for long: what grows?")
    parser.add_argument("--minutes", type=float, default=30, help="how long (default 30); an hour tells more")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--broker", type=int, choices=VERSIONS, default=3, help="the major version of RabbitMQ")
    args = parser.parse_args(arguments)
    if args.minutes < LEAST_MINUTES:
        parser.error(f"--minutes {args.minutes:g}: a slope needs {LEAST_MINUTES:g} at the least")
    screen = Screen()
    with ExitStack() as leave:
        folder = Path(leave.enter_context(tempfile.TemporaryDirectory(prefix="towerws-soak-")))
        brokers = Brokers(args.broker, folder / "brokers")
        leave.callback(brokers.spoil)
        (folder / "case").mkdir()
        case = Case("soak", str(args.seed), folder / "case", brokers, screen.progress, leave)
        try:
            samples, broken = soak(case, args.minutes, leave.enter_context(plain_http()), screen)
        except MissingError as missing:
            screen.line(str(missing))
            return EXIT_MISSING
    lines, grows = table(samples)
    screen.line("\n".join(lines))
    for text in broken:
        screen.line(f"broken: {text}")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([f"`make soak MINUTES={args.minutes:g}`, seed {args.seed}", "", *lines, "", *broken]) + "\n")
    return EXIT_BROKEN if grows or broken else 0


if __name__ == "__main__":
    sys.exit(main())
