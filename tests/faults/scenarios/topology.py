"""Faults of the declared objects: stream, exchange, binding, and retention."""

from __future__ import annotations

import os
import signal

from tests.faults.case import CLIENTS, TOWER, Case
from tests.faults.scenario import Outcome, scenario
from tests.faults.scenarios.broker import cut_off
from tests.faults.stream_protocol import PLUGINS, StreamProducer, listener

NOTICED_S = 15.0
"""Within this many seconds `/readyz` names the fault of the topology."""


@scenario("stream-deleted")
def stream_deleted(case: Case) -> Outcome:
    """Promise: a deleted stream is declared again, and clients are told of the loss once.

    Injected: the stream is deleted under load. Counted: each v1 client is told once, and later events come.
    """
    daemon, publisher = case.direct()
    publisher.wait_for(200)
    with case.amqp(case.rabbit.port) as channel, publisher.gone():
        channel.queue_delete(case.stream)
        publisher.wait_for(200)
        case.wait_ready(daemon)
    publisher.wait_for(200)
    return case.finish("stream deleted under load", holes=1)


@scenario("stream-remade-{}", "empty", "shorter", "equal", "longer")
def stream_remade(case: Case, how: str) -> Outcome:
    """Promise: another stream of the same name is not taken for the old one, with any number of events (C7).

    Injected: while the daemon's link is down, 20 events are published, the stream is deleted and made again, and gets none, 10, just as
    many or many more events. Counted: each v1 client is told once, and gets every event of the new stream.
    """
    proxy, daemon, publisher = case.proxied(per_s=0)
    publisher.burst(300)
    case.swarm.wait_for(publisher.journal)
    cut_off(proxy)
    with case.amqp(case.rabbit.port) as channel:
        with publisher.gone():
            publisher.burst(20)
        channel.queue_delete(case.stream)
        case.declare(channel)
    count = {"empty": 0, "shorter": 10, "equal": 320, "longer": 900}[how]
    if count:
        publisher.burst(count)
    proxy.refuse(refused=False)
    case.wait_ready(daemon)
    publisher.burst(20)
    return case.finish(f"stream re-made with {count} events", holes=1)


@scenario("stream-remade-unheard")
def stream_remade_unheard(case: Case) -> Outcome:
    """Promise: the position of an empty stream is not valid in another one (C7).

    Injected: clients have the position of an empty stream. While they are away it gets three events, is deleted, made again, and gets two.
    Counted: each v1 client is told once.
    """
    proxy, daemon, publisher = case.proxied(per_s=0, clients=50, tower=10)
    cut_off(proxy)
    with case.amqp(case.rabbit.port) as channel:
        with publisher.gone():
            publisher.burst(3)
        channel.queue_delete(case.stream)
        case.declare(channel)
    publisher.burst(2)
    case.swarm.drop(share=0.5)
    proxy.refuse(refused=False)
    case.wait_ready(daemon)
    return case.finish("empty stream re-made behind the daemon's back", holes=1)


@scenario("stream-unreadable-{}", "bytes", "gzip")
def stream_unreadable(case: Case, how: str) -> Outcome:
    """Promise: an entry that AMQP 0-9-1 can't read doesn't stop a daemon: it is skipped, and reported as a gap.

    Injected: a producer on the stream protocol writes one under load: bytes that are no AMQP 1.0, or a batch compressed by gzip (which
    RabbitMQ 4 skips by itself, without a gap). Afterwards the daemon's link is cut, and 10 s later the daemon is killed and
    started. Counted: each v1 client is told once. All other events come, except those that the broker wrote together with the entry.
    """
    stream_port = case.new_port()
    node = case.fresh_rabbit(config=listener(stream_port), plugins=PLUGINS)
    proxy = case.proxy(node.port)
    daemon = case.daemon(proxy.port)
    publisher = case.publisher(node.port)
    case.swarm.open(case.specs(CLIENTS, daemon, tower=TOWER))
    publisher.wait_for(200)
    with StreamProducer(stream_port, case.stream) as producer, publisher.gone():
        publisher.wait_for(20)
        if how == "bytes":
            producer.publish(b"no AMQP 1.0")
        else:
            producer.publish_compressed(AMQP_1, AMQP_1)
        publisher.wait_for(20)
    publisher.wait_for(200)
    case.wait_ready(daemon)
    proxy.reset()
    case.sleep(10)
    daemon.kill()
    publisher.wait_for(100)
    daemon.start()
    publisher.wait_for(100)
    return case.finish(f"an entry of {how} that can't be read", holes=0 if (how, case.version) == ("gzip", 4) else 1)


AMQP_1 = b"\x00Su\xa0\x02{}"
"""An AMQP 1.0 message: one section of data, which contains `{}`."""


@scenario("binding-removed")
def binding_removed(case: Case) -> Outcome:
    """Promise: a missing binding is noticed, named, made again, and told (C5).

    Injected: the binding is removed under load. Counted: each v1 client is told once, later events come, and the hole ends within 15 s.
    """
    return _broken_topology(case, "binding removed", lambda channel: channel.queue_unbind(case.stream, case.exchange, "#"))


@scenario("exchange-remade")
def exchange_remade(case: Case) -> Outcome:
    """Promise: after a producer deletes an exchange and declares it again, the daemon still gets events (C5).

    Injected: just that, under load. Counted: each v1 client is told once, later events come, and the hole ends within 15 s.
    """

    def remake(channel: object) -> None:
        channel.exchange_delete(case.exchange)  # type: ignore[attr-defined]
        channel.exchange_declare(case.exchange, "topic", durable=True)  # type: ignore[attr-defined]

    return _broken_topology(case, "exchange deleted and re-made", remake)


