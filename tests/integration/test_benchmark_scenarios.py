from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from private_rabbitmq import rabbitmq_bin

from tests.integration.conftest import NO_BROKER, require

ROOT = Path(__file__).parents[2]
SCENARIOS = {
    *("burst", "steady", "unwatched", "drain", "mixed", "memory", "storm", "resume", "large", "v1", "growth", "tls", "compression"),
    *("producer", "readers", "sign_in", "events", "workers"),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.timeout(400)
def test_every_scenario_does_its_work_at_the_smallest_size(tmp_path: Path) -> None:
    """Each scenario delivers all events in order, and reports figures that can be plotted. Whether it reaches a limit does not matter."""
    require(NO_BROKER, rabbitmq_bin())
    report = tmp_path / "report.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "script"), str(ROOT / "producer")])
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--size", "0.005", "--json", str(report)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert result.returncode in (0, 3), result.stdout + result.stderr
    figures = json.loads(report.read_text())["figures"]
    assert all(math.isfinite(figure["value"]) for figure in figures)  # one figure is a difference, which can be negative at this size
    assert {figure["scenario"].split()[0] for figure in figures} == SCENARIOS
    picture = tmp_path / "growth.svg"
    subprocess.run([sys.executable, "-m", "benchmarks.plot", report, picture], cwd=ROOT, check=True, timeout=60)
    drawn = ElementTree.parse(picture)
    assert len(drawn.findall(f".//{SVG}circle")) == sum(figure["point"] is not None for figure in figures) > 0
