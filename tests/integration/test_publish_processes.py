"""`towerws publish` in processes, and its patience by the clock."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands.test_publish import admin
from tests.commands.test_publisher import Admin
from tests.kit.daemon import DEADLINE_S, TOWERWS
from tests.kit.fake_amqp import Peer, Publication, ack
from tests.kit.forwarder import Forwarder
from tests.kit.rows import each_row
from tests.kit.unconfirming_broker import UnconfirmingBroker
from towerws.commands import publisher as publisher_module
from towerws.commands.publisher import AdminPublisher, AmqpPublisher, GaveUp
from towerws.config.addresses import parse_broker_url

__all__ = ["admin"]  # the fixture


def gives_up_after(publisher: AdminPublisher | AmqpPublisher, text: str) -> float:
    """Publish without a confirm, and close. Returns the seconds until both have returned."""
    began = time.monotonic()
    with pytest.raises(GaveUp, match=text):
        publisher.publish("jobs.summary", b"{}")
    publisher.close()
    return time.monotonic() - began


@each_row(
    ("alarm", "text"),
    [(False, "no answer"), (True, r"alarm \(low on memory\) and takes no messages")],
    monkeypatch=pytest.MonkeyPatch.context,
)
def test_patience_with_a_broker_that_never_confirms(monkeypatch: pytest.MonkeyPatch, alarm: bool, text: str) -> None:
    """The deadline holds with a broker that lives and does not confirm, and in an alarm, where the broker reads nothing."""
    monkeypatch.setattr(publisher_module, "ATTEMPT_S", 0.7)  # the default of --timeout is ATTEMPT_S
    for patience_s in (0.4, 0.7):
        with UnconfirmingBroker(alarm=alarm) as broker:
            publisher = AmqpPublisher([parse_broker_url(broker.url)], "towerws", lambda text: None, patience_s=patience_s)
            assert patience_s <= gives_up_after(publisher, f"{text}; not confirmed within {patience_s:g} s") < patience_s + 1


class ConfirmingBroker(UnconfirmingBroker):
    """It confirms each publication at once."""

    def _published(self, peer: Peer, publication: Publication) -> None:
        ack(peer, publication)


def test_a_broker_that_ends_an_idle_connection() -> None:
    """While the input pauses, nothing answers heartbeats. The next event goes over a new connection, without a notice or a pause."""
    said: list[str] = []
    with ConfirmingBroker() as broker, Forwarder(parse_broker_url(broker.url).port) as way:
        publisher = AmqpPublisher([parse_broker_url(f"amqp://127.0.0.1:{way.port}")], "towerws", said.append, patience_s=DEADLINE_S)
        for _ in range(3):
            publisher.publish("jobs.summary", b"{}")
            way.cut()
        publisher.close()
    assert (said, way.accepted) == ([], 3)


def test_a_broker_that_is_gone_after_a_pause() -> None:
    """Only one attempt is made at once. If it fails, the lost connection is reported, and the deadline holds."""
    said: list[str] = []
    with ConfirmingBroker() as broker, Forwarder(parse_broker_url(broker.url).port, most=1) as way:
        publisher = AmqpPublisher([parse_broker_url(f"amqp://127.0.0.1:{way.port}")], "towerws", said.append, patience_s=1)
        publisher.publish("jobs.summary", b"{}")
        way.cut()
        gives_up_after(publisher, "Connection refused; not confirmed within 1 s")
    assert len(said) == 1
    assert "trying again until 1 s have passed" in said[0]


def test_patience_counts_from_the_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    """What connecting took is not given again to a second attempt: two brokers that never answer share one deadline."""
    monkeypatch.setattr(publisher_module, "ATTEMPT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        urls = [parse_broker_url(f"amqp://127.0.0.1:{each.getsockname()[1]}") for each in (first, second)]
        publisher = AmqpPublisher(urls, "towerws", lambda text: None, patience_s=3)
        assert gives_up_after(publisher, "no answer to the AMQP handshake; not confirmed within 3 s") < 4


def test_patience_with_an_admin_port_that_never_answers() -> None:
    """The deadline holds on a connection that is accepted and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        publisher = AdminPublisher(f"http://127.0.0.1:{server.getsockname()[1]}", lambda text: None, patience_s=0.4)
        assert 0.4 <= gives_up_after(publisher, "timed out; not confirmed within 0.4 s") < 2


def test_ctrl_c_in_an_alarm() -> None:
    """The command ends at once, though the broker reads nothing, not even the end of the connection."""
    with UnconfirmingBroker(alarm=True) as broker:
        command = [*TOWERWS, "publish", "jobs.summary", "{}", "--broker", broker.url, "--timeout", "60"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert broker.got_one.wait(DEADLINE_S)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=5)[1]
    assert (process.returncode, said) == (1, "towerws: stopped; 0 events confirmed before\n")


def _redirected(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One call of the command in a process, with a redirection of the shell."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *TOWERWS, "publish", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment, check=False)


def test_standard_input_that_is_closed(admin: Admin) -> None:
    """`-` is a usage error then. Other payloads need no standard input."""
    result = _redirected("<&-", "jobs.summary", "-", "--admin", admin.url)
    assert (result.returncode, "standard input is closed" in result.stderr) == (2, True), result.stderr
    assert _redirected("<&-", "jobs.summary", "{}", "--admin", admin.url).returncode == 0
    assert len(admin.bodies) == 1


@each_row("redirection", ["2>&-", ">&- 2>&-", "2>/dev/full"])
def test_notices_that_can_not_be_written(redirection: str) -> None:
    """The exit code says what became of the event, also where no notice can be written."""
    server = Admin()
    result = _redirected(redirection, "jobs.summary", "{}", "--admin", server.url)
    server.stop()
    assert (result.returncode, len(server.bodies)) == (0, 1), result


def test_progress_on_a_terminal(admin: Admin) -> None:
    """While lines come, a terminal shows how many are published; a pipe is spared that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*TOWERWS, "publish", "job_events.42", "-", "--admin", admin.url],
        stdin=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write(b'{"n": 1}\n')
    process.stdin.flush()
    read = b""
    while b"events published" not in read:
        read += os.read(ours, 1024)
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0
    os.close(ours)
