"""Faults of a cluster of three nodes. Daemons are named after the node that they try first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from private_cluster import PrivateCluster

from tests.faults.case import Case
from tests.faults.publisher import Publisher
from tests.faults.scenario import Outcome, scenario
from tests.kit.daemon import Daemon

CLIENTS: Final = 60
TOWER: Final = 12
WANDER_PER_S: Final = 10
"""This many clients per second move to another daemon."""

PAST_NET_TICK_S: Final = 20
"""Every node notices a partition or a stop of this many seconds (Erlang's net tick is 8 s here)."""

READY_S: Final = 15
"""A daemon without messages reports that within this many seconds."""


def daemon_at(case: Case, cluster: PrivateCluster, *nodes: int, only: bool = False) -> Daemon:
    """A daemon that tries these nodes in this order, and then (without `only`) the others."""
    rest = () if only else tuple(at for at in range(3) if at not in nodes)
    return case.daemon(broker=",".join(cluster.urls[at] for at in (*nodes, *rest)))


def load(case: Case, cluster: PrivateCluster, nodes: Sequence[int] = (0, 1, 2), *, per_s: float = 200, size: int = 40) -> Publisher:
    """A publisher for these nodes, in rotation."""
    return case.publisher(hosts=[cluster.addresses[at] for at in nodes], per_s=per_s, size=size)


def at_two_nodes(case: Case) -> tuple[PrivateCluster, Publisher]:
    """One daemon at node 0 and another at node 1. Clients move between them all the time."""
    cluster = case.cluster()
    daemons = [daemon_at(case, cluster, 0), daemon_at(case, cluster, 1)]
    publisher = load(case, cluster)
    case.swarm.open(case.specs(CLIENTS, *daemons, tower=TOWER))
    case.swarm.wander(WANDER_PER_S)
    publisher.wait_for(200)
    return cluster, publisher


def others(at: int) -> tuple[int, int]:
    """The other two nodes."""
    first, second = (node for node in range(3) if node != at)
    return first, second


def deaf_though_ready_s(daemon: Daemon, publisher: Publisher, within_s: float) -> float:
    """The longest time without a message in which the daemon reported to be ready, while the broker confirmed messages."""
    worst, since, confirmed = 0.0, time.monotonic(), 0
    known: object = None
    end = time.monotonic() + within_s
    while (now := time.monotonic()) < end:
        try:
            ready, history = daemon.get("/readyz")[0] == 200, daemon.get("/status")[1]["history"]
        except OSError:
            ready, history = False, None
        if not ready or history != known or len(publisher.journal.confirmed) == confirmed:
            # The daemon got a message, says that it is not ready, or nothing was published.
            since, known, confirmed = now, history, len(publisher.journal.confirmed)
        worst = max(worst, now - since)
        time.sleep(0.2)  # between two polls
    return worst


@scenario("cluster-leader-killed", cluster=True)
def leader_killed(case: Case) -> Outcome:
    """Promise: a node of the cluster may die. Nothing is lost, and nothing is repeated.

    Injected: `kill -9` of the node that leads the stream, three times under load. One daemon reads at that node, the other elsewhere.
    Clients move between the two. Counted: events of every client.
    """
    cluster, publisher = at_two_nodes(case)
    for number in range(3):
        leader = cluster.leader(case.stream)
        case.say(f"kill {number + 1} of 3: node {leader}")
        cluster.nodes[leader].kill()
        publisher.wait_for(600)
        cluster.nodes[leader].start()
        cluster.wait_for_copies(case.stream)
    case.swarm.wander(0)
    return case.finish("kill -9 of the leader x3")


@scenario("cluster-far-behind", cluster=True)
def far_behind(case: Case) -> Outcome:
    """Promise: a daemon that moves to a node with a stream replica far behind waits for it.

    Injected: one node is down while 36 MB are published. It comes back and gets 1.5 MB/s of them. Then the daemon's node is killed, and
    the daemon goes to the node that is behind. Another daemon reads at the leader. Clients move between the two. Counted: events of
    every client.
    """
    cluster = case.cluster()
    first = daemon_at(case, cluster, 0, 1)
    leader = cluster.leader(case.stream)
    near, behind = others(leader)
    moving = daemon_at(case, cluster, near, behind, only=True)
    publisher = load(case, cluster, (leader,), per_s=50)
    case.swarm.open(case.specs(CLIENTS, first, moving, tower=TOWER))
    publisher.wait_for(50)
    case.say(f"node {leader} leads, node {behind} falls behind")
    cluster.nodes[behind].kill()
    publisher.size(30_000)
    publisher.burst(1200)
    publisher.size(40)
    cluster.throttle(behind, 1_500_000)
    cluster.nodes[behind].start()
    offsets = cluster.offsets(case.stream)
    case.say(f"offsets {offsets}; the daemon's node {near} is killed")
    notes = [f"behind by {max(offsets.values()) - offsets.get(behind, 0)} entries when the daemon's node was killed"]
    case.swarm.wander(WANDER_PER_S)
    cluster.nodes[near].kill()
    case.sleep(15)
    cluster.throttle(behind, 0)
    publisher.wait_for(100)
    cluster.nodes[near].start()
    cluster.wait_for_copies(case.stream)
    case.swarm.wander(0)
    return case.finish("daemon moves to a copy that is far behind", notes=notes)


@scenario("cluster-rolling-restart", cluster=True)
def rolling_restart(case: Case) -> Outcome:
    """Promise: the nodes may be restarted one after another, as in an upgrade. Nothing is lost, and nothing is repeated.

    Injected: an orderly restart of each node under load. Clients move between two daemons. Counted: events of every client.
    """
    cluster, publisher = at_two_nodes(case)
    for at, node in enumerate(cluster.nodes):
        case.say(f"restart of node {at}")
        node.restart()
        cluster.wait_for_copies(case.stream)
        publisher.wait_for(100)
    case.swarm.wander(0)
    return case.finish("rolling restart")


@scenario("cluster-two-down-{}", "pause_minority", cluster=True)
def two_down(case: Case, partition_handling: str) -> Outcome:
    """Promise: while two of three nodes are down clients wait, and lose nothing.

    Injected: `kill -9` of two nodes for 20 s under load, the leader among them. One daemon reads at the remaining node, the other must
    find it. Clients move between the two. Counted: events of every client.
    """
    cluster = case.cluster(partition_handling)
    left = daemon_at(case, cluster, 0)
    leader = cluster.leader(case.stream)
    stays = others(leader)[0]
    moving = daemon_at(case, cluster, leader, stays)
    staying = daemon_at(case, cluster, stays)
    publisher = load(case, cluster)
    case.swarm.open(case.specs(CLIENTS, left, moving, staying, tower=TOWER))
    publisher.wait_for(200)
    case.swarm.wander(WANDER_PER_S)
    down = others(stays)
    case.say(f"nodes {down} are killed")
    for at in down:
        cluster.nodes[at].kill()
    case.sleep(20)
    case.say(f"nodes {down} come back")
    cluster.start_nodes(down)
    cluster.wait_for_copies(case.stream)
    publisher.wait_for(200)
    case.swarm.wander(0)
    return case.finish("two of three down for 20 s", settle_s=60)


@scenario("cluster-follower-{}", "stopped", "frozen", cluster=True)
def follower(case: Case, how: str) -> Outcome:
    """Promise: a node that does not lead the stream may stop. Nothing is lost, and nothing is repeated.

    Injected: `stop_app` and `start_app`, or SIGSTOP and SIGCONT, of a follower for 20 s under load. One daemon reads there, the other
    elsewhere. Clients move between the two. Counted: events of every client.
    """
    cluster = case.cluster()
    elsewhere = daemon_at(case, cluster, 0)
    leader = cluster.leader(case.stream)
    at = others(leader)[0]
    there = daemon_at(case, cluster, at)
    publisher = load(case, cluster, (leader,))
    case.swarm.open(case.specs(CLIENTS, elsewhere, there, tower=TOWER))
    publisher.wait_for(200)
    case.swarm.wander(WANDER_PER_S)
    node = cluster.nodes[at]
    if how == "stopped":
        node.ctl("stop_app")
        case.sleep(PAST_NET_TICK_S)
        node.ctl("start_app")
    else:
        case.spoil()  # the paused node wakes up in a partition and does not recover by itself
        node.pause()
        case.sleep(PAST_NET_TICK_S)
        node.resume()
    cluster.wait_for_copies(case.stream)
    publisher.wait_for(200)
    case.swarm.wander(0)
    return case.finish(f"a follower {how} for {PAST_NET_TICK_S} s")


@scenario("cluster-partition-{}", "pause_minority", cluster=True)
def partition(case: Case, partition_handling: str) -> Outcome:
    """Promise: a partition of the cluster loses nothing, and a daemon without messages reports that within 15 s.

    Injected: a follower's node is cut off from the others for 35 s under load. Clients and daemons still reach it. One daemon knows only
    that node, another knows it first, the third reads at the leader. Clients move between them. With `ignore` the nodes don't forget the
    partition: the operator restarts RabbitMQ there after 10 s. Counted: events of every client, and seconds of a ready daemon without any.
    """
    cluster = case.cluster(partition_handling)
    if partition_handling == "ignore":
        case.spoil()
    roaming = daemon_at(case, cluster, 0)
    leader = cluster.leader(case.stream)
    cut = others(leader)[0]
    at_leader = daemon_at(case, cluster, leader)
    alone = daemon_at(case, cluster, cut, only=True)
    publisher = load(case, cluster, [at for at in range(3) if at != cut])
    case.swarm.open(case.specs(CLIENTS, roaming, at_leader, alone, tower=TOWER))
    publisher.wait_for(200)
    case.swarm.wander(WANDER_PER_S)
    case.say(f"node {cut} is cut off; node {leader} leads")
    cluster.cut(cut)
    deaf_s = deaf_though_ready_s(alone, publisher, 35)
    case.say("the cable is back")
    cluster.heal(cut)
    if partition_handling == "ignore":
        deaf_s = max(deaf_s, deaf_though_ready_s(alone, publisher, 10))
        cluster.nodes[cut].ctl("stop_app")
        cluster.nodes[cut].ctl("start_app")
    publisher.wait_for(400)
    case.wait_until(lambda: alone.get("/readyz")[0] == 200, "the daemon that was cut off is ready again", 60)
    case.swarm.wander(0)
    notes = [f"the daemon there was deaf but ready for {deaf_s:.1f} s"]
    broken = [f"a daemon was deaf but ready for {deaf_s:.1f} s, promised {READY_S} s"] if deaf_s > READY_S else []
    return case.finish("a follower cut off for 35 s", broken=broken, notes=notes, settle_s=60)


@scenario("cluster-slow-copy", cluster=True)
def slow_copy(case: Case) -> Outcome:
    """Promise: clients may change daemons at any time. A position from a daemon that is ahead is valid on one that is behind.

    Injected: two daemons on different nodes. The line to one node is repeatedly slow (20 kB/s for 2 s), so that its replica falls behind by
    seconds. Clients change daemons at random. Counted: events of every client.
    """
    cluster = case.cluster()
    first = daemon_at(case, cluster, 0)
    leader = cluster.leader(case.stream)
    slow = others(leader)[0]
    ahead, behind = daemon_at(case, cluster, leader), daemon_at(case, cluster, slow)
    publisher = load(case, cluster, (leader,), per_s=300)
    case.swarm.open(case.specs(80, first, ahead, behind, tower=TOWER))
    case.swarm.wander(40)
    for turn in range(6):
        case.say(f"slow turn {turn + 1} of 6")
        cluster.throttle(slow, 20_000)
        case.sleep(2)
        cluster.throttle(slow, 0)
        publisher.wait_for(300)
    case.swarm.wander(0)
    return case.finish("a copy that is behind by seconds, x6")


# Last: each kind of partition handling has its own cluster, and a partition spoils this one.
scenario("cluster-two-down-{}", "ignore", cluster=True)(two_down)
scenario("cluster-partition-{}", "ignore", cluster=True)(partition)
