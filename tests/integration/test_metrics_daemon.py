"""`/metrics` of real daemons, read by Prometheus' own parser and checked by its `promtool`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from private_rabbitmq import PrivateRabbit, free_port
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.integration.conftest import NO_PROMTOOL, require
from tests.kit import preloaded
from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, TWISTD, Daemon, V1Client, publish_all
from tests.kit.hostile_heads import hostile_heads
from towerws.admin.metrics import REFUSED
from towerws_producer import Producer

ROOT = Path(__file__).parents[2]

Labels = frozenset[tuple[str, str]]
Scrape = dict[str, dict[Labels, float]]


def fetch(port: int, path: str = "/metrics") -> tuple[int, str]:
    """The answer of a port on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> Scrape:
    """All samples by name and labels."""
    status, text = fetch(port)
    assert status == 200
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            of_name = found.setdefault(sample.name, {})
            key = frozenset(sample.labels.items())
            assert key not in of_name, (sample.name, key)
            of_name[key] = sample.value
    return found


def value(found: Scrape, name: str, **labels: str) -> float:
    """One sample."""
    return found[name][frozenset(labels.items())]


def until(holds: Callable[[Scrape], bool], port: int) -> Scrape:
    """Scrape until the condition holds. Returns that scrape."""
    give_up = time.monotonic() + DEADLINE_S
    while not holds(found := scrape(port)):
        assert time.monotonic() < give_up
        time.sleep(0.05)  # nothing announces a figure, so it is polled, as by Prometheus
    return found


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon without a broker, and the port of its `monitor`."""
    port = free_port()
    with Daemon(tmp_path, "embedded:", "--monitor", f"tcp:{port}:interface=127.0.0.1") as daemon:
        yield daemon, port


def test_the_port_for_prometheus(embedded: tuple[Daemon, int]) -> None:
    """It has the metrics and the probes, and nothing else. The admin port has the same metrics."""
    daemon, port = embedded
    mine, admins = scrape(port), scrape(daemon.admin_port)
    assert {(name, labels) for name, samples in mine.items() for labels in samples} == {
        (name, labels) for name, samples in admins.items() for labels in samples
    }
    assert (fetch(port, "/healthz"), fetch(port, "/readyz")[0]) == ((200, '{"healthy": true}\n'), 200)
    assert [fetch(port, path)[0] for path in ("/", "/status", "/live/topics", "/publish", "/disconnect")] == [404] * 5


def test_events_and_clients(embedded: tuple[Daemon, int]) -> None:
    """What a client does and gets is counted."""
    daemon, port = embedded
    client = V1Client(daemon.url, {"jobs": ["status_changed"], "job_events": [1, 2]}).open()
    for number in range(5):
        daemon.publish("job_events.1", {"n": number})
    daemon.publish("job_events.77", {"n": 5})
    client.until({"n": 4})
    found = scrape(daemon.admin_port)
    assert (value(found, "towerws_connections"), value(found, "towerws_subscribers")) == (1, 1)
    assert (value(found, "towerws_topics"), value(found, "towerws_subscriptions")) == (3, 3)
    assert (value(found, "towerws_events_received_total"), value(found, "towerws_events_sent_total")) == (6, 5)
    assert (value(found, "towerws_batch_events_count"), value(found, "towerws_batch_events_sum")) == (5, 5)
    assert value(found, "towerws_delivery_seconds_count") == value(found, "towerws_batch_write_seconds_count") == 5
    assert value(found, "towerws_sent_bytes_total") > 5 * len('{"n": 0}')
    assert value(found, "towerws_history_events") == 6
    client.close()
    client.position = client.positions[1]
    client.open()
    client.until({"n": 4})
    client.close()
    client.position = "1-no-such-log"
    client.open().close()
    found = until(lambda found: value(found, "towerws_connections_closed_total", reason="client") == 3, daemon.admin_port)
    assert value(found, "towerws_resumes_total", result="recovered") == value(found, "towerws_resumes_total", result="not_recovered") == 1
    assert value(found, "towerws_events_replayed_total") == 3
    assert value(found, "towerws_replayed_bytes_total") > 0
    found = until(lambda found: value(found, "towerws_reactor_lag_seconds_count") > 0, port)
    assert value(found, "process_open_fds") > 5
    assert value(found, "towerws_source_state", state="consuming") == value(found, "towerws_source_ready") == 1


def test_no_client_makes_a_label(embedded: tuple[Daemon, int]) -> None:
    """Hostile handshakes, topics, messages and events change numbers, and never the set of names and labels."""
    daemon, _ = embedded
    daemon.publish("jobs.status_changed", {})
    before = scrape(daemon.admin_port)
    evil = 'evil"} 1\nevil{x="'
    heads = [hostile.raw for hostile in list(hostile_heads())[::5]]
    for head in [*heads, b"GET /" + evil.encode() + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01evil", b"evil\r\n\r\n"]:
        with socket.create_connection(("127.0.0.1", daemon.port), DEADLINE_S) as client, contextlib.suppress(OSError):
            client.sendall(head)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    with connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
        for message in ({"groups": {"evil": ["evil"], evil: [evil]}}, {evil: evil}, {"groups": {"job_events": [evil]}}, {"token": evil}):
            client.send(json.dumps(message))
            client.recv(DEADLINE_S)
        client.send(json.dumps({"groups": {"job_events": [1]}, "since": "1-evil"}))
        client.recv(DEADLINE_S)
        client.close(4999, "evil")
    daemon.ask("POST", "/publish", json.dumps({"topic": "evil.evil", "payload": {"evil": evil}}).encode())
    daemon.ask("POST", "/disconnect", json.dumps({"session": "e" * 32}).encode())
    after = until(lambda found: value(found, "towerws_connections_closed_total", reason="client") == 1, daemon.admin_port)
    assert {name: samples.keys() for name, samples in after.items()} == {name: samples.keys() for name, samples in before.items()}
    assert "evil" not in fetch(daemon.admin_port)[1]
    assert sum(value(after, "towerws_connections_refused_total", reason=reason) for reason in REFUSED) > 3
    assert value(after, "towerws_requests_bad_total") > 0


def test_a_scrape_during_load(embedded: tuple[Daemon, int]) -> None:
    """While events flow to many clients, each scrape is answered, and no client loses an event."""
    daemon, port = embedded
    clients = [V1Client(daemon.url, {"job_events": [1]}).open() for _ in range(50)]
    scrapes = []
    for number in range(100):
        daemon.publish("job_events.1", {"n": number})
        if number % 10 == 0:
            scrapes.append(scrape(daemon.admin_port if number % 20 else port))
    for client in clients:
        client.until({"n": 99})
        assert [payload["n"] for payload in client.payloads] == list(range(100))
        client.close()
    counts = [value(found, "towerws_events_sent_total") for found in scrapes]
    assert (counts[::2], counts[1::2]) == (sorted(counts[::2]), sorted(counts[1::2])), "the port of monitor is up to a second behind"


def test_with_a_broker(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """The state of the source, its lag, the bytes from the broker, the binding, the control exchange."""
    flags = ("--exchange", "metrics", "--stream", "metrics.events")
    with Daemon(tmp_path, rabbit.url, *flags) as daemon:
        client = V1Client(daemon.url, {"job_events": [1]}).open()
        publish_all(rabbit.url, [("job_events.1", b'{"n": %d}' % number) for number in range(100)] + [("job_events.1", b"[]")], "metrics")
        client.until({"n": 99})

        def known(found: Scrape) -> bool:
            return "towerws_broker_lag_seconds" in found and value(found, "towerws_control_proven") == 1

        found = until(known, daemon.admin_port)
        assert value(found, "towerws_broker_lag_seconds") >= 0
        assert value(found, "towerws_source_state", state="consuming") == value(found, "towerws_source_ready") == 1
        assert (value(found, "towerws_broker_connects_total"), value(found, "towerws_broker_failures_total")) == (1, 0)
        assert value(found, "towerws_events_received_total") == 101
        assert value(found, "towerws_events_skipped_total", reason="not_an_object") == 1
        assert value(found, "towerws_broker_messages_total") == 101 + value(found, "towerws_markers_received_total")
        assert value(found, "towerws_broker_received_bytes_total") > 100 * len('{"n": 0}')
        assert value(found, "towerws_events_sent_total") == 100
        assert value(found, "towerws_log_offset") >= 100
        assert value(found, "towerws_control_listening") == 1
        assert value(found, "towerws_control_daemons") == 0
        status, answer = daemon.ask("POST", "/disconnect", b'{"user": 7}')
        assert status == 202, answer
        found = scrape(daemon.admin_port)
        assert value(found, "towerws_control_revocations_total", result="confirmed") == value(found, "towerws_control_received_total") == 1
        client.close()


def test_the_time_from_publishing(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """Each producer of towerws sends milliseconds. Others count by AMQP's whole seconds, or not at all. The broker keeps both."""
    names = ("--exchange", "published", "--stream", "published.events")
    with Daemon(tmp_path, rabbit.url, *names) as daemon, Producer(rabbit.url, exchange="published") as producer:
        client = V1Client(daemon.url, {"jobs": ["summary"]}).open()

        def counts() -> tuple[float, float]:
            found = scrape(daemon.admin_port)
            millisecond, second = (
                value(found, "towerws_publish_delivery_seconds_count", resolution=resolution) for resolution in ("millisecond", "second")
            )
            return millisecond, second

        producer.publish("jobs.summary", {"n": 1})
        client.until({"n": 1})
        assert counts() == (1, 0)
        command = ["publish", "jobs.summary", '{"n": 2}', "--broker", rabbit.url, "--exchange", "published"]
        subprocess.run([Path(sys.executable).with_name("towerws"), *command], check=True, capture_output=True, timeout=DEADLINE_S)
        client.until({"n": 2})
        assert counts() == (2, 0)
        assert daemon.ask("POST", "/publish", json.dumps({"topic": "jobs.summary", "payload": {"n": 3}}).encode())[0] == 202
        client.until({"n": 3})
        assert counts() == (3, 0)
        publish_all(rabbit.url, [("jobs.summary", b'{"n": 4}')], "published")
        client.until({"n": 4})
        assert counts() == (3, 0), "this producer sends no time"
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
            channel = connection.channel()
            ahead = int(time.time()) + 3600
            for n, properties in enumerate(
                [
                    pika.BasicProperties(timestamp=int(time.time())),
                    pika.BasicProperties(timestamp=ahead),
                    pika.BasicProperties(headers={"timestamp_in_ms": 5}),
                ],
                5,
            ):
                channel.basic_publish("published", "jobs.summary", b'{"n": %d}' % n, properties)
                client.until({"n": n})
        assert counts() == (3, 2)
        found = scrape(daemon.admin_port)
        assert value(found, "towerws_publish_delivery_seconds_sum", resolution="second") < DEADLINE_S
        assert value(found, "towerws_publish_times_implausible_total", reason="future") == 1
        assert value(found, "towerws_publish_times_implausible_total", reason="too_old") == 1
        client.close()


