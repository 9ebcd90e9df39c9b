"""One run of `towerws tail`: what it subscribes to, and what it prints of the items and states that `towerws.client` gives.

state of the client | before the first welcome | after it
open                | nothing                  | "connected again", after a lost connection
waiting             | end: no daemon           | "connection lost"
closed              | end: refused, or stopped | end: refused, or stopped

A run subscribes to the topics of the command line, and to the output of running jobs. It follows a job's output from the job's first status
until its last output event. AWX's summary has the number of output events, but the summary may overtake some of them (docs/awx-contract.md,
section 2.3). So a job is complete when its summary has arrived, and either its final status or the last output event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from towerws import __version__
from towerws.client import Client, ClientError, Denied, Event, Gap, StateChange, Subscribed, Subscription, connect
from towerws.client.items import as_groups
from towerws.core.errors import CloseReason
from towerws.core.origins import HOST_REFUSED, ORIGIN_REFUSED
from towerws.core.wire import UNAVAILABLE
from towerws.tail.text import OUTPUT_GROUPS, Printer, json_line, shown

DEFAULT_TOPICS = ("jobs.status_changed", "jobs.summary", "schedules.changed", "inventories.status_changed")
FOLLOWING_NEEDS = ("jobs.status_changed", "jobs.summary")
"""The topics by which a run knows that jobs start and end."""

MAX_FOLLOWED = 200
"""Most jobs that are followed at once. A further one replaces the oldest. A connection may have 1,000 topics."""

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
        """Follow or drop a job, because of an event that arrived. Accepts a payload of any shape."""
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
        if not isinstance(status, str):
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


CLEAN, FAILED, REFUSED = 0, 1, 3
"""Exit codes. 2 is click's, for a wrong command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """The options of the command line. `token` goes into the `Authorization` header. `columns` returns the terminal's width.

    `follow`: whether to follow the output of jobs. `raw`: whether to print frames as JSON.
    """

    url: str
    topics: tuple[str, ...]
    follow: bool
    raw: bool
    colour: bool
    token: str | None = None
    columns: Callable[[], int] | None = None


class Tail:
    """One run of the command, over all its connections.

    `write` gets lines for standard output. If it raises `OSError`, the run ends. `say` gets notices for a person.
    """

    def __init__(self, options: TailOptions, *, write: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._options = options
        self._write = write
        self._say = say
        self._following = Following(options.topics, follow=options.follow)
        self._printer = Printer(colour=options.colour, columns=options.columns)
        self._given = self._following.topics
        self._jobs: dict[str, Subscription] = {}
        self._denied: set[str] = set()
        self._was_welcomed = False
        self._was_answered = False
        self._lost = False
        self._client: Client | None = None
        self._code: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Print events until the run ends. Close the connection, and return the exit code."""
        self._code = asyncio.get_running_loop().create_future()
        self._client = connect(
            self._options.url,
            token=self._options.token,
            onstate=self._changed,
            onerror=self._failed,
            user_agent=f"towerws-tail/{__version__}",
        )
        self._subscribe(self._given)
        try:
            return await self._code
        finally:
            self._client.close()
            await self._client.wait_closed()

    def stop(self) -> None:
        """End the run with the exit code 0."""
        self._end(CLEAN)

    def _end(self, code: int, text: str = "") -> None:
        if self._code is not None and not self._code.done():
            if text:
                self._say(text)
            self._code.set_result(code)

    @property
    def _ended(self) -> bool:
        return self._code is None or self._code.done()

    # the connection comes and goes

    def _changed(self, change: StateChange) -> None:
        self._was_welcomed |= change.state == "open"
        if self._ended or change.reason is None:
            return
        reason, url = change.reason, self._options.url
        said = shown(str(reason).removeprefix("no connection: "))
        if change.state == "closed":
            if reason.said in {HOST_REFUSED, ORIGIN_REFUSED}:
                advice = "`towerws doctor --url`, on the daemon's machine, says what to change"
                self._end(REFUSED, f"towerws: {url} refuses access ({reason.status}): {reason.said}. {advice}")
            elif reason.status in {401, 403} or reason.said == CloseReason.NO_CREDENTIAL.value.reason:
                self._refused(str(reason.status or reason.said))
            elif reason.code == "protocol":
                self._end(FAILED, f"towerws: {url} doesn't speak towerws.v1: is it a towerws daemon? --url names another")
            elif reason.code == "handshake":
                self._no_daemon(said, reason.status)
            else:
                self._end(
                    FAILED,
                    f"towerws: the daemon ended the connection, and accepts no new one: {shown(reason.said) or said}. Its log says more.",
                )
        elif not self._was_welcomed:
            self._no_daemon(said, reason.status)
        elif not self._lost:
            self._lost = True
            self._say(f"connection lost ({said}); reconnecting")

    def _no_daemon(self, why: str, status: int | None) -> None:
        self._end(FAILED, f"towerws: can't connect to {self._options.url}: {why}\n{_next_step(status)}")

    def _refused(self, why: str) -> None:
        advice = "check the token, and whether it has expired" if self._options.token else "give a token with --token"
        self._end(REFUSED, f"towerws: {self._options.url} refuses access ({why}): {advice}")

    def _failed(self, error: ClientError) -> None:
        if self._ended or error.code in {"handshake", "token", "protocol", "authenticate", "stop"}:
            return  # `_changed` reports these errors
        if error.code == "frame":
            self._say(shown(str(error)))
        else:
            self._say(f"the daemon answers {shown(error.code)}: {shown(str(error))}")
            if not self._was_answered:
                self._end(FAILED)

    # topics

    def _subscribe(self, topics: tuple[str, ...], since: str | None = None) -> Subscription:
        assert self._client is not None
        return self._client.subscribe(
            as_groups(topics),
            self._event,
            subscribed=self._online,
            recovered=self._online,
            stale=self._stale,
            gap=self._gap,
            denied=self._topics_denied,
            since=since,
        )

    def _online(self, notice: Subscribed) -> None:
        self._was_answered = True
        if self._lost:
            self._lost = False
            self._say("connected again")

    def _stale(self, notice: Subscribed) -> None:
        self._say("events were missed: the daemon no longer holds them (recovered: false)")
        self._online(notice)

    def _topics_denied(self, notice: Denied) -> None:
        self._was_answered = True
        for item in notice.denied:
            if item.topic not in self._denied:
                self._denied.add(item.topic)
                self._say(f"{shown(item.topic)} denied: {shown(item.reason)}")
        left = set(self._given).difference(notice.topics)  # without them, no event tells of the end of a job
        if not left and UNAVAILABLE not in {item.reason for item in notice.denied}:
            advice = "`towerws explain TOPIC USER`, on the daemon's machine, names the rule"
            self._end(REFUSED, f"towerws: the daemon denies every topic of this command: {advice}")

    def _gap(self, gap: Gap) -> None:
        topics = ", ".join(gap.topics[:5]) + (" …" if len(gap.topics) > 5 else "")
        self._say(f"gap ({shown(gap.reason)}): events were lost on {shown(topics)}")

    def _event(self, event: Event) -> None:
        if self._ended:
            return
        payload: Any = event.payload
        if event.text is not None:
            try:
                payload = json.loads(event.text)  # with NaN, which the client leaves out
            except (ValueError, RecursionError):
                # The daemon doesn't change payloads, and json.loads refuses some, such as an integer of 5,000 digits.
                self._say("skipped an event that is not JSON")
                return
        lines = [json_line(event.frame)] if self._options.raw else self._printer.lines(time.strftime("%H:%M:%S"), event.topic, payload)
        try:
            self._write("\n".join(lines) + "\n")
        except BrokenPipeError:
            self._end(CLEAN)
            return
        except OSError as error:  # such as a full disk
            self._end(FAILED, f"towerws: can't write: {error.strerror or error}")
            return
        self._following.saw(event.topic, payload)
        self._follow_jobs(event.position)

    def _follow_jobs(self, position: str | None) -> None:
        """Subscribe to the output of jobs that have started, and end the subscriptions to jobs that have ended.

        The first lines of a job may arrive before the daemon has asked AWX whether this user may see the job. So the subscription begins at
        `position`, which is that of the event that named the job.
        """
        wanted = dict.fromkeys(self._following.topics[len(self._given) :])
        for topic in self._jobs.keys() - wanted.keys():
            self._jobs.pop(topic).close()
        for topic in wanted:
            if topic not in self._jobs:
                self._jobs[topic] = self._subscribe((topic,), position)


def _next_step(status: int | None) -> str:
    if status is None:
        return (
            "Is the daemon up, and is that its address? `twistd -n towerws --broker embedded: --auth open` starts one, --url names another."
        )
    if status == 503:
        return "The daemon can't accept a client now: try again shortly, or look at its log."
    return "No daemon answers there: the URL's path must end in /websocket/, and a proxy must pass upgrades on."
