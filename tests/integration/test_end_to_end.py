"""From an independent producer through RabbitMQ and the daemon to independent clients, and through every kind of outage."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from private_rabbitmq import PrivateRabbit
from websockets.sync.client import connect

from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, Daemon, NumberedLoad, V1Client, publish_all

AWX_EVENTS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "awx-events.json").read_text())

Start = Callable[..., Daemon]


@pytest.fixture
def names(request: pytest.FixtureRequest) -> list[str]:
    """Flags with an exchange and a stream of this test's own."""
    name = f"t.{abs(hash(request.node.nodeid)) % 10**9}"
    return ["--exchange", name, "--stream", f"{name}.events"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons that end with the test. Their logs must hold nothing unexpected."""
    daemons: list[Daemon] = []

    def start(broker: str, *flags: str, ready: bool = True) -> Daemon:
        daemons.append(Daemon(tmp_path, broker, *flags))
        return daemons[-1].start(ready=ready)

    yield start
    for daemon in daemons:
        daemon.__exit__()


def numbers(client: V1Client) -> list[int]:
    """The numbers of a `NumberedLoad` that a client got."""
    return [payload["n"] for payload in client.payloads]


def collect(client: V1Client, *, until_lost: bool = False) -> threading.Thread:
    """Receive in a thread, until {"n": -1} arrives or, if asked, until the connection is lost."""
    thread = threading.Thread(target=client.until_lost if until_lost else lambda: client.until({"n": -1}), daemon=True)
    thread.start()
    return thread


def test_awx_events_reach_exactly_who_asked_byte_for_byte(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """Two independent clients get exactly the events they subscribed to, in order. Events that are withheld reach no client."""
    daemon = start(rabbit.url, *names)
    messages = [(sample["routing_key"], json.dumps(sample["payload"]).encode()) for sample in AWX_EVENTS]
    end = ("jobs.summary", b'{"group_name": "jobs", "unified_job_id": 0, "final_counter": 0}')

    with connect(daemon.url, open_timeout=DEADLINE_S) as first:
        second = websocket.create_connection(daemon.url, timeout=DEADLINE_S)
        assert json.loads(first.recv(DEADLINE_S)) == {"accept": True, "user": 0}
        assert json.loads(second.recv()) == {"accept": True, "user": 0}
        first.send(json.dumps({"groups": {"jobs": ["status_changed", "summary"], "job_events": [42], "control": ["limit_reached_1"]}}))
        second.send(json.dumps({"groups": {"jobs": ["summary"], "job_events": ["48"], "workflow_events": [50], "schedules": ["changed"]}}))
        assert len(json.loads(first.recv(DEADLINE_S))["groups_current"]) == 4
        assert len(json.loads(second.recv())["groups_current"]) == 4

        publish_all(rabbit.url, [*messages, end], exchange=names[1])

        wanted = {"jobs.status_changed", "jobs.summary", "job_events.42", "control.limit_reached_1"}
        expected = [body.decode() for key, body in [*messages, end] if key in wanted]
        assert len(expected) > 50
        assert [first.recv(DEADLINE_S) for _ in expected] == expected
        wanted = {"jobs.summary", "job_events.48", "workflow_events.50", "schedules.changed"}
        expected = [body.decode() for key, body in [*messages, end] if key in wanted]
        assert [second.recv() for _ in expected] == expected
        second.close()

    status = daemon.get("/status")[1]
    withheld = sum(sample["routing_key"] in {"metrics", "control.limit_reached"} for sample in AWX_EVENTS)
    assert withheld == 2
    assert status["ingest"]["skipped"] == {"withheld": withheld}
    assert status["ingest"]["received"] == len(messages) + 1


def test_bad_messages_are_counted_and_the_next_one_arrives(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """An invalid message is skipped, acknowledged and counted by its reason. The next valid one arrives."""
    daemon = start(rabbit.url, *names, "--max-payload-bytes", "1MiB")
    client = V1Client(daemon.url, {"jobs": ["summary"]}).open()
    bad = [
        ("jobs.summary", b'{"a": "\xff"}'),
        ("jobs.summary", b"[1]"),
        ("jobs.summary", b""),
        ("jobs", b"{}"),
        ("jobs.a.b", b"{}"),
        ("jobs.summary", b'{"a": "%b"}' % (b"x" * 1024 * 1024)),
    ]
    publish_all(rabbit.url, [*bad, ("jobs.summary", b'{"n": 1}')], exchange=names[1])
    client.until({"n": 1})
    assert client.payloads == [{"n": 1}]
    assert daemon.get("/status")[1]["ingest"]["skipped"] == {"not_utf8": 1, "not_an_object": 2, "routing_key": 2, "too_large": 1}
    client.close()


def test_stream_survives_a_killed_broker(rabbit_to_kill: PrivateRabbit, names: list[str], start: Start) -> None:
    """After kill -9 of the broker under load a connected client has every event once, in order, and gets no gap notice."""
    rabbit = rabbit_to_kill
    daemon = start(rabbit.url, *names)
    rabbit.save()
    client = V1Client(daemon.url, {"job_events": [1]}).open()
    receiving = collect(client)
    with NumberedLoad(rabbit.url, "job_events.1", exchange=names[1], stream=names[3]) as load:
        for _ in range(2):
            load.wait_for(100)
            rabbit.kill()
            rabbit.start()
        load.wait_for(100)
        count = load.finish()
    publish_all(rabbit.url, [("job_events.1", b'{"n": -1}')], exchange=names[1])
    receiving.join(DEADLINE_S)
    assert numbers(client) == [*range(count), -1]
    assert client.gaps == []
    client.close()


def test_queue_mode_says_one_gap_for_an_outage(rabbit_to_kill: PrivateRabbit, names: list[str], start: Start) -> None:
    """Without a stream an outage loses messages. Each v1 client gets exactly one gap notice, and order holds before and after it."""
    rabbit = rabbit_to_kill
    daemon = start(rabbit.url, *names, "--consume", "queue")
    clients = [V1Client(daemon.url, {"job_events": [1]}).open() for _ in range(3)]
    before = clients[0].position
    receiving = [collect(client) for client in clients]
    with NumberedLoad(rabbit.url, "job_events.1", exchange=names[1]) as load:
        load.wait_for(100)
        rabbit.kill()
        rabbit.start()
        daemon.wait_for("/readyz")
        load.wait_for(100)
        load.finish()
    publish_all(rabbit.url, [("job_events.1", b'{"n": -1}')], exchange=names[1])
    for client, thread in zip(clients, receiving, strict=True):
        thread.join(DEADLINE_S)
        got = numbers(client)
        assert got[-1] == -1
        assert got[:-1] == sorted(set(got[:-1]))
        assert [gap["reason"] for gap in client.gaps] == ["broker"]
        assert client.gaps[0]["topics"] == ["job_events.1"]
        client.close()
    late = V1Client(daemon.url, {"job_events": [1]})
    late.position = before
    assert late.open().subscribed[-1]["recovered"] is False, "a position from before the outage must not pass for a good one"
    late.close()


def test_client_resumes_on_a_daemon_that_was_killed(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """After kill -9 of the daemon under load a client that resumes has every event, each once."""
    daemon = start(rabbit.url, *names)
    client = V1Client(daemon.url, {"job_events": [1]}).open()
    with NumberedLoad(rabbit.url, "job_events.1", exchange=names[1]) as load:
        for _ in range(3):
            receiving = collect(client, until_lost=True)
            load.wait_for(100)
            daemon.kill()
            receiving.join(DEADLINE_S)
            load.wait_for(50)
            daemon.start(ready=False)
            client.open()
            assert client.subscribed[-1]["recovered"] is True
        count = load.finish()
    publish_all(rabbit.url, [("job_events.1", b'{"n": -1}')], exchange=names[1])
    client.until({"n": -1})
    assert numbers(client) == [*range(count), -1]
    assert client.gaps == []
    client.close()


def test_position_survives_a_restart_on_an_idle_stream(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """After a daemon's restart, with nothing published for longer than history reaches, the last position is still valid."""
    daemon = start(rabbit.url, *names, "--history-max-age-s", "1s")
    client = V1Client(daemon.url, {"jobs": ["summary"]}).open()
    empty = client.position
    publish_all(rabbit.url, [("jobs.summary", b'{"n": 1}')], exchange=names[1])
    client.until({"n": 1})
    client.close()
    wait_until(lambda: daemon.get("/status")[1]["history"]["deliveries"] == 0)
    daemon.kill()
    daemon.start()
    assert client.open().subscribed[-1]["recovered"] is True
    client.close()
    first = V1Client(daemon.url, {"jobs": ["summary"]})
    first.position = empty
    assert first.open().subscribed[-1]["recovered"] is True, "the refill went back to the stream's very beginning"
    first.until({"n": 1})
    first.close()


def test_position_older_than_history_is_not_recovered(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """A client with such a position is told that it is not recovered, and nothing is replayed."""
    small = ["--history-max-bytes", "64KiB", "--max-payload-bytes", "16KiB", "--websocket-backlog-bytes", "16KiB"]
    daemon = start(rabbit.url, *names, *small)
    client = V1Client(daemon.url, {"job_events": [1]}).open()
    publish_all(rabbit.url, [("job_events.1", b'{"n": 0}')], exchange=names[1])
    client.until({"n": 0})
    client.close()
    publish_all(rabbit.url, [("job_events.2", b'{"x": "%b"}' % (b"x" * 1000))] * 100, exchange=names[1])
    wait_until(lambda: daemon.get("/status")[1]["ingest"]["received"] == 101)
    client.open()
    assert client.subscribed[-1]["recovered"] is False
    publish_all(rabbit.url, [("job_events.1", b'{"n": 1}')], exchange=names[1])
    client.until({"n": 1})
    assert numbers(client) == [0, 1]
    client.close()


def test_two_daemons_give_the_same_positions(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """An event has the same position on every daemon. A client moves between daemons without a loss."""
    one, other = start(rabbit.url, *names), start(rabbit.url, *names)
    watchers = [V1Client(daemon.url, {"job_events": [1]}).open() for daemon in (one, other)]
    mover = V1Client(one.url, {"job_events": [1]}).open()
    receiving = [collect(watcher) for watcher in watchers]
    with NumberedLoad(rabbit.url, "job_events.1", exchange=names[1]) as load:
        for daemon in (other, one, other):
            target = load.count + 50
            load.wait_for(50)
            while not mover.payloads or mover.payloads[-1]["n"] < target - 20:
                mover.receive()
            mover.close()
            load.wait_for(20)
            mover.url = daemon.url
            assert mover.open().subscribed[-1]["recovered"] is True
        count = load.finish()
    publish_all(rabbit.url, [("job_events.1", b'{"n": -1}')], exchange=names[1])
    for thread in receiving:
        thread.join(DEADLINE_S)
    mover.until({"n": -1})
    for client in (*watchers, mover):
        assert numbers(client) == [*range(count), -1]
        client.close()
    assert watchers[0].positions == watchers[1].positions == mover.positions


def test_recreated_stream_makes_old_positions_unknown(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """A stream is deleted and declared again under a running daemon. Clients are told, and old positions are no longer valid."""
    daemon = start(rabbit.url, *names)
    client = V1Client(daemon.url, {"job_events": [1]}).open()
    publish_all(rabbit.url, [("job_events.1", b'{"n": %d}' % n) for n in range(5)], exchange=names[1])
    client.until({"n": 4})
    old = client.positions[1]
    rabbit.ctl("delete_queue", names[3])
    wait_until(lambda: daemon.get("/readyz")[0] == 200 and daemon.get("/status")[1]["source"]["channel_failures"] >= 1)
    publish_all(rabbit.url, [("job_events.1", b'{"other": %d}' % n) for n in range(5)], exchange=names[1])
    client.until({"other": 4})
    assert [gap["reason"] for gap in client.gaps] == ["broker"]
    assert client.payloads == [*({"n": n} for n in range(5)), *({"other": n} for n in range(5))]
    client.close()
    client.position = old
    assert client.open().subscribed[-1]["recovered"] is False
    client.close()


def test_a_client_that_stops_reading_costs_little_and_loses_nothing(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """Stalled readers hold at most their bound, and get everything in order when they read again. Other clients notice nothing."""
    # A client that does not read answers no ping either. On a busy machine the last one would be cut off before it is read.
    daemon = start(rabbit.url, *names, "--websocket-ping-s", "600")
    stalled = 5
    payload = b'{"n": %d, "x": "' + b"x" * 16000 + b'"}'
    count = 1500  # 24 MB for each client: history holds that, the sockets and the bounds do not
    sockets = []
    for _ in range(stalled):
        slow = websocket.create_connection(daemon.url, timeout=DEADLINE_S, subprotocols=["towerws.v1"], skip_utf8_validation=True)
        slow.recv()
        slow.send(json.dumps({"groups": {"job_events": [1]}}))
        slow.recv()
        sockets.append(slow)
    bystander = V1Client(daemon.url, {"job_events": [1]}).open()
    before_kib = daemon.rss_kib()
    publish_all(rabbit.url, [("job_events.1", payload % n) for n in range(count)], exchange=names[1])
    bystander.until(json.loads(payload % (count - 1)))
    assert numbers(bystander) == list(range(count))
    status = daemon.get("/status")[1]
    assert status["hub"]["behind"] == stalled
    grown_kib = daemon.rss_kib() - before_kib
    history_kib = status["history"]["bytes"] / 1024
    # Without the bound it would be 120 MB more. Each client may hold 256 KiB, and the allocator keeps some freed memory.
    assert grown_kib < history_kib + stalled * 256 + 32 * 1024
    for slow in sockets:
        got = [json.loads(slow.recv())["payload"]["n"] for _ in range(count)]
        assert got == list(range(count))
        slow.close()
    bystander.close()


def test_resent_message_is_delivered_once(rabbit: PrivateRabbit, names: list[str], start: Start) -> None:
    """If a producer repeats a message after a lost confirm, with the same message_id, clients get it once."""
    import pika  # noqa: PLC0415 - the producer's side of this one test

    daemon = start(rabbit.url, *names)
    client = V1Client(daemon.url, {"jobs": ["summary"]}).open()
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    for n, message_id in ((1, "a"), (1, "a"), (2, "b"), (1, "a"), (3, None), (3, None)):
        channel.basic_publish(names[1], "jobs.summary", b'{"n": %d}' % n, pika.BasicProperties(message_id=message_id))
    channel.basic_publish(names[1], "jobs.summary", b'{"n": -1}')
    connection.close()
    client.until({"n": -1})
    assert numbers(client) == [1, 2, 3, 3, -1]
    assert daemon.get("/status")[1]["ingest"]["duplicates"] == 2
    client.close()


def test_daemon_starts_without_a_broker_and_says_so(rabbit_to_kill: PrivateRabbit, names: list[str], start: Start) -> None:
    """With the broker down at the start clients can connect, and readiness names the reason. Once it is up, the daemon is ready."""
    rabbit = rabbit_to_kill
    rabbit.stop()
    daemon = start(rabbit.url, *names, ready=False)
    assert daemon.get("/readyz")[0] == 503
    wait_until(lambda: "refused" in daemon.get("/readyz")[1]["reason"])
    client = V1Client(daemon.url, {"jobs": ["summary"]}).open()  # its request waits HOLD_S, and is then answered
    rabbit.start()
    daemon.wait_for("/readyz")
    publish_all(rabbit.url, [("jobs.summary", b'{"n": 1}')], exchange=names[1])
    client.until({"n": 1})
    client.close()


def test_sigterm_closes_with_1012_and_says_goodbye(start: Start) -> None:
    """A stop closes each client with 1012, after which AWX's pages reconnect. The daemon exits with status 0."""
    daemon = start("embedded:")
    with (
        connect(daemon.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S) as v1,
        connect(daemon.url, open_timeout=DEADLINE_S) as tower,
    ):
        v1.recv(DEADLINE_S)
        tower.recv(DEADLINE_S)
        daemon.stop()
        bye = json.loads(v1.recv(DEADLINE_S))
        assert bye["type"] == "bye"
        assert bye["reason"] == "restart"
        assert bye["reconnect_after_ms"] > 0
        for client in (v1, tower):
            with pytest.raises(Exception, match="1012"):
                client.recv(DEADLINE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it never came true")
