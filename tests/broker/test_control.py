"""The control exchange on the connections of the source, against a fake broker."""

from __future__ import annotations

from pika import spec

from tests.auth.tower_kit import logged
from tests.broker.control_kit import House, is_control
from tests.kit.rows import each_row
from towerws.broker.control import LOG_AGAIN_S, PAUSE_MAX_S


@each_row("consume", ["stream", "queue"])
def test_topology(consume: str) -> None:
    """In both modes: a durable fanout exchange, and a bounded queue of the connection, consumed on a separate channel."""
    house = House(consume=consume, exchange="x").start()
    peer, channel = house.broker.peer, house.channel
    exchange, queue, bind, consume_ = [method for number, method in peer.methods if number == channel][1:5]
    assert (exchange.exchange, exchange.durable, exchange.passive) == ("x.control", True, False)
    assert (queue.queue, queue.exclusive, queue.auto_delete, queue.durable) == ("", True, True, False)
    assert queue.arguments == {"x-max-length": 10_000, "x-max-length-bytes": 1024**2, "x-overflow": "reject-publish"}
    assert (bind.exchange, bind.routing_key) == ("x.control", "")
    assert (consume_.queue, consume_.exclusive, consume_.no_ack) == ("", True, True)
    assert [number for number in peer.consumers if number != channel]
    assert house.listener.status == {
        "state": "listening",
        "proven": True,
        "reason": None,
        "failures": 0,
        "unbound": 0,
        "errors": 0,
    }
    assert house.heard.calls == ["listening"]


def test_its_name_and_passive() -> None:
    """The exchange's name can be set. With passive it is only checked, and the queue is still declared."""
    house = House(control_exchange="own", passive=True).start()
    (exchange,) = [method for _, method in house.broker.peer.methods if is_control(method)]
    assert (exchange.exchange, exchange.passive) == ("own", True)
    assert house.state() == "listening"


def test_messages_are_handed_on_with_their_id() -> None:
    """Any routing key is accepted. The events' sink gets none of the messages, and none is acknowledged."""
    house = House(consume="queue").start()
    house.broker.peer.deliver(b'{"user":7}', channel=house.channel, key="", message_id="m1")
    house.broker.peer.deliver(b"", channel=house.channel, key="anything.at.all")
    house.advance(0.2)
    assert house.heard.calls[1:] == [(b'{"user":7}', "m1"), (b"", None)]
    assert house.sink.offsets == []
    assert house.broker.peer.seen(spec.Basic.Ack) == []


def test_a_sink_that_raises_ends_nothing() -> None:
    """It is counted and logged once. The connection stays, and events go on."""
    house = House(consume="queue").start()
    house.heard.broken = True
    with logged() as lines:
        for _ in range(3):
            house.broker.peer.deliver(b"{}", channel=house.channel)
        house.settle()
    assert house.listener.status["errors"] == 3
    assert len(lines.texts) == 1
    assert house.events_flow
    assert len(house.broker.peers) == 1


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
    house = House(heartbeat_s=5000, silence_s=10_000)
    house.refuse(code, text)
    with logged() as lines:
        house.start()
        house.advance(300, 0.5)
        reason = str(house.listener.status["reason"])
        assert reason.startswith(f"{code} ")
        assert hint in reason
        assert house.state() == "paused"
        assert house.events_flow
        assert len(house.broker.peers) == 1
        told = [line for line in lines.texts if "towerws.control" in line]
        assert len(told) == 1
        assert reason in told[0]
        assert 8 <= house.set_ups() <= 12
        house.advance(LOG_AGAIN_S, 0.5)
        assert len([line for line in lines.texts if "towerws.control" in line]) == 2
        house.allow()
        house.advance(PAUSE_MAX_S + 1, 0.5)
    assert house.state() == "listening"
    assert house.listener.status["reason"] is None
    assert lines.texts[-1] == "listening to control exchange towerws.control again"
    assert house.events_flow


def test_a_broker_that_does_not_answer() -> None:
    """The set-up has a deadline. Events flow meanwhile."""
    house = House(attempt_s=10)
    house.answer(lambda *_: None)
    house.start()
    assert house.state() == "starting"
    house.advance(10)
    assert house.state() == "paused"
    assert "no answer within 10 s" in str(house.listener.status["reason"])
    assert house.events_flow
    house.allow()
    house.advance(1.1)
    assert house.state() == "listening"


@each_row("how", ["cancel", "close"])
def test_a_queue_that_is_taken_away_is_made_anew(how: str) -> None:
    """After a second, on the same connection. The sink is told that messages may have been missed, and events go on."""
    house = House().start()
    for failures in (1, 2, 3):
        peer, channel = house.broker.peer, house.channel
        method = spec.Basic.Cancel(peer.consumers[channel]) if how == "cancel" else spec.Channel.Close(404, "NOT_FOUND - no queue", 0, 0)
        peer.send(channel, method)
        house.settle()
        assert (house.state(), house.listener.status["failures"]) == ("paused", failures)
        house.advance(1.1)
        assert house.state() == "listening"
    assert house.heard.calls == ["listening"] * 4
    assert len(house.broker.peers) == 1
    assert house.source.counters["channel_failures"] == 0


def test_every_connection_listens() -> None:
    """After a connection failure it listens on the next connection at once, and tells the sink that messages may have been missed."""
    house = House().start()
    for connections in (2, 3):
        house.broker.cut()
        assert house.listener.status["state"] == "off"
        assert house.listener.status["reason"] == "no connection to the broker"
        house.advance(1.5)
        assert house.events_flow
        assert len(house.broker.peers) == connections
        assert house.state() == "listening"
    assert house.heard.calls == ["listening"] * 3
    assert house.listener.status["failures"] == 0


def test_what_ends_the_connection_is_tried_ever_less() -> None:
    """If the broker ends the connection because of the set-up, events get up to a minute between two attempts."""
    house = House(consume="queue")
    house.answer(house.broker.close_connection(530, "NOT_ALLOWED - number of channels has reached the limit"))
    house.source.start()
    house.advance(600, 0.1)
    before = house.set_ups()
    assert before <= 16
    house.advance(120, 0.1)
    assert house.set_ups() - before <= 3
    assert "was lost while this was set up" in str(house.listener.status["reason"])
    house.allow()
    house.advance(PAUSE_MAX_S + 12, 0.1)
    assert (house.state(), house.events_flow) == ("listening", True)


@each_row("when", ["starting", "listening", "paused"])
def test_stop(when: str) -> None:
    """In every state no timer is left, and no message is handled any more."""
    house = House(consume="queue")
    if when == "starting":
        house.answer(lambda *_: None)
    elif when == "paused":
        house.refuse(403, "ACCESS_REFUSED")
    house.start()
    assert house.state() == when
    heard = list(house.heard.calls)
    stopped = house.source.stop()
    if when == "listening":
        house.broker.peer.deliver(b"{}", channel=house.channel)
    house.advance(3)
    assert stopped.called
    assert house.heard.calls == heard
    assert house.clock.getDelayedCalls() == []
    assert house.state() == "off"
