"""`/metrics`: the figures of `/status` in Prometheus' text format. docs/metrics.md lists them, and their names are API.

A scrape reads the figures of `/status`, so a metric costs the daemon nothing between scrapes. A label's value is one of the fixed words
below. Any other word becomes `other`, so no client and no producer can make a new value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from towerws.admin.endpoint import Answer
from towerws.admin.publish import INVALID
from towerws.admin.samples import BREAKERS, Figures, at
from towerws.core.errors import CloseReason
from towerws.core.publication import Outcome
from towerws.core.sources import SourceState

RECENT_S = 1.0
"""How long the port of `monitor` uses an answer again. The port may be public, and many requests must not keep the reactor busy."""

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

OTHER = "other"

PUBLISHED = (*(outcome.value for outcome in Outcome), INVALID)
SKIPPED = ("not_utf8", "not_an_object", "too_deep", "routing_key", "too_large", "withheld")
REFUSED = (
    *("no_credential", "no_token", "credential", "unavailable", "revoked", "throttled", "origin", "host"),
    *("topics", "replay", "not_yet", "connections", "address", "user", "half_open", "request", "tls", "error"),
)
CLOSED = ("client", "lost", "pong_timeout", "protocol", "handed_over", *(reason.name.lower() for reason in CloseReason))
LIMITS = (
    *("assembly_s", "backlog_bytes", "controls_per_s", "distrust", "fragments", "handshake_s", "inbox", "malformed"),
    *("message_bytes", "messages_per_s", "pong_s", "resume_wait_s", "topics"),
)
STATES = tuple(state.value for state in SourceState)
METHODS = ("tower", "jwt", "open")

Samples = Iterable[tuple[tuple[str, ...], object]]
"""Pairs: the values of the labels, and a number. For a histogram, `Histogram.figures` instead of a number. None: there is no sample."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric. `text` is its HELP. `read` finds its samples in the figures of `/status`."""

    name: str
    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    text: str
    read: Callable[[Figures], Samples]
    labels: tuple[str, ...] = ()

    def collect(self, figures: Figures) -> Metric:
        """Return the metric with its samples. Without samples it still has its HELP and TYPE."""
        family = self.kind(self.name, self.text, labels=self.labels)
        for labels, value in self.read(figures):
            if isinstance(family, HistogramMetricFamily):
                if isinstance(value, Mapping):
                    family.add_metric(labels, list(value["buckets"].items()), value["sum"])
            elif isinstance(value, (int, float)):
                family.add_metric(labels, value)
        return family


def _one(path: str) -> Callable[[Figures], Samples]:
    return lambda figures: [((), at(figures, path))]


def _words(path: str, words: Iterable[str]) -> Callable[[Figures], Samples]:
    """Read counts by word: one sample for each listed word, 0 if it has no count. All other words together are the sample `other`."""
    known = tuple(words)

    def read(figures: Figures) -> Samples:
        counts = at(figures, path)
        if not isinstance(counts, Mapping):
            return
        for word in known:
            yield (word,), counts.get(word, 0)
        if rest := sum(count for word, count in counts.items() if word not in known):
            yield (OTHER,), rest

    return read


def _several(paths: Mapping[str, str]) -> Callable[[Figures], Samples]:
    """Read one sample for each value of the label, from its own path in the figures."""
    return lambda figures: [((label,), at(figures, path)) for label, path in paths.items()]


def _pools(figure: str) -> Callable[[Figures], Samples]:
    return _several({"session": f"auth.tower.calls.{figure}", "password": f"auth.tower.calls.passwords.{figure}"})


def _source_state(figures: Figures) -> Samples:
    state = at(figures, "source.state")
    return [((word,), int(word == state)) for word in STATES]


def _source_ready(figures: Figures) -> Samples:
    ready = at(figures, "source.state") == SourceState.CONSUMING.value and at(figures, "source.reason") is None
    return [((), int(ready))]


