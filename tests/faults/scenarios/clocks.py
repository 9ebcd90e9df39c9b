"""Clocks of daemon and broker that differ by an hour and a day."""

from __future__ import annotations

from typing import Final

from tests.faults.case import Case
from tests.faults.clocks import shifted
from tests.faults.scenario import Outcome, scenario

DAY: Final = 86_400
HOUR: Final = 3600
APART: Final = {"+1h": HOUR, "-1h": -HOUR, "+1d": DAY, "-1d": -DAY}
CLIENTS: Final = 40
WAITING: Final = 10
"""Clients that know only the daemon that goes."""
TOWER: Final = 8


@scenario("clock-daemon")
def clock_of_daemon(case: Case) -> Outcome:
    """Promise: a restarted daemon restores its history with any wall clock.

    Injected: four daemons have clocks that are wrong by an hour and a day, in both directions. Each is killed and restarted under load
    while clients resume. Clients move between these and a daemon with the right clock. Counted: events of every client.
    """
    port = case.rabbit.port
    right = case.daemon(port)
    wrong = [case.daemon(port, environment=shifted(seconds)) for seconds in APART.values()]
    publisher = case.publisher(port)
    case.swarm.open(case.specs(CLIENTS, right, *wrong, tower=TOWER))
    publisher.wait_for(200)
    case.swarm.wander(10)
    for apart, daemon in zip(APART, wrong, strict=True):
        case.say(f"the daemon with {apart} is restarted")
        daemon.kill()
        publisher.wait_for(100)
        daemon.start()
        publisher.wait_for(200)
    case.swarm.wander(0)
    return case.finish(f"daemons' clocks {', '.join(APART)}, each restarted")


@scenario("clock-broker")
def clock_of_broker(case: Case) -> Outcome:
    """Promise: the broker's clock may jump. Nothing is lost, nothing is repeated, and a restarted daemon restores its history.

    Injected: the broker is restarted with clocks that are wrong by an hour and a day, in both directions, and with the right one. One of
    two daemons is restarted after that, or goes before it and comes back after it: always so when the clock is set forward. Clients move
    between the two. Some know only the daemon that goes: their positions are from before the clock was set. Counted: events of every
    client.
    """
    node = case.fresh_rabbit()
    stays, restarted = case.daemon(node.port), case.daemon(node.port)
    publisher = case.publisher(node.port)
    case.swarm.open([*case.specs(CLIENTS, stays, restarted, tower=TOWER), *case.specs(WAITING, restarted)])
    publisher.wait_for(200)
    case.swarm.wander(10)
    now = 0
    for seconds in (*APART.values(), 0):
        case.say(f"the broker's clock is {seconds:+d} s off")
        if forward := seconds > now:
            restarted.kill()
        node.stop()
        node.environment = shifted(seconds)
        node.start()
        publisher.wait_for(100)
        if not forward:
            restarted.kill()
            publisher.wait_for(100)
        restarted.start()
        publisher.wait_for(100)
        now = seconds
    case.swarm.wander(0)
    return case.finish(f"broker's clock {', '.join(APART)} and right")


@scenario("clock-nodes", cluster=True)
def clock_of_nodes(case: Case) -> Outcome:
    """Promise: the nodes of a cluster may disagree about the time. A daemon that restarts at any of them restores its history.

    Injected: one follower is restarted with a clock that is ahead, the other with one that is behind, then the reverse. Each time
    a daemon at each of them is restarted under load. Clients move between these and a daemon at the leader. Counted: events of every
    client.
    """
    cluster = case.cluster()
    case.spoil()
    daemons = [case.daemon(broker=url) for url in cluster.urls]
    leader = cluster.leader(case.stream)
    followers = [at for at in range(3) if at != leader]
    publisher = case.publisher(hosts=[cluster.addresses[leader]])
    case.swarm.open(case.specs(CLIENTS, *daemons, tower=TOWER))
    publisher.wait_for(200)
    case.swarm.wander(10)
    for clocks in (("+1h", "-1d"), ("-1h", "+1d")):
        for at, apart in zip(followers, clocks, strict=True):
            case.say(f"the clock of node {at} is {apart} off")
            cluster.nodes[at].stop()
            cluster.nodes[at].environment = shifted(APART[apart])
            cluster.nodes[at].start()
            cluster.wait_for_copies(case.stream)
        for at in followers:
            daemons[at].kill()
            publisher.wait_for(100)
            daemons[at].start()
            publisher.wait_for(200)
    case.swarm.wander(0)
    return case.finish("followers' clocks +1h and -1d, then -1h and +1d; daemons restarted there")
