"""An endless sequence of AWX-like events of several jobs at once. The same seed gives the same sequence.

The sequence uses no clock and no I/O. The events follow AWX's rules (docs/awx-contract.md, section 2), in the shapes of AWX 9.1.1
and later:

- A job's status is pending, waiting, running, and then a final one.
- A job's output events count from 1 without a gap, and say which lines they cover.
- A summary with the last counter follows the last output event.
- The status of a workflow's job is also published on the workflow's own topic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

from towerws.demo import job_output
from towerws.demo.job_output import Output

CONCURRENT = 4
"""Jobs and workflows that run at any time."""

MAX_PAUSE = 4.0
"""The longest pause between two events, as a multiple of the mean pause. Without it an exponential distribution is unbounded."""

_Payload = dict[str, object]
_Step = tuple[str, _Payload]


@dataclass(frozen=True, slots=True)
class DemoEvent:
    """One event: the seconds since the event before it, its routing key, and its payload as AWX encodes it."""

    delay_s: float
    topic: str
    payload: bytes


def _silent(rng: Random) -> Iterator[Output]:
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of unified job: its `type` (None for system jobs), its output, and the group of its output events.

    `fields` are those that only this kind's status messages have. `waits`: whether a job of this kind has the status `waiting`.
    """

    type: str | None
    template_id: int | None
    fields: tuple[tuple[str, object], ...] = ()
    waits: bool = True
    outputs: Callable[[Random], Iterator[Output]] = _silent
    group: str = ""
    parent: str = ""
    """The field of an output event that has the job's id."""
    event_url: str = ""


_JOB = _Kind(
    type="job",
    template_id=9,
    outputs=job_output.playbook,
    group="job_events",
    parent="job",
    event_url="/api/v2/job_events/{}",
)
_PROJECT_UPDATE = _Kind(
    type="project_update",
    template_id=6,
    fields=(("project_id", 6),),
    outputs=job_output.project_update,
    group="project_update_events",
    parent="project_update",
)
_INVENTORY_UPDATE = _Kind(
    type="inventory_update",
    template_id=8,
    fields=(("inventory_source_id", 8), ("inventory_id", 2)),
    outputs=job_output.inventory_update,
    group="inventory_update_events",
    parent="inventory_update",
)
_AD_HOC_COMMAND = _Kind(
    type="ad_hoc_command",
    template_id=None,
    waits=False,
    outputs=job_output.ad_hoc_command,
    group="ad_hoc_command_events",
    parent="ad_hoc_command",
    event_url="/api/v2/ad_hoc_command_events/{}",
)
_SYSTEM_JOB = _Kind(type=None, template_id=1, waits=False, outputs=job_output.system_job, group="system_job_events", parent="system_job")
_WORKFLOW_JOB = _Kind(type="workflow_job", template_id=12)
_APPROVAL = _Kind(type="workflow_approval", template_id=15)


def events(seed: int, now: datetime, rate: float = 10.0) -> Iterator[DemoEvent]:
    """Yield events for ever, on average `rate` per second. The first is dated `now` (UTC). Raises `ValueError` if `rate` isn't above 0."""
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate {rate}: must be a number of events per second above 0")
    return _events(Random(seed), now, rate)  # noqa: S311 - it has to be repeatable


def _events(rng: Random, now: datetime, rate: float) -> Iterator[DemoEvent]:
    awx = _Awx(rng, now)
    running: list[Iterator[_Step]] = []
    delay_s = 0.0
    while True:
        while len(running) < CONCURRENT:
            running.append(awx.start())
        job = rng.choice(running)
        if (step := next(job, None)) is None:
            running.remove(job)
            continue
        topic, payload = step
        yield DemoEvent(delay_s, topic, json.dumps(payload).encode("ascii"))
        delay_s = min(rng.expovariate(rate), MAX_PAUSE / rate)
        awx.now += timedelta(seconds=delay_s)


