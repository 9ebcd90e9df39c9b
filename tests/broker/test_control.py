"""The control exchange on the connections of the source, against a fake broker."""

from __future__ import annotations

from pika import spec

from tests.auth.tower_kit import logged
from tests.broker.control_kit import ControlRig, is_control
from tests.kit.fake_amqp import Peer
from tests.kit.rows import each_row
from towerws.broker.control import LOG_AGAIN_S, PAUSE_MAX_S, UNANSWERED_CHANNELS


@each_row("consume", ["stream", "queue"])
def test_topology(consume: str) -> None:
    """In both modes: a durable fanout exchange, and a bounded queue of the connection, consumed on a separate channel."""
    rig = ControlRig(consume=consume, exchange="x").start()
    peer, channel = rig.broker.peer, rig.channel
    exchange, queue, consume_, bind = [method for number, method in peer.methods if number == channel][1:5]
    assert (exchange.exchange, exchange.durable, exchange.passive) == ("x.control", True, False)
    assert (queue.queue, queue.exclusive, queue.auto_delete, queue.durable) == ("", True, True, False)
    assert queue.arguments == {
        "x-max-length": 10_000,
        "x-max-length-bytes": 1024**2,
        "x-overflow": "reject-publish",
        "x-expires": 60_000,
    }
    assert (bind.exchange, bind.routing_key) == ("x.control", "")
    assert (consume_.queue, consume_.exclusive, consume_.no_ack) == ("", True, True)
    assert [number for number in peer.consumers if number != channel]
    assert rig.listener.status == {
        "state": "listening",
        "proven": True,
        "reason": None,
        "failures": 0,
        "unbound": 0,
        "errors": 0,
    }
    assert rig.heard.calls == ["listening"]


def test_its_name_and_passive() -> None:
    """The exchange's name can be set. With passive it is only checked, and the queue is still declared."""
    rig = ControlRig(control_exchange="own", passive=True).start()
    (exchange,) = [method for _, method in rig.broker.peer.methods if is_control(method)]
    assert (exchange.exchange, exchange.passive) == ("own", True)
    assert rig.state() == "listening"


def test_messages_are_handed_on_with_their_id() -> None:
    """Any routing key is accepted. The events' sink gets none of the messages, and none is acknowledged."""
    rig = ControlRig(consume="queue").start()
    rig.broker.peer.deliver(b'{"user":7}', channel=rig.channel, key="", message_id="m1")
    rig.broker.peer.deliver(b"", channel=rig.channel, key="anything.at.all")
    rig.advance(0.2)
    assert rig.heard.calls[1:] == [(b'{"user":7}', "m1"), (b"", None)]
    assert rig.sink.offsets == []
    assert rig.broker.peer.seen(spec.Basic.Ack) == []


def test_a_sink_that_raises_ends_nothing() -> None:
    """It is counted and logged once. The connection stays, and events go on."""
    rig = ControlRig(consume="queue").start()
    rig.heard.broken = True
    with logged() as lines:
        for _ in range(3):
            rig.broker.peer.deliver(b"{}", channel=rig.channel)
        rig.settle()
    assert rig.listener.status["errors"] == 3
    assert len(lines.texts) == 1
    assert rig.events_flow
    assert len(rig.broker.peers) == 1


