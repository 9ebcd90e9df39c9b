"""The private node on which all tests of this folder run."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pika
import private_rabbitmq
import pytest
from private_rabbitmq import PrivateRabbit, RabbitError


def _publish_and_read(node: PrivateRabbit) -> bytes | None:
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"hello", pika.BasicProperties(delivery_mode=2))
        body: bytes | None = next(body for _method, _properties, body in channel.consume("kept"))
        return body


def test_a_killed_node_comes_back_on_the_same_port_with_its_data(rabbit_to_kill: PrivateRabbit) -> None:
    """A client can keep its URL over a crash of the broker, and finds its queues again."""
    node = rabbit_to_kill
    url = node.url
    assert _publish_and_read(node) == b"hello"
    node.save()
    node.kill()
    assert not node.running
    node.start()
    assert node.url == url
    assert "kept" in node.queues()


def test_nothing_survives_the_parent(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """The node and its epmd end with the process that started them, however that ends, SIGKILL included."""
    script = private_rabbitmq.__file__
    with subprocess.Popen([sys.executable, script, "--data", tmp_path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(b"amqp://")
        children = _children(parent.pid)
        watches = [os.pidfd_open(pid) for pid in children]
        assert len(watches) == 2
        parent.kill()
    try:
        for watch in watches:
            _wait_for_end(watch)
    finally:
        for watch in watches:
            os.close(watch)


def test_two_nodes_never_share_a_directory(rabbit: PrivateRabbit) -> None:
    """A second node on the same data is refused, with a clear error."""
    with pytest.raises(RabbitError, match="another node is running on"):
        PrivateRabbit(rabbit.data_dir).start()


def test_a_node_that_cannot_start_shows_its_log(tmp_path: Path, rabbit: PrivateRabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error itself names the reason, so that no log file has to be searched."""
    monkeypatch.setattr(private_rabbitmq, "CONFIG", "no.such.key = 1\n")
    monkeypatch.setattr(private_rabbitmq, "LOAD_MODULES", "ok")  # it ends before it needs them
    with pytest.raises(RabbitError, match=r"(?s)ended with exit status .*no\.such\.key"):
        PrivateRabbit(tmp_path).start()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for_end(watch: int) -> None:
    """A pidfd is readable once its process has ended."""
    readable, _, _ = select.select([watch], [], [], 10)
    assert readable


def test_no_port_is_given_twice() -> None:
    """Two daemons of one test never get the same port. Nor is it one that an outgoing connection may take meanwhile."""
    given = [private_rabbitmq.free_port() for _ in range(300)]
    assert len(set(given)) == 300
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(given) < lowest_outgoing
