"""The parent's admin port and its port of `monitor`: they answer for all workers.

path                                        | answer
/healthz                                    | 200 while the parent's event loop runs
/readyz                                     | 200 if a worker accepts clients, and each one that does gets events
/status                                     | totals, and an entry for each worker
/metrics                                    | the workers' samples, each with the label `worker`, and those of the parent
/publish                                    | the answer of one worker: the broker brings the event to all of them
/disconnect                                 | the number of connections that all workers closed. One of them then tells the other daemons
/restart                                    | the figures, after one worker after the other has handed over to a new process
/probe                                      | the answer of the worker that got the handshake
/live, /live/topics                         | the answer of one worker
/workers/N/…                                | the answer of worker N's own admin port: its console is at /workers/N/
the console's paths                         | 501, since the console shows one process

A question to a worker has a deadline. The figures leave out a worker that does not answer, and name it. A worker that moves its connections
to a new process does not read its admin port. It still serves its clients, so it counts as ready, and its last known figures are used.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import wraps
from math import inf
from typing import Any, Final, NamedTuple, cast

from twisted.internet.defer import Deferred, DeferredList, TimeoutError  # noqa: A004 - Twisted's own
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request

from towerws import __version__
from towerws.admin.console import CONSOLE_PATHS
from towerws.admin.endpoint import Answer, Endpoint, EndpointSite, HttpError, body_of, check_browser, details_check, json_answer
from towerws.admin.health import healthy, limited_site
from towerws.admin.metrics import CONTENT_TYPE, RECENT_S
from towerws.admin.site import ENVELOPE_BYTES, restart_daemon, revocation_of
from towerws.core.errors import TowerwsError
from towerws.core.publication import Outcome
from towerws.core.settings import Settings
from towerws.core.sources import SourceState
from towerws.workers.answers import MergedMetrics, NoAnswer, ask, merge_explanations, total
from towerws.workers.processes import MOVE_S, Processes, State, Worker

ASK_S: Final = 2.0
"""Deadline of a question about figures."""

PASS_S: Final = 60.0
"""Deadline of a request that is passed on. A worker's own deadlines are shorter: it waits some 10 s for its broker."""

LAST_KNOWN_S: Final = 120.0
"""Highest age of figures that replace those of a worker during its hand-over. Prometheus may scrape once a minute: two intervals."""

EXPLAIN_S: Final = 110.0
"""Deadline of `/console/explain`: a worker may ask AWX about ten connections, each for at most 10 s."""

END_S: Final = 30.0
"""How long a restart waits, beyond `drain_s`, until a process that has handed over has ended. The parent kills it before, at `LEAVE_S`."""

START_CHECK_S: Final = 0.1
"""Interval between two checks whether a worker that starts accepts clients."""

PASSED_HEADERS: Final = (b"host", b"origin", b"sec-fetch-site", b"content-type", b"idempotency-key")

_is_worker_path = re.compile(rb"/workers/([0-9]{1,3})(/.*)", re.DOTALL).fullmatch


def _answers(make: Callable[..., Coroutine[Any, Any, Answer]]) -> Callable[..., Deferred[Answer]]:
    """Make a coroutine function return a Deferred, as `Endpoint` needs it. An `HttpError` becomes its answer in JSON."""

    @wraps(make)
    def answer(*arguments: Any) -> Deferred[Answer]:
        def failed(failure: Failure) -> Answer:
            failure.trap(HttpError)
            error: Any = failure.value
            return json_answer(error.status, {"error": str(error)})

        return Deferred.fromCoroutine(make(*arguments)).addErrback(failed)

    return answer


class RestartFailed(TowerwsError):
    """Not every worker has handed over. The text is the reason, for the operator."""


