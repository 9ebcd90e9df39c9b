"""Faults of a single broker and of the link to it."""

from __future__ import annotations

from tests.faults.case import Case
from tests.faults.scenario import Outcome, scenario

CLIENTS = 100
TOWER = 20


@scenario("broker-calm", short=True)
def broker_calm(case: Case) -> Outcome:
    """Nothing is injected but clients that change between two daemons: the kit itself must find nothing.

    Counted: events of every client.
    """
    port = case.rabbit.port
    first, second = case.daemon(port), case.daemon(port)
    publisher = case.publisher(port)
    case.swarm.open(case.specs(CLIENTS, first, second, tower=TOWER))
    case.swarm.wander(20)
    publisher.wait_for(1000)
    case.swarm.wander(0)
    return case.finish("clients change daemons")


@scenario("broker-kill")
def broker_kill(case: Case) -> Outcome:
    """Promise: RabbitMQ may go and come back; connections stay, nothing is lost, nothing is repeated.

    Injected: `kill -9` of the broker 20 times under load, each time at a random moment. Counted: events of every client.
    """
    node = case.fresh_rabbit()
    daemon = case.daemon(node.port)
    node.restart()  # what was declared is on the disk from here on
    daemon.wait_for("/readyz")
    publisher = case.publisher(node.port)
    case.swarm.open(case.specs(CLIENTS, daemon, tower=TOWER))
    publisher.wait_for(100)
    for number in range(20):
        case.say(f"kill {number + 1} of 20")
        case.sleep(case.random.uniform(0.0, 1.0))
        node.kill()
        node.start()
        publisher.wait_for(100)
    return case.finish("kill -9 x20")