def test_while_the_broker_is_away(rabbit_to_kill: PrivateRabbit, tmp_path: Path) -> None:
    """The metrics are there, and say so. They name neither the broker nor the reason: that is for the admin port."""
    node = rabbit_to_kill
    port = free_port()
    names = ("--exchange=t.away", "--stream=t.away.events")
    with Daemon(tmp_path, node.url, *names, "--monitor", f"tcp:{port}:interface=127.0.0.1") as daemon:
        assert fetch(port, "/readyz") == (200, '{"ready": true}\n')
        node.kill()
        found = until(lambda found: value(found, "towerws_broker_failures_total") >= 1, daemon.admin_port)
        assert value(found, "towerws_source_ready") == 0
        assert fetch(port, "/readyz") == (503, '{"ready": false}\n')
        text = fetch(port)[1]
        assert str(node.port) not in text.replace(".", " ").split()
        assert "refused by" not in text


# Bad input: as with the other ports


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--monitor", "tcp:8051:interface=127.0.0.1"], "listen and monitor must not be the same address and port"),
        (["--monitor", "tcp:9051"], "admin and monitor must not be the same address and port"),
        (["--health", "tcp:9052"], "option --health not recognized; did you mean --monitor?"),
        (["--monitor", "tcp:x"], "--monitor = 'tcp:x': the port must be a number"),
        (["--monitor", "tcp:"], "--monitor = 'tcp:'"),
        (["--monitor", "9052:"], "--monitor = '9052:'"),
        (["--monitor", "ssl:9052:privateKey=/no/such/file"], "--monitor = 'ssl:9052:privateKey=/no/such/file'"),
        (["--monitor", "unix:"], "--monitor = 'unix:'"),
        (["--monitro", "tcp:9052"], "did you mean --monitor?"),
    ],
)
def test_an_address_that_can_t_be_used(tmp_path: Path, flags: list[str], words: str) -> None:
    """One line that names the flag and the rule, and status 2. Nothing was started."""
    with (tmp_path / "output").open("w+b") as file:
        command = [TWISTD, "-n", "towerws", "--auth", "open", *flags]
        assert preloaded.start(command, output=file, cwd=tmp_path, env=os.environ).wait(DEADLINE_S) == 2
    (line,) = (tmp_path / "output").read_text().splitlines()
    assert words in line


