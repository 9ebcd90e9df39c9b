from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor

from tests.kit.rows import each_row
from towerws.admin import MetricsPage
from towerws.workers.answers import MergedMetrics, NoAnswer, ask, merge_explanations, total
from towerws.workers.processes import State, Worker
from towerws.workers.worker import Membership


def runs(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test in the reactor."""
    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(test))


async def why_no_answer(folder: Path, deadline_s: float = 5) -> str:
    """Ask worker 1, whose socket is in this folder. Returns why there is no answer."""
    with pytest.raises(NoAnswer) as found:
        await ask(reactor, Worker(Membership(1, 2, str(folder), 1, 0)), b"/status", deadline_s=deadline_s)
    assert found.value.sent is ("within" in str(found.value))
    return str(found.value)


@runs
async def test_why_there_is_no_answer(tmp_path: Path) -> None:
    """The text has the reason: it decides what the operator does."""
    no_process = "worker 1 can't be asked: it has no process, or one that starts"
    assert await why_no_answer(tmp_path) == no_process
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(f"{tmp_path}/admin-1")
        assert await why_no_answer(tmp_path) == no_process
        worker.listen(0)
        assert await why_no_answer(tmp_path, 0.1) == "worker 1 did not answer within 0.1 s"
        assert await why_no_answer(tmp_path) == "worker 1 can't be asked: too many questions wait for it already; try again in a moment"
    assert await why_no_answer(tmp_path) == no_process


@runs
async def test_a_question_without_a_descriptor(tmp_path: Path) -> None:
    """The parent's own limit is not the worker's fault."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(f"{tmp_path}/admin-1")
        worker.listen()
        resource.setrlimit(resource.RLIMIT_NOFILE, (worker.fileno(), limits[1]))
        try:
            assert await why_no_answer(tmp_path) == "worker 1 can't be asked: Too many open files"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@each_row(
    ("parts", "expected"),
    [
        ([{"hub": {"gaps": 1}}, {"hub": {"gaps": 2}}], {"hub": {"gaps": 3}}),
        ([{"hub": {"topics": 4}}, {"hub": {"topics": 3}}], {"hub": {"topics": 4}}),
        (
            [{"handovers": {"seconds": 0.4, "moved": 2}}, {"handovers": {"seconds": 0.3, "moved": 1}}],
            {"handovers": {"seconds": 0.4, "moved": 3}},
        ),
        (
            [{"connections": {"rechecks": {"late_s": 4}}}, {"connections": {"rechecks": {"late_s": 3}}}],
            {"connections": {"rechecks": {"late_s": 4}}},
        ),
        # The same names are keys of counters, too.
        (
            [{"connections": {"limits": {"topics": 4}}}, {"connections": {"limits": {"topics": 3}}}],
            {"connections": {"limits": {"topics": 7}}},
        ),
        (
            [{"connections": {"refused_for": {"topics": 4}}}, {"connections": {"refused_for": {"topics": 3}}}],
            {"connections": {"refused_for": {"topics": 7}}},
        ),
        (
            [{"published": {"write_s": 4, "source": 1}}, {"published": {"write_s": 3, "source": 1}}],
            {"published": {"write_s": 7, "source": 2}},
        ),
        ([{"source": {"failed": {"write_s": 2}}}, {"source": {"failed": {"write_s": 3}}}], {"source": {"failed": {"write_s": 3}}}),
        (
            [{"ingest": {"received": 5, "skipped": {"a": 1}}}, {"ingest": {"received": 7, "skipped": {"b": 2}}}],
            {"ingest": {"received": 7, "skipped": {"a": 1, "b": 2}}},
        ),
        ([{"ingest": {"write_s": {"sum": 2}}}, {"ingest": {"write_s": {"sum": 3}}}], {"ingest": {"write_s": {"sum": 5}}}),
        ([{"version": "1"}, {"version": "1"}], {"version": "1"}),
        ([{"version": "1"}, {"version": "2"}], {"version": None}),
        ([{"control": None}, {"control": {"state": "listening"}}], {"control": {"state": "listening"}}),
        (
            [{"connections": {"refused_for": {}}}, {"connections": {"refused_for": {"user": 2}}}],
            {"connections": {"refused_for": {"user": 2}}},
        ),
        ([{"process": {"s": {"sum": 0.1}}}, {"process": {"s": {"sum": 0.2}}}], {"process": {"s": {"sum": 0.3}}}),
        ([{"control": {"proven": True}}, {"control": {"proven": False}}], {"control": {"proven": None}}),
        ([], None),
    ],
)
def test_totals(parts: list[dict[str, Any]], expected: object) -> None:
    """Counts are added. What each worker reads of the same log is not counted twice."""
    assert total(parts) == expected


def step(rule: str, *, passes: bool | None = True, text: str = "so") -> dict[str, Any]:
    """A rule of an explanation."""
    return {"rule": rule, "passes": passes, "text": text}


def said(*connections: tuple[int, bool], more: int = 0, source: bool = True) -> dict[str, Any]:
    """What one worker says of user 7: its connections, and whether each gets the topic."""
    rule = "events come from the source"
    steps = [step("a client may ask for this topic"), step(rule, passes=source, text="it consumes" if source else "it connects")]
    return {
        "user": "7",
        "topic": "jobs.summary",
        "steps": [*steps, step("the user is connected to this daemon", passes=bool(connections))],
        "connections": [{"connection": number, "steps": [step("the client has subscribed", passes=gets)]} for number, gets in connections],
        "more_connections": more,
        "verdict": {},
    }


@each_row(
    ("found", "silent", "expected"),
    [
        ({1: said(), 2: said()}, [], {"rule": "the user is connected to this daemon", "passes": False}),
        ({1: said(), 2: said((5, True))}, [], {"rule": "the client has subscribed", "passes": True, "connection": 5, "worker": 2}),
        (
            {1: said((5, True)), 2: said((5, False))},
            [],
            {"rule": "the client has subscribed", "passes": False, "connection": 5, "worker": 2},
        ),
        ({1: said(source=False), 2: said((5, True))}, [], {"passes": True, "worker": 2}),
        ({1: said((4, True), source=False), 2: said((5, True))}, [], {"passes": False, "text": "worker 1: it connects"}),
        ({1: said((4, True), source=False), 2: said()}, [], {"passes": False, "text": "it connects"}),
        ({1: said(source=False), 2: said()}, [], {"passes": False, "text": "worker 1: it connects"}),
        ({1: said(source=False), 2: said(source=False)}, [], {"passes": False, "text": "it connects"}),
        ({1: said()}, ["worker 2 did not answer within 110 s"], {"passes": None, "text": "worker 2 did not answer within 110 s"}),
        ({1: said((5, True))}, ["worker 2 did not answer within 110 s"], {"rule": "every worker answers", "passes": None}),
        ({1: said(source=False)}, ["worker 2 did not answer within 110 s"], {"passes": False, "text": "it connects"}),
    ],
)
def test_one_verdict_of_several_workers(found: dict[int, dict[str, Any]], silent: list[str], expected: dict[str, object]) -> None:
    """The workers with connections of the user judge. A worker that does not answer may have some, so nothing is concluded."""
    verdict: Any = merge_explanations(found, silent)["verdict"]
    assert {key: verdict.get(key) for key in expected} == expected


def test_connections_of_all_workers() -> None:
    """Each has its worker, and the number of all is in the text."""
    merged: Any = merge_explanations({1: said((5, True), more=2), 2: said((5, True), (6, True))}, [])
    assert [(each["worker"], each["connection"]) for each in merged["connections"]] == [(1, 5), (2, 5), (2, 6)]
    assert merged["more_connections"] == 2
    assert merged["steps"][-1]["text"] == "user 7: 5 connections"


def test_each_sample_names_its_worker() -> None:
    """Prometheus can read the text: one HELP and one TYPE for each metric, and no two equal samples."""
    workers = [Worker(Membership(number, 2, "/run/x", 1, 0)) for number in (1, 2)]
    workers[0].state, workers[0].starts = State.SERVING, 3
    figures = {
        "connections": {"present": 5, "closed_for": {"client": 2}},
        "ingest": {"delivery_s": {"buckets": {"1": 1, "+Inf": 2}, "sum": 3}},
    }
    page = MetricsPage(lambda: figures, lambda: 0.0).present().body
    text = MergedMetrics(workers).present({"1": page, "2": page}).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families) == text.count("# TYPE") == text.count("# HELP")
    samples = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(set(samples)) == len(samples)
    assert 'towerws_connections{worker="1"} 5.0' in text
    assert 'towerws_connections_closed_total{reason="client",worker="2"} 2.0' in text
    assert 'towerws_delivery_seconds_bucket{le="+Inf",worker="1"} 2.0' in text
    assert 'towerws_worker_serving{worker="2"} 0.0' in text
    assert 'towerws_worker_starts_total{worker="1"} 3.0' in text
    assert 'process_start_time_seconds{worker="parent"}' in text
