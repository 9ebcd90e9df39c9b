from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from itertools import islice
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.topics import parse_routing_key
from towerws.demo.events import DemoEvent, count_lines, events

NOW = datetime(2026, 3, 11, 14, 2, tzinfo=UTC)
ORDER = {"pending": 0, "waiting": 1, "running": 2, "successful": 3, "failed": 3}

seeds = st.integers(0, 2**32)

Seen = list[tuple[str, dict[str, Any]]]
"""The topics and payloads of a run."""


def play(seed: int, count: int = 600, rate: float = 10.0) -> list[DemoEvent]:
    """The first `count` events."""
    return list(islice(events(seed, NOW, rate), count))


def payloads(seed: int, count: int = 600) -> Seen:
    """Their topics and payloads."""
    return [(event.topic, json.loads(event.payload)) for event in play(seed, count)]


def topics_and_group_names(seen: Seen) -> None:
    """Every event is on a topic that can be subscribed to, and repeats its group in `group_name`."""
    for topic, payload in seen:
        assert payload["group_name"] == parse_routing_key(topic).group


def output_has_no_holes(seen: Seen) -> None:
    """A job's counters are 1, 2, 3. Each event's lines begin where those of the event before it ended."""
    counters: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    for topic, payload in seen:
        if "counter" not in payload:
            continue
        counters[topic] += 1
        assert payload["counter"] == counters[topic]
        assert payload["start_line"] == lines[topic]
        assert payload["end_line"] - payload["start_line"] == count_lines(payload["stdout"])
        lines[topic] = payload["end_line"]
        group, _, job = topic.partition(".")
        assert payload[group.removesuffix("_events")] == int(job)


def a_summary_closes_the_output(seen: Seen) -> None:
    """A summary's `final_counter` is the last counter of its job, and no output follows it."""
    counters: dict[int, int] = defaultdict(int)
    ended: set[int] = set()
    for topic, payload in seen:
        if "counter" in payload:
            job = int(topic.partition(".")[2])
            assert job not in ended
            counters[job] = payload["counter"]
        elif topic == "jobs.summary":
            assert payload["final_counter"] == counters[payload["unified_job_id"]]
            ended.add(payload["unified_job_id"])


def statuses_go_forward(seen: Seen) -> None:
    """A job is announced as pending, prints only while it runs, and ends once, with a date."""
    status: dict[int, str] = {}
    for topic, payload in seen:
        if topic == "jobs.status_changed":
            job = payload["unified_job_id"]
            assert ORDER[payload["status"]] > (ORDER[status[job]] if job in status else -1)
            assert ("finished" in payload) == (ORDER[payload["status"]] == 3)
            status[job] = payload["status"]
        elif "counter" in payload:
            assert status[int(topic.partition(".")[2])] == "running"


def workflows_follow_their_jobs(seen: Seen) -> None:
    """Each status of a workflow's job comes again on the workflow's topic."""
    for index, (topic, payload) in enumerate(seen[:-50]):
        if topic == "jobs.status_changed" and "workflow_job_id" in payload:
            copy = {**payload, "group_name": "workflow_events", "workflow_job_template_id": payload["unified_job_template_id"]}
            assert (f"workflow_events.{payload['workflow_job_id']}", copy) in seen[index:]


@settings(max_examples=30)
@given(seeds)
def test_each_run(seed: int) -> None:
    """Each promise about the events, for any seed. They share its events: making those takes most of the time."""
    seen = payloads(seed)
    for holds in (
        topics_and_group_names,
        output_has_no_holes,
        a_summary_closes_the_output,
        statuses_go_forward,
        workflows_follow_their_jobs,
    ):
        holds(seen)


@settings(max_examples=30)
@given(seeds)
def test_same_seed_same_events(seed: int) -> None:
    """A seed decides all events. Payloads are ASCII, as AWX encodes them."""
    first = play(seed, 100)
    assert first == play(seed, 100)
    assert all(event.payload == json.dumps(json.loads(event.payload)).encode("ascii") for event in first)


def test_every_kind_shows_up() -> None:
    """Every kind of message that AWX sends to its pages comes, and some jobs fail."""
    seen = payloads(7, 20_000)
    assert {topic.partition(".")[0] for topic, _ in seen} == {
        "jobs",
        "job_events",
        "project_update_events",
        "inventory_update_events",
        "ad_hoc_command_events",
        "system_job_events",
        "workflow_events",
        "schedules",
        "inventories",
    }
    assert {payload.get("type") for topic, payload in seen if topic == "jobs.status_changed"} == {
        "job",
        "project_update",
        "inventory_update",
        "ad_hoc_command",
        "workflow_job",
        "workflow_approval",
        None,
    }
    assert any(payload.get("status") == "failed" for _, payload in seen)


@each_row("rate", [0.5, 10, 1000])
def test_rate(rate: float) -> None:
    """`rate` is the average, and no pause is longer than four mean ones."""
    delays = [event.delay_s for event in play(3, 4000, rate)]
    assert fmean(delays) * rate == pytest.approx(1, rel=0.1)
    assert max(delays) <= 4 / rate


@each_row("rate", [0, -1, float("inf"), float("nan")])
def test_impossible_rate(rate: float) -> None:
    """An impossible rate is refused at once."""
    with pytest.raises(ValueError, match="rate"):
        events(1, NOW, rate)
