"""Faults of clients, beside bystanders that must notice nothing."""

from __future__ import annotations

import resource

from tests.faults.case import Case, descriptors, present
from tests.faults.scenario import Outcome, scenario

BYSTANDERS = 50
BYSTANDER_MS = 5000
"""A bystander that waits longer was harmed. Generous: the machine may be shared."""

PINGS = ("--websocket-ping-s=2", "--websocket-pong-s=3")


@scenario("clients-stall")
def clients_stall(case: Case) -> Outcome:
    """Promise: a client that reads slowly falls behind, and catches up from history when it reads on.

    Injected: 40 clients stop reading for 5 to 60 s, while 400 KB a second are published (and pings are far apart). Counted: events of
    every client: none is lost, none comes twice. Bystanders' worst latency.
    """
    port = case.rabbit.port
    daemon = case.daemon(port, flags=("--websocket-ping-s=300", "--websocket-pong-s=300", "--websocket-backlog-bytes=64KiB"))
    publisher = case.publisher(port, per_s=100, size=4000)
    case.bystanders.open(case.specs(10, daemon, group_name="bystanders"))
    case.swarm.open(case.specs(40, daemon, tower=10, group_name="slow", small_buffer=True))
    publisher.wait_for(40)
    case.swarm.misbehave("slow", "stall", 5, 60)
    most = 0
    for seconds in range(10, 70, 10):
        case.sleep(10)
        behind = daemon.get("/status")[1]["hub"]["behind"]
        most = max(most, behind)
        case.say(f"{seconds} s, {behind} clients behind")
    broken = [] if most else ["no client fell behind: the scenario shows nothing"]
    return _with_bystanders(
        case, case.finish("40 readers stop for 5 to 60 s", settle_s=90, broken=broken, notes=[f"{most} clients were behind"])
    )


@scenario("clients-{}", "never", "talk", "close")
def clients_gone_bad(case: Case, how: str) -> Outcome:
    """Promise: a client that never reads again harms nobody, whether it is silent, talks, or closes and stalls; it is cut off.

    Injected: 100 such clients beside 50 bystanders, 200 KB a second each. Counted: bystanders' events and latency; that all 100 are gone.
    """
    port = case.rabbit.port
    daemon = case.daemon(port, flags=PINGS)
    publisher = case.publisher(port, per_s=100, size=2000)
    case.bystanders.open(case.specs(BYSTANDERS, daemon, group_name="bystanders"))
    case.swarm.open(case.specs(100, daemon, group_name="bad", small_buffer=True, judged=False, returns=False))
    publisher.wait_for(100)
    case.swarm.misbehave("bad", how)
    case.wait_until(lambda: present(daemon.get("/status")[1]) == BYSTANDERS, "the bad clients are cut off", 40)
    publisher.wait_for(200)
    return _with_bystanders(case, case.finish(f"100 clients that never read: {how}"))


@scenario("clients-stalled-1000", alone=True)
def clients_stalled_1000(case: Case) -> Outcome:
    """Promise: what waits for a slow client is bounded, so that a thousand of them harm nobody.

    Injected: 1,000 clients stop reading and do not come back. Counted: bystanders' events and latency; memory within 512 MiB.
    """
    port = case.rabbit.port
    daemon = case.daemon(port, flags=("--websocket-ping-s=10", "--websocket-pong-s=10"))
    publisher = case.publisher(port, per_s=30, size=4000)
    case.bystanders.open(case.specs(BYSTANDERS, daemon, group_name="bystanders"))
    case.swarm.open(case.specs(1000, daemon, group_name="bad", small_buffer=True, judged=False, returns=False))
    before = daemon.rss_kib()
    case.swarm.misbehave("bad", "never")
    worst = 0
    for _ in range(100):
        case.sleep(0.4)
        worst = max(worst, daemon.rss_kib())
        if present(daemon.get("/status")[1]) == BYSTANDERS:
            break
    grown = (worst - before) // 1024
    broken = [f"memory grew by {grown} MiB"] if grown > 512 else []
    case.wait_until(lambda: present(daemon.get("/status")[1]) == BYSTANDERS, "the stalled clients are cut off", 30)
    publisher.wait_for(30)
    return _with_bystanders(case, case.finish("1,000 readers stall", broken=broken, notes=[f"memory grew by {grown} MiB"]))


@scenario("clients-10000-handshakes", alone=True)
def clients_handshakes(case: Case) -> Outcome:
    """Promise: a storm of handshakes waits its turn, and harms nobody who is in.

    Injected: 10,000 clients connect at once. Counted: all get in; bystanders' events and latency.
    """
    port = case.rabbit.port
    daemon = case.daemon(port)
    publisher = case.publisher(port, per_s=20)
    case.bystanders.open(case.specs(BYSTANDERS, daemon, group_name="bystanders"))
    publisher.wait_for(20)
    live = case.swarm.open(case.specs(10_000, daemon, each=1, group_name="storm"), 240, at_once=10_000)
    broken = [] if live == 10_000 else [f"only {live} of 10,000 clients got in"]
    publisher.wait_for(40)
    return _with_bystanders(case, case.finish("10,000 handshakes at once", broken=broken, settle_s=60))


@scenario("clients-descriptors")
def clients_descriptors(case: Case) -> Outcome:
    """Promise: a process that is out of descriptors serves those who are in, and takes others in again once it can.

    Injected: the daemon's limit falls to 60 above what it has open; 300 clients want in; then the limit is what it was. Counted: events
    of bystanders, and that all 300 get in at the end.
    """
    port = case.rabbit.port
    daemon = case.daemon(port)
    publisher = case.publisher(port, per_s=50)
    case.bystanders.open(case.specs(BYSTANDERS, daemon, group_name="bystanders"))
    publisher.wait_for(50)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (descriptors(daemon) + 60, before[1]))
    case.swarm.open(case.specs(300, daemon, group_name="storm"), 8, at_once=300)
    publisher.wait_for(100)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    left = case.swarm.wait_live("storm", 60)
    broken = [f"{left} clients did not get in after the limit was lifted"] if left else []
    publisher.wait_for(50)
    return _with_bystanders(case, case.finish("descriptors run out for 300 clients", broken=broken))


def _with_bystanders(case: Case, outcome: Outcome) -> Outcome:
    """The latency of a row with bystanders is theirs."""
    outcome.worst_ms = case.reports["bystanders"].worst_ms
    if outcome.worst_ms > BYSTANDER_MS:
        outcome.broken.append(f"a bystander waited {outcome.worst_ms:.0f} ms")
    return outcome
