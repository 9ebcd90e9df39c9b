"""Puts the workers' figures together: totals for `/status`, and one text for `/metrics` in which each sample has the label `worker`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from towerws.workers.processes import State, Worker

READ_BY_EACH: Final = ("source", "control", "ingest", "history", "reloads")
"""Sections of `/status` that say the same in each worker, since each reads the whole log. Their totals are the highest values."""

WRITTEN_BY_EACH: Final = (("ingest", "delivery_s"), ("ingest", "write_s"), ("ingest", "publish_s"))
"""What `ingest` measures of a worker's own writes to its clients: added, like the other sections."""

HIGHEST: Final = (("hub", "topics"), ("handovers", "seconds"), ("connections", "rechecks", "late_s"))
"""Figures of the other sections whose total is the highest value: a sum would count a topic once for each worker.

They are paths: the counters by reason have keys of the same names.
"""

LABEL: Final = "worker"
PARENT: Final = "parent"


def total(figures: Sequence[object], path: tuple[str, ...] = (), *, highest: bool = False) -> object:
    """Add the figures of several workers. Texts and lists that differ become None. `path` has the keys that lead to them."""
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
    """Makes the parent's `/metrics`: what the workers answered, and the figures of the parent and its process."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._own = CollectorRegistry()
        self._own.register(OwnMetrics(workers))
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)

    def present(self, answers: Mapping[str, bytes]) -> bytes:
        """Return one text. `answers` has the workers' texts by the value of the label."""
        merged: dict[str, Metric] = {}
        for worker, text in {**answers, PARENT: generate_latest(self._process)}.items():
            for family in text_string_to_metric_families(text.decode()):
                into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                into.samples += [each._replace(labels={LABEL: worker, **each.labels}) for each in family.samples]
        registry = CollectorRegistry()
        registry.register(_Made(list(merged.values())))
        return generate_latest(self._own) + generate_latest(registry)


class _Made(Collector):
    """Metrics that are made already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Sequence[Metric]:
        """Return nothing: names are unique by construction."""
        return []

    def collect(self) -> Sequence[Metric]:
        """Return the metrics."""
        return self._metrics
