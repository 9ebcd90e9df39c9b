"""The cluster of the fault tests: its parts work, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import private_cluster
import pytest
from private_cluster import PrivateCluster, missing_for_cluster
from private_rabbitmq import PrivateRabbit, rabbitmq_bin

from tests.faults.brokers import MissingError
from tests.faults.clocks import shifted

STREAM = "kept"
SOON_S = 60.0

pytestmark = pytest.mark.timeout(420)


def _require_cluster() -> None:
    missing = "RabbitMQ is not installed" if rabbitmq_bin() is None else missing_for_cluster()
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    """Three nodes with a stream. Each test leaves all of them running, and the next test uses them."""
    _require_cluster()
    with PrivateCluster(tmp_path_factory.mktemp("cluster")) as running:
        with pika.BlockingConnection(pika.URLParameters(running.urls[0])) as connection:
            connection.channel().queue_declare(STREAM, durable=True, arguments={"x-queue-type": "stream"})
        running.wait_for_copies(STREAM)
        yield running


def _publish(url: str, count: int, size: int = 100) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(count):
            channel.basic_publish("", STREAM, b"x" * size)


def _until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.1)  # between two polls


def _others(at: int) -> list[int]:
    return [other for other in range(3) if other != at]


def test_another_node_leads_when_the_leader_is_killed(cluster: PrivateCluster) -> None:
    """The stream goes on, and the killed node later gets the messages that it missed."""
    leader = cluster.leader(STREAM)
    cluster.nodes[leader].kill()
    assert cluster.leader(STREAM) in _others(leader)
    _publish(cluster.urls[_others(leader)[0]], 10)
    cluster.nodes[leader].start()
    cluster.wait_for_copies(STREAM)
    _until(lambda: len(set(cluster.offsets(STREAM).values())) == 1)
    cluster.wait_until_whole()


def test_a_copy_can_be_removed_and_made_again(cluster: PrivateCluster) -> None:
    """delete_replica removes a replica, and add_replica makes it again."""
    follower = _others(cluster.leader(STREAM))[0]
    cluster.delete_replica(STREAM, follower)
    _until(lambda: cluster.copies(STREAM) == set(_others(follower)))
    cluster.add_replica(STREAM, follower)
    cluster.wait_for_copies(STREAM)
    assert cluster.copies(STREAM) == {0, 1, 2}


def test_a_cut_cable_is_a_partition(cluster: PrivateCluster) -> None:
    """With pause_minority the node without its cable pauses: it accepts no clients. With the cable back the nodes are connected again."""
    cut = _others(cluster.leader(STREAM))[0]
    host, port = cluster.addresses[cut]

    def answers() -> bool:
        try:
            pika.BlockingConnection(pika.ConnectionParameters(host, port, connection_attempts=1, socket_timeout=2)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True

    assert answers()
    cluster.cut(cut)
    _until(lambda: not answers())
    _until(lambda: all(cut not in cluster.reaches(other) for other in _others(cut)))
    _publish(cluster.urls[_others(cut)[0]], 1)
    cluster.heal(cut)
    _until(lambda: cluster.reaches(cut) == set(_others(cut)))
    # A paused node should come back by itself. With Erlang 25 it sometimes hangs in `global` then, and is restarted by its operator.
    cluster.nodes[cut].restart()
    cluster.wait_until_whole()
    cluster.wait_for_copies(STREAM)


def test_a_throttled_line_lets_a_copy_fall_behind(cluster: PrivateCluster) -> None:
    """The other two nodes confirm messages that the third one does not have yet."""
    leader = cluster.leader(STREAM)
    slow = _others(leader)[0]
    cluster.throttle(slow, 50_000)
    _publish(cluster.urls[leader], 20, 20_000)
    offsets = cluster.offsets(STREAM)
    assert offsets[slow] < offsets[leader]
    cluster.mend()
    _until(lambda: len(set(cluster.offsets(STREAM).values())) == 1)


def test_nothing_survives_the_parent(tmp_path: Path) -> None:
    """When the parent is killed, the nodes, every epmd, the namespaces and the cables end with it."""
    _require_cluster()
    before = _interfaces()
    command = [sys.executable, private_cluster.__file__, "--data", str(tmp_path), "--nodes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            assert parent.stdout.readline().startswith(b"amqp://")
        children = [int(child) for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        assert len(children) == 3 + 2 * 2  # two holders of namespaces, then a node and its epmd each
        assert len(_interfaces() - before) == 2
        watches = [os.pidfd_open(pid) for pid in children]
        parent.kill()
    try:
        for watch in watches:
            readable, _, _ = select.select([watch], [], [], SOON_S)
            assert readable
    finally:
        for watch in watches:
            os.close(watch)
    _until(lambda: _interfaces() <= before)


def _interfaces() -> set[str]:
    """The clusters' network interfaces. Clusters of other tests may come and go meanwhile, but have other names."""
    found = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    return {each["ifname"] for each in found if each["ifname"].startswith("tw")}


@pytest.mark.parametrize("seconds", [3600, -86400])
def test_a_node_with_another_clock(tmp_path: Path, seconds: int) -> None:
    """The node's wall clock is off by exactly this much."""
    if rabbitmq_bin() is None:
        pytest.skip("RabbitMQ is not installed")
    try:
        environment = shifted(seconds)
    except MissingError as missing:
        pytest.skip(str(missing))
    with PrivateRabbit(tmp_path, environment=environment) as node:
        assert abs(int(node.eval("erlang:system_time(second)")) - time.time() - seconds) < SOON_S
