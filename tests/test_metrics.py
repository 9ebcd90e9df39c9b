"""`/metrics`: its names, types and words are API. docs/metrics.md and deploy/ use exactly what a daemon answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tests.kit.metrics_table import split_document, table
from tests.test_admin import LOOPBACK, Reply
from tests.test_clock import close
from towerws.admin import MetricsPage, monitor_site
from towerws.admin.metrics import CLOSED, ENTRIES, LIMITS, OTHER, RECENT_S, REFUSED, SKIPPED, STATES
from towerws.core.errors import CloseReason
from towerws.core.settings import BrokerSettings, BrokerUrl, JwtSettings, Secret, Settings, TowerSettings
from towerws.core.sources import SourceState, SourceStatus
from towerws.service import TowerwsService
from towerws.status import status_figures
from towerws.workers.answers import MergedMetrics

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "towerws.json"
RULES = ROOT / "deploy" / "prometheus" / "towerws.rules.yml"
NAME = re.compile(r"\b(?:towerws|process|python)_[a-z_]+\b")


@pytest.fixture
def service() -> Iterator[TowerwsService]:
    """A daemon with every method of authentication and a broker. It is not started."""
    url = BrokerUrl("rabbit.example", 5672, "alice", Secret("secret"), "vhost", tls=False)
    reactor = SelectReactor()
    yield TowerwsService(
        Settings(
            broker=BrokerSettings(urls=(url,)),
            auth=("jwt", "tower", "open"),
            tower=TowerSettings(url="http://tower.example"),
            jwt=JwtSettings(algorithms=("RS256",), jwks_url="https://issuer.example/keys"),
        ),
        reactor,
    )
    close(reactor)


def families(text: str) -> dict[str, Metric]:
    """The metrics of an answer, by the name in its TYPE line."""
    return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in text_string_to_metric_families(text)}


def samples(figures: Mapping[str, object], name: str) -> dict[str, float]:
    """The samples of a metric with one label, by the label's value."""
    text = MetricsPage(lambda: figures, lambda: 0.0).present().body.decode()
    return {next(iter(sample.labels.values())): sample.value for sample in families(text)[name].samples}


def test_each_metric_keeps_prometheus_conventions() -> None:
    """A name, a type, a HELP, and the unit in the name: seconds, bytes, or a count of what the name says."""
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    found = families(MetricsPage(dict, lambda: 0.0).present().body.decode())
    for entry in ENTRIES:
        family = found[entry.name]
        assert re.fullmatch("towerws(_[a-z]+)+", entry.name), entry.name
        assert family.type == {"C": "counter", "G": "gauge", "H": "histogram"}[entry.kind.__name__[0]]
        assert (family.type == "counter") == entry.name.endswith("_total"), entry.name
        assert family.documentation == entry.text
        assert entry.text.endswith("."), entry.name
        assert not re.search(r"_(ms|s|octets|count|sum|bucket|created)(_total)?$", entry.name), entry.name
        assert all(re.fullmatch("[a-z]+", label) and label != "le" for label in entry.labels), entry.labels


def test_times_and_sizes_say_their_unit(service: TowerwsService) -> None:
    """A figure in `_s` of `/status` is a metric in seconds."""
    figures = json.loads(json.dumps(status_figures(service)))
    for entry in ENTRIES:
        for _, value in entry.read(figures):
            if isinstance(value, dict):
                assert entry.kind.__name__.startswith("Histogram"), entry.name
                assert entry.name.endswith(("_seconds", "_events")), entry.name


def test_each_metric_finds_its_figure_in_a_real_status(service: TowerwsService) -> None:
    """A figure that is renamed in `/status` fails here. Before a daemon has read anything, only two figures are missing."""
    status = status_figures(service)
    missing = [entry.name for entry in ENTRIES if not any(value is not None for _, value in entry.read(status))]
    assert missing == ["towerws_broker_lag_seconds", "towerws_log_offset"]
    found = families(service.metrics.present().body.decode())
    for entry in ENTRIES:
        labels = {frozenset(sample.labels) - {"le"} for sample in found[entry.name].samples}
        assert labels == ({frozenset(entry.labels)} if entry.name not in missing else set()), entry.name
    assert {"process_open_fds", "process_max_fds", "process_resident_memory_bytes", "python_info"} <= found.keys()


