from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor

from towerws.workers.processes import Worker
from towerws.workers.questions import NoAnswer, ask
from towerws.workers.worker import Membership


def runs(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test in the reactor."""
    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(test))


async def why_no_answer(folder: Path, deadline_s: float = 5) -> str:
    """Ask worker 1, whose socket is in this folder. Returns why there is no answer."""
    with pytest.raises(NoAnswer) as found:
        await ask(reactor, Worker(Membership(1, 2, str(folder), 1, 0)), b"/status", deadline_s=deadline_s)
    assert found.value.sent is ("within" in str(found.value))
    return str(found.value)


@runs
async def test_why_there_is_no_answer(tmp_path: Path) -> None:
    """The text has the reason: it decides what the operator does."""
    no_process = "worker 1 can't be asked: it has no process, or one that starts"
    assert await why_no_answer(tmp_path) == no_process
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(f"{tmp_path}/admin-1")
        assert await why_no_answer(tmp_path) == no_process
        worker.listen(0)
        assert await why_no_answer(tmp_path, 0.1) == "worker 1 did not answer within 0.1 s"
        assert await why_no_answer(tmp_path) == "worker 1 can't be asked: too many questions wait for it already; try again in a moment"
    assert await why_no_answer(tmp_path) == no_process


@runs
async def test_a_question_without_a_descriptor(tmp_path: Path) -> None:
    """The parent's own limit is not the worker's fault."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(f"{tmp_path}/admin-1")
        worker.listen()
        resource.setrlimit(resource.RLIMIT_NOFILE, (worker.fileno(), limits[1]))
        try:
            assert await why_no_answer(tmp_path) == "worker 1 can't be asked: Too many open files"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
