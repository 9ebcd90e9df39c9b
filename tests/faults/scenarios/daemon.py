"""Faults of the daemon itself: killed, restarted, stopped, overloaded."""

from __future__ import annotations

import os
import signal

from tests.faults.case import CLIENTS, TOWER, Case
from tests.faults.proxy import DOWN
from tests.faults.scenario import Outcome, scenario
from tests.kit.daemon import Daemon

MIB_KIB = 1024


@scenario("daemon-kill-5000", alone=True)
def daemon_kill_5000(case: Case) -> Outcome:
    """Promise: a daemon may be killed. The next one refills its history from the stream before it answers, and all clients resume exactly.

    Injected: `kill -9` and restart, twice, with 5,000 clients with one topic each. Counted: events of every client.
    """
    port = case.rabbit.port
    daemon = case.daemon(port)
    publisher = case.publisher(port, per_s=15)
    case.say("5,000 clients connect")
    live = case.swarm.open(case.specs(5000, daemon, tower=500, each=1), 240)
    assert live == 5000, f"only {live} of 5,000 clients got in"
    publisher.wait_for(30)
    for number in range(2):
        case.say(f"kill {number + 1} of 2")
        daemon.kill()
        case.sleep(case.random.uniform(0.5, 2.0))
        daemon.start(ready=False)
        left = case.swarm.wait_live(within_s=180)
        assert not left, f"{left} clients did not come back"
        publisher.wait_for(30)
    return case.finish("kill -9 and restart x2, 5,000 clients", settle_s=90)


@scenario("daemon-and-broker")
def daemon_and_broker(case: Case) -> Outcome:
    """Promise: daemon and broker may be restarted together (C3).

    Injected: both are killed at once and started at once, three times. Counted: every v1 client resumes exactly. (Tower clients are left
    out: a daemon accepts them before the broker is back, and what is published until it has connected is lost to them.)
    """
    node = case.fresh_rabbit()
    daemon = case.daemon(node.port)
    node.restart()
    daemon.wait_for("/readyz")
    publisher = case.publisher(node.port)
    case.swarm.open(case.specs(CLIENTS, daemon, tower=0))
    publisher.wait_for(300)
    for number in range(3):
        case.say(f"restart {number + 1} of 3")
        daemon.kill()
        node.kill()
        daemon.start(ready=False)
        node.start()
        case.wait_ready(daemon, within_s=60)
        publisher.wait_for(100)
    return case.finish("daemon and broker killed together x3")


@scenario("daemon-kill-in-refill")
def daemon_kill_in_refill(case: Case) -> Outcome:
    """Promise: a daemon that is killed in the middle of its refill leaves nothing behind that could mislead a client (C3).

    Injected: history of 8 MB behind a slow link. The daemon is killed 0.2 to 1.5 s after its start, five times. Counted: events.
    """
    proxy, daemon, publisher = case.proxied(size=1000)
    publisher.burst(8000)
    case.swarm.wait_for(publisher.journal)
    proxy.slice(DOWN, 50_000, 0.02)
    for number in range(5):
        case.say(f"kill {number + 1} of 5")
        daemon.kill()
        daemon.start(ready=False)
        case.sleep(case.random.uniform(0.2, 1.5))
    daemon.kill()
    daemon.start(ready=False)
    case.wait_ready(daemon, within_s=60)
    return case.finish("killed x5 in the refill of 8 MB")


@scenario("daemon-restarts")
def daemon_restarts(case: Case) -> Outcome:
    """Promise: several restarts within history's age cost a client nothing.

    Injected: SIGTERM or `kill -9` and restart of two daemons alternately, six times within history's 120 s. Clients move between them.
    Counted: events of every client.
    """
    port = case.rabbit.port
    daemons = case.daemon(port), case.daemon(port)
    publisher = case.publisher(port)
    case.swarm.open(case.specs(CLIENTS, *daemons, tower=TOWER))
    case.swarm.wander(5)
    for number in range(6):
        case.say(f"restart {number + 1} of 6")
        publisher.wait_for(200)
        daemon = daemons[number % 2]
        if case.random.random() < 0.5:
            daemon.kill()
        else:
            daemon.stop()
        daemon.start()
    case.swarm.wander(0)
    return case.finish("6 restarts, clients change daemons")


@scenario("daemon-stopped-{}s", 3, 12)
def daemon_stopped(case: Case, seconds: int) -> Outcome:
    """Promise: a frozen daemon goes on at its position.

    Injected: SIGSTOP of the daemon for 3 s and for 12 s (the broker drops its connection meanwhile) under load. Counted: events.
    """
    daemon, publisher = case.direct()
    publisher.wait_for(200)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        case.sleep(seconds)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    publisher.wait_for(200)
    return case.finish(f"daemon stopped for {seconds} s")


@scenario("daemon-lag")
def daemon_lag(case: Case) -> Outcome:
    """Promise: a daemon that lags by a minute loses nothing, and its memory is bounded.

    Injected: the link carries 100 KB per second for 60 s while 210 KB per second are published, and history holds 8 MiB. Counted: events
    of clients that stay. The daemon's memory grows by at most 96 MiB.
    """
    proxy, daemon, publisher = case.proxied(size=1000, flags=("--history-max-bytes=8MiB",))
    publisher.wait_for(200)
    before = daemon.rss_kib()
    proxy.slice(DOWN, 5_000, 0.05)
    worst = _worst_rss(case, daemon, 60)
    proxy.heal()
    grown = (max(worst, daemon.rss_kib()) - before) // MIB_KIB
    broken = [f"memory grew by {grown} MiB"] if grown > 96 else []
    return case.finish("link of 100 KB/s for 60 s, 210 KB/s published", broken=broken, notes=[f"memory grew by {grown} MiB"], settle_s=90)


def _worst_rss(case: Case, daemon: Daemon, seconds: int) -> int:
    worst = 0
    for second in range(seconds):
        case.sleep(1)
        worst = max(worst, daemon.rss_kib())
        if second % 10 == 9:
            case.say(f"{second + 1} s, {worst // MIB_KIB} MiB")
    return worst
