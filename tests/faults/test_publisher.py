"""The journal agrees with the log: an independent consumer reads the stream."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from tests.faults.case import Brokers, Case
from tests.faults.proxy import Direction


def test_the_journal_and_the_log_agree(brokers: Brokers, tmp_path: Path) -> None:
    """Each number is confirmed and in the stream, in order except for repeated ones. A number that no queue took is marked as returned."""
    with ExitStack() as leave:
        case = Case("journal", "suite/journal", tmp_path, brokers, lambda text: None, leave)
        port = brokers.shared().port
        proxy = case.proxy(port)
        with case.amqp(port) as channel:
            case.declare(channel)
            publisher = case.publisher(proxy.port, port, per_s=500)
            publisher.wait_for(100)
            for _ in range(3):
                proxy.reset()
                publisher.wait_for(100)
            publisher.rate(0)
            publisher.last_round()
            assert not publisher.journal.returned
            count = publisher.journal.count
            channel.queue_unbind(case.stream, case.exchange, "#")
            publisher.burst(5)
            assert publisher.journal.returned == set(range(count, count + 5))
            channel.basic_qos(prefetch_count=100)
            numbers: list[int] = []
            ids: dict[int, str] = {}
            for method, properties, body in channel.consume(case.stream, arguments={"x-stream-offset": "first"}, inactivity_timeout=10):
                assert method is not None, f"the stream ends after {len(numbers)} messages"
                channel.basic_ack(method.delivery_tag)
                number = json.loads(body)["n"]
                assert publisher.journal.topics[publisher.journal.topic_of[number]] == method.routing_key
                assert ids.setdefault(number, properties.message_id) == properties.message_id
                numbers.append(number)
                if len(ids) == count:
                    break
        journal = publisher.journal
        assert set(ids) == set(range(count))
        assert len(journal.confirmed) == journal.count == count + 5
        again = {number for low, high in journal.resent for number in range(low, high + 1)}
        assert {number for number in ids if numbers.count(number) > 1} <= again


def test_a_broker_that_is_away_for_long(brokers: Brokers, tmp_path: Path) -> None:
    """The publisher connects again, however long messages of the lost connection have waited for their confirms."""
    with ExitStack() as leave:
        case = Case("away", "suite/away", tmp_path, brokers, lambda text: None, leave)
        port = brokers.shared().port
        proxy = case.proxy(port)
        with case.amqp(port) as channel:
            case.declare(channel)
        publisher = case.publisher(proxy.port, silence_s=0.5, forgotten_s=0.5)
        publisher.wait_for(10)
        proxy.black_hole(Direction.UP, Direction.DOWN)
        assert proxy.wait_for_accepted(proxy.accepted + 4)
        proxy.heal()
        proxy.delay(Direction.DOWN, 0.05)  # a connection takes longer than the publisher's tick
        publisher.wait_for(10)
        publisher.last_round()
        assert publisher.journal.resent
        assert publisher.journal.confirmed == set(range(publisher.journal.count))
