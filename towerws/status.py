"""The figures of `/status` (docs/operations.md explains each), and the measure of how late the reactor runs its timers."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from towerws import __version__
from towerws.core.measurements import SECONDS, Histogram

if TYPE_CHECKING:
    from towerws.service import TowerwsService


def status_figures(service: TowerwsService) -> Mapping[str, object]:
    """Return the state and the counters of a daemon, as JSON-compatible values."""
    source = service.source_status()
    history, hub, ingest, websockets, context = service.history, service.hub, service.ingest, service.websockets, service.context
    watchers = context.credential_monitor.watchers
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(service.uptime_s, 1),
        "reloads": service.reloads.figures(),
        "process": {
            "delayed_calls": service.delayed_calls,
            "full_collections": gc.get_stats()[2]["collections"],
            "reactor_lag_s": service.reactor_lag.histogram.figures(),
        },
        "source": {"state": source.state.value, "reason": source.reason, "unproven": source.unproven, **source.details},
        "control": None
        if service.control_listener is None
        else {**service.control_listener.status, **service.control.counts, "others": service.control.others},
        "ingest": {
            "received": ingest.received,
            "markers": ingest.markers,
            "duplicates": ingest.duplicates,
            "skipped": dict(ingest.bad),
            "offset": ingest.newest,
            "positions_waiting": ingest.waiting,
            "delivery_s": ingest.delivery_s.figures(),
            "write_s": ingest.write_s.figures(),
            "publish_s": ingest.publish_times.figures(),
        },
        "published": dict(service.admin.publishing.counts),
        "history": {
            "deliveries": len(history),
            "bytes": history.weight_bytes,
            "span_s": round(service.history_span_s, 3),
            "position": history.head.position or None,
        },
        "hub": {
            "subscribers": len(hub.subscribers) - watchers,
            "behind": sum(subscriber.behind for subscriber in hub.subscribers),
            "topics": hub.topics - watchers,
            "subscriptions": sum(len(subscriber.topics) for subscriber in hub.subscribers) - watchers,
            **{name: getattr(hub.counters, name) for name in hub.counters.__slots__},
            "batch_sizes": hub.batch_sizes.figures(),
        },
        "compression": {"frames": context.deflater.frames, "bytes": context.deflater.input_bytes, "saved": context.deflater.saved},
        "connections": {
            "present": len(websockets.connections),
            "max": service.max_connections,
            "opened": websockets.opened,
            "closed": websockets.closed,
            "answered": websockets.answered,
            "closed_for": dict(websockets.closed_for),
            "revoked": context.credential_monitor.revoked,
            "rechecks": context.credential_monitor.figures(),
            "limits": dict(context.limit_counts),
            "replays_delayed": context.replays.delays,
            "renewed": context.renewed,
            "accepted": websockets.connection_limits.arrived,
            "accept_pauses": websockets.accept_throttle.pauses,
            "refused": {str(status): count for status, count in websockets.refused.items()},
            "refused_for": dict(websockets.refused_for),
        },
        "handovers": service.restarts.counters.figures(),
        "auth": service.auth.figures(),
        "requests": {"taken": context.requests, "bad": context.bad_requests, "denied_topics": context.denied},
    }


INTERVAL_S = 0.25
"""Time between two samples. Four timers a second cost some 50 µs of CPU. A stall that is longer than this is always seen."""


class ReactorLag:
    """Keeps a timer, and a histogram of the seconds by which it was late."""

    def __init__(self, reactor: Any) -> None:
        self.histogram = Histogram(SECONDS)
        self._reactor = reactor
        self._timer: Any = None
        self._due = 0.0

    def start(self) -> None:
        """Take a sample every `INTERVAL_S` seconds, until `stop`."""
        self._due = self._reactor.seconds() + INTERVAL_S
        self._timer = self._reactor.callLater(INTERVAL_S, self._sample)

    def stop(self) -> None:
        """Take no more samples. A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _sample(self) -> None:
        self.histogram.observe(max(0.0, self._reactor.seconds() - self._due))
        self.start()
