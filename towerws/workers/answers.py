"""Asks the workers on their admin ports, and puts their figures together.

Each question has its own connection to the worker's UNIX socket, a deadline, and a bound on the answer. No HTTP client is needed, because
both ends are ours: a worker always sends a Content-Length, and closes the connection after its answer. `total` makes the totals for
`/status`. `MergedMetrics` makes one text for `/metrics` in which each sample has the label `worker`. `merge_explanations` makes
one answer about a user and a topic.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from towerws.admin.endpoint import Answer
from towerws.core.errors import TowerwsError
from towerws.websocket.inspection import Step, connected, verdict
from towerws.workers.processes import State, Worker

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Longest answer that is read."""

MAX_HEAD_BYTES: Final = 16 * 1024

_read_status = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ").match
_find_length = re.compile(rb"\r\ncontent-length: *([0-9]{1,12})\r\n", re.IGNORECASE).search
_find_type = re.compile(rb"\r\ncontent-type: *([ -~]{1,200})\r\n", re.IGNORECASE).search

_find_allow = re.compile(rb"\r\nallow: *([A-Z, ]{1,100})\r\n", re.IGNORECASE).search

READ_BY_EACH: Final = ("source", "control", "ingest", "history", "reloads")
"""Sections of `/status` that are nearly equal in all workers, since each reads the whole log. Their totals are the highest values."""

WRITTEN_BY_EACH: Final = (("ingest", "delivery_s"), ("ingest", "write_s"), ("ingest", "publish_s"))
"""Paths of the figures in `ingest` that measure a worker's writes to its own clients. Their totals are sums, as in the other sections."""

HIGHEST: Final = (("hub", "topics"), ("handovers", "seconds"), ("connections", "rechecks", "late_s"))
"""Paths of figures of the other sections whose total is the highest value. A sum would count a topic once for each worker.

Names would not do: the counters by reason use the same names as keys.
"""

LABEL: Final = "worker"
PARENT: Final = "parent"
"""The label of each merged sample, and its value for the parent's own process."""


