"""The topics that `towerws tail` subscribes to: those of the command line, and the output of running jobs.

A job's output is followed from the job's first status until its last output event. AWX's summary has the number of output events,
but it may overtake some of them (docs/awx-contract.md, section 2.3). So both the summary and the counters are watched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_TOPICS = ("jobs.status_changed", "jobs.summary", "schedules.changed", "inventories.status_changed")
FOLLOWING_NEEDS = ("jobs.status_changed", "jobs.summary")

MAX_FOLLOWED = 200
"""Jobs followed at once. One more drops the oldest: a connection may have 1,000 topics."""

OUTPUT_GROUPS: dict[object, str] = {
    "job": "job_events",
    "project_update": "project_update_events",
    "inventory_update": "inventory_update_events",
    "ad_hoc_command": "ad_hoc_command_events",
    "workflow_job": "workflow_events",
    None: "system_job_events",
}
"""From the `type` in a status message to the group of the job's output. System jobs have no type. Approvals have no output."""

_RUNNING = frozenset({"pending", "waiting", "running"})
_ENDED = frozenset({"successful", "failed", "error", "canceled"})


@dataclass(slots=True)
class _Job:
    """A job that is followed: the highest counter seen, and the last counter, once the summary has come."""

    highest_counter: int = 0
    final_counter: int | None = None
    ended: bool = False


class Following:
    """The topics (routing keys) to subscribe to. `saw` changes them by the events that arrive."""

    def __init__(self, topics: Iterable[str], *, follow: bool) -> None:
        self._given = dict.fromkeys(topics)
        if follow:
            self._given |= dict.fromkeys(FOLLOWING_NEEDS)
        self._follow = follow
        self._jobs: dict[str, _Job] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics, those of the command line first."""
        return (*self._given, *(topic for topic in self._jobs if topic not in self._given))

    def saw(self, topic: str, payload: object) -> None:
        """Follow or drop a job by an event that arrived. Accepts a payload of any shape."""
        if not self._follow or not isinstance(payload, dict):
            return
        if topic == "jobs.status_changed":
            self._saw_status(payload)
        elif topic == "jobs.summary":
            job_id, final = payload.get("unified_job_id"), payload.get("final_counter")
            for group in OUTPUT_GROUPS.values():
                if (job := self._jobs.get(f"{group}.{job_id}")) is not None:
                    job.final_counter = final if isinstance(final, int) else 0
                    self._drop_complete(f"{group}.{job_id}", job)
        elif (job := self._jobs.get(topic)) is not None and isinstance(counter := payload.get("counter"), int):
            job.highest_counter = max(job.highest_counter, counter)
            self._drop_complete(topic, job)

    def _saw_status(self, payload: dict[str, object]) -> None:
        kind, job_id, status = payload.get("type"), payload.get("unified_job_id"), payload.get("status")
        if not isinstance(kind, str | None) or kind not in OUTPUT_GROUPS or not isinstance(job_id, int) or isinstance(job_id, bool):
            return
        topic = f"{OUTPUT_GROUPS[kind]}.{job_id}"
        if status in _RUNNING:
            self._jobs.setdefault(topic, _Job())
            while len(self._jobs) > MAX_FOLLOWED:
                del self._jobs[next(iter(self._jobs))]
        elif status in _ENDED and (job := self._jobs.get(topic)) is not None:
            job.ended = True
            if kind == "workflow_job":
                job.final_counter = 0  # workflows have no summary, and their jobs ended before them
            self._drop_complete(topic, job)

    def _drop_complete(self, topic: str, job: _Job) -> None:
        if job.final_counter is not None and (job.ended or job.highest_counter >= job.final_counter):
            del self._jobs[topic]


def as_groups(topics: Iterable[str]) -> dict[str, list[str]]:
    """Return the `groups` of a request for these topics."""
    groups: dict[str, list[str]] = {}
    for topic in topics:
        group, _, event = topic.partition(".")
        groups.setdefault(group, []).append(event)
    return groups
