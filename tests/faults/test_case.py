"""The parts of a run that need no broker."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.faults.case import Brokers, Case, is_empty
from tests.faults.scenario import Outcome
from tests.kit.daemon import Daemon
from tests.kit.rows import each_row


class Answering:
    """The part of a daemon that the check for leaks uses."""

    port = pid = 0

    def __init__(self, status: int, present: int, topics: int, subscriptions: int) -> None:
        self._status = status
        self._figures = {"connections": {"present": present}, "hub": {"topics": topics, "subscriptions": subscriptions}}

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Answer `/status`."""
        assert path == "/status"
        return self._status, self._figures

    def rss_kib(self) -> int:
        """No memory."""
        return 0


LEFT = [((200, 0, 0, 0), True), ((200, 1, 0, 0), False), ((200, 0, 1, 0), False), ((200, 0, 0, 1), False), ((503, 0, 0, 0), False)]


@each_row(("answer", "empty"), LEFT)
def test_a_daemon_is_empty_without_connections_and_topics(answer: tuple[int, int, int, int], empty: bool) -> None:
    """A daemon that leaves a topic or a subscription behind is not empty."""
    assert is_empty(cast("Daemon", Answering(*answer))) is empty


@pytest.mark.parametrize(("answer", "empty"), LEFT)
def test_what_a_daemon_leaves_behind_ends_the_scenario(
    answer: tuple[int, int, int, int], empty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for leaks waits until the daemon is empty, and raises if it does not get there."""
    case = Case("one", "seed", tmp_path, Brokers(3, tmp_path), lambda text: None, ExitStack())
    case._daemons.append(cast("Daemon", Answering(*answer)))
    case._descriptors[0] = 0
    monkeypatch.setattr("tests.faults.case.descriptors", lambda daemon: 0)
    wait_until = case.wait_until
    monkeypatch.setattr(case, "wait_until", lambda is_so, what, within_s: wait_until(is_so, what, 0))
    outcome = Outcome()
    if empty:
        case._look_for_leaks(outcome)
        assert (outcome.broken, outcome.notes) == ([], ["rss 0 MiB"])
    else:
        with pytest.raises(AssertionError, match="no connection, no topic and no subscription"):
            case._look_for_leaks(outcome)