class ParentPorts:
    """Answers on the parent's two ports: `admin` and `monitor` are their sites. `stopping` tells whether the daemon stops."""

    _log = Logger()

    def __init__(self, settings: Settings, reactor: Any, processes: Processes, stopping: Callable[[], bool]) -> None:
        self.restart_s, self.drain_s = settings.restart_s, settings.websocket.drain_s
        """The highest values among the workers' settings. The supervisor sets them after a reload."""
        self._reactor = reactor
        self._processes = processes
        self._stopping = stopping
        self._metrics = MergedMetrics(processes.workers)
        self._started_at = reactor.seconds()
        self.restarting = False
        """Whether a restart of all workers is under way."""
        self._last_known: dict[tuple[int, bytes], _Known] = {}
        """The last answers, by the worker's number and the path."""

        def get(answer: Callable[[Request], Answer | Deferred[Answer]]) -> Endpoint:
            return Endpoint(b"GET", answer, check_browser)

        def post(answer: Callable[[Request], Answer | Deferred[Answer]]) -> Endpoint:
            return Endpoint(b"POST", answer, check_browser)

        endpoints = {path: (post if path == b"console/connections/end" else get)(self._no_console) for path in CONSOLE_PATHS}
        # A worker shows details to every client of its UNIX socket. So the parent checks who may see them.
        self._check_passed = details_check(shown=settings.admin_details)
        endpoints[b"console/explain"] = Endpoint(b"GET", self._explain, self._check_passed)
        endpoints |= {path: get(self._pass_to_one) for path in (b"live.css", b"live.js")}
        endpoints |= {path: Endpoint(b"GET", self._pass_to_one, self._check_passed) for path in (b"live", b"live/topics")}
        endpoints |= {
            b"healthz": get(lambda request: healthy()),
            b"readyz": get(lambda request: self._answer_readiness()),
            b"status": get(lambda request: self._status()),
            b"metrics": get(lambda request: self._present_metrics()),
            b"publish": post(self._pass_to_one),
            b"disconnect": post(self._disconnect),
            b"restart": post(lambda request: restart_daemon(self.restart)),
            b"probe": post(self._probe),
        }
        self.admin = _ParentSite(
            endpoints,
            passed=self._pass_to_named,
            check_passed=self._check_passed,
            help_text="try /healthz, /readyz, /status, /metrics, /publish, /disconnect, /restart, or a worker's paths below /workers/1/",
            max_body_bytes=settings.max_payload_bytes + ENVELOPE_BYTES,
            check=check_browser,
        )
        ready = _Recent(reactor.seconds, self._public_readiness)
        metrics = _Recent(reactor.seconds, self._present_metrics)
        self.monitor = limited_site({b"readyz": ready.answer, b"metrics": metrics.answer})

    def restart(self) -> Deferred[dict[str, object]]:
        """Make one worker after the other hand over. Fires with the figures. Fails with `RestartFailed` if not all workers have."""
        return Deferred.fromCoroutine(self._restart())

    # figures

    async def _gather(
        self, path: bytes, workers: Sequence[Worker], method: bytes = b"GET", body: bytes = b"", deadline_s: float = ASK_S
    ) -> dict[int, Answer | NoAnswer]:
        """Ask these workers concurrently. Returns the answers by the worker's number."""

        def failed(failure: Failure) -> NoAnswer:
            failure.trap(NoAnswer)
            return cast(NoAnswer, failure.value)

        asked = [ask(self._reactor, worker, path, deadline_s=deadline_s, method=method, body=body).addErrback(failed) for worker in workers]
        answers = await DeferredList(asked, fireOnOneErrback=True, consumeErrors=True)
        return {worker.number: answer for worker, (_, answer) in zip(workers, answers, strict=True)}

    async def _figures(self, path: bytes, workers: Sequence[Worker]) -> tuple[dict[int, Answer | NoAnswer], set[int]]:
        """Ask these workers for figures. Returns the answers, and the numbers of those whose answer is the last known one."""
        asked_at = self._reactor.seconds()
        pids = {worker.number: worker.pid for worker in workers}
        answers = await self._gather(path, workers)
        now = self._reactor.seconds()
        last_known = set()
        for worker in workers:
            place = worker.number, path
            answer, known = answers[worker.number], self._last_known.get(place)
            if isinstance(answer, Answer):
                self._last_known[place] = _Known(pids[worker.number], now, answer)
            elif (
                worker.moves_until >= asked_at and known is not None and known.pid == pids[worker.number] and now - known.at <= LAST_KNOWN_S
            ):
                answers[worker.number] = known.answer
                last_known.add(worker.number)
        return answers, last_known

    async def _readiness(self) -> dict[str, object]:
        """Return the body of `/readyz`: ready if a worker accepts clients, and each worker that does gets events."""
        now = self._reactor.seconds()
        serving = self._processes.serving
        answers = await self._gather(b"/readyz", [worker for worker in serving if worker.moves_until <= now])
        moving = [
            worker.number
            for worker in serving
            if worker.state is State.SERVING and worker.moves_until >= now and not isinstance(answers.get(worker.number), Answer)
        ]
        found = {number: _json(answer) for number, answer in answers.items()} | {number: {"ready": True} for number in moving}
        late = {number: each for number, each in found.items() if each.get("ready") is not True}
        workers = [
            {
                "worker": worker.number,
                "ready": worker.number in found and worker.number not in late,
                "process": worker.state.value,
                "last_known": worker.number in moving,
            }
            for worker in self._processes.workers
        ]
        unproven = list(dict.fromkeys(text for each in found.values() for text in each.get("unproven") or ()))
        more: dict[str, object] = {"workers": workers, **({"unproven": unproven} if unproven else {})}
        if self._stopping():
            return {"ready": False, "state": SourceState.STOPPED.value, "reason": "the daemon is stopping", **more}
        if late:
            number, worst = next(iter(late.items()))
            said = worst.get("reason", "gets no events")
            reason = said if said.startswith("worker ") else f"worker {number}: {said}"
            return {"ready": False, "state": worst.get("state", SourceState.CONNECTING.value), "reason": reason, **more}
        if not found:
            return {"ready": False, "state": SourceState.CONNECTING.value, "reason": "no worker accepts clients", **more}
        return {"ready": True, "state": SourceState.CONSUMING.value, **more}

    @_answers
    async def _answer_readiness(self) -> Answer:
        found = await self._readiness()
        return json_answer(200 if found["ready"] else 503, found)

    @_answers
    async def _public_readiness(self) -> Answer:
        """Answer `/readyz` on the port of `monitor`, which may be public, so without reasons."""
        ready = (await self._readiness())["ready"]
        return json_answer(200 if ready else 503, {"ready": ready})

    @_answers
    async def _status(self) -> Answer:
        workers = [worker for worker in self._processes.workers if worker.pid]
        asked = Deferred.fromCoroutine(self._readiness())  # concurrently: a worker that hangs costs one deadline and not two
        answers, last_known = await self._figures(b"/status", workers)
        readiness = await asked
        found = {number: _json(answer) for number, answer in answers.items() if isinstance(answer, Answer) and answer.status == 200}
        figures = total(list(found.values()))
        sums = figures if isinstance(figures, dict) else {}
        source = {**(sums.get("source") or {}), "state": readiness["state"], "reason": readiness.get("reason")}
        entries = [
            {
                **worker.figures(),
                "error": _error(answers.get(worker.number)),
                "last_known": worker.number in last_known,
                "status": found.get(worker.number),
            }
            for worker in self._processes.workers
        ]
        head = {"version": __version__, "pid": os.getpid(), "uptime_s": round(self._reactor.seconds() - self._started_at, 1)}
        return json_answer(200, {**sums, **head, "source": source, "workers": entries})

    @_answers
    async def _present_metrics(self) -> Answer:
        answers, _ = await self._figures(b"/metrics", [worker for worker in self._processes.workers if worker.pid])
        texts = {str(number): each.body for number, each in answers.items() if isinstance(each, Answer) and each.status == 200}
        return Answer(200, self._metrics.present(texts), CONTENT_TYPE)

    # requests that a worker answers

    def _no_console(self, request: Request) -> Answer:
        count = len(self._processes.workers)
        raise HttpError(501, f"this path shows one process, and there are {count} workers: ask /workers/1/ to /workers/{count}/")

    @_answers
    async def _pass_to_one(self, request: Request) -> Answer:
        """Pass a request on to the first worker that answers. This is the same one each time, so published events keep their order."""
        last = NoAnswer("no worker accepts clients; try again in a moment", sent=False)
        for worker in self._processes.serving:
            try:
                return await self._pass(worker, request, request.path)
            except NoAnswer as error:
                last = error
                if error.sent and request.method == b"POST":
                    text = f"unknown, the event may have been published: {error}; repeat it with the same message_id"
                    return json_answer(504, {"outcome": Outcome.UNKNOWN.value, "published": False, "error": text})
        return json_answer(503, {"error": str(last)})

    @_answers
    async def _pass_to_named(self, request: Request) -> Answer:
        """Pass a request below `/workers/N` on to worker N."""
        number, path = _worker_path(request)
        worker = next((each for each in self._processes.workers if each.number == number), None)
        if worker is None:
            raise HttpError(404, f"there is no worker {number}: they are 1 to {len(self._processes.workers)}")
        try:
            return await self._pass(worker, request, path)
        except NoAnswer as error:
            return json_answer(503, {"error": str(error)})

    def _pass(self, worker: Worker, request: Request, path: bytes) -> Deferred[Answer]:
        query = request.uri.partition(b"?")[2]
        headers = {name: value for name in PASSED_HEADERS if (value := request.getHeader(name)) is not None}
        method = b"GET" if request.method == b"HEAD" else request.method
        deadline_s = self.restart_s + MOVE_S if path == b"/restart" else PASS_S
        return ask(
            self._reactor,
            worker,
            path + (b"?" + query if query else b""),
            deadline_s=deadline_s,
            method=method,
            body=body_of(request),
            headers=headers,
        )

    # requests that all workers answer

    @_answers
    async def _disconnect(self, request: Request) -> Answer:
        """End the connections on each worker. Then one worker tells all daemons, which includes the workers once more."""
        body = body_of(request)
        revocation_of(body)  # answers 400 before any worker is asked
        answers = await self._post_to_all(b"/disconnect/here", body)
        closed = sum(_count(_json(answer), "disconnected") for answer in answers.values())
        silent = [str(answer) for answer in answers.values() if isinstance(answer, NoAnswer) and answer.sent]
        for worker in self._processes.serving:
            try:
                told = await ask(self._reactor, worker, b"/disconnect", deadline_s=PASS_S, method=b"POST", body=body)
            except NoAnswer as error:
                silent.append(str(error))
                continue
            found = _json(told)
            return json_answer(told.status, {**found, "disconnected": closed + _count(found, "disconnected")})
        silent.append("no worker could tell the other daemons")
        return json_answer(503, {"disconnected": closed, "others_told": False, "error": "; ".join(dict.fromkeys(silent))})

    @_answers
    async def _probe(self, request: Request) -> Answer:
        """Ask each worker about the doctor's handshake, and answer for the one that got it."""
        answers = await self._post_to_all(b"/probe", body_of(request))
        whole = [answer for answer in answers.values() if isinstance(answer, Answer)]
        if not whole:
            return json_answer(503, {"error": "no worker answers"})
        return next((answer for answer in whole if _json(answer).get("seen") is not None), whole[0])

    @_answers
    async def _explain(self, request: Request) -> Answer:
        """Ask each worker: each one knows its own connections."""
        query = request.uri.partition(b"?")[2]
        workers = [worker for worker in self._processes.workers if worker.pid]
        answers = await self._gather(b"/console/explain?" + query, workers, deadline_s=EXPLAIN_S)
        found = {number: _json(answer) for number, answer in answers.items() if isinstance(answer, Answer) and answer.status == 200}
        others = {number: answer for number, answer in answers.items() if number not in found}
        if refused := next((each for each in others.values() if isinstance(each, Answer) and each.status == 400), None):
            return refused
        silent = [_error(answer) or f"worker {number} can't say it" for number, answer in others.items()]
        if not found:
            return json_answer(503, {"error": "; ".join(silent) or "no worker has a process; try again in a moment"})
        return json_answer(200, merge_explanations(found, silent))

    async def _post_to_all(self, path: bytes, body: bytes) -> dict[int, Answer | NoAnswer]:
        workers = [worker for worker in self._processes.workers if worker.pid]
        return await self._gather(path, workers, method=b"POST", body=body)

    async def _restart(self) -> dict[str, object]:
        if self.restarting:
            raise RestartFailed("a restart is under way already")
        if self._stopping():
            raise RestartFailed("no restart is needed: this daemon stops")
        self.restarting = True
        replaced: list[dict[str, object]] = []
        closed: Counter[str] = Counter()
        results: Counter[str] = Counter()
        try:
            for worker in self._processes.workers:
                if not await self._is_serving(worker):
                    continue  # a worker without a process starts with the new program and configuration anyway
                figures = await self._restart_one(worker)
                closed.update(figures["closed"])
                results.update(figures["results"])
                replaced.append({"worker": worker.number, **{name: figures[name] for name in ("pid", "moved", "seconds")}})
        except TowerwsError as error:
            done = ", ".join(str(each["worker"]) for each in replaced)
            text = f"{error}; {f'replaced before that: worker {done}' if done else 'no worker was replaced before that'}"
            self._log.error("restart failed: {reason}", reason=text)
            raise RestartFailed(text) from None
        finally:
            self.restarting = False
        if not replaced:
            raise RestartFailed("no worker has a process; each one starts with the new program and configuration anyway")
        self._log.info("restart: replaced workers: {workers}", workers=", ".join(str(each["worker"]) for each in replaced))
        moved = sum(_count(each, "moved") for each in replaced)
        seconds = sum(float(str(each["seconds"])) for each in replaced)
        figures = {"results": dict(results), "seconds": round(seconds, 3), "moved": moved, "closed": dict(closed)}
        return {"pid": os.getpid(), **figures, "workers": replaced}

    async def _is_serving(self, worker: Worker) -> bool:
        """Return whether a worker can hand over. Wait for one that starts, since it may have read the old configuration.

        Raises `RestartFailed` after `restart_s`.
        """
        give_up = self._reactor.seconds() + self.restart_s
        while worker.state is State.STARTING:
            if self._reactor.seconds() > give_up:
                raise RestartFailed(f"worker {worker.number}: it starts, and has accepted no client within {self.restart_s:g} s")
            await deferLater(self._reactor, START_CHECK_S)
        return worker.state is State.SERVING

    async def _restart_one(self, worker: Worker) -> dict[str, Any]:
        """Make a worker hand over, and wait until its old process has ended. Returns the figures. Raises `TowerwsError`."""
        old = worker.pid
        answer = await ask(self._reactor, worker, b"/restart", deadline_s=self.restart_s + MOVE_S, method=b"POST")
        found = _json(answer)
        if answer.status != 200:
            raise RestartFailed(f"worker {worker.number}: {found.get('error')}")
        self._processes.move_to(worker, int(found["pid"]))
        end_s = self.drain_s + END_S
        try:
            await self._processes.when_left(worker, old).addTimeout(end_s, self._reactor)
        except TimeoutError:
            text = f"worker {worker.number}: process {found['pid']} took over, but the old process {old} has not ended within {end_s:g} s"
            raise RestartFailed(text) from None
        return found


