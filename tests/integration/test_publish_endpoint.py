"""`POST /publish` of a daemon with a broker, against the real one."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pika
import pytest
from private_rabbitmq import PrivateRabbit

from tests.kit.daemon import DEADLINE_S, Daemon, V1Client

BATCH = "application/x-ndjson"


class Setup:
    """A daemon with an exchange and a stream of its own, and a client."""

    def __init__(self, rabbit: PrivateRabbit, daemon: Daemon, name: str, client: V1Client) -> None:
        self.rabbit, self.daemon, self.name, self.client = rabbit, daemon, name, client

    def outcome(self, number: int, **more: Any) -> tuple[int, Any, Any]:
        """Publish an event with this number. Returns the status, the outcome and `published`."""
        status, answer = post(self.daemon, event(number), **more)
        return status, answer["outcome"], answer["published"]

    def until_published(self, number: int, **more: Any) -> None:
        """Publish until it is confirmed. Each answer before that is one that tells to try again."""
        while (found := self.outcome(number, **more))[0] != 202:
            assert found[0] >= 500

    def hears(self, *numbers: int) -> None:
        """The client gets exactly these numbers next."""
        before = len(self.client.payloads)
        self.client.until({"n": numbers[-1]})
        assert [payload["n"] for payload in self.client.payloads[before:]] == list(numbers)


def event(number: int, topic: str = "job_events.42") -> bytes:
    """The envelope of an event with this number."""
    return json.dumps({"topic": topic, "payload": {"n": number}}).encode()


def post(daemon: Daemon, body: bytes, content_type: str = "application/json", key: str = "") -> tuple[int, Any]:
    """The status and the JSON of the answer: a list for a batch."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.admin_port, timeout=DEADLINE_S)
    try:
        connection.request("POST", "/publish", body, {"Content-Type": content_type, **({"Idempotency-Key": key} if key else {})})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, [json.loads(line) for line in text.splitlines()] if content_type == BATCH else json.loads(text)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def setup(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """One for the module."""
    name = f"x{uuid4().hex[:8]}"
    with ExitStack() as leave:
        daemon = leave.enter_context(
            Daemon(tmp_path_factory.mktemp("daemon"), rabbit.url, "--exchange", name, "--stream", f"{name}.events")
        )
        client = V1Client(daemon.url, {"job_events": [42]}).open()
        leave.callback(client.close)
        yield Setup(rabbit, daemon, name, client)


def test_published_and_confirmed(setup: Setup) -> None:
    """Through the exchange to every client. A repeat of the key is delivered once; on another topic it is another event."""
    status, answer = post(setup.daemon, event(1), key="key-1")
    assert (status, answer) == (202, {"outcome": "confirmed", "published": True, "message_id": "key-1"})
    setup.hears(1)
    assert post(setup.daemon, event(1), key="key-1")[0] == 202
    assert post(setup.daemon, event(1, "job_events.43"), key="key-1")[0] == 202
    assert setup.outcome(2) == (202, "confirmed", True)
    setup.hears(2)
    figures = setup.daemon.get("/status")[1]
    assert figures["ingest"]["duplicates"] == 1
    assert figures["published"]["confirmed"] == 4


def test_batch(setup: Setup) -> None:
    """One answer per line, in order. A batch that is sent again with its key is delivered once."""
    lines = [event(number) for number in range(100, 150)]
    lines[10] = b'{"topic": "job_events.42", "payload": []}'
    for _ in range(2):
        status, answers = post(setup.daemon, b"\n".join(lines), BATCH, key="batch")
        assert status == 200
        assert [answer["status"] for answer in answers] == [202] * 10 + [400] + [202] * 39
        assert answers[49]["message_id"] == "batch/50"
    assert setup.outcome(150) == (202, "confirmed", True)
    setup.hears(*range(100, 110), *range(111, 151))


def test_exchange_without_a_queue(setup: Setup) -> None:
    """An event for an exchange that no queue is bound to is an answer, not a silence. The daemon binds its stream again."""
    connection = pika.BlockingConnection(pika.URLParameters(setup.rabbit.url))
    found: tuple[int, Any, Any] = (0, None, None)
    while found[0] != 502:  # in between the daemon may have bound its stream again
        connection.channel().queue_unbind(f"{setup.name}.events", setup.name, "#")
        found = setup.outcome(200)
    connection.close()
    assert found == (502, "unroutable", False)


def test_alarm(setup: Setup) -> None:
    """In an alarm the first event is unknown, if it was sent. The next ones are not sent. Afterwards publishing works."""
    setup.until_published(300, key="before")
    setup.rabbit.limit_memory("0.000001")
    try:
        found = [setup.outcome(301, key="in-the-alarm") for _ in range(3)]
    finally:
        setup.rabbit.limit_memory("0.4")
    assert found[-1] == (503, "blocked", False)
    assert {outcome for _, outcome, _ in found} <= {"confirmed", "unknown", "blocked"}
    setup.until_published(302, key="after")


def test_frozen_broker(setup: Setup) -> None:
    """No answer in time is unknown, never failed. The event is repeated with its key, and is delivered once."""
    setup.until_published(400)
    setup.client.until({"n": 400})
    setup.rabbit.pause()
    try:
        status, answer = post(setup.daemon, event(401), key="frozen")
    finally:
        setup.rabbit.resume()
    assert (status, answer["outcome"], answer["published"]) == (504, "unknown", None)
    assert "may have been published" in answer["error"]
    setup.until_published(401, key="frozen")
    setup.until_published(402)
    setup.hears(401, 402)


def test_no_permission_and_no_broker(tmp_path: Any, rabbit: PrivateRabbit) -> None:
    """A user who may not publish, and a broker that is not there: both are sure answers."""
    name = f"x{uuid4().hex[:8]}"
    rabbit.add_user(name, name)
    try:
        rabbit.permit(name, ".*", rf"^({name}\.events|{name}\.control|amq\..*)$", ".*")
        url = rabbit.url.replace("guest:guest", f"{name}:{name}")
        with Daemon(tmp_path, url, "--exchange", name, "--stream", f"{name}.events") as daemon:
            status, answer = post(daemon, event(1))
            assert (status, answer["outcome"], answer["published"]) == (502, "refused", False)
            assert "403" in answer["error"]
            assert f"{name}:{name}" not in answer["error"], "the password"
            assert [line["outcome"] for line in post(daemon, event(1) + b"\n" + event(2), BATCH)[1]] == ["refused"] * 2
            rabbit.permit(name, ".*", ".*", ".*")
            rabbit.permit_topics(name, name, r"^job_events\.", ".*")
            batch = [event(1), event(2), event(3, "jobs.summary"), event(4), event(5, "jobs.status_changed")]
            found = {line["outcome"] for line in post(daemon, b"\n".join(batch), BATCH)[1]}
            while found == {"refused"}:  # RabbitMQ keeps permissions for a while with a connection
                time.sleep(0.1)
                found = {line["outcome"] for line in post(daemon, b"\n".join(batch), BATCH)[1]}
            lines = post(daemon, b"\n".join(batch), BATCH)[1]
            assert [(line["outcome"], line["published"]) for line in lines] == [
                ("confirmed", True),
                ("confirmed", True),
                ("refused", False),
                ("confirmed", True),
                ("refused", False),
            ], lines
            assert "jobs.summary" in lines[2]["error"]
    finally:
        rabbit.delete_user(name)
    gone = Daemon(tmp_path, "amqp://guest:guest@127.0.0.1:1/").start(ready=False)
    try:
        status, answer = post(gone, event(1))
    finally:
        gone.stop()
    assert (status, answer["outcome"], answer["published"]) == (503, "unavailable", False)
