"""AWX's channel layers by settings alone, with real channels under its own Pythons, a real broker, daemon and clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from private_rabbitmq import PrivateRabbit

from tests.integration.redis_server import PrivateRedis
from tests.kit.daemon import DEADLINE_S, Daemon, V1Client
from tests.kit.producer_pythons import CHANNELS_1, CHANNELS_2, CHANNELS_3, CHANNELS_3_NOW, CHANNELS_4, PRODUCER, Environment

EVENTS, WRITERS, EACH = 1000, 4, 100

PROGRAMS = PRODUCER / "tests" / "programs"
REDIS_LAYER = "towerws_producer.channels_redis.Layer"
PLAIN_LAYER = "towerws_producer.channels.Layer"

LAYERS = [
    pytest.param(CHANNELS_1, "awx_channels1.py", "", "1.1.8", id="AWX 1.0 to 9.3: channels 1.1.8, Python 3.6"),
    pytest.param(CHANNELS_2, "awx_channels2.py", PLAIN_LAYER, "2.4.0", id="AWX 10 to 18: channels 2.4.0, Python 3.8"),
    pytest.param(CHANNELS_3, "awx_channels2.py", REDIS_LAYER, "3.0.5", id="AWX 19 to 24: channels 3.0.5 and channels_redis, Python 3.9"),
    pytest.param(CHANNELS_3_NOW, "awx_channels2.py", REDIS_LAYER, "3.0.5", id="channels 3.0.5 and channels_redis, Python 3.13"),
    pytest.param(CHANNELS_4, "awx_channels2.py", REDIS_LAYER, "4.3.2", id="channels 4.3 and channels_redis, Python 3.13"),
    pytest.param(CHANNELS_4, "awx_channels2.py", PLAIN_LAYER, "4.3.2", id="channels 4.3, Python 3.13"),
]


@pytest.fixture
def listening(rabbit: PrivateRabbit, tmp_path: Path) -> Iterator[tuple[V1Client, str, str]]:
    """A client of a daemon that reads from the broker, the daemon's exchange, and the broker's URL."""
    exchange = f"awx-{uuid4().hex}"
    with Daemon(tmp_path, rabbit.url, "--exchange", exchange, "--stream", f"{exchange}.events") as daemon:
        client = V1Client(daemon.url, {"job_events": [42], "jobs": ["status_changed"]}).open()
        yield client, exchange, rabbit.url
        client.close()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of a private Redis, for the tests that need it."""
    server: PrivateRedis = request.getfixturevalue("redis")
    return server.url


@pytest.mark.parametrize(("environment", "program", "backend", "version"), LAYERS)
def test_every_event_reaches_the_daemons_client(
    environment: Environment,
    program: str,
    backend: str,
    version: str,
    listening: tuple[V1Client, str, str],
    redis_url: str,
    producer_python: Any,
) -> None:
    """1,000 events of one process, 100 of each of four forked writers, and one that is sent at the process's exit."""
    client, exchange, broker = listening
    environ = environment.environ(AWX_BROKER=broker, AWX_EXCHANGE=exchange, AWX_REDIS=redis_url)
    command = [producer_python(environment), PROGRAMS / program, str(EVENTS), str(WRITERS), str(EACH), backend]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    client.until({"unified_job_id": 42, "status": "successful", "group_name": "jobs"})
    alone = [payload["counter"] for payload in client.payloads if "writer" not in payload and "counter" in payload]
    assert alone == list(range(1, EVENTS + 1))
    for writer in range(WRITERS):
        assert [payload["counter"] for payload in client.payloads if payload.get("writer") == writer] == list(range(1, EACH + 1))
    assert len(client.payloads) == EVENTS + WRITERS * EACH + 1
    assert figures["channels"] == version
    assert figures["flushed"]
    assert figures["statuses"] == [0] * WRITERS
    assert (figures["stats"]["confirmed"], figures["stats"]["dropped"]) == (EVENTS, {})
    if backend == REDIS_LAYER:
        assert figures["over_redis"] == ['{"n": 1}', '{"group": "metrics", "message": "{}"}']
    if not backend:
        assert figures["refused"] == {"withheld": 1, "topic": 1}
    print(f"{version}: {figures['mean_us']:.0f} µs for each emit, the longest {figures['max_us']:.0f} µs")  # noqa: T201 - shown by -s