def _source_unproven(figures: Figures) -> Samples:
    unproven = at(figures, "source.unproven")
    return [((), len(unproven) if isinstance(unproven, (tuple, list)) else 0)]


def _control_listening(figures: Figures) -> Samples:
    state = at(figures, "control.state")
    return [] if state is None else [((), int(state == "listening"))]


def _control_daemons(figures: Figures) -> Samples:
    others = at(figures, "control.others")
    return [((), len(others))] if isinstance(others, (tuple, list)) else []


def _credentials(figures: Figures) -> Samples:
    for method in METHODS:
        for result in ("accepted", "refused", "unavailable"):
            yield (method, result), at(figures, f"auth.{method}.{result}")


def _breakers(figures: Figures) -> Samples:
    for label, path in BREAKERS.items():
        state = at(figures, path)
        if state is not None:
            yield (label,), int(state != "closed")


def _reload_successful(figures: Figures) -> Samples:
    reloads = at(figures, "reloads")
    return [((), int(at(reloads, "last_failure") is None))] if reloads else []


_LIBRARIES = ("towerws", "twisted", "autobahn", "pika")
_VERSIONS = tuple(version(library) for library in _LIBRARIES)


def _build(figures: Figures) -> Samples:
    return [(_VERSIONS, 1)]


_C, _G, _H = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

