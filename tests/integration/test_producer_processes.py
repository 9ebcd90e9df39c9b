"""The producer in every Python, in forks, multiprocessing, Celery, gevent and Django."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from private_rabbitmq import PrivateRabbit

from tests.integration.producer_queue import Queue
from tests.kit.daemon import DEADLINE_S
from tests.kit.producer_pythons import ALL, CELERY, CHANNELS_1, CHANNELS_4, PRODUCER, Environment

PROGRAMS = PRODUCER / "tests" / "programs"

Python = Callable[[Environment], Path]


@pytest.fixture
def exchange() -> str:
    """An exchange name of the test's own."""
    return f"processes-{uuid4().hex}"


def run(python: Path, environment: Environment, program: str, **environ: str) -> Any:
    """The program's report. Any output on standard error fails the test, except Python's own warning about forks."""
    done = subprocess.run(
        [python, "-W", "ignore:This process:DeprecationWarning", PROGRAMS / program],
        env=environment.environ(**environ),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("environment", ALL, ids=lambda environment: f"{environment.name} {environment.python}")
def test_every_python(environment: Environment, rabbit: PrivateRabbit, exchange: str, producer_python: Python) -> None:
    """Each supported Python, with the oldest and the newest pika: all ways to publish, and the events sent at exit."""
    python = producer_python(environment)
    with Queue(rabbit.url, exchange) as queue:
        figures = run(python, environment, "plain.py", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange)
        assert [payload["by"] for payload in queue.payloads(3)] == ["emit", "publish", "aio"]
        assert {payload["by"] for payload in queue.payloads(2)} == {"layer", "exit"}
    assert figures["python"].startswith(environment.python)
    assert figures["stats"]["dropped"] == {}


@pytest.mark.parametrize("environment", ALL, ids=lambda environment: f"{environment.name} {environment.python}")
def test_the_thread_imports_nothing(environment: Environment, rabbit: PrivateRabbit, exchange: str, producer_python: Python) -> None:
    """A fork during an import leaves half a module to the child. Without `encodings.idna`, for example, it can never connect."""
    python = producer_python(environment)
    with Queue(rabbit.url, exchange):
        assert run(python, environment, "imports.py", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange) == []


@pytest.mark.parametrize("environment", [CHANNELS_1, CHANNELS_4], ids=["Python 3.6", "Python 3.13"])
def test_children_have_connections_of_their_own(
    environment: Environment, rabbit: PrivateRabbit, exchange: str, producer_python: Python
) -> None:
    """Forks, multiprocessing and a forking server lose nothing when a child ends, and the parent's connection is not affected."""
    python = producer_python(environment)
    with Queue(rabbit.url, exchange) as queue:
        figures = run(python, environment, "processes.py", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange)
        got = queue.payloads(201)
    for name, first in (("parent", -1), ("forked", 0), ("multiprocessing", 0), ("served", 0)):
        assert [event["n"] for event in got if event["by"] == name] == list(range(first, 50))
    assert (figures["statuses"], figures["answer"], figures["flushed"]) == ([0, 0], "done", True)
    assert (figures["stats"]["connected"], figures["stats"]["resent"], figures["stats"]["confirmed"]) == (1, 0, 51)


@pytest.mark.parametrize("environment", [CHANNELS_1, CHANNELS_4], ids=["Python 3.6", "Python 3.13"])
def test_a_fork_while_threads_emit(environment: Environment, rabbit: PrivateRabbit, exchange: str, producer_python: Python) -> None:
    """No child hangs on a lock that a thread of its parent held. Each has its own connection, and no event is lost or doubled."""
    python = producer_python(environment)
    with Queue(rabbit.url, exchange) as queue:
        figures = run(python, environment, "forking.py", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange)
        children, each = len(figures["statuses"]), 50
        got = queue.payloads(1 + sum(figures["emitted"]) + children * each)
    assert figures["statuses"] == [0] * children
    for child in range(children):
        assert [event["n"] for event in got if event["by"] == f"child {child}"] == list(range(each))
    for thread, emitted in enumerate(figures["emitted"]):
        assert [event["n"] for event in got if event["by"] == f"thread {thread}"] == list(range(emitted))
    stats = figures["stats"]
    assert (figures["flushed"], stats["connected"], stats["resent"], stats["dropped"]) == (True, 1, 0, {})


def test_celery_prefork(rabbit: PrivateRabbit, exchange: str, tmp_path: Path, producer_python: Python) -> None:
    """Each child ends right after its only task, and its event still arrives. The worker ends on SIGTERM."""
    tasks, each = 6, 25
    python = producer_python(CELERY)
    environ = CELERY.environ(
        CELERY_BROKER=rabbit.url, CELERY_QUEUE=f"celery-{uuid4().hex}", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange
    )
    environ["PYTHONPATH"] += f"{os.pathsep}{PROGRAMS}"
    command = [str(python), "-m", "celery", "--app", "celery_tasks", "worker", "--pool", "prefork", "--concurrency", "2"]
    command += ["--max-tasks-per-child", "1", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    log = tmp_path / "celery.log"
    with Queue(rabbit.url, exchange) as queue, log.open("wb") as output:
        worker = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=tmp_path)
        try:
            subprocess.run([python, PROGRAMS / "celery_tasks.py", str(tasks)], env=environ, check=True, timeout=2 * DEADLINE_S)
            got = queue.payloads(tasks * each)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(DEADLINE_S) == 0, log.read_text()[-3000:]
        finally:
            worker.kill()
            worker.wait()
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]
    for task in range(tasks):
        assert [event["n"] for event in got if event["task"] == task] == list(range(each))
    assert len({event["pid"] for event in got}) == tasks


def test_gevent(rabbit: PrivateRabbit, exchange: str, producer_python: Python) -> None:
    """With gevent's patches before the import the thread is a greenlet, and a waiting `publish` lets other greenlets run."""
    python = producer_python(CELERY)
    with Queue(rabbit.url, exchange) as queue:
        figures = run(python, CELERY, "gevent_writers.py", TOWERWS_BROKER=rabbit.url, TOWERWS_EXCHANGE=exchange)
        got = queue.payloads(100 * 11 + 1)
    for writer in range(100):
        assert [event["n"] for event in got[:-1] if event["writer"] == writer] == list(range(11))
    assert got[-1] == {"last": True}
    assert figures["turns"] > 10
    assert (figures["stats"]["connected"], figures["stats"]["dropped"]) == (1, {})


@pytest.mark.parametrize("environment", [CHANNELS_1, CHANNELS_4], ids=["Django 2.2, Python 3.6", "Django 5.2, Python 3.13"])
def test_django(environment: Environment, rabbit: PrivateRabbit, exchange: str, producer_python: Python) -> None:
    """`emit_on_commit` publishes, after the commit, the state at the call. Django's types are encoded as Django does."""
    python = producer_python(environment)
    with Queue(rabbit.url, exchange) as queue:
        figures = run(python, environment, "django_commit.py", DJANGO_TOWERWS_BROKER=rabbit.url, DJANGO_TOWERWS_EXCHANGE=exchange)
        got = queue.payloads(6)
    assert got == [
        {"by": "at once"},
        {"by": "committed", "state": "then"},
        {"by": "signal"},
        {"by": "without a transaction"},
        {"when": "2026-01-02T03:04:05Z", "price": "1.10", "id": "00000000-0000-0000-0000-000000000007", "text": "lazy"},
        {"by": "last"},
    ]
    assert figures["flushed"]
    assert figures["stats"]["dropped"] == {"payload": 1, "topic": 1}