class _Awx:
    """Makes the messages of jobs. All jobs share the random numbers, the date, and the counters of ids, as in AWX's database."""

    def __init__(self, rng: Random, now: datetime) -> None:
        self.rng = rng
        self.now = now
        self._job_id = rng.randrange(1_000, 900_000)  # two demos on one broker have different jobs
        self._event_id = self._job_id * 1_000

    def start(self) -> Iterator[_Step]:
        """Return the messages of a new job, a new workflow or a rarer change: pairs of a routing key and a payload."""
        chance = self.rng.random()
        if chance < 0.5:
            return self._job(_JOB)
        if chance < 0.62:
            return self._job(_PROJECT_UPDATE)
        if chance < 0.74:
            return self._job(_INVENTORY_UPDATE)
        if chance < 0.84:
            return self._job(_AD_HOC_COMMAND)
        if chance < 0.92:
            return self._workflow()
        if chance < 0.95:
            return self._job(_SYSTEM_JOB)
        return self._schedule() if chance < 0.98 else self._inventory_deletion()

    def _new_job_id(self) -> int:
        self._job_id += 1
        return self._job_id

    def _status(self, job_id: int, status: str, kind: _Kind, extra: _Payload | None = None) -> _Payload:
        payload: _Payload = {"unified_job_id": job_id, "status": status}
        if status in {"successful", "failed", "canceled"}:
            payload["finished"] = self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if status == "waiting":
            payload["instance_group_name"] = "tower"
        if kind.type is not None:
            payload["type"] = kind.type
        payload |= extra or {}
        payload |= dict(kind.fields)
        payload["group_name"] = "jobs"
        if kind.template_id is not None:
            payload["unified_job_template_id"] = kind.template_id
        return payload

    def _job(self, kind: _Kind, extra: _Payload | None = None) -> Iterator[_Step]:
        job_id = self._new_job_id()
        for status in ("pending", "waiting", "running") if kind.waits else ("pending", "running"):
            yield "jobs.status_changed", self._status(job_id, status, kind, extra)
        counter, failed = 0, False
        for payload in self._output(job_id, kind):
            counter += 1
            failed = failed or payload["failed"] is True
            yield f"{kind.group}.{job_id}", payload
        yield "jobs.summary", {"group_name": "jobs", "unified_job_id": job_id, "final_counter": counter}
        yield "jobs.status_changed", self._status(job_id, "failed" if failed else "successful", kind, extra)

    def _output(self, job_id: int, kind: _Kind) -> Iterator[_Payload]:
        line = 0
        latest: dict[str, str] = {}  # the uuid of the newest event of each type, as the parent of later events
        for counter, output in enumerate(kind.outputs(self.rng), 1):
            self._event_id += 1
            uuid = str(UUID(int=self.rng.getrandbits(128), version=4))
            parent = latest.get(_PARENTS.get(output.event, "playbook_on_task_start"), "") if kind is _JOB else ""
            latest[output.event] = uuid
            date = self.now.isoformat(timespec="microseconds")
            start, line = line, line + count_lines(output.stdout)
            yield {
                "id": self._event_id,
                kind.parent: job_id,
                "created": date,
                "modified": date,
                "group_name": kind.group,
                "url": kind.event_url.format(self._event_id),
                "stdout": output.stdout,
                "counter": counter,
                "uuid": uuid,
                "parent_uuid": parent,
                "start_line": start,
                "end_line": line,
                "event": output.event,
                "event_data": output.data,
                "failed": output.failed,
                "changed": output.changed,
                "event_level": output.level,
                "play": output.play,
                "role": output.role,
                "task": output.task,
            }

    def _workflow(self) -> Iterator[_Step]:
        job_id = self._new_job_id()
        yield "jobs.status_changed", self._status(job_id, "pending", _WORKFLOW_JOB)
        yield "jobs.status_changed", self._status(job_id, "running", _WORKFLOW_JOB)
        failed = False
        for node in (101, 102, 103):
            extra: _Payload = {"workflow_job_id": job_id, "workflow_node_id": node}
            for topic, payload in self._approval(extra) if node == 102 else self._job(_JOB, extra):
                yield topic, payload
                if topic == "jobs.status_changed":
                    template = payload["unified_job_template_id"]
                    copy = {**payload, "group_name": "workflow_events", "workflow_job_template_id": template}
                    yield f"workflow_events.{job_id}", copy
                    failed = payload["status"] == "failed"
            if failed:
                break
        yield "jobs.status_changed", self._status(job_id, "failed" if failed else "successful", _WORKFLOW_JOB)

    def _approval(self, extra: _Payload) -> Iterator[_Step]:
        job_id = self._new_job_id()
        yield "jobs.status_changed", self._status(job_id, "pending", _APPROVAL, extra)
        answer = "failed" if self.rng.random() < 0.1 else "successful"
        yield "jobs.status_changed", self._status(job_id, answer, _APPROVAL, extra)

    def _schedule(self) -> Iterator[_Step]:
        yield "schedules.changed", {"id": self.rng.randint(1, 9), "group_name": "schedules"}
        yield from self._job(_JOB)

    def _inventory_deletion(self) -> Iterator[_Step]:
        inventory_id = self.rng.randint(3, 99)
        for status in ("pending_deletion", "deleted"):
            yield "inventories.status_changed", {"group_name": "inventories", "inventory_id": inventory_id, "status": status}


# The type of the parent event, by the type of the event. All other events have the newest task as their parent.
_PARENTS = {
    "playbook_on_start": "",
    "deprecated": "",
    "playbook_on_play_start": "playbook_on_start",
    "playbook_on_task_start": "playbook_on_play_start",
    "playbook_on_no_hosts_remaining": "playbook_on_play_start",
    "playbook_on_stats": "playbook_on_start",
}


def count_lines(stdout: str) -> int:
    """Count the lines of a piece of output as AWX does: a last line without a newline counts."""
    return stdout.count("\n") + (stdout != "" and not stdout.endswith("\n"))