def test_nothing_of_the_configuration_is_in_the_metrics(service: TowerwsService) -> None:
    """The port of `--monitor` may be public: no name of a machine, no user, no URL."""
    text = service.metrics.present().body.decode()
    for word in ("example", "://", "alice", "secret", "vhost", "127.0.0.1", "localhost"):
        assert word not in text, word


def test_the_document_lists_exactly_what_a_daemon_answers() -> None:
    """After a change: `python -m tests.kit.metrics_table`."""
    assert split_document()[1] == table()


@pytest.mark.parametrize(
    ("words", "document", "head"),
    [
        (REFUSED, "security.md", "| word | refused because |"),
        (LIMITS, "operations.md", "| `connections.limits` | effect |"),
        (CLOSED, "metrics.md", "| `reason` of `towerws_connections_closed_total` | the session ended because |"),
    ],
)
def test_the_words_of_a_label_are_those_of_the_documents(words: tuple[str, ...], document: str, head: str) -> None:
    """Each word of the table is a label, and there is no other. So a new word gets its label, too."""
    lines = (ROOT / "docs" / document).read_text().partition(head)[2].split("\n\n")[0]
    assert sorted(re.findall("`([a-z_]+)`", "".join(line.split("|")[1] for line in lines.splitlines()[2:]))) == sorted(words)


def test_the_words_of_a_label_are_those_of_the_code() -> None:
    """The reasons for which events are skipped and sessions end, and the states of a source."""
    core = "".join(path.read_text() for path in (ROOT / "towerws" / "core").glob("*.py"))
    assert set(re.findall(r'BadDelivery\(\s*"([a-z_0-9]+)"', core)) <= set(SKIPPED)
    assert {reason.name.lower() for reason in CloseReason} < set(CLOSED)
    assert set(STATES) == {state.value for state in SourceState}
    websockets = "".join(path.read_text() for path in [ROOT / "towerws" / "protocol.py", *(ROOT / "towerws" / "websocket").glob("*.py")])
    assert set(re.findall(r'limits\["([a-z_]+)"\]|\.end\(CloseReason\.[A-Z_]+, "([a-z_]+)"', websockets)) <= {
        *((word, "") for word in LIMITS),
        *(("", word) for word in LIMITS),
    }


def test_an_unknown_word_makes_no_label() -> None:
    """If a client could get a word into a counter, the labels stay the same set."""
    hostile = {"origin": 2, '"} 1\nevil 1': 3, "x" * 100_000: 4}
    found = samples({"connections": {"refused_for": hostile}}, "towerws_connections_refused_total")
    assert found == {**dict.fromkeys(REFUSED, 0), "origin": 2, OTHER: 7}
    assert samples({"auth": {"ldap": {"accepted": 1}}}, "towerws_auth_credentials_total") == {}


def test_a_histogram() -> None:
    """Its buckets, its count and its sum are those of `/status`."""
    figures = {"ingest": {"delivery_s": {"sum": 0.5, "buckets": {"0.1": 3, "+Inf": 4}}}}
    family = families(MetricsPage(lambda: figures, lambda: 0.0).present().body.decode())["towerws_delivery_seconds"]
    found = {(sample.name.removeprefix("towerws_delivery_seconds"), sample.labels.get("le")): sample.value for sample in family.samples}
    assert found == {("_bucket", "0.1"): 3, ("_bucket", "+Inf"): 4, ("_count", None): 4, ("_sum", None): 0.5}


@pytest.mark.parametrize(("state", "reason", "ready"), [("consuming", None, 1), ("consuming", "no marker", 0), ("backoff", "refused", 0)])
def test_ready_is_what_readyz_says(state: str, reason: str | None, ready: int) -> None:
    """A source that consumes may still have a reason against it."""
    status = SourceStatus(SourceState(state), reason)
    figures = {"source": {"state": state, "reason": reason}}
    text = MetricsPage(lambda: figures, lambda: 0.0).present().body.decode()
    (sample,) = families(text)["towerws_source_ready"].samples
    assert sample.value == ready == int(status.ready)
    assert samples(figures, "towerws_source_state") == {**dict.fromkeys(STATES, 0), state: 1}


# The port of its own