class _Known(NamedTuple):
    """An answer of a worker's process, and when it arrived, in monotonic seconds."""

    pid: int
    at: float
    answer: Answer


class _ParentSite(EndpointSite):
    """Serves the parent's own paths, and those of each worker below `/workers/N`."""

    noisy = False

    def __init__(
        self,
        endpoints: Mapping[bytes, Endpoint],
        *,
        passed: Callable[[Request], Deferred[Answer]],
        check_passed: Callable[[Request], None],
        **more: Any,
    ) -> None:
        super().__init__(endpoints, **more)
        self._passed = passed
        self._check_passed = check_passed

    def getResourceFor(self, request: Request) -> IResource:
        """Return the endpoint of a path."""
        if _is_worker_path(request.path) is None:
            return super().getResourceFor(request)
        return Endpoint(b"GET" if request.method == b"HEAD" else request.method, self._passed, self._check_passed)


class _Recent:
    """Caches an answer for `RECENT_S`. Requests that arrive while it is made share it. So many requests cause few questions to workers."""

    def __init__(self, clock: Callable[[], float], make: Callable[[], Deferred[Answer]]) -> None:
        self._clock = clock
        self._make = make
        self._made_at = -inf
        self._answer: Answer | None = None
        self._waiting: list[Deferred[Answer]] = []

    def answer(self) -> Answer | Deferred[Answer]:
        """Return an answer that is at most `RECENT_S` old."""
        if self._answer is not None and self._clock() - self._made_at < RECENT_S:
            return self._answer
        waits: Deferred[Answer] = Deferred()
        self._waiting.append(waits)
        if len(self._waiting) == 1:
            self._make().addBoth(self._made)
        return waits

    def _made(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, []
        if isinstance(result, Answer):
            self._made_at, self._answer = self._clock(), result
        for each in waiting:
            each.callback(result)


def _worker_path(request: Request) -> tuple[int, bytes]:
    match = _is_worker_path(request.path)
    assert match is not None
    return int(match[1]), match[2]


def _json(answer: object) -> dict[str, Any]:
    """Return the JSON object of a worker's answer, empty if it is none. For a `NoAnswer`, return an object with the reason."""
    if not isinstance(answer, Answer):
        return {"reason": str(answer), "error": str(answer)}
    try:
        found = json.loads(answer.body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _count(found: Mapping[str, object], key: str) -> int:
    value = found.get(key)
    return value if isinstance(value, int) else 0


def _error(answer: object) -> str | None:
    return str(answer) if isinstance(answer, NoAnswer) else None