class NoAnswer(TowerwsError):
    """A worker did not answer. `sent` tells whether the worker may have got the question."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


def ask(
    reactor: Any,
    worker: Worker,
    path: bytes,
    *,
    deadline_s: float,
    method: bytes = b"GET",
    body: bytes = b"",
    headers: Mapping[bytes, bytes] | None = None,
) -> Deferred[Answer]:
    """Send a question to a worker. Fires with the answer, fails with `NoAnswer`. `path` includes the query."""
    lines = {b"host": b"localhost", **(headers or {}), b"connection": b"close", b"content-length": b"%d" % len(body)}
    head = b"".join(b"%s: %s\r\n" % line for line in lines.items())
    exchange = _Exchange(worker, b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, path, head, body))
    try:
        connector = reactor.connectUNIX(worker.membership.admin_path, _Factory(exchange), timeout=deadline_s)
    except OSError as error:  # this process has no descriptor left for the socket
        exchange.fail(f"can't be asked: {error.strerror}")
        return exchange.answer

    def late() -> None:
        exchange.fail(f"did not answer within {deadline_s:g} s")
        connector.disconnect()

    timer = reactor.callLater(deadline_s, late)

    def stop(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        return result

    return exchange.answer.addBoth(stop)


class _Exchange(Protocol):
    """One question, and its answer."""

    transport: Any

    def __init__(self, worker: Worker, question: bytes) -> None:
        self.answer: Deferred[Answer] = Deferred()
        self._worker = worker
        self._question = question
        self._received = bytearray()
        self._sent = False

    def fail(self, why: str) -> None:
        """Fail with `NoAnswer`, unless the exchange has ended already."""
        if not self.answer.called:
            self.answer.errback(NoAnswer(f"worker {self._worker.number} {why}", sent=self._sent))

    def connectionMade(self) -> None:
        """Send the question."""
        self._sent = True
        self.transport.write(self._question)
        self._question = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece of the answer. A longer answer than `MAX_ANSWER_BYTES` fails the exchange."""
        self._received += data
        if len(self._received) > MAX_ANSWER_BYTES:
            self.fail(f"answered more than {MAX_ANSWER_BYTES} bytes")
            self._received.clear()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Read the answer, which ends with the connection. Fail if the answer is incomplete, because the worker ended."""
        if self.answer.called:
            return
        end = self._received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        head, body = bytes(self._received[: end + 2]), bytes(self._received[end + 4 :])
        status, length = _read_status(head), _find_length(head)
        if end < 0 or status is None or length is None or int(length[1]) != len(body):
            self.fail("closed the connection before its answer was whole")
        else:
            kind, allow = _find_type(head), _find_allow(head)
            self.answer.callback(Answer(int(status[1]), body, kind[1] if kind else b"application/json", allow[1] if allow else b""))


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def buildProtocol(self, addr: object) -> Protocol:
        """Return the exchange."""
        return self._exchange

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """Fail the exchange: no process listens on the socket, or the kernel refuses one more connection."""
        self._exchange.fail(f"can't be asked: {_why_not_connected(reason.value)}")


def _why_not_connected(error: Any) -> str:
    number = getattr(error, "osError", None)
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        return "it has no process, or one that starts"
    if number is not None:
        return os.strerror(number)
    # connect(2) failed with EAGAIN: the accept queue is full (unix(7)). Twisted takes EAGAIN for a connection under way, which then closes.
    return "too many questions wait for it already; try again in a moment"


def total(figures: Sequence[object], path: tuple[str, ...] = (), *, highest: bool = False) -> object:
    """Return the totals of the figures of several workers: sums, or the highest values (`highest`).

    Texts and lists that differ become None. `path` has the keys of `/status` that lead to these figures.
    """
    present = [each for each in figures if each is not None]
    if not present:
        return None
    if all(isinstance(each, Mapping) for each in present):
        keys = dict.fromkeys(key for each in present for key in each)  # type: ignore[attr-defined]  # a mapping
        return {
            key: total(
                [each.get(key) for each in present],  # type: ignore[attr-defined]  # a mapping
                (*path, key),
                highest=key in READ_BY_EACH if not path else highest and (*path, key) not in WRITTEN_BY_EACH,
            )
            for key in keys
        }
    if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in present):
        if highest or path in HIGHEST:
            return max(present)  # type: ignore[type-var]  # numbers
        return round(sum(present), 3)  # type: ignore[arg-type]  # numbers
    return present[0] if all(each == present[0] for each in present) else None


def merge_explanations(found: Mapping[int, Mapping[str, Any]], silent: Sequence[str]) -> dict[str, object]:
    """Put together the workers' answers of `/console/explain`, by the worker's number. Each connection gets its worker.

    The workers with connections of the user judge the rules of the daemon: without any, all workers do. `silent` has a text for each
    worker that did not answer. Such a worker may have connections of the user.
    """
    counts = {number: len(each["connections"]) + each["more_connections"] for number, each in found.items()}
    judges = [number for number, count in counts.items() if count] or list(found)
    one = found[judges[0]]
    steps: list[Mapping[str, Any]] = []
    for at, step in enumerate(one["steps"][:-1]):
        failed = [number for number in judges if not found[number]["steps"][at]["passes"]]
        if failed and len(failed) < len(judges):
            other = found[failed[0]]["steps"][at]
            steps.append({**other, "text": f"worker {failed[0]}: {other['text']}"})
        else:
            steps.append(step)
    if silent:
        steps.append(Step("every worker answers", passes=None, text="; ".join(silent)).as_json)
    steps.append(connected(one["user"], sum(counts.values())).as_json)
    connections = [{"worker": number, **each} for number in found for each in found[number]["connections"]]
    more = sum(each["more_connections"] for each in found.values())
    return {**one, "steps": steps, "connections": connections, "more_connections": more, "verdict": verdict(steps, connections)}


class OwnMetrics(Collector):
    """The parent's metrics about its workers."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        serving = GaugeMetricFamily("towerws_worker_serving", "1 while the worker accepts clients.", labels=[LABEL])
        starts = CounterMetricFamily(
            "towerws_worker_starts_total", "Processes of the worker: starts, and hand-overs to a new one.", labels=[LABEL]
        )
        for worker in self._workers:
            serving.add_metric([str(worker.number)], int(worker.state is State.SERVING))
            starts.add_metric([str(worker.number)], worker.starts)
        yield from (serving, starts)


class MergedMetrics:
    """Makes the parent's `/metrics`: the workers' samples, the metrics about workers, and those of the parent's process."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._own = CollectorRegistry()
        self._own.register(OwnMetrics(workers))
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)

    def present(self, answers: Mapping[str, bytes]) -> bytes:
        """Return the text of `/metrics`. `answers` has the workers' texts, by the value of their label `worker`."""
        merged: dict[str, Metric] = {}
        for worker, text in {**answers, PARENT: generate_latest(self._process)}.items():
            for family in text_string_to_metric_families(text.decode()):
                into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                into.samples += [each._replace(labels={LABEL: worker, **each.labels}) for each in family.samples]
        registry = CollectorRegistry()
        registry.register(_Made(list(merged.values())))
        return generate_latest(self._own) + generate_latest(registry)


class _Made(Collector):
    """A collector of metrics that exist already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Sequence[Metric]:
        """Return nothing, so that the registry doesn't check the names. They are unique, since they were keys."""
        return []

    def collect(self) -> Sequence[Metric]:
        """Return the metrics."""
        return self._metrics
