"""The Python client and a reader of an event stream through everything that breaks a connection, but for kills of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from private_rabbitmq import PrivateRabbit

from tests.faults.proxy import DOWN, FaultProxy
from tests.kit.daemon import DEADLINE_S, NumberedLoad
from tests.kit.event_stream import StreamFollower
from tests.kit.followers import faults_of, jwt_flags, token, url_of
from tests.kit.handed import HandedDaemon
from tests.kit.py_client import PyClient
from towerws.client import Token

TOPIC = "job_events.1"
FAST: dict[str, Any] = {"retry_min_s": 0.05, "retry_max_s": 1}


@pytest.mark.timeout(600)
def test_breaks(rabbit_to_kill: PrivateRabbit, tmp_path: Path) -> None:
    """A killed broker, a proxy that cuts, freezes and delays, tokens that expire, and a hand-over: each event once, in order, no gap."""
    rabbit = rabbit_to_kill
    with (
        with_jwt(tmp_path, rabbit.url, "--exchange=t.breaks", "--stream=t.breaks.events") as daemon,
        FaultProxy(("127.0.0.1", daemon.port)) as proxy,
    ):
        rabbit.save()
        options = {**FAST, "token": lambda: Token(token(5), time.time() + 3600), "ping_s": 0.3, "pong_s": 0.5, "connect_s": 2}
        with (
            PyClient(url_of(proxy), {"job_events": [1]}, **options) as client,
            StreamFollower(proxy.port, f"/events?topic={TOPIC}", token=lambda: token(5), silence_s=2) as reader,
            NumberedLoad(rabbit.url, TOPIC, exchange="t.breaks", stream="t.breaks.events", per_s=50) as load,
        ):
            client.until_subscribed()
            reader.until_subscribed()

            def broker() -> None:
                rabbit.kill()
                rabbit.start()

            def hand_over() -> None:
                status, answer = daemon.restart()
                assert status == 200, answer

            faults = [*faults_of(proxy), lambda: proxy.delay(DOWN, 0.2), broker, hand_over, proxy.reset]
            for fault in faults:
                load.wait_for(10)
                fault()
                load.wait_for(50)  # a second: longer than the client takes for a dead link
                proxy.heal()
                client.until_number(load.count - 1)
                reader.until_number(load.count - 1)
            client.until(lambda: any(change.reason is not None and change.reason.code == "authenticate" for change in client.changes))
            reader.until(lambda: any(bye["action"] == "authenticate" for bye in reader.frames("bye")))
            count = load.finish()
            client.until_number(count - 1)
            reader.until_number(count - 1)
            check(client, reader, count)


@contextmanager
def with_jwt(folder: Path, broker: str, *flags: str) -> Iterator[HandedDaemon]:
    """A daemon that takes JSON Web Tokens, notices a dead link soon, and can be replaced."""
    with HandedDaemon(folder, broker, *flags, *jwt_flags(folder), "--websocket-ping-s", "0.5", auth="jwt") as daemon:
        yield daemon


def wait(condition: Callable[[], object]) -> None:
    """Wait for something that the daemon announces in its figures only."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def check(client: PyClient, reader: StreamFollower, count: int) -> None:
    """Both have each event once, in order, and were never told of a loss."""
    assert client.numbers == list(range(count))
    assert client.notices[0] == "subscribed"
    assert set(client.notices[1:]) == {"recovered"}
    assert {error.code for error in client.errors} <= {"handshake"}, "told when the third attempt in a row failed"
    assert reader.numbers == list(range(count))
    recovered = [frame["recovered"] for frame in reader.frames("subscribed")]
    assert recovered[0] is None
    assert set(recovered[1:]) == {True}
    assert not reader.frames("gap")