ENTRIES = (
    # The process.
    Entry("towerws_build_info", _G, "The versions of towerws and of its main libraries. Always 1.", _build, ("version", *_LIBRARIES[1:])),
    Entry("towerws_reactor_lag_seconds", _H, "How late the event loop ran a timer, four samples a second.", _one("process.reactor_lag_s")),
    Entry("towerws_reactor_delayed_calls", _G, "Timers of the event loop.", _one("process.delayed_calls")),
    Entry("towerws_reloads_total", _C, "Reloads by SIGHUP.", _several({"done": "reloads.done", "failed": "reloads.failed"}), ("result",)),
    Entry("towerws_last_reload_successful", _G, "0 while the last reload has failed: the log says what is in force.", _reload_successful),
    Entry(
        "towerws_last_reload_timestamp_seconds",
        _G,
        "When the settings in force were read, at the start or by a reload, in seconds since 1970.",
        _one("reloads.at"),
    ),
    # The source.
    Entry("towerws_source_ready", _G, "1 while events come, as in /readyz.", _source_ready),
    Entry("towerws_source_state", _G, "1 for the state of the source, 0 for the other states.", _source_state, ("state",)),
    Entry("towerws_source_unproven", _G, "Facts that a ready source can't prove. /readyz on the admin port names them.", _source_unproven),
    Entry("towerws_broker_attempts_total", _C, "Attempts to connect to a broker.", _one("source.attempts")),
    Entry("towerws_broker_connects_total", _C, "Connections to a broker that were opened.", _one("source.connects")),
    Entry(
        "towerws_broker_failures_total",
        _C,
        "Connections that were lost, and attempts that failed: many in one long outage.",
        _one("source.failures"),
    ),
    Entry("towerws_broker_channel_failures_total", _C, "Channels that the broker closed.", _one("source.channel_failures")),
    Entry("towerws_broker_messages_total", _C, "Messages from the broker, markers included.", _one("source.deliveries")),
    Entry("towerws_broker_received_bytes_total", _C, "Bytes of the bodies of the broker's messages.", _one("source.bytes")),
    Entry("towerws_broker_acks_total", _C, "Acknowledgements that were sent to the broker.", _one("source.acks")),
    Entry("towerws_broker_damaged_headers_total", _C, "Messages whose AMQP headers are damaged.", _one("source.poison_headers")),
    Entry(
        "towerws_broker_errors_total", _C, "Messages at which towerws itself failed. The log has a traceback.", _one("source.sink_errors")
    ),
    Entry(
        "towerws_broker_lag_seconds",
        _G,
        "Seconds from publishing this daemon's newest marker to reading it back: the lag behind the log's end.",
        _one("source.markers.lag_s"),
    ),
    Entry("towerws_broker_markers_sent_total", _C, "Markers that this daemon published.", _one("source.markers.sent")),
    Entry("towerws_broker_markers_proved_total", _C, "Markers that proved the binding of the stream.", _one("source.markers.proved")),
    Entry("towerws_broker_unbound_total", _C, "How often the binding of the stream was missing.", _one("source.markers.unbound")),
    # Revocations.
    Entry("towerws_control_listening", _G, "1 while revocations of other daemons are heard.", _control_listening),
    Entry("towerws_control_proven", _G, "1 while a message came through the control exchange within 30 s.", _one("control.proven")),
    Entry("towerws_control_failures_total", _C, "How often listening to the control exchange failed.", _one("control.failures")),
    Entry("towerws_control_unbound_total", _C, "How often the binding of the control queue was missing.", _one("control.unbound")),
    Entry(
        "towerws_control_received_total", _C, "Revocations from the control exchange, and unreadable messages.", _one("control.received")
    ),
    Entry("towerws_control_bad_total", _C, "Messages from the control exchange that could not be read.", _one("control.bad")),
    Entry(
        "towerws_control_revocations_total",
        _C,
        "Revocations from the admin port. confirmed: every daemon answered that it closed its connections.",
        _several({"confirmed": "control.announced", "unconfirmed": "control.not_announced"}),
        ("result",),
    ),
    Entry("towerws_control_daemons", _G, "Other daemons that are known.", _control_daemons),
    # Events in, and history.
    Entry("towerws_events_received_total", _C, "Events from the source, those that are skipped included.", _one("ingest.received")),
    Entry("towerws_events_skipped_total", _C, "Events that were not forwarded.", _words("ingest.skipped", SKIPPED), ("reason",)),
    Entry("towerws_events_duplicates_total", _C, "Events that history had already.", _one("ingest.duplicates")),
    Entry(
        "towerws_publish_events_total", _C, "Events of POST /publish, by what became of them.", _words("published", PUBLISHED), ("outcome",)
    ),
    Entry("towerws_log_offset", _G, "Offset of the newest event or marker that was read from the log.", _one("ingest.offset")),
    Entry("towerws_markers_received_total", _C, "Markers of all daemons that were read.", _one("ingest.markers")),
    Entry("towerws_positions_waiting", _G, "Clients that wait until their position can be judged.", _one("ingest.positions_waiting")),
    Entry("towerws_history_events", _G, "Events and markers in history.", _one("history.deliveries")),
    Entry("towerws_history_bytes", _G, "Memory of history.", _one("history.bytes")),
    Entry("towerws_history_span_seconds", _G, "Age of the oldest event in history: how long a client may be away.", _one("history.span_s")),
    # Events out.
    Entry("towerws_subscribers", _G, "Connections whose handshake is complete.", _one("hub.subscribers")),
    Entry("towerws_subscribers_behind", _G, "Connections that now get events from history.", _one("hub.behind")),
    Entry("towerws_subscriptions", _G, "Topics of all connections, each counted for each connection.", _one("hub.subscriptions")),
    Entry("towerws_topics", _G, "Topics that have a subscriber.", _one("hub.topics")),
    Entry("towerws_events_sent_total", _C, "Events written to connections, once for each connection.", _one("hub.deliveries_out")),
    Entry("towerws_events_replayed_total", _C, "Events written to connections that came from history.", _one("hub.replayed")),
    Entry("towerws_sent_bytes_total", _C, "Bytes of frames of live events, without replayed ones.", _one("hub.bytes_out")),
    Entry("towerws_replayed_bytes_total", _C, "Bytes of frames that were replayed from history.", _one("hub.replayed_bytes")),
    Entry("towerws_batch_events", _H, "Events of a batch that have a subscriber.", _one("hub.batch_sizes")),
    Entry(
        "towerws_batch_write_seconds",
        _H,
        "Time to write a batch to all live connections, from the end of the read.",
        _one("ingest.write_s"),
    ),
    Entry(
        "towerws_delivery_seconds",
        _H,
        "Time from receiving a batch's first event until the batch is written to all live connections.",
        _one("ingest.delivery_s"),
    ),
    Entry(
        "towerws_publish_delivery_seconds",
        _H,
        "Time from publishing a read's first event until it is written to all live connections, by the producer's clock and this one.",
        _several({resolution: f"ingest.publish_s.{resolution}" for resolution in ("millisecond", "second")}),
        ("resolution",),
    ),
    Entry(
        "towerws_publish_times_implausible_total",
        _C,
        "Times of publishing that can't be true. future: counted as 0 s. too_old: more than a day ago, not counted.",
        _several({reason: f"ingest.publish_s.{reason}" for reason in ("future", "too_old")}),
        ("reason",),
    ),
    Entry("towerws_fell_behind_total", _C, "How often a connection fell behind, because it reads too slowly.", _one("hub.fell_behind")),
    Entry("towerws_caught_up_total", _C, "How often a connection that was behind was live again.", _one("hub.caught_up")),
    Entry("towerws_gaps_total", _C, "Gap notices to clients, and Tower clients that were closed instead.", _one("hub.gaps")),
    Entry(
        "towerws_resumes_total",
        _C,
        "Clients that reconnected with a position.",
        _several({"recovered": "hub.resumed", "not_recovered": "hub.not_recovered"}),
        ("result",),
    ),
    Entry("towerws_replays_delayed_total", _C, "Replays from history that had to wait.", _one("connections.replays_delayed")),
    Entry("towerws_compressed_events_total", _C, "Events that were compressed, once for all clients.", _one("compression.frames")),
    Entry("towerws_compression_input_bytes_total", _C, "Bytes of events before compression.", _one("compression.bytes")),
    Entry("towerws_compression_saved_bytes_total", _C, "Bytes that compression saved.", _one("compression.saved")),
    # Hand-overs.
    Entry(
        "towerws_handovers_total",
        _C,
        "Restarts by hand-over. done: a new process took over. failed: the old one went on.",
        _words("handovers.results", ("done", "failed")),
        ("result",),
    ),
    Entry(
        "towerws_handover_seconds",
        _G,
        "Time from when the new process was ready until the last hand-over was complete.",
        _one("handovers.seconds"),
    ),
    Entry("towerws_handover_connections", _G, "Connections that the last hand-over moved.", _one("handovers.moved")),
    # Connections.
    Entry("towerws_connections", _G, "TCP connections of clients, those at their handshake included.", _one("connections.present")),
    Entry("towerws_connections_max", _G, "The limit of connections in force.", _one("connections.max")),
    Entry("towerws_connections_accepted_total", _C, "TCP connections that were accepted.", _one("connections.accepted")),
    Entry("towerws_connections_opened_total", _C, "Handshakes and tokens that opened a session.", _one("connections.opened")),
    Entry(
        "towerws_connections_closed_total",
        _C,
        "Sessions that ended, by who or what ended them.",
        _words("connections.closed_for", CLOSED),
        ("reason",),
    ),
    Entry("towerws_connections_refused_total", _C, "Clients that were refused.", _words("connections.refused_for", REFUSED), ("reason",)),
    Entry("towerws_connections_revoked_total", _C, "Sessions that ended with their credential.", _one("connections.revoked")),
    Entry("towerws_accept_pauses_total", _C, "How often accepting paused (limits.accepts_per_s).", _one("connections.accept_pauses")),
    Entry(
        "towerws_limits_met_total",
        _C,
        "How often a limit ended a connection, or delayed or refused a message.",
        _words("connections.limits", LIMITS),
        ("limit",),
    ),
    Entry("towerws_requests_total", _C, "Messages from clients.", _one("requests.taken")),
    Entry("towerws_requests_bad_total", _C, "Messages from clients that were answered with an error.", _one("requests.bad")),
    Entry("towerws_topics_denied_total", _C, "Topics that a client asked for and may not see.", _one("requests.denied_topics")),
    # Authentication.
    Entry("towerws_credentials", _G, "Credentials of connected clients that are checked again.", _one("connections.rechecks.credentials")),
    Entry(
        "towerws_recheck_late_seconds",
        _G,
        "For how long the oldest check of a credential has been due.",
        _one("connections.rechecks.late_s"),
    ),
    Entry("towerws_credentials_renewed_total", _C, "Tokens that replaced one on an open connection.", _one("connections.renewed")),
    Entry("towerws_auth_credentials_total", _C, "Credentials that a method checked.", _credentials, ("method", "result")),
    Entry("towerws_auth_api_calls_total", _C, "Calls to the API.", _pools("made"), ("pool",)),
    Entry("towerws_auth_api_calls_failed_total", _C, "Calls to the API that failed.", _pools("failed"), ("pool",)),
    Entry("towerws_auth_api_calls_turned_away_total", _C, "Calls to the API that were not sent.", _pools("turned_away"), ("pool",)),
    Entry("towerws_auth_api_calls_in_flight", _G, "Calls that wait for the API's answer.", _pools("in_flight"), ("pool",)),
    Entry("towerws_auth_api_calls_waiting", _G, "Calls that wait in the queue.", _pools("waiting"), ("pool",)),
    Entry("towerws_auth_api_call_seconds", _H, "Time from sending a call to its end.", _pools("seconds"), ("pool",)),
    Entry("towerws_auth_api_breaker_open", _G, "1 while a circuit breaker holds calls back.", _breakers, ("breaker",)),
    Entry(
        "towerws_auth_cache_hits_total",
        _C,
        "Answers from the cache instead of the API.",
        _several({answer: f"auth.tower.cache_hits.{answer}" for answer in ("valid", "invalid", "allowed", "denied")}),
        ("answer",),
    ),
    Entry(
        "towerws_auth_sign_ins_throttled_total",
        _C,
        "Sign-ins that had to wait or were not tried, because others failed.",
        _several({result: f"auth.tower.throttled.{result}" for result in ("delayed", "refused")}),
        ("result",),
    ),
    Entry(
        "towerws_auth_jwt_keys_total",
        _C,
        "What became of the key set: fetched, failed, used though stale, or not asked for again so soon.",
        _several({result: f"auth.jwt.keys.{result}" for result in ("fetched", "failed", "stale", "limited")}),
        ("result",),
    ),
    Entry("towerws_auth_jwt_ignored_grants_total", _C, "Entries in tokens that are not topics.", _one("auth.jwt.ignored_grants")),
)
"""All metrics of towerws' own, in the order of docs/metrics.md."""


class DaemonCollector(Collector):
    """Makes the metrics from the figures of `/status`, at each scrape."""

    def __init__(self, status: Callable[[], Figures]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield each metric of `ENTRIES`."""
        figures = self._status()
        for entry in ENTRIES:
            yield entry.collect(figures)


class MetricsPage:
    """Makes the answer of `/metrics`: the metrics of this daemon, its process and its interpreter. `clock` returns monotonic seconds."""

    def __init__(self, status: Callable[[], Figures], clock: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(DaemonCollector(status))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._clock = clock
        self._recent: tuple[float, Answer] | None = None

    def present(self) -> Answer:
        """Return the metrics as they are now."""
        return Answer(200, generate_latest(self._registry), CONTENT_TYPE)

    def recent(self) -> Answer:
        """Return an answer that is at most `RECENT_S` old."""
        now = self._clock()
        if self._recent is None or now - self._recent[0] >= RECENT_S:
            self._recent = now, self.present()
        return self._recent[1]
