"""What grows in a long run: slopes of sampled figures, with confidence.

The slope of a process is that of its means over `BLOCK_S` seconds after its warm-up, by ordinary least squares. Means are used because
samples of neighbouring seconds are not independent: their confidence interval would be too narrow.

A hand-over replaces the process, so memory that leaks in one is gone with the next. What a successor inherits from its predecessor is
another slope: that of the processes' means at the same age, for each hand-over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, linear_regression
from typing import Final

BLOCK_S: Final = 15.0
WARM_UP_S: Final = 600.0
"""Caches with a bound fill in this time. The slowest one is the hub's replay cache: 4 MiB at 8 KiB a second take 9 minutes."""
WARM_UP: Final = 0.5
"""The warm-up takes at most this share of a process's life. A short run therefore counts a part of that growth."""
AT_AGE: Final = 0.5
"""Successors are compared by the last half of their lives. Their lives have the same length."""
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Figure:
    """A sampled quantity. It grows if a slope is above its limit with confidence."""

    name: str
    unit: str
    per_hour: float
    """The limit within one process."""
    per_handover: float
    """The limit from one process to the next."""


FIGURES: Final = (
    Figure("rss", "MiB", 4.0, 0.5),
    Figure("descriptors", "", 30.0, 0.5),
    Figure("delayed calls", "", 60.0, 2.0),
    Figure("connections", "", 60.0, 2.0),
    Figure("subscribers", "", 60.0, 2.0),
    Figure("full collections", "", 60.0, 2.0),
)


@dataclass(frozen=True)
class Sample:
    """The figures at one time, in the order of `FIGURES`. `generation` counts hand-overs: 0 is the first process."""

    at_s: float
    generation: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Slope:
    """The increase for one unit of x, with the confidence interval."""

    value: float
    low: float
    high: float
    start: float
    """The value of the line at x = 0."""

    def times(self, factor: float) -> Slope:
        """The increase for `factor` units of x."""
        return Slope(self.value * factor, self.low * factor, self.high * factor, self.start)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Ordinary least squares, with Student's interval. Needs four points."""
    line = linear_regression(xs, ys)
    free = len(xs) - 2
    mean = fmean(xs)
    spread = sum((each - mean) ** 2 for each in xs)
    rest = sum((y - line.slope * x - line.intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    error = (rest / free / spread) ** 0.5 * student(free)
    return Slope(line.slope, line.slope - error, line.slope + error, line.intercept)


def student(free: int) -> float:
    """The quantile of Student's t for `CONFIDENCE`, two-sided: Cornish and Fisher's expansion, within 1 % from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3


def generations(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each process."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.generation, []).append(sample)
    return list(found.values())


def blocks(life: Sequence[Sample]) -> list[tuple[float, ...]]:
    """Means over `BLOCK_S` seconds of one process's samples, after its warm-up. The first column is the time."""
    born = life[0].at_s
    begin = born + min(WARM_UP_S, (life[-1].at_s - born) * WARM_UP)
    found: dict[int, list[tuple[float, ...]]] = {}
    for sample in life:
        if sample.at_s >= begin:
            found.setdefault(int((sample.at_s - begin) / BLOCK_S), []).append((sample.at_s, *sample.values))
    whole = list(found.values())[:-1]  # the last one is incomplete
    return [tuple(map(fmean, zip(*block, strict=True))) for block in whole]


def at_the_same_age(lives: Sequence[Sequence[Sample]]) -> list[tuple[float, ...]]:
    """The means of each process's last half, for the processes that a hand-over started and another one ended."""
    means = []
    for life in lives[1:-1]:
        born, died = life[0].at_s, life[-1].at_s
        late = [sample.values for sample in life if sample.at_s >= born + (died - born) * AT_AGE]
        means.append(tuple(map(fmean, zip(*late, strict=True))))
    return means


@dataclass(frozen=True)
class Row:
    """What became of one figure."""

    figure: Figure
    first: float
    last: float
    per_hour: Slope | None
    """None: the last process did not live long enough."""
    per_handover: Slope | None
    """None: there were not enough hand-overs."""

    @property
    def grows(self) -> bool:
        """Whether a slope is above its limit with confidence."""
        limits = ((self.per_hour, self.figure.per_hour), (self.per_handover, self.figure.per_handover))
        return any(found is not None and found.low > limit for found, limit in limits)


LEAST_POINTS: Final = 5
"""Of fewer blocks or successors no slope is computed."""


def rows(samples: Sequence[Sample]) -> list[Row]:
    """Judge each figure: in the last process by the hour, and over the successors by the hand-over."""
    lives = generations(samples)
    means = blocks(lives[-1])
    times = [mean[0] for mean in means]
    successors = at_the_same_age(lives)
    found = []
    for column, figure in enumerate(FIGURES):
        values = [mean[column + 1] for mean in means]
        per_hour = slope(times, values).times(3600) if len(times) >= LEAST_POINTS else None
        per_handover = None
        if len(successors) >= LEAST_POINTS:
            per_handover = slope([float(number) for number in range(len(successors))], [mean[column] for mean in successors])
        ends = values or [lives[-1][0].values[column], lives[-1][-1].values[column]]
        found.append(Row(figure, ends[0], ends[-1], per_hour, per_handover))
    return found


def table(judged: Sequence[Row]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = [
        "| figure | first | last | per hour | 95 % interval | limit | per hand-over | 95 % interval | limit | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in judged:
        figure = row.figure
        name = figure.name + (f", {figure.unit}" if figure.unit else "")
        cells = [name, f"{row.first:.1f}", f"{row.last:.1f}", *_cells(row.per_hour, ".1f"), f"{figure.per_hour:g}"]
        cells += [*_cells(row.per_handover, ".2f"), f"{figure.per_handover:g}", "GROWS" if row.grows else "ok"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cells(found: Slope | None, form: str) -> tuple[str, str]:
    if found is None:
        return "none", "none"
    return f"{found.value:+{form}}", f"{found.low:+{form}} to {found.high:+{form}}"
