"""Faults of a single broker."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from private_rabbitmq import PrivateRabbit, RabbitError

from tests.faults.case import CLIENTS, TOWER, Case
from tests.faults.proxy import FaultProxy
from tests.faults.scenario import Outcome, scenario


@scenario("broker-calm")
def broker_calm(case: Case) -> Outcome:
    """Promise: a client takes its position to any daemon and gets exactly the events that it missed.

    Injected: only clients that move between two daemons. Counted: events of every client. The fault tests themselves must find nothing.
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
    """Promise: RabbitMQ may go and come back. Connections stay, nothing is lost, and nothing is repeated.

    Injected: `kill -9` of the broker 20 times under load, each time at a random moment. Counted: events of every client.
    """
    node = case.fresh_rabbit()
    daemon = case.daemon(node.port)
    node.save()
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


@scenario("broker-stop-{}s", 1, 2, 5, 25, 40)
def broker_stop(case: Case, seconds: int) -> Outcome:
    """Promise: a broker that does not answer has not lost its stream.

    Injected: SIGSTOP of the broker for 1, 2, 5, 25 and 40 s under load. Counted: events of every client.
    """
    _, publisher = case.direct()
    publisher.wait_for(200)
    _freeze(case, case.rabbit, seconds)
    publisher.wait_for(200)
    return case.finish(f"SIGSTOP {seconds} s")


@scenario("broker-stop-at-reconnect")
def broker_stop_at_reconnect(case: Case) -> Outcome:
    """Promise: silence just after a reconnect proves nothing (C1).

    Injected: the link is cut, and within 50 ms of the daemon's next connection the broker is stopped for 1.5 s. This happens six times.
    Counted: events.
    """
    proxy, daemon, publisher = case.proxied()
    for number in range(6):
        publisher.wait_for(100)
        case.say(f"cut and stop {number + 1} of 6")
        before = proxy.accepted
        proxy.reset()
        assert proxy.wait_for_accepted(before + 1), "the daemon did not connect again"
        case.sleep(case.random.uniform(0.0, 0.05))
        _freeze(case, case.rabbit, 1.5)
        case.wait_ready(daemon)
    publisher.wait_for(100)
    return case.finish("cut, SIGSTOP 1.5 s within 50 ms, x6")


@scenario("broker-forced-close")
def broker_forced_close(case: Case) -> Outcome:
    """Promise: a connection that the operator closes is opened again, and nothing is lost.

    Injected: `rabbitmqctl close_all_connections` six times under load. Counted: events of every client.
    """
    _, publisher = case.direct()
    for number in range(6):
        case.say(f"close {number + 1} of 6")
        case.rabbit.ctl("close_all_connections", "a fault is injected")
        publisher.wait_for(100)
    return case.finish("close_all_connections x6")


@scenario("alarm-{}", "memory", "disk")
def alarm(case: Case, kind: str) -> Outcome:
    """Promise: an alarm that blocks publishers harms no subscriber, even if the link is lost meanwhile.

    Injected: a memory or a disk alarm for 6 s. In its middle the daemon's link is cut. Counted: events of every client.
    """
    node = case.rabbit
    proxy, _, publisher = case.proxied()
    publisher.wait_for(200)
    on, off = {
        "memory": (("set_vm_memory_high_watermark", "0.000001"), ("set_vm_memory_high_watermark", "0.4")),
        "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "1MB")),
    }[kind]
    node.ctl(*on)
    try:
        case.sleep(3)
        proxy.reset()
        case.swarm.drop(share=0.3)
        case.sleep(3)
    finally:
        node.ctl(*off)
    publisher.wait_for(200)
    return case.finish(f"{kind} alarm 6 s, link cut in it")


@scenario("permissions")
def permissions(case: Case) -> Outcome:
    """Promise: a permission that is revoked and granted again costs time, and no event.

    Injected: the daemon's user loses every permission, and its link is cut. 4 s later it gets them back. This happens
    twice. Counted: events.
    """
    node = case.rabbit
    proxy, daemon, publisher = case.proxied(user=new_user(node, case.name))
    for _ in range(2):
        publisher.wait_for(200)
        node.forbid(case.name)
        proxy.reset()
        case.wait_ready(daemon, ready=False)
        case.sleep(4)
        node.permit(case.name, ".*", ".*", ".*")
        case.wait_ready(daemon, within_s=60)
    return case.finish("permissions taken, link cut, given back, x2", settle_s=60)


@scenario("password")
def password(case: Case) -> Outcome:
    """Promise: a password that is changed and changed back costs time, and no event.

    Injected: the daemon's password is changed, and its link is cut. 4 s later the password is restored. Counted: events.
    """
    node = case.rabbit
    proxy, daemon, publisher = case.proxied(user=new_user(node, case.name))
    publisher.wait_for(200)
    node.change_password(case.name, "another")
    proxy.reset()
    case.wait_ready(daemon, ready=False)
    case.sleep(4)
    node.change_password(case.name, "secret")
    case.wait_ready(daemon, within_s=60)
    return case.finish("password changed, link cut, changed back", settle_s=60)


@scenario("tail-lost")
def tail_lost(case: Case) -> Outcome:
    """Promise: a stream that lost its unsynced tail in a power failure is recognized: one gap, and nothing twice.

    Injected: SIGKILL of the broker, then 700 to 3,000 bytes are cut off its newest segment file. New messages get the lost offsets.
    Counted: each v1 client is told once. All clients had these events already. A client that has not may find them nowhere.
    """
    node = case.fresh_rabbit()
    daemon = case.daemon(node.port)
    node.save()
    publisher = case.publisher(node.port, per_s=0)
    case.swarm.open(case.specs(CLIENTS, daemon, tower=TOWER))
    publisher.burst(500)
    publisher.last_round()
    case.swarm.wait_for(publisher.journal)
    node.kill()
    newest = newest_segment(node, case.stream)
    cut = case.random.randrange(700, 3000)
    with newest.open("r+b") as segment:
        segment.truncate(newest.stat().st_size - cut)
    node.start()
    publisher.burst(200)
    return case.finish(f"SIGKILL, {cut} bytes cut off the tail", holes=1)


def newest_segment(node: PrivateRabbit, stream: str) -> Path:
    """The file with the newest messages of this stream."""
    folders = [folder for folder in node.stream_dir.iterdir() if stream.replace(".", "_") in folder.name]
    assert len(folders) == 1, folders
    return max(folders[0].glob("*.segment"))


def _freeze(case: Case, node: PrivateRabbit, seconds: float) -> None:
    case.say(f"the broker is stopped for {seconds:g} s")
    node.pause()
    try:
        case.sleep(seconds)
    finally:
        node.resume()


def new_user(node: PrivateRabbit, name: str) -> str:
    """Make a user with all permissions, and replace one of that name. Returns name and password."""
    with suppress(RabbitError):
        node.delete_user(name)
    node.add_user(name, "secret")
    node.permit(name, ".*", ".*", ".*")
    return f"{name}:secret"


def cut_off(proxy: FaultProxy) -> None:
    """Reset open connections and refuse new ones, until `heal`."""
    proxy.refuse()
    proxy.reset()
