"""The users and permissions of `deploy/rabbitmq/definitions.json`, on a real broker: each user may do its work, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, ProbableAuthenticationError
from private_rabbitmq import PrivateRabbit

from tests.integration.test_start_and_stop import ROOT
from tests.kit.daemon import Daemon, V1Client

SHIPPED = ROOT / "deploy" / "rabbitmq" / "definitions.json"
DEFINITIONS: dict[str, list[dict[str, Any]]] = json.loads(SHIPPED.read_text())
USERS = [user["name"] for user in DEFINITIONS["users"]]
PASSWORD = "a-password"


@pytest.fixture(scope="module")
def broker(rabbit: PrivateRabbit) -> PrivateRabbit:
    """The session's node with the definitions, imported as docs/deploy.md says. Passwords are set afterwards."""
    rabbit.ctl("import_definitions", str(SHIPPED))
    for user in USERS:
        with pytest.raises(ProbableAuthenticationError):
            pika.BlockingConnection(pika.URLParameters(url(rabbit, user, "")))
        rabbit.change_password(user, PASSWORD)
    return rabbit


def url(broker: PrivateRabbit, user: str, password: str = PASSWORD) -> str:
    """Where this user connects."""
    return f"amqp://{user}:{password}@127.0.0.1:{broker.port}/towerws"


@contextmanager
def channel(broker: PrivateRabbit, user: str) -> Iterator[Any]:
    """A channel of this user with confirms."""
    connection = pika.BlockingConnection(pika.URLParameters(url(broker, user)))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        # pika gives back what it has not handed out, which a stream does not support: the broker then ends the connection (540).
        with suppress(ConnectionClosedByBroker):
            connection.close()


def consume_the_stream(channel: Any) -> None:
    """Start to read the stream from its beginning."""
    channel.basic_qos(prefetch_count=10)
    channel.basic_consume("towerws.events", lambda *_: None, arguments={"x-stream-offset": "first"})


ACTS: dict[str, Callable[[Any], object]] = {
    "publish an event": lambda channel: channel.basic_publish("towerws", "job_events.1", b"{}"),
    "publish a revocation": lambda channel: channel.basic_publish("towerws.control", "", b"{}"),
    "publish to the stream": lambda channel: channel.basic_publish("", "towerws.events", b"{}"),
    "publish to another exchange": lambda channel: channel.basic_publish("amq.topic", "x", b"{}"),
    "read the stream": consume_the_stream,
    "delete the stream": lambda channel: channel.queue_delete("towerws.events"),
    "delete the exchange": lambda channel: channel.exchange_delete("towerws"),
    "declare an exchange": lambda channel: channel.exchange_declare("own", "fanout"),
    "declare a queue": lambda channel: channel.queue_declare("own"),
    "declare a queue that the broker names": lambda channel: channel.queue_declare("", exclusive=True),
    "bind the stream": lambda channel: channel.queue_bind("towerws.events", "amq.topic", "#"),
    "unbind the stream": lambda channel: channel.queue_unbind("towerws.events", "towerws", "#"),
}
ALLOWED = {
    "towerws-producer": {"publish an event"},
    "towerws-revoker": {"publish a revocation"},
    "towerws-reader": {"read the stream"},
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("user", ALLOWED)
def test_what_each_user_may_do(broker: PrivateRabbit, user: str, act: str) -> None:
    """The broker refuses everything but the user's one work (403)."""
    with channel(broker, user) as connected:
        if act in ALLOWED[user]:
            ACTS[act](connected)
            return
        with pytest.raises(ChannelClosedByBroker) as refused:
            ACTS[act](connected)
    assert refused.value.reply_code == 403


def test_no_user_may_manage_the_broker() -> None:
    """No tags: the management plugin lets none of them in."""
    assert {user["tags"] for user in DEFINITIONS["users"]} == {""}
    assert {user["password_hash"] for user in DEFINITIONS["users"]} == {""}


@pytest.mark.parametrize("flags", [(), ("--passive",)])
def test_a_daemon_and_a_producer(broker: PrivateRabbit, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """With exactly these permissions the daemon is ready, proves its bindings, hears revocations, and delivers the producer's events."""
    with Daemon(tmp_path, url(broker, "towerws"), *flags) as daemon:
        client = V1Client(daemon.url, {"job_events": [7]}).open()
        with channel(broker, "towerws-producer") as producer:
            producer.basic_publish("towerws", "job_events.7", b'{"n": 1}', mandatory=True)
        client.until({"n": 1})
        client.close()
        status, answer = daemon.ask("POST", "/disconnect", b'{"user": 7}')
        assert (status, answer["others_told"]) == (202, True)
        assert daemon.get("/readyz") == (200, {"ready": True, "state": "consuming"})
        figures = daemon.get("/status")[1]
        assert figures["source"]["mode"] == "stream"
        assert figures["control"]["state"] == "listening"
        with channel(broker, "towerws-revoker") as revoker:
            revoker.basic_publish("towerws.control", "", b'{"user": 7}', mandatory=True)
    for text in ("403", "406", "ACCESS_REFUSED"):
        assert text not in daemon.log.read_text()


def test_the_operations_guide_says_the_same() -> None:
    """docs/operations.md has these permissions as commands of rabbitmqctl."""
    text = (ROOT / "docs" / "operations.md").read_text()
    shipped = {entry["user"].removeprefix("towerws-"): entry for entry in DEFINITIONS["permissions"]}
    told = re.findall(r"^rabbitmqctl set_permissions -p / (\w+) '(.*)' '(.*)' '(.*)'$", text, re.MULTILINE)
    assert len(told) == 3
    for user, *rights in told:
        assert rights == [shipped[user][right] for right in ("configure", "write", "read")]