def _broken_topology(case: Case, injected: str, inflict: object) -> Outcome:
    _, publisher = case.direct()
    publisher.wait_for(200)
    broken = []
    with case.amqp(case.rabbit.port) as channel:
        inflict(channel)  # type: ignore[operator]
        before = len(publisher.journal.returned)
        case.wait_until(lambda: len(publisher.journal.returned) > before, "messages find no queue")
        try:
            case.wait_until(lambda: returns_ended(case, publisher.journal.returned), f"the hole ends within {NOTICED_S:g} s", NOTICED_S + 5)
        except AssertionError as error:
            broken.append(str(error))
            channel.queue_bind(case.stream, case.exchange, "#")  # events come again, and show whether clients are told of the hole
    publisher.wait_for(100)
    return case.finish(injected, holes=1, broken=broken)


def returns_ended(case: Case, returned: set[int]) -> bool:
    """Whether no message was returned within a second."""
    before = len(returned)
    case.sleep(1)
    return len(returned) == before


@scenario("exchange-other-type")
def exchange_other_type(case: Case) -> Outcome:
    """Promise: an exchange of another type is named on `/readyz` within 15 s. Once it is right again, events come and the hole is told.

    Injected: the exchange is deleted and declared as `direct`. 20 s later it is deleted and declared as `topic`. Counted: as above.
    """
    daemon, publisher = case.direct()
    publisher.wait_for(200)
    broken = []
    with case.amqp(case.rabbit.port) as channel:
        channel.exchange_delete(case.exchange)
        channel.exchange_declare(case.exchange, "direct", durable=True)
        try:
            reason = case.wait_ready(daemon, ready=False, within_s=NOTICED_S)
            if "direct" not in reason and "type" not in reason:
                broken.append(f"/readyz does not name the type: {reason}")
        except AssertionError as error:
            broken.append(str(error))
        channel.exchange_delete(case.exchange)
        channel.exchange_declare(case.exchange, "topic", durable=True)
        try:
            case.wait_until(
                lambda: returns_ended(case, publisher.journal.returned), f"the hole ends within {NOTICED_S:g} s", NOTICED_S + 15
            )
        except AssertionError as error:
            broken.append(str(error))
            channel.queue_bind(case.stream, case.exchange, "#")
    case.wait_ready(daemon)
    publisher.wait_for(100)
    return case.finish("exchange re-made as direct, then as topic", holes=1, broken=broken)


@scenario("control-unbound")
def control_unbound(case: Case) -> Outcome:
    """Promise: `POST /disconnect` reports `others_told` only if it is true (C5).

    Injected: another user deletes the control exchange and declares it again. Counted: within 15 s both daemons follow each other again.
    """
    port = case.rabbit.port
    first, second = case.daemon(port), case.daemon(port)
    publisher = case.publisher(port)
    case.swarm.open(case.specs(20, first, second))
    publisher.wait_for(100)
    with case.amqp(case.rabbit.port) as channel:
        channel.exchange_delete(f"{case.exchange}.control")
        channel.exchange_declare(f"{case.exchange}.control", "fanout", durable=True)

    def heard() -> int:
        return sum(value for key, value in second.get("/status")[1]["control"].items() if isinstance(value, int) and key != "sent")

    broken = []
    before = heard()
    status, answer = first.ask("POST", "/disconnect", b'{"user": "nobody"}')
    if status == 202 and answer.get("others_told"):
        try:
            case.wait_until(lambda: heard() > before, "the other daemon hears of it", 5)
        except AssertionError:
            broken.append("others_told was true, and the other daemon heard nothing")

    def told() -> bool:
        status, answer = first.ask("POST", "/disconnect", b'{"user": "nobody"}')
        return status == 202 and bool(answer.get("others_told")) and heard() > before

    try:
        case.wait_until(told, "the daemons hear each other again", NOTICED_S + 5)
    except AssertionError as error:
        broken.append(str(error))
    return case.finish("control exchange deleted and re-made", broken=broken)


KIB = 1024


@scenario("retention-{}KiB", 64, 1024, 8192)
def retention(case: Case, size_kib: int) -> Outcome:
    """Promise: a daemon that retention overtakes tells the gap (C6).

    Injected: SIGSTOP of the daemon, whose stream holds 64 KiB, 1 MiB or 8 MiB in four segments. Four times as much is published, then
    SIGCONT. Counted: each v1 client is told once, and gets everything after the gap.
    """
    segment = size_kib * KIB // 4
    flags = (
        f"--stream-max-bytes={size_kib}KiB",
        f"--stream-segment-bytes={segment}",
        "--heartbeat-s=60",
        "--silence-s=120",
        "--prefetch=10",
    )
    daemon, publisher = case.direct(flags=flags, per_s=0, size=1000)
    publisher.burst(20)
    case.swarm.wait_for(publisher.journal)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with publisher.gone():
            publisher.burst(size_kib * 4)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    publisher.burst(5)
    return case.finish(f"daemon stopped, {size_kib * 4:,} events of 1 KB, stream {size_kib} KiB", holes=1)


@scenario("retention-steps", short=True)
def retention_steps(case: Case) -> Outcome:
    """Promise: offsets that jump without a loss cause no gap.

    Injected: segments of 16 KiB, so that an internal entry takes an offset every few messages. The link is cut five times. Counted: no gap.
    """
    flags = ("--stream-max-bytes=4MiB", "--stream-segment-bytes=16KiB")
    proxy, _, publisher = case.proxied(flags=flags, size=600, clients=50, tower=10)
    for _ in range(5):
        publisher.burst(100)
        proxy.reset()
        publisher.wait_for(50)
    return case.finish("segments of 16 KiB, 5 cuts")
