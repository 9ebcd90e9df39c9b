from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib
from itertools import accumulate, cycle
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_rabbitmq import rabbitmq_bin

from benchmarks.messages import FrameCounter, frame, unframe

ROOT = Path(__file__).parents[1]
SCENARIOS = {
    *("burst", "steady", "unwatched", "drain", "mixed", "memory", "storm", "resume", "large", "v1", "growth", "tls", "compression"),
    *("producer", "sign_in"),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.timeout(400)
def test_every_scenario_does_its_work_at_the_smallest_size(tmp_path: Path) -> None:
    """Each delivers what was due, in order, and says what it cost, and that can be drawn; whether it reaches a bar is no matter here."""
    if rabbitmq_bin() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("RabbitMQ is not installed, and CI promises it", pytrace=False)
        pytest.skip("RabbitMQ is not installed")
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
    assert all(math.isfinite(figure["value"]) for figure in figures)  # one is a difference, which can be below zero at this size
    assert {figure["scenario"].split()[0] for figure in figures} == SCENARIOS
    picture = tmp_path / "growth.svg"
    subprocess.run([sys.executable, "-m", "benchmarks.plot", report, picture], cwd=ROOT, check=True, timeout=60)
    drawn = ElementTree.parse(picture)
    assert len(drawn.findall(f".//{SVG}circle")) == sum(figure["point"] is not None for figure in figures) > 0


def deflated(message: bytes) -> bytes:
    """A compressed frame of a message (RFC 7692 section 7.2.1), of less than 126 bytes."""
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = (squeeze.compress(message) + squeeze.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    return bytes((0xC1, len(body))) + body


@given(st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536])), st.lists(st.integers(1, 70_000), min_size=1))
def test_frames_are_counted_whatever_the_pieces(sizes: list[int], pieces: list[int]) -> None:
    """What the load generator counts is each frame once, and only once it is whole."""
    stream = b"".join(frame(bytes(size)) for size in sizes)
    ends = list(accumulate(len(frame(bytes(size))) for size in sizes))
    counter, counted, at = FrameCounter(), 0, 0
    for piece in cycle(pieces):
        if at >= len(stream):
            break
        counted += counter.count(stream[at : at + piece])
        at += piece
        assert counted == sum(end <= at for end in ends)


def test_only_what_may_be_compressed_is_inflated() -> None:
    """A compressed frame is read where compression was agreed upon, and is an error elsewhere."""
    stream = deflated(b"x" * 500) + frame(b"plain")
    assert unframe(stream, deflated=True) == [b"x" * 500, b"plain"]
    with pytest.raises(ValueError, match="begins no text frame"):
        unframe(stream)
