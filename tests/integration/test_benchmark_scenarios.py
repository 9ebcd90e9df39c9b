from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import pytest
from private_rabbitmq import rabbitmq_bin

import benchmarks.__main__ as benchmarks
from benchmarks.servers import Towerws
from tests.integration.conftest import NO_BROKER, require
from tests.kit import preloaded

ROOT = Path(__file__).parents[2]
SCENARIOS = {
    *("burst", "steady", "unwatched", "drain", "mixed", "memory", "storm", "resume", "large", "v1", "growth", "tls", "compression"),
    *("producer", "readers", "sign_in", "events", "workers"),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.timeout(400)
def test_every_scenario_does_its_work_at_the_smallest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each scenario delivers all events in order, and reports figures that can be plotted. Whether it reaches a limit does not matter."""
    require(NO_BROKER, rabbitmq_bin())

    def forked(server: Towerws, command: Sequence[str], log: IO[bytes]) -> preloaded.Process:
        return preloaded.start(command, output=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    monkeypatch.setattr(Towerws, "launch", forked)  # 36 starts
    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["script/bench", "--size", "0.005", "--json", str(report)])
    assert benchmarks.main() in (0, 3), capsys.readouterr()
    figures = json.loads(report.read_text())["figures"]
    assert all(math.isfinite(figure["value"]) for figure in figures)  # one figure is a difference, which can be negative at this size
    assert {figure["scenario"].split()[0] for figure in figures} == SCENARIOS
    picture = tmp_path / "growth.svg"
    subprocess.run([sys.executable, "-m", "benchmarks.plot", report, picture], cwd=ROOT, check=True, timeout=60)
    drawn = ElementTree.parse(picture)
    assert len(drawn.findall(f".//{SVG}circle")) == sum(figure["point"] is not None for figure in figures) > 0
