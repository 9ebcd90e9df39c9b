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

ROOT = Path(__file__).parents[1]
SCENARIOS = {"burst", "steady", "unwatched", "drain", "mixed", "memory", "storm", "resume", "large", "v1", "growth", "tls"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.timeout(400)
def test_every_scenario_does_its_work_at_the_smallest_size(tmp_path: Path) -> None:
    """Each delivers what was due, in order, and says what it cost, and that can be drawn; whether it reaches a bar is no matter here."""
    if rabbitmq_bin() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("RabbitMQ is not installed, and CI promises it", pytrace=False)
        pytest.skip("RabbitMQ is not installed")
    report = tmp_path / "report.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "script")])
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
    assert all(math.isfinite(figure["value"]) for figure in figures)  # one is a difference, which can be below zero at this size
    assert {figure["scenario"].split()[0] for figure in figures} == SCENARIOS
    picture = tmp_path / "growth.svg"
    subprocess.run([sys.executable, "-m", "benchmarks.plot", report, picture], cwd=ROOT, check=True, timeout=60)
    drawn = ElementTree.parse(picture)
    assert len(drawn.findall(f".//{SVG}circle")) == sum(figure["point"] is not None for figure in figures) > 0
