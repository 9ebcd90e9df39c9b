from __future__ import annotations

import random
import re
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.__main__ import Screen
from tests.faults.case import Brokers, Case
from tests.faults.growth import BLOCK_S, FIGURES, Sample, at_the_same_age, blocks, generations, rows, slope, student, table
from tests.faults.soak import HANDOVERS, Weather, main, soak
from tests.faults.soak_plot import draw
from tests.kit.plain_http import plain_http

OTHERS = (0.0,) * (len(FIGURES) - 1)


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
        found = slope(times, [0.01 * at + choice.gauss(0, 1) for at in times]).times(3600)
        held += found.low <= 36 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_blocks_leave_the_warm_up_out() -> None:
    """Growth in the first half of a short life, or in the first ten minutes of a long one, does not count."""
    life = [Sample(1000.0 + second, 3, (min(second, 100) * 1.0, *OTHERS)) for second in range(600)]
    means = blocks(life)
    assert means[0][0] >= 1300
    assert {mean[1] for mean in means} == {100.0}
    assert means[1][0] - means[0][0] == BLOCK_S
    long = [Sample(1000.0 + second, 3, (0.0, *OTHERS)) for second in range(3600)]
    assert 1600 <= blocks(long)[0][0] < 1600 + BLOCK_S


def run(*, successors: int = 10, per_hour: float = 0.0, per_handover: float = 0.0, warm: float = 20.0) -> list[Sample]:
    """Samples of a run of 20 minutes: processes that warm up, and grow, and inherit."""
    choice = random.Random(2)
    samples = []
    for second in range(1200):
        generation = min(second // 60, successors)
        age_s = second - generation * 60
        rss = 60 + warm * min(age_s, 30) / 30 + per_hour * age_s / 3600 + per_handover * generation + choice.gauss(0, 1)
        samples.append(Sample(float(second), generation, (rss, *OTHERS)))
    return samples


def test_growth_is_told() -> None:
    """More than the limit within the last process, or from one process to the next. Noise and warm-up are no growth."""
    assert not any(row.grows for row in rows(run()))
    for growing in (run(per_hour=60.0), run(per_handover=2.0)):
        judged = rows(growing)
        assert [row.figure.name for row in judged if row.grows] == ["rss"]
        assert "GROWS" in table(judged)[2]
    found = rows(run(per_handover=2.0))[0].per_handover
    assert found is not None
    assert found.low < 2.0 < found.high


def test_successors_are_compared_at_the_same_age() -> None:
    """The first process started otherwise, and the last one lives longer: neither is compared. Too few successors give no slope."""
    samples = run(per_handover=1.0)
    means = at_the_same_age(generations(samples))
    assert len(means) == 9
    assert [mean[0] for mean in means] == pytest.approx([80 + number for number in range(1, 10)], abs=1)
    assert rows(run(successors=3))[0].per_handover is None


def test_a_last_process_that_lives_too_short_has_no_slope() -> None:
    """A busy machine delays the hand-overs, down to the end of the run."""
    samples = run(successors=19)
    judged = rows(samples)
    assert judged[0].per_hour is None
    assert judged[0].per_handover is not None
    assert "| none | none |" in table(judged)[2]
    assert "per hour" not in draw(samples, judged, [], "")


def test_the_plot() -> None:
    """It is well-formed, small enough for a document, and has a curve for each process and a line for each fault."""
    samples = run()
    done = [(60.0 * number, "hand-over") for number in range(1, 11)] + [(100.0, "broker"), (130.0, "cut")]
    text = draw(samples, rows(samples), done, "make soak <SEED> & more")
    picture = ElementTree.fromstring(text)
    styles = [element.get("class") for element in picture.iter()]
    panels = 3
    assert styles.count("curve") == panels * 11
    assert (styles.count("handover"), styles.count("broker"), styles.count("fault")) == (panels * 10 + 1, panels + 1, panels + 1)
    assert len(text) < 60_000
    long = [Sample(at * 24.0, 0, each.values) for at, each in enumerate(samples)]
    assert "hours" in draw(long, rows(long), [], "")


def test_the_plan_comes_from_the_seed() -> None:
    """All hand-overs are in the first half, and the broker restarts every ten minutes. Another seed gives another plan."""
    weather = Weather.plan(3600.0, 7)
    assert weather == Weather.plan(3600.0, 7) != Weather.plan(3600.0, 8)
    assert weather == sorted(weather)
    kinds = [kind for _, kind in weather]
    assert (kinds.count("hand-over"), kinds.count("broker")) == (HANDOVERS, 6)
    assert max(at_s for at_s, kind in weather if kind == "hand-over") <= 1800
    assert [int(at_s / 600) for at_s, kind in weather if kind == "broker"] == list(range(6))
    assert set(kinds) == set(Weather.KINDS)


@pytest.mark.parametrize("arguments", [["--minutes", "9"], ["--hours", "0"], ["--hours", "1", "--minutes", "60"], ["--minutes", "x"]])
def test_a_length_that_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is wrong. Nothing is started."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("script/soak: error:")


@pytest.mark.timeout(600)  # the run waits for each step
def test_a_short_soak(brokers: Brokers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of the real run, with each fault. The sampler follows the process, and nobody loses an event."""
    plan = [(1.0, "hand-over"), (1.1, "storm"), (1.2, "cut"), (1.3, "silence"), (1.4, "delay"), (1.5, "hand-over"), (1.6, "broker")]
    with ExitStack() as leave:
        case = Case("soak", "suite/soak", tmp_path, brokers, lambda _text: None, leave)
        api = leave.enter_context(plain_http())
        samples, done, broken = soak(case, 5, api, Screen(), seed=1, clients=60, plan=plan)
    assert broken == []
    assert [kind for _, kind in done] == [kind for _, kind in plan]
    assert {sample.generation for sample in samples} == {0, 1, 2}
    assert {len(sample.values) for sample in samples} == {len(FIGURES)}
    text = capsys.readouterr().out
    assert re.search(
        r"^[\d,]+ events, [\d,]+ received; [\d,]+ connections; 2 hand-overs, 1 broker restarts, 4 other faults$", text, re.MULTILINE
    )