@each_row(
    ("code", "text", "hint"),
    [
        (403, "ACCESS_REFUSED - access to exchange 'towerws.control' in vhost '/' refused for user 'towerws'", "docs/operations.md"),
        (404, "NOT_FOUND - no exchange 'towerws.control' in vhost '/'", "passive = false"),
        (406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'towerws.control' in vhost '/': x", "control_exchange"),
    ],
)
def test_a_refusal_stops_no_event(code: int, text: str, hint: str) -> None:
    """Events flow on the same connection. The status and one log line give the reason with the next step. Once cured, it listens."""
    rig = ControlRig(heartbeat_s=5000, silence_s=10_000)
    rig.refuse(code, text)
    with logged() as lines:
        rig.start()
        rig.advance(300, 0.5)
        reason = str(rig.listener.status["reason"])
        assert reason.startswith(f"{code} ")
        assert hint in reason
        assert rig.state() == "paused"
        assert rig.events_flow
        assert len(rig.broker.peers) == 1
        told = [line for line in lines.texts if "towerws.control" in line]
        assert len(told) == 1
        assert reason in told[0]
        assert 8 <= rig.set_ups() <= 12
        rig.advance(LOG_AGAIN_S, 0.5)
        assert len([line for line in lines.texts if "towerws.control" in line]) == 2
        rig.allow()
        rig.advance(PAUSE_MAX_S + 1, 0.5)
    assert rig.state() == "listening"
    assert rig.listener.status["reason"] is None
    assert lines.texts[-1] == "listening to control exchange towerws.control again"
    assert rig.events_flow


def test_a_queue_without_a_consumer_is_not_bound() -> None:
    """The user may declare and bind the queue, and not read it. A bound queue would fill up, and refuse every daemon's revocations.

    Each attempt gets a queue of another name. The log still has one line.
    """
    rig = ControlRig(heartbeat_s=5000, silence_s=10_000)
    refused: list[str] = []

    def consume(peer: Peer, channel: int, method: spec.Basic.Consume) -> None:
        if method.queue:
            rig.broker.consume(peer, channel, method)
            return
        refused.append(f"amq.gen-{len(refused):02d}_x-Y")
        text = f"ACCESS_REFUSED - read access to queue '{refused[-1]}' in vhost '/' refused for user 'towerws'"
        peer.send(channel, spec.Channel.Close(403, text, 60, 20))

    rig.broker.answers[spec.Basic.Consume] = consume
    with logged() as lines:
        rig.start()
        rig.advance(300, 0.5)
    assert len(refused) >= 8
    assert refused[-1] in str(rig.listener.status["reason"])
    assert [bind for bind in rig.broker.peer.seen(spec.Queue.Bind) if bind.exchange == "towerws.control"] == []
    assert len([line for line in lines.texts if "towerws.control" in line]) == 1
    rig.allow()
    rig.advance(PAUSE_MAX_S + 1, 0.5)
    assert rig.state() == "listening"


def test_it_listens_once_it_is_bound() -> None:
    """The sink is told so when the broker has bound the queue. A message that comes through the binding before that is handed on."""
    rig = ControlRig()
    asked: list[tuple[Peer, int, spec.Queue.Bind]] = []

    def bind(peer: Peer, channel: int, method: spec.Queue.Bind) -> None:
        if method.exchange == "towerws.control":
            asked.append((peer, channel, method))
        else:
            rig.broker.queue_bind(peer, channel, method)

    rig.broker.answers[spec.Queue.Bind] = bind
    rig.start()
    assert (rig.state(), rig.heard.calls, rig.announced) == ("starting", [], [])
    rig.broker.peer.deliver(b"{}", channel=asked[0][1], key="", message_id="m1")
    rig.settle()
    assert rig.heard.calls == [(b"{}", "m1")]
    rig.broker.queue_bind(*asked[0])
    rig.settle()
    assert rig.heard.calls == [(b"{}", "m1"), "listening"]
    assert (rig.state(), len(rig.announced)) == ("listening", 1)


def test_a_broker_that_does_not_answer() -> None:
    """The set-up has a deadline. Events flow meanwhile."""
    rig = ControlRig(attempt_s=10)
    rig.answer(lambda *_: None)
    rig.start()
    assert rig.state() == "starting"
    rig.advance(10)
    assert rig.state() == "paused"
    assert "no answer within 10 s" in str(rig.listener.status["reason"])
    assert rig.events_flow
    rig.allow()
    rig.advance(1.1)
    assert rig.state() == "listening"


def test_a_broker_that_never_answers() -> None:
    """A few channels wait for an answer, and no more: the connection has 2047, and the events need one. Late answers are used."""
    rig = ControlRig(attempt_s=5, heartbeat_s=50_000, silence_s=100_000)
    asked: list[tuple[Peer, int, spec.Exchange.Declare]] = []
    rig.answer(lambda *declared: asked.append(declared))
    rig.start()
    rig.advance(1800, 0.5)
    assert len(asked) == UNANSWERED_CHANNELS
    assert rig.state() == "paused"
    assert "no answer within 5 s" in str(rig.listener.status["reason"])
    rig.allow()
    for declared in asked:
        rig.broker.exchange_declare(*declared)
    rig.advance(PAUSE_MAX_S + 1, 0.5)
    assert (rig.state(), rig.events_flow, len(rig.broker.peers)) == ("listening", True, 1)
    assert len(rig.broker.peer.consumers) == 2


def test_a_channel_that_opens_too_late_is_closed() -> None:
    """The set-up was given up while the channel was opening. The broker opens it later: it does not stay open."""
    rig = ControlRig(attempt_s=5)
    held: list[tuple[Peer, int]] = []

    def opened(peer: Peer, channel: int, _: object) -> None:
        if channel == 2 and not held:
            held.append((peer, channel))
        else:
            peer.send(channel, spec.Channel.OpenOk())

    rig.broker.answers[spec.Channel.Open] = opened
    rig.start()
    rig.advance(6)
    assert (rig.state(), rig.listener.status["failures"]) == ("listening", 1)
    peer, late = held[0]
    peer.send(late, spec.Channel.OpenOk())
    rig.settle()
    closed = [number for number, method in peer.methods if isinstance(method, spec.Channel.Close)]
    assert late in closed
    assert (rig.state(), rig.set_ups()) == ("listening", 1)
    assert rig.heard.calls == ["listening"]


@each_row("how", ["cancel", "close"])
def test_a_deleted_queue_is_declared_again(how: str) -> None:
    """After a second, on the same connection. The sink is told that messages may have been missed, and events go on."""
    rig = ControlRig().start()
    for failures in (1, 2, 3):
        peer, channel = rig.broker.peer, rig.channel
        method = spec.Basic.Cancel(peer.consumers[channel]) if how == "cancel" else spec.Channel.Close(404, "NOT_FOUND - no queue", 0, 0)
        peer.send(channel, method)
        rig.settle()
        assert (rig.state(), rig.listener.status["failures"]) == ("paused", failures)
        rig.advance(1.1)
        assert rig.state() == "listening"
    assert rig.heard.calls == ["listening"] * 4
    assert len(rig.broker.peers) == 1
    assert rig.source.counters["channel_failures"] == 0


def test_every_connection_listens() -> None:
    """After a connection failure it listens on the next connection at once, and tells the sink that messages may have been missed."""
    rig = ControlRig().start()
    for connections in (2, 3):
        rig.broker.cut()
        assert rig.listener.status["state"] == "off"
        assert rig.listener.status["reason"] == "no connection to the broker"
        rig.advance(1.5)
        assert rig.events_flow
        assert len(rig.broker.peers) == connections
        assert rig.state() == "listening"
    assert rig.heard.calls == ["listening"] * 3
    assert rig.listener.status["failures"] == 0


def test_what_ends_the_connection_is_tried_ever_less() -> None:
    """If the broker ends the connection because of the set-up, events get up to a minute between two attempts."""
    rig = ControlRig(consume="queue")
    rig.answer(rig.broker.close_connection(530, "NOT_ALLOWED - number of channels has reached the limit"))
    rig.source.start()
    rig.advance(600, 0.1)
    before = rig.set_ups()
    assert before <= 16
    rig.advance(120, 0.1)
    assert rig.set_ups() - before <= 3
    assert "was lost while this was set up" in str(rig.listener.status["reason"])
    rig.allow()
    rig.advance(PAUSE_MAX_S + 12, 0.1)
    assert (rig.state(), rig.events_flow) == ("listening", True)


@each_row("when", ["starting", "listening", "paused"])
def test_stop(when: str) -> None:
    """In every state no timer is left, and no message is handled any more."""
    rig = ControlRig(consume="queue")
    if when == "starting":
        rig.answer(lambda *_: None)
    elif when == "paused":
        rig.refuse(403, "ACCESS_REFUSED")
    rig.start()
    assert rig.state() == when
    heard = list(rig.heard.calls)
    stopped = rig.source.stop()
    if when == "listening":
        rig.broker.peer.deliver(b"{}", channel=rig.channel)
    rig.advance(3)
    assert stopped.called
    assert rig.heard.calls == heard
    assert rig.clock.getDelayedCalls() == []
    assert rig.state() == "off"
