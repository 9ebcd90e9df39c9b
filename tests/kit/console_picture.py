"""docs/console.png: the console while the demo publishes. `PYTHONPATH=script python -m tests.kit.console_picture` takes it again.

It needs Chromium.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.kit.chromium import Chromium
from tests.kit.daemon import Daemon, V1Client
from tests.kit.live_page_picture import DEMO, ROOT

PICTURE = ROOT / "docs" / "console.png"
WIDTH, HEIGHT = 1280, 800
WATCHED_S = 125
"""So many seconds of the demo are on the picture."""

CLIENTS = 40


def take(picture: Path) -> None:
    """Start a daemon, the demo, clients that come one after the other, and a browser; write the picture."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as leave:
        folder = Path(name)
        daemon = leave.enter_context(Daemon(folder, "embedded:"))
        browser = leave.enter_context(Chromium(folder))
        admin = f"http://127.0.0.1:{daemon.admin_port}"
        command = [sys.executable, "-c", DEMO, "demo", "--admin", admin, "--rate", "25", "--seed", "7"]
        demo = leave.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        leave.callback(demo.terminate)
        page = browser.open(f"{admin}/")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", page._session, **size)
        for _ in range(CLIENTS):
            client = V1Client(daemon.url, {"jobs": ["status_changed", "summary"]}).open()
            leave.callback(client.close)
            page.run(f"new Promise(done => setTimeout(done, {1000 * WATCHED_S // CLIENTS}))")
        picture.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", page._session)["data"]))


if __name__ == "__main__":
    take(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
