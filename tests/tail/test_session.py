from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.client.items import as_groups
from towerws.demo.events import events
from towerws.tail.session import DEFAULT_TOPICS, FOLLOWING_NEEDS, MAX_FOLLOWED, Following


def status(job_id: int, word: str, kind: str | None = "job") -> dict[str, object]:
    """A status message."""
    return {"unified_job_id": job_id, "status": word, **({} if kind is None else {"type": kind})}


@each_row(
    ("kind", "topic"),
    [
        ("job", "job_events.7"),
        ("project_update", "project_update_events.7"),
        ("inventory_update", "inventory_update_events.7"),
        ("ad_hoc_command", "ad_hoc_command_events.7"),
        ("workflow_job", "workflow_events.7"),
        (None, "system_job_events.7"),
    ],
)
def test_each_kind_has_its_output(kind: str | None, topic: str) -> None:
    """A job that starts is followed on its kind's group."""
    following = Following(DEFAULT_TOPICS, follow=True)
    following.saw("jobs.status_changed", status(7, "pending", kind))
    assert following.topics == (*DEFAULT_TOPICS, topic)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_all_output_is_followed(seed: int) -> None:
    """Over many events, each is on a followed topic when it comes, and only running jobs are followed."""
    following = Following(DEFAULT_TOPICS, follow=True)
    for event in islice(events(seed, datetime(2026, 1, 1, tzinfo=UTC)), 1500):
        assert event.topic in following.topics
        following.saw(event.topic, json.loads(event.payload))
        assert len(following.topics) <= len(DEFAULT_TOPICS) + 12


def test_summary_may_overtake() -> None:
    """Output that comes after the summary is waited for: the summary has the last counter."""
    following = Following((), follow=True)
    following.saw("jobs.status_changed", status(7, "running"))
    following.saw("job_events.7", {"counter": 1})
    following.saw("jobs.summary", {"unified_job_id": 7, "final_counter": 2})
    assert "job_events.7" in following.topics
    following.saw("job_events.7", {"counter": 2})
    assert following.topics == FOLLOWING_NEEDS


@each_row("value", [[], {}, True, 1.5])
@each_row("key", ["type", "unified_job_id", "status"])
def test_a_status_of_another_shape(key: str, value: object) -> None:
    """A payload may have any JSON value under each key. A job is followed only if all three are what AWX sends."""
    following = Following(DEFAULT_TOPICS, follow=True)
    following.saw("jobs.status_changed", {**status(7, "running"), key: value})
    assert following.topics == DEFAULT_TOPICS


def test_bounded() -> None:
    """Jobs that never end: one too many drops the oldest."""
    following = Following((), follow=True)
    for number in range(MAX_FOLLOWED + 5):
        following.saw("jobs.status_changed", status(number, "running"))
    assert len(following.topics) == len(FOLLOWING_NEEDS) + MAX_FOLLOWED
    assert "job_events.4" not in following.topics
    assert "job_events.5" in following.topics


def test_not_following() -> None:
    """Without follow, the topics are those of the command line."""
    following = Following(["jobs.status_changed", "job_events.3"], follow=False)
    following.saw("jobs.status_changed", status(7, "running"))
    assert following.topics == ("jobs.status_changed", "job_events.3")


@given(
    st.sampled_from(["jobs.status_changed", "jobs.summary", "job_events.7"]),
    st.recursive(st.none() | st.integers() | st.text() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["type", "status", "unified_job_id", "final_counter", "counter"]), inner)),
)  # fmt: skip
def test_any_payload(topic: str, payload: object) -> None:
    """A payload of any shape is taken without an error."""
    following = Following((), follow=True)
    following.saw("jobs.status_changed", status(7, "running"))
    following.saw(topic, payload)
    assert set(FOLLOWING_NEEDS) <= set(following.topics)


def test_request() -> None:
    """Topics are asked for by group."""
    assert as_groups(["jobs.summary", "job_events.42", "jobs.status_changed"]) == {
        "jobs": ["summary", "status_changed"],
        "job_events": ["42"],
    }