def test_a_taken_port(tmp_path: Path) -> None:
    """It is tried again for a while. The websocket port opens only after it, so nothing is half started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monitor = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        check = [str(Path(sys.executable).with_name("towerws")), "check", "--auth", "open", "--monitor", monitor]
        ports = ["--listen", f"tcp:{(port := free_port())}:interface=127.0.0.1", "--admin", f"tcp:{free_port()}:interface=127.0.0.1"]
        done = subprocess.run([*check, *ports], capture_output=True, text=True, check=False, cwd=ROOT, timeout=DEADLINE_S)
        assert done.returncode == 2
        assert f"--monitor = '{monitor}': can't be listened on: Address already in use" in done.stderr
        process = subprocess.Popen(
            [TWISTD, "-n", "towerws", "--auth", "open", "--monitor", monitor, *ports],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            line = next(line for line in lines if "trying again" in line)
            assert f"monitor = '{monitor}': can't listen there yet: Address already in use" in line
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), DEADLINE_S)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.stdout.close()
            process.wait(DEADLINE_S)


# promtool


@pytest.fixture
def promtool() -> str:
    """The path of promtool."""
    found = shutil.which("promtool")
    require(NO_PROMTOOL, found)
    assert found is not None
    return found


@pytest.mark.parametrize("command", [["check", "rules", "towerws.rules.yml"], ["test", "rules", "towerws.rules.test.yml"]])
def test_the_alert_rules(promtool: str, command: list[str]) -> None:
    """They are valid, and alert in the cases of towerws.rules.test.yml."""
    done = subprocess.run(
        [promtool, *command],
        cwd=ROOT / "deploy" / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_has_nothing_to_say_about_the_metrics(promtool: str, embedded: tuple[Daemon, int]) -> None:
    """Its linter knows the conventions for names and texts."""
    text = fetch(embedded[1])[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
