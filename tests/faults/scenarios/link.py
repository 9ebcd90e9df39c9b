"""Faults of the link between daemon and broker: slow, cut in pieces, cut off at the wrong moment."""

from __future__ import annotations

from tests.faults.case import CLIENTS, TOWER, Case
from tests.faults.proxy import CONSUME_OK, DOWN, UP
from tests.faults.scenario import Outcome, scenario
from tests.faults.scenarios.broker import cut_off


@scenario("link-late-data")
def link_late_data(case: Case) -> Outcome:
    """Promise: what comes late after a reconnect is not lost, and nothing comes twice (C1).

    Injected: the link is cut, two events are published, the link returns, and the broker's data come 1.3 s after each consume-ok.
    Counted: events, gaps and false answers of every client; some of them come back with older positions afterwards.
    """
    proxy, daemon, publisher = case.proxied(per_s=0)
    publisher.burst(50)
    case.swarm.wait_for(publisher.journal)
    for _ in range(2):
        cut_off(proxy)
        publisher.burst(2)
        proxy.delay_after(DOWN, CONSUME_OK, 1.3)
        proxy.refuse(refused=False)
        case.swarm.drop(share=0.2)
        case.wait_ready(daemon)
        publisher.burst(2)
        case.swarm.wait_for(publisher.journal)
    proxy.heal()
    case.swarm.drop(share=0.3)
    return case.finish("cut, data 1.3 s after consume-ok, x2")


@scenario("link-empty-stream", short=True)
def link_empty_stream(case: Case) -> Outcome:
    """Promise: a daemon that has read nothing yet, but has clients, loses nothing in an outage longer than its history (C2).

    Injected: an empty stream, clients subscribed, history of 1 s; the link is down for 3 s, five events come at its start, two after it.
    Counted: all seven events reach every client.
    """
    proxy, daemon, publisher = case.proxied(per_s=0, flags=("--history-max-age-s=1",))
    cut_off(proxy)
    for _ in range(5):
        publisher.burst(1)  # each in a chunk of its own: the last chunk alone is easily found
    case.sleep(3)
    proxy.refuse(refused=False)
    case.wait_ready(daemon)
    publisher.burst(2)
    return case.finish("empty stream, 3 s outage, history 1 s")


@scenario("link-slow-start-{}", "0.4s", "0.6s", "2s", "cut")
def link_slow_start(case: Case, how: str) -> Outcome:
    """Promise: a daemon that starts beside a slow broker judges no position before it has read (C3).

    Injected: the daemon is killed and started again while the broker's data come 0.4, 0.6 or 2 s after each consume-ok, or while the link
    is cut in the middle of the refill. Counted: every client resumes exactly, with no `recovered: false`.
    """
    proxy, daemon, publisher = case.proxied(size=1000)
    publisher.burst(1500)
    case.swarm.wait_for(publisher.journal)
    for number in range(3):
        case.say(f"restart {number + 1} of 3")
        daemon.kill()
        if how == "cut":
            proxy.slice(DOWN, 60_000, 0.05)
        else:
            proxy.delay_after(DOWN, CONSUME_OK, float(how[:-1]))
        daemon.start(ready=False)
        if how == "cut":
            case.sleep(case.random.uniform(0.2, 1.5))
            proxy.reset()
        case.wait_ready(daemon, within_s=60)
        proxy.heal()
        publisher.wait_for(50)
    return case.finish(f"daemon restarted x3, link {how}")


@scenario("link-slow-daemon")
def link_slow_daemon(case: Case) -> Outcome:
    """Promise: a position from another daemon that is ahead is waited for (C4).

    Injected: two daemons, one of whose links is 0.3 s slower; clients change between them at random. Counted: events and false answers.
    """
    port = case.rabbit.port
    proxy = case.proxy(port)
    fast, slow = case.daemon(port), case.daemon(proxy.port)
    publisher = case.publisher(port)
    case.swarm.open(case.specs(CLIENTS, fast, slow, tower=TOWER))
    proxy.delay(DOWN, 0.3)
    case.swarm.wander(20)
    publisher.wait_for(1500)
    case.swarm.wander(0)
    return case.finish("one link 0.3 s slower, clients change daemons")


@scenario("link-slices", short=True)
def link_slices(case: Case) -> Outcome:
    """Promise: it does not matter how TCP cuts the broker's bytes.

    Injected: pieces of 1 to 13 bytes in both directions. Counted: events of every client.
    """
    proxy, _, publisher = case.proxied(per_s=50, clients=50, tower=10)
    for size in (1, 3, 7, 13):
        proxy.slice(DOWN, size)
        proxy.slice(UP, size)
        publisher.wait_for(50)
    return case.finish("pieces of 1 to 13 bytes")


@scenario("link-cuts", short=True)
def link_cuts(case: Case) -> Outcome:
    """Promise: a link that is lost costs no event.

    Injected: ten resets and ends of stream in either direction at random moments under load. Counted: events of every client.
    """
    proxy, _, publisher = case.proxied()
    for _ in range(10):
        case.sleep(case.random.uniform(0.1, 0.8))
        how = case.random.choice(["reset", "up", "down"])
        if how == "reset":
            proxy.reset()
        else:
            proxy.half_close(UP if how == "up" else DOWN)
        publisher.wait_for(20)
    return case.finish("10 resets and half-closes")