class Monitor:
    """The port of `monitor`, in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.scrapes = 0
        self.state = SourceStatus(SourceState.BACKOFF, "403 ACCESS_REFUSED for user at rabbit-1")
        self.site = monitor_site(lambda: self.state, MetricsPage(self.status, self.clock.seconds))
        inner: Any = self.site.wrappedFactory
        inner.reactor = self.clock

    def status(self) -> Mapping[str, object]:
        """Count the scrapes."""
        self.scrapes += 1
        return {"hub": {"topics": self.scrapes}}

    def connect(self) -> tuple[Any, StringTransport]:
        """A connection, None for a refused one."""
        channel = self.site.buildProtocol(LOOPBACK)
        transport = StringTransport(hostAddress=LOOPBACK)
        if channel is not None:
            channel.makeConnection(transport)
        return channel, transport

    def ask(self, method: str, path: str, host: str = "web1.example.com") -> Reply:
        """One request."""
        channel, transport = self.connect()
        channel.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        self.clock.advance(0)
        self.clock.advance(20)  # its timeouts end
        return Reply(transport.value())


def test_the_port_has_three_paths() -> None:
    """Any host name may ask for the metrics and the probes. `/readyz` gives no reason. Nothing else is there, and nothing can be sent."""
    monitor = Monitor()
    metrics = monitor.ask("GET", "/metrics")
    assert (metrics.status, metrics.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "towerws_topics 1.0" in metrics.body.decode()
    assert monitor.ask("GET", "/healthz").json == {"healthy": True}
    ready = monitor.ask("GET", "/readyz")
    assert (ready.status, ready.json) == (503, {"ready": False})
    for path in ("/", "/status", "/publish", "/disconnect", "/live/topics", "/live.js", "/metrics/x"):
        assert monitor.ask("GET", path).status == 404, path
    assert monitor.ask("POST", "/metrics").status == 405
    head = monitor.ask("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")


def test_many_requests_cause_one_scrape_a_second() -> None:
    """The port may be public. Requests can't keep the reactor busy."""
    monitor = Monitor()
    replies = []
    page = MetricsPage(monitor.status, monitor.clock.seconds)
    for _ in range(100):
        replies.append(page.recent().body)
        monitor.clock.advance(RECENT_S / 50)
    assert monitor.scrapes == 2
    assert len(set(replies)) == 2
    page.present()
    page.present()
    assert monitor.scrapes == 4, "the admin port always answers with the present figures"


# What deploy/ uses


def used(text: str) -> set[str]:
    """The names of metrics in a text, without the suffixes of a histogram."""
    names = {re.sub("_(bucket|sum|count)$", "", name) if re.search("_(seconds|events)_", name) else name for name in NAME.findall(text)}
    return names - {"towerws_rules"}


def test_the_dashboard_uses_metrics_that_there_are() -> None:
    """Each expression of each panel names metrics of a real answer, and each panel has a title, a text and a unit."""
    dashboard = json.loads(DASHBOARD.read_text())
    known = families(MetricsPage(dict, lambda: 0.0).present().body.decode()).keys()
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 10
    for panel in panels:
        names = used(" ".join(target["expr"] for target in panel["targets"]))
        assert names, panel["title"]
        assert names <= known, names - known
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def alerts() -> dict[str, str]:
    """The text of each alert, by its name."""
    _, *parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_rules_use_metrics_that_there_are() -> None:
    """Each alert names metrics of a real answer, of a daemon's own or of the parent of several workers."""
    known = (
        families(MetricsPage(dict, lambda: 0.0).present().body.decode()).keys() | families(MergedMetrics([]).present({}).decode()).keys()
    )
    assert len(alerts()) > 8
    for name, text in alerts().items():
        expression = re.sub(r"\n +(for|labels|annotations):.*", "", text, flags=re.DOTALL)
        names = used(expression)
        assert names or "up{" in expression, name
        assert names <= known, (name, names - known)


def test_each_alert_names_its_row_of_the_operations_guide() -> None:
    """Its annotation `row` is the first cell of a row in docs/operations.md."""
    first_cells = {
        line.split(" | ")[0].removeprefix("| ") for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if " | " in line
    }
    for name, text in alerts().items():
        (row,) = re.findall(r'^ +row: "(.*)"$', text, re.MULTILINE)
        assert row.replace('\\"', '"') in first_cells, (name, row)
