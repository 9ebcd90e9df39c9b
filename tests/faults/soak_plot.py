"""The picture of a soak: each figure over time, when a process was replaced, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import Final

from tests.faults.growth import FIGURES, Row, Sample, blocks, generations

SHOWN: Final = ("rss", "descriptors", "delayed calls")
WIDTH: Final = 920
PANEL, GAP, TOP, LEFT, RIGHT, FOOT = 120, 34, 74, 62, 16, 48
"""The height of a panel, the space between two, and the margins, in units of the picture."""
POINTS: Final = 400
"""The most points of a curve. Each is the mean of the samples that it stands for."""

# Legible on white and on black: GitHub and browsers show a picture on the page's own colour.
STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #57606a }
  .title { font-size: 16px; font-weight: 600; fill: #24292f }
  .name { font-weight: 600; fill: #24292f }
  .small { font-size: 11px }
  .grid { stroke: #8c959f; stroke-opacity: .22 }
  .frame { stroke: #8c959f; fill: none }
  .curve { stroke: #0969da; fill: none; stroke-width: 1.3 }
  .fit { stroke: #bc4c00; stroke-width: 2 }
  .handover { stroke: #1a7f37; stroke-dasharray: 2 3 }
  .broker { stroke: #cf222e; stroke-opacity: .7 }
  .fault { stroke: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 } .title, .name { fill: #e6edf3 }
    .curve { stroke: #58a6ff } .fit { stroke: #f0883e } .handover { stroke: #3fb950 } .broker { stroke: #ff7b72 }
  }
"""


def draw(samples: Sequence[Sample], judged: Sequence[Row], done: Sequence[tuple[float, str]], foot: str) -> str:
    """The whole picture. `done` has what was done, with its time in seconds: `hand-over`, `broker`, or any other fault."""
    end_s = samples[-1].at_s
    columns = [number for number, figure in enumerate(FIGURES) if figure.name in SHOWN]
    height = TOP + len(columns) * (PANEL + GAP) + FOOT
    parts = [f'<text class="title" x="{LEFT}" y="22">A soak: one daemon, its clients come and go, faults</text>', _legend()]
    for place, column in enumerate(columns):
        parts += _panel(samples, judged[column], column, done, TOP + place * (PANEL + GAP), end_s)
    bottom = TOP + len(columns) * (PANEL + GAP) - GAP
    unit_s, unit = (60.0, "minutes") if end_s < 3 * 3600 else (3600.0, "hours")
    parts += [_text("small", _x(tick * unit_s, end_s), bottom + 16, f"{tick:g}", "middle") for tick in _ticks(0, end_s / unit_s)]
    parts += [
        _text("small", WIDTH - RIGHT, bottom + 32, unit, "end"),
        _text("small", LEFT, bottom + 48, foot, "start"),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    title = "<title>Memory, descriptors and delayed calls of a daemon over time</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _legend() -> str:
    words = (("handover", "hand-over"), ("broker", "broker restarted"), ("fault", "other fault"), ("fit", "slope of the last process"))
    parts = []
    for number, (style, text) in enumerate(words):
        x = LEFT + number * 150
        parts += [_line(style, x, 37, x + 22, 37), _text("small", x + 28, 41, text, "start")]
    return "".join(parts)


def _panel(samples: Sequence[Sample], row: Row, column: int, done: Sequence[tuple[float, str]], top: float, end_s: float) -> list[str]:
    values = [sample.values[column] for sample in samples]
    spread = max(max(values) - min(values), 1.0)
    low, high = max(0.0, min(values) - 0.1 * spread), max(values) + 0.1 * spread

    def y(value: float) -> float:
        return top + PANEL - PANEL * (value - low) / (high - low)

    parts = []
    for at_s, what in done:
        style = {"hand-over": "handover", "broker": "broker"}.get(what, "fault")
        parts.append(_line(style, _x(at_s, end_s), top if style != "fault" else top + PANEL - 7, _x(at_s, end_s), top + PANEL))
    for tick in _ticks(low, high):
        parts += [_line("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)), _text("small", LEFT - 8, y(tick) + 4, f"{tick:,g}", "end")]
    step = max(1, -(-len(samples) // POINTS))
    for life in generations(samples):
        means = [
            (fmean(each.at_s for each in part), fmean(each.values[column] for each in part))
            for part in (life[first : first + step] for first in range(0, len(life), step))
        ]
        parts.append(f'<path class="curve" d="M{" ".join(f"{_x(at, end_s):.1f},{y(value):.1f}" for at, value in means)}"/>')
    name = row.figure.name + (f", {row.figure.unit}" if row.figure.unit else "")
    if (line := row.per_hour) is not None:
        fitted = blocks(generations(samples)[-1])
        first_s, last_s = fitted[0][0], fitted[-1][0]
        ends = [line.start + line.value / 3600 * at for at in (first_s, last_s)]
        parts.append(_line("fit", _x(first_s, end_s), y(ends[0]), _x(last_s, end_s), y(ends[1])))
        name += f": {line.value:+.1f} per hour ({line.low:+.1f} to {line.high:+.1f})"
    parts.append(f'<rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL}"/>')
    parts.append(_text("name", LEFT, top - 6, name, "start"))
    return parts


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two: three to eight of them."""
    step = 1.0
    for exponent in range(-2, 9):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            if (high - low) / step <= 7:
                return [step * number for number in range(int(-(-low // step)), int(high // step) + 1)]
    return [low, high]


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
