from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest
from click.testing import CliRunner
from private_rabbitmq import PrivateRabbit

from tests.kit.daemon import DEADLINE_S, TOWERWS
from towerws.cli import main
from towerws.commands.publisher import AmqpPublisher
from towerws.config.addresses import parse_broker_url
from towerws.core.errors import BrokerError


def listen(url: str, exchange: str) -> tuple[Any, Any, str]:
    """A connection, its channel, and a queue that gets every message of the exchange."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, "#")
    return connection, channel, queue


def test_publishes_confirmed(rabbit: PrivateRabbit) -> None:
    """Events arrive in order, with their routing keys, as transient JSON, each with an id."""
    exchange = f"demo-{uuid4().hex}"
    connection, channel, queue = listen(rabbit.url, exchange)
    said: list[str] = []
    publisher = AmqpPublisher([parse_broker_url(rabbit.url)], exchange, said.append)
    for number in range(20):
        publisher.publish(f"job_events.{number}", json.dumps({"n": number}).encode("ascii"))
    publisher.idle(0.01)
    publisher.close()
    ids = set()
    for number in range(20):
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        assert (method.routing_key, json.loads(body)) == (f"job_events.{number}", {"n": number})
        assert (properties.content_type, properties.delivery_mode) == ("application/json", 1)
        ids.add(UUID(properties.message_id))
    assert len(ids) == 20
    assert said == []
    connection.close()


def test_broker_comes_back(rabbit_to_kill: PrivateRabbit) -> None:
    """If the broker is killed and restarted, publishing takes longer and loses nothing: the next publication arrives."""
    node = rabbit_to_kill
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            node.start()

    publisher = AmqpPublisher([parse_broker_url(node.url)], "demo", tell)
    publisher.publish("jobs.summary", b"{}")
    node.kill()
    publisher.publish("jobs.summary", b"{}")
    publisher.close()
    assert said[0].endswith("trying again until it works")
    assert said[-1] == "publishing again"


def test_refused(rabbit: PrivateRabbit) -> None:
    """A wrong password, an unknown virtual host, and an exchange of another type are errors. They are not retried for ever."""
    good = parse_broker_url(rabbit.url)
    at = f"{good.host}:{good.port}"
    for url, exchange, text in (
        (f"amqp://guest:wrong@{at}", "demo", "password"),
        (f"amqp://guest:guest@{at}/nowhere", "demo", "virtual host"),
        (rabbit.url, "amq.direct", "inequivalent"),
    ):
        publisher = AmqpPublisher([parse_broker_url(url)], exchange, lambda text: None)
        with pytest.raises(BrokerError, match=text):
            publisher.publish("jobs.summary", b"{}")
        publisher.close()


def test_the_command_says_what_became_of_an_event(rabbit: PrivateRabbit) -> None:
    """`towerws publish` exits with 0 and the given id if routed, 3 without an exchange, 4 without a queue, 1 without a broker."""
    exchange = f"shell-{uuid4().hex}"

    def publish(*more: str, broker: str = rabbit.url) -> tuple[int, str]:
        arguments = ["publish", "jobs.summary", '{"n": 1}', "--broker", broker, "--exchange", exchange, *more]
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.stderr

    code, said = publish()
    assert (code, "no exchange" in said) == (3, True)
    at = rabbit.url.rpartition("@")[2]
    code, said = publish(broker=f"amqp://guest:s3cret@{at}")
    assert (code, "password is wrong" in said, "s3cret" in said) == (3, True, False)
    code, said = publish(broker=f"amqps://guest:s3cret@{at}")
    assert (code, "that port doesn't speak TLS" in said, "s3cret" in said) == (3, True, False)
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    code, said = publish()
    assert (code, "no queue is bound" in said) == (4, True)
    assert publish("--no-mandatory")[0] == 0
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, "#")
    assert publish("--message-id", "mine") == (0, "1 event published on jobs.summary and confirmed\n")
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    assert (method.routing_key, properties.message_id, body) == ("jobs.summary", "mine", b'{"n": 1}')
    assert properties.headers["timestamp_in_ms"] // 1000 == properties.timestamp > 0
    channel.queue_declare(exchange, exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    channel.queue_bind(exchange, exchange, "#")
    code, said = publish("--timeout", "1")
    assert (code, "is it at its maximum length?" in said) == (1, True)
    connection.close()
    code, said = publish("--timeout", "1", broker="amqp://127.0.0.1:1")
    assert (code, "not confirmed within 1 s" in said) == (1, True)


def test_an_alarm(rabbit_to_kill: PrivateRabbit) -> None:
    """In a memory alarm `towerws publish` ends at its timeout, and names the alarm. Ctrl-C ends it at once."""
    node = rabbit_to_kill
    exchange = pika.BlockingConnection(pika.URLParameters(node.url))
    exchange.channel().exchange_declare("towerws", "topic", durable=True)
    exchange.close()
    node.limit_memory("0.000001")
    began = time.monotonic()
    result = CliRunner().invoke(main, ["publish", "jobs.summary", "{}", "--broker", node.url, "--timeout", "2"])
    assert time.monotonic() - began < 4
    assert (result.exit_code, "has an alarm (low on memory)" in result.stderr) == (1, True), result.stderr
    earlier = node.blocked()  # the broker does not read from that connection, so it may not know yet that it ended
    command = [*TOWERWS, "publish", "jobs.summary", "{}", "--broker", node.url, "--timeout", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + DEADLINE_S
    while not node.blocked() - earlier:
        time.sleep(0.02)  # between two polls
        assert time.monotonic() < give_up, "the broker did not block the connection"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=5)[1] == "towerws: stopped; 0 events confirmed before\n"
    assert process.returncode == 1
