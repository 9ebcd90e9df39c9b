"""Black holes: a peer that vanishes without a close, in one direction or both, plain and TLS, idle and under load."""

from __future__ import annotations

from benchmarks.certificate import make_certificate
from tests.faults.case import Case, present
from tests.faults.proxy import DOWN, UP
from tests.faults.scenario import Outcome, scenario

NOTICED_S = 40.0
WAYS = {"both": (UP, DOWN), "up": (UP,), "down": (DOWN,)}


@scenario("blackhole-broker-{}", "plain-idle", "plain-load", "plain-up", "plain-down", "tls-idle", "tls-load", "tls-up", "tls-down")
def blackhole_broker(case: Case, how: str) -> Outcome:
    """Promise: a broker that vanishes without a close is given up after `silence_s`, and the daemon goes on with another address.

    Injected: the link forwards nothing: in both directions while idle and under load, and in one direction only, plain and TLS.
    Counted: events of every client, and the time until the daemon reads again.
    """
    security, _, way = how.partition("-")
    directions = WAYS.get(way, WAYS["both"])
    flags: tuple[str, ...] = ()
    if security == "tls":
        pem = case.folder / "broker.pem"
        make_certificate(pem)
        tls_port = case.new_port()
        node = case.fresh_rabbit(config=_tls(tls_port, str(pem)))
        target, scheme, flags = tls_port, "amqps", (f"--tls-ca={pem}",)
    else:
        node = case.rabbit
        target, scheme = node.port, "amqp"
    proxies = case.proxy(target), case.proxy(target)
    urls = ",".join(f"{scheme}://guest:guest@127.0.0.1:{proxy.port}/%2F" for proxy in proxies)
    daemon = case.daemon(broker=urls, flags=flags)
    publisher = case.publisher(node.port, per_s=0 if way == "idle" else 150)
    case.swarm.open(case.specs(50, daemon, tower=10))
    publisher.burst(50)
    if way == "idle":
        case.swarm.wait_for(publisher.journal)
    # The address over which events come, whichever one the daemon chose.
    proxy = max(proxies, key=lambda each: each.bytes_forwarded[DOWN])
    assert proxy.open_connections, "the daemon is not connected through the proxy"
    proxy.black_hole(*directions)
    if way == "idle":
        publisher.publish(10)
    else:
        case.sleep(12)  # long enough that unacknowledged messages and missing heartbeats count
    publisher.wait_for(10)
    left = case.swarm.wait_for(publisher.journal, within_s=NOTICED_S)
    broken = [f"{left} clients heard nothing for {NOTICED_S:g} s"] if left else []
    return case.finish(f"broker link black-holed: {how}", broken=broken)


def _tls(port: int, pem: str) -> str:
    return (
        f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {pem}\nssl_options.certfile = {pem}\nssl_options.keyfile = {pem}\n"
        "ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n"
    )


@scenario("blackhole-clients-{}", "plain-idle", "plain-full", "plain-down", "tls-idle", "tls-full", "tls-down")
def blackhole_clients(case: Case, how: str) -> Outcome:
    """Promise: a client that vanishes without a close is dropped, harms no other client, and gets its missed events when it reconnects.

    Injected: the link of 50 clients forwards nothing: idle, with a full send buffer, from the daemon only, plain and TLS. Counted: the
    daemon drops all 50. Also their events after they reconnect, and those of 50 bystanders.
    """
    security, _, way = how.partition("-")
    port = case.rabbit.port
    flags = ["--websocket-ping-s=2", "--websocket-pong-s=3"]
    pem = ""
    if security == "tls":
        path = case.folder / "daemon.pem"
        make_certificate(path)
        pem = str(path)
    daemon = case.daemon(port, flags=tuple(flags), tls_pem=pem)
    proxy = case.proxy(daemon.port)
    publisher = case.publisher(port, per_s=0 if way == "idle" else 20, size=40 if way == "idle" else 40_000)
    case.bystanders.open(case.specs(50, daemon, group_name="bystanders", pem=pem))
    case.swarm.open(case.specs(50, ports=(proxy.port,), group_name="gone", pem=pem))
    publisher.burst(5)
    case.swarm.wait_for(publisher.journal)
    proxy.black_hole(*WAYS.get(way, WAYS["both"]))
    broken = []
    try:
        case.wait_until(lambda: present(daemon.get("/status")[1]) == 50, "the daemon drops the clients that are gone", 40)
    except AssertionError as error:
        broken.append(str(error))
    proxy.reset()
    proxy.heal()
    left = case.swarm.wait_live(within_s=30)
    if left:
        broken.append(f"{left} clients did not come back")
    publisher.publish(5)
    return case.finish(f"50 clients black-holed: {how}", broken=broken)
