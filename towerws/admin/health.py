"""`/healthz` and `/readyz`: on the admin port with the reason, and without it on the port of `monitor`, which may be public."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from zope.interface import implementer

from towerws.admin.endpoint import Answer, Endpoint, EndpointSite, json_answer
from towerws.admin.metrics import MetricsPage
from towerws.core.sources import SourceStatus

MAX_PROBES = 32
"""Most connections to the port of `monitor`. They use descriptors that clients can't use (process.py, RESERVED_DESCRIPTORS)."""

PROBE_S = 10
"""Seconds that a probe's connection may be silent."""

REPORT_EVERY_S = 60.0
"""Shortest time between two log lines about too many connections."""


def healthy() -> Answer:
    """Answer 200: the event loop runs."""
    return json_answer(200, {"healthy": True})


def readiness(status: SourceStatus) -> Answer:
    """Answer 200 while the source consumes, otherwise 503. The answer has the reason, which may name machines."""
    answer: dict[str, object] = {"ready": status.ready, "state": status.state.value}
    if status.reason is not None:
        answer["reason"] = status.reason
    if status.unproven:
        answer["unproven"] = status.unproven
    return json_answer(200 if status.ready else 503, answer)


def monitor_site(source_status: Callable[[], SourceStatus], metrics: MetricsPage) -> WrappingFactory:
    """Return the site of the port of `monitor`.

    That port may be public. It gives no reasons, and changes nothing, so any Host and Origin may ask. Its metrics name no machine, client
    or topic. Any number of requests causes at most one scrape in `RECENT_S`.
    """

    def ready() -> Answer:
        is_ready = source_status().ready
        return json_answer(200 if is_ready else 503, {"ready": is_ready})

    return limited_site({b"readyz": ready, b"metrics": metrics.recent})


def limited_site(answers: Mapping[bytes, Callable[[], Answer | Deferred[Answer]]]) -> WrappingFactory:
    """Return a site with `/healthz` and these paths, for at most `MAX_PROBES` connections at a time."""

    def get(answer: Callable[[], Answer | Deferred[Answer]]) -> Endpoint:
        return Endpoint(b"GET", lambda request: answer())

    endpoints = {b"healthz": get(healthy), **{path: get(answer) for path, answer in answers.items()}}
    return _ProbeLimit(_MonitorSite(endpoints, help_text="try /healthz, /readyz or /metrics", max_body_bytes=0, timeout_s=PROBE_S))


class _MonitorSite(EndpointSite):
    """The paths of the port of `monitor`."""

    noisy = False


@implementer(IProtocolNegotiationFactory)
class _ProbeLimit(WrappingFactory):
    """Allows `MAX_PROBES` connections. One more ends the oldest.

    A probe is answered at once, so the oldest connection belongs to a silent or slow client. Such clients must not keep probes out: an
    orchestrator would restart a healthy daemon.
    """

    noisy = False
    _log = Logger()
    _reported_at = -inf

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols for TLS to choose from (ALPN, RFC 7301), as the wrapped site does."""
        return [b"http/1.1"]

    def registerProtocol(self, p: Any) -> None:
        """Add a new connection, and end the oldest one if there are too many."""
        super().registerProtocol(p)
        if len(self.protocols) > MAX_PROBES:
            oldest = next(iter(self.protocols))
            del self.protocols[oldest]
            self._report()
            oldest.transport.abortConnection()

    def unregisterProtocol(self, p: Any) -> None:
        """Remove a closed connection. `registerProtocol` has removed one that it ended."""
        self.protocols.pop(p, None)

    def _report(self) -> None:
        now = self.wrappedFactory.reactor.seconds()
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            self._log.warn("the port of monitor has {most} connections: each further one ends the oldest", most=MAX_PROBES)
