"""What a daemon says and does around its hand-overs, in memory. Whole hand-overs are in `tests/integration/test_handover.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.selectreactor import SelectReactor

from tests.kit.rows import each_row
from tests.test_clock import close
from towerws.core.settings import Settings
from towerws.handover import restart
from towerws.service import TowerwsService


@pytest.fixture
def service() -> Iterator[TowerwsService]:
    """A service whose source is ready, and that may hand over."""
    reactor = SelectReactor()
    made = TowerwsService(Settings(broker=None, auth=("open",)), reactor)
    made.source.start()
    made.restarts.enable(["towerws"], ".", "")
    yield made
    for call in reactor.getDelayedCalls():
        call.cancel()
    close(reactor)


@each_row(
    ("name", "refused"),
    [
        ("tini", True),
        ("tini-static", True),
        ("docker-init", True),
        ("dumb-init", True),
        ("catatonit", True),
        ("systemd", False),
        ("bash", False),
        (None, False),
    ],
    monkeypatch=pytest.MonkeyPatch.context,
)
def test_an_init_that_ends_with_its_child_is_refused(
    service: TowerwsService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, refused: bool
) -> None:
    """Its container would end in the middle of a hand-over, with all connections. The reason names it."""
    comm = tmp_path / "comm"
    if name is not None:
        comm.write_text(f"{name}\n")
    monkeypatch.setattr(restart, "PROCESS_1", comm)
    assert service.restarts.why_no_handover() is None  # another parent
    monkeypatch.setattr(os, "getppid", lambda: 1)
    why = service.restarts.why_no_handover()
    assert (why is not None) == refused
    if why is not None:
        assert why.startswith(f"process 1 is {name}, which ends with its first child")
