from __future__ import annotations

import random
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.__main__ import Screen
from tests.faults.case import Brokers, Case
from tests.faults.soak import BLOCK_S, FIGURES, blocks, slope, soak, student, table
from tests.kit.plain_http import plain_http


@pytest.mark.parametrize(("free", "quantile"), [(4, 2.776), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantiles(free: int, quantile: float) -> None:
    """They match tables of the distribution within 1 %."""
    assert student(free) == pytest.approx(quantile, rel=0.01)


def test_the_interval_holds_the_true_slope() -> None:
    """In 95 of 100 cases, with noise around a line of 36 units an hour."""
    choice = random.Random(1)
    held = 0
    for _ in range(400):
        times = [float(second) for second in range(0, 600, 15)]
        found = slope(times, [0.01 * at + choice.gauss(0, 1) for at in times])
        held += found.low <= 36 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_blocks_leave_the_warm_up_out() -> None:
    """Growth in the first half of a short run, or in the first ten minutes of a long one, does not count."""
    samples = [(float(second), min(second, 100) * 1.0) for second in range(600)]
    means = blocks(samples)
    assert means[0][0] >= 300
    assert {value for _, value in means} == {100.0}
    assert means[1][0] - means[0][0] == BLOCK_S
    assert 600 <= blocks([(float(second), 0.0) for second in range(3600)])[0][0] < 600 + BLOCK_S


def test_growth_is_told() -> None:
    """10 MiB in ten minutes are 60 an hour, more than the limit. Noise is no growth."""
    choice = random.Random(2)
    others = [0.0] * (len(FIGURES) - 1)
    steady = [(float(second), 60 + choice.gauss(0, 1), *others) for second in range(600)]
    growing = [(at, rss + at / 60, *others) for at, rss, *_ in steady]
    assert not table(steady)[1]
    lines, grows = table(growing)
    assert grows
    assert "GROWS" in lines[2]


def test_a_short_soak(brokers: Brokers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few seconds of the real run: each sample has all figures, the last line has the counts, and nobody lost an event."""
    with ExitStack() as leave:
        case = Case("soak", "suite/soak", tmp_path, brokers, lambda _text: None, leave)
        samples, broken = soak(case, 0.1, leave.enter_context(plain_http()), Screen())
    assert broken == []
    assert {len(sample) for sample in samples} == {1 + len(FIGURES)}
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"[\d,]+ events, [\d,]+ received; [\d,]+ connections, .* calls to the API, 0 links lost", last), last
