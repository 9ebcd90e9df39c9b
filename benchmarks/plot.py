"""Plots the cost of growth: `python -m benchmarks.plot REPORT.json PLOT.svg`. The report is what `make bench` writes.

There is one panel for each axis with points, and both scales are logarithmic. The shaded band is 25 % above and below the first
value of a curve that must be flat.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Self

WIDTH, HEIGHT = 920, 450
TOP, BOTTOM, LEFT, GAP, RIGHT = 44, 88, 62, 66, 22
"""Margins around the panels and between them, in units of the picture."""

BAND = 0.25
CURVES = {"burst": "burst: messages that waited", "steady": "steady: each one as it comes"}
TITLES = {"clients": "clients on one topic", "topics": "subscribed topics, 1,000 clients"}

# Legible on white and on black: GitHub and browsers show a picture on the page's own colour.
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #57606a }
  .title { font-size: 16px; font-weight: 600; fill: #24292f }
  .small { font-size: 11px }
  .value { font-size: 12px }
  .grid { stroke: #8c959f; stroke-opacity: .22 }
  .frame { stroke: #8c959f; fill: none }
  .burst { stroke: #0969da; fill: #0969da }
  .steady { stroke: #bc4c00; fill: #bc4c00 }
  path.burst, path.steady { fill: none; stroke-width: 2.2 }
  rect.burst, rect.steady { fill-opacity: .16; stroke: none }
  text.burst, text.steady { stroke: none; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 } .title { fill: #e6edf3 }
    .burst { stroke: #58a6ff; fill: #58a6ff } .steady { stroke: #f0883e; fill: #f0883e }
  }
"""


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: its values `low` and `high` lie at `start` and `end` in the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: list[float], room: float, start: float, end: float) -> Self:
        """The scale that shows all values, with a factor of `room` to spare at either end."""
        return cls(min(values) / room, max(values) * room, start, end)

    def at(self, value: float) -> float:
        """The place of a value in the picture."""
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)

    def decades(self) -> list[float]:
        """The powers of ten in the range."""
        return [10.0**power for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(description="Draw the scenario `growth` of a report.")
    parser.add_argument("report", type=Path, help="what `make bench` wrote: build/benchmarks.json")
    parser.add_argument("plot", type=Path, help="the SVG to write")
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8"))
    if not any(figure["point"] for figure in report["figures"]):
        parser.error(f"{args.report} has no figures of the scenario growth")
    args.plot.write_text(draw(report), encoding="utf-8")


def draw(report: dict[str, Any]) -> str:
    """The whole picture."""
    points = [(figure["point"], float(figure["value"])) for figure in report["figures"] if figure["point"]]
    axes = list(dict.fromkeys(point["axis"] for point, _ in points))
    ys = Scale.around([value for _, value in points], 2.6, HEIGHT - BOTTOM, TOP)
    width = (WIDTH - LEFT - RIGHT - GAP * (len(axes) - 1)) / len(axes)
    parts = [f'<text class="title" x="{LEFT}" y="24">What one delivery costs: CPU time of the daemon</text>']
    for number, axis in enumerate(axes):
        start = LEFT + number * (width + GAP)
        mine = [(point, value) for point, value in points if point["axis"] == axis]
        xs = Scale.around([float(point["at"]) for point, _ in mine], 2.2, start, start + width)
        parts += _panel(axis, mine, xs, ys)
    when = f"Measured {report['at'][:10]}, size {report['size']:g}."
    foot = f"Shaded: where a curve is flat within {BAND * 100:g} %, from 100 clients or one topic on. {when}"
    parts += [
        f'<text class="small" x="{LEFT}" y="{HEIGHT - 26}">{escape(foot)}</text>',
        f'<text class="small" x="{LEFT}" y="{HEIGHT - 10}">{escape(report["machine"])}</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
    return "\n".join([head, "<title>CPU per delivery against clients and topics</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _panel(axis: str, points: list[tuple[dict[str, Any], float]], xs: Scale, ys: Scale) -> list[str]:
    parts = [_line("grid", xs.at(tick), ys.start, xs.at(tick), ys.end) for tick in xs.decades()]
    parts += [_line("grid", xs.start, ys.at(tick), xs.end, ys.at(tick)) for tick in ys.decades()]
    parts.append(f'<rect class="frame" x="{xs.start:.1f}" y="{ys.end}" width="{xs.end - xs.start:.1f}" height="{ys.start - ys.end}"/>')
    every = 2 if len(xs.decades()) > 5 else 1
    parts += [_text("", xs.at(tick), ys.start + 18, f"{tick:,.0f}", "middle") for tick in xs.decades()[::every]]
    parts += [_text("", xs.start - 8, ys.at(tick) + 4, f"{tick:g} µs", "end") for tick in ys.decades()]
    parts.append(_text("", (xs.start + xs.end) / 2, ys.start + 38, TITLES[axis], "middle"))
    for curve in CURVES:
        parts += _curve(curve, [(point, value) for point, value in points if point["curve"] == curve], xs, ys)
    return parts


def _curve(curve: str, points: list[tuple[dict[str, Any], float]], xs: Scale, ys: Scale) -> list[str]:
    flat = [(point["at"], value) for point, value in points if point["flat"]]
    left, right = xs.at(flat[0][0]), xs.at(flat[-1][0])
    top, bottom = ys.at(flat[0][1] * (1 + BAND)), ys.at(flat[0][1] * (1 - BAND))
    places = [(xs.at(point["at"]), ys.at(value), value) for point, value in points]
    parts = [
        f'<rect class="{curve}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"/>',
        f'<path class="{curve}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)}"/>',
    ]
    for x, y, value in places:
        parts.append(f'<circle class="{curve}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>')
        parts.append(_text("value", x, y - 12, f"{value:.2g}", "middle"))
    _, y, _ = places[-1]
    parts.append(_text(curve, xs.end - 10, y + 28, CURVES[curve], "end"))
    return parts


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
