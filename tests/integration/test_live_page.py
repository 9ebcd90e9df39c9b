"""The live page in a real browser."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.chromium import Chromium
from tests.daemon import Daemon

HOSTILE = [
    {"unified_job_id": "9" * 70_000, "status": "running", "type": "job"},
    {"unified_job_id": 7, "status": "x" * 70_000, "type": "job"},
    {"unified_job_id": 8, "status": "\u202egnp.exe", "type": "\u2066job"},
    {"unified_job_id": {"a": [1]}, "status": None},
    {"unified_job_id": 1e300, "status": ["running"], "type": 5},
    {"unified_job_id": 9, "status": "<img src=x onerror='document.title=1'>", "type": "__proto__"},
    {"unified_job_id": -1, "status": "constructor", "type": "constructor"},
]


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_payloads(tmp_path: Path, chromium: Chromium, width: int) -> None:
    """The page lives on, shows marks of direction as escapes, runs nothing of it, and is no wider than its screen."""
    with Daemon(tmp_path, "embedded:") as daemon:
        page = chromium.open("about:blank")
        chromium.call("Emulation.setDeviceMetricsOverride", page._session, width=width, height=800, deviceScaleFactor=1, mobile=width < 800)
        page.go(f"http://127.0.0.1:{daemon.admin_port}/")
        live = "new Promise(done => { const look = () => %s ? done() : setTimeout(look, 20); look(); })"
        page.run(live % "document.getElementById('state').dataset.state === 'live'")
        for payload in HOSTILE:
            daemon.publish("jobs.status_changed", payload)
        daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
        page.run(live % "document.getElementById('jobs').textContent.includes('job 42')")
        page.run(live % "document.getElementById('events').textContent.includes('job 42')")
        shown = page.run("document.body.textContent")
        assert "\u202e" not in shown
        assert "\u2066" not in shown
        assert "native code" not in shown
        assert page.run("document.title") == "towerws live"
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.documentElement.scrollWidth") <= width
        picture = chromium.call("Page.captureScreenshot", page._session)["data"]
        (tmp_path / f"live-{width}.png").write_bytes(base64.b64decode(picture))
