"""The short selection of `make stress`, and the program that runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import benchmarks.__main__ as benchmarks
from tests.faults import soak
from tests.faults.__main__ import Plan, Result, choose, load, main, markdown, plain_table
from tests.faults.case import Brokers, Case
from tests.faults.judge import Tally
from tests.faults.scenario import Outcome
from tests.kit.rows import each_row

SHORT = [name for name, scenario in load().items() if scenario.short]


@pytest.mark.parametrize("name", SHORT)
def test_the_promises_hold(name: str, brokers: Brokers, tmp_path: Path) -> None:
    """The docstring of each scenario describes its injection."""
    said: list[str] = []
    with ExitStack() as leave:
        outcome = load()[name].run(Case(name, f"suite/{name}", tmp_path, brokers, said.append, leave))
    assert not outcome.broken, [*outcome.broken, *outcome.notes]
    assert outcome.tally.events > 0


def test_every_scenario_says_what_it_shows() -> None:
    """The docstring names promise, injection and counts."""
    for scenario in load().values():
        assert "Promise:" in scenario.text, scenario.name
        assert "Injected:" in scenario.text, scenario.name
        assert "Counted:" in scenario.text, scenario.name


@each_row(
    ("run", "script"),
    [(main, "script/stress"), (soak.main, "script/soak"), (benchmarks.main, "script/bench")],
    ids=["stress", "soak", "bench"],
)
def test_the_usage_names_the_form_that_works(
    run: Callable[[], object], script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script sets the path of the modules that start a broker. `python -m` alone does not find them."""
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit):
        run()
    assert capsys.readouterr().out.startswith(f"usage: {script} ")


def test_list_and_globs(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` shows what `--only` selects. A pattern without a match is an error."""
    assert main(["--list", "--only", "broker-stop-?s,link-cuts"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "broker-stop-1s",
        "broker-stop-2s",
        "broker-stop-5s",
        "link-cuts",
    ]
    with pytest.raises(SystemExit, match="no scenario matches 'nonsense'"):
        choose(["nonsense"])


def test_the_plan_for_two_lanes() -> None:
    """The cluster's scenarios are in one lane. Scenarios that must run alone come last. Each run is planned once."""
    scenarios = list(load().values())
    plan = Plan(scenarios, 2, lanes=2)
    second = [plan.take(1) for _ in range(3)]
    first = list(iter(lambda: plan.take(0), None))
    alone = list(iter(plan.take_alone, None))
    assert plan.take(1) is None
    everything = [run for run in second if run] + first + alone
    assert sorted((each.name, repeat) for each, repeat in everything) == sorted(
        (each.name, repeat) for each in scenarios for repeat in (0, 1)
    )
    clusters = [each.cluster for each, _ in first]
    assert clusters == sorted(clusters, reverse=True)
    assert not any(run and run[0].cluster for run in second)
    assert [each.alone for each, _ in alone] == [True] * len(alone)
    assert not any(each.alone for each, _ in first)


def test_the_plan_for_one_lane() -> None:
    """All runs keep their order."""
    scenarios = list(load().values())
    plan = Plan(scenarios, 1, lanes=1)
    assert [each for each, _ in iter(lambda: plan.take(0), None)] == scenarios
    assert plan.take_alone() is None


def test_a_plan_that_is_stopped() -> None:
    """No further run starts."""
    plan = Plan(list(load().values()), 1, lanes=2)
    plan.stop()
    assert plan.take(0) is plan.take(1) is plan.take_alone() is None


def test_the_table() -> None:
    """Each run is a line, in plain text and in Markdown. Broken promises are listed below."""
    good = Result("calm", "1/0/calm", Outcome("nothing", Tally(clients=3, events=1234)), 2.4)
    bad = Result("storm", "1/0/storm", Outcome("a | b", Tally(lost=5), broken=["5 events lost"]), 10)
    none = Result("cluster", "1/0/cluster", Outcome(), 0, "debootstrap is missing")
    assert (good.verdict, bad.verdict, none.verdict) == ("ok", "BROKEN", "missing")
    assert "1,234" in plain_table([good, bad, none]).splitlines()[1]
    text = markdown([good, bad, none], 1, 3)
    assert "| storm | a \\| b |" in text
    assert "**storm** (seed `1/0/storm`)\n\n- 5 events lost" in text
