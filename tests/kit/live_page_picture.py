"""docs/live-page.png: the live page while the demo publishes. `python -m tests.kit.live_page_picture` takes it again (needs Chromium)."""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kit.chromium import Chromium
from tests.kit.daemon import Daemon

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "live-page.png"
WIDTH, HEIGHT = 1180, 660
WATCHED_S = 14
"""So many seconds of the demo are on the picture: jobs that ended, and output of one that runs."""

DEMO = "from towerws.cli import main; main()"


def take(picture: Path) -> None:
    """Start a daemon, the demo and a browser; write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Daemon(folder, "embedded:") as daemon, Chromium(folder) as browser:
            admin = f"http://127.0.0.1:{daemon.admin_port}"
            command = [sys.executable, "-c", DEMO, "demo", "--admin", admin, "--rate", "25", "--seed", "7"]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
                page = browser.open("about:blank")
                size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
                browser.call("Emulation.setDeviceMetricsOverride", page._session, **size)
                page.go(f"{admin}/live")
                page.run(f"new Promise(done => setTimeout(done, {WATCHED_S * 1000}))")
                data = browser.call("Page.captureScreenshot", page._session)["data"]
                demo.terminate()
    picture.write_bytes(base64.b64decode(data))


if __name__ == "__main__":
    take(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
