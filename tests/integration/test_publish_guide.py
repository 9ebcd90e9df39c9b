"""The samples of docs/publish.md that are marked with *run*, exactly as they are written: one event each, on the exchange towerws."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from private_rabbitmq import PrivateRabbit

from tests.daemon import DEADLINE_S, Daemon, V1Client
from tests.integration.producer_queue import Queue
from tests.producer_pythons import CELERY, CHANNELS_4, Environment

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "publish.md").read_text()

# The heading, and the first block after it.
SAMPLES = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).)*?^```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
RUN = [heading for heading in SAMPLES if heading.endswith("(run)")]

DJANGO_SETTINGS = """
import django, os
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, TOWERWS_BROKER=os.environ["TOWERWS_BROKER"]
)
django.setup()
"""


def test_the_list_of_samples() -> None:
    """Every way that this project names."""
    words = ("Shell", "towerws-producer", "Django", "Celery", "pika", "aio-pika", "curl", "Node", "Go", "Java", "PHP")
    assert all(any(word in heading for heading in SAMPLES) for word in words)
    assert len(RUN) == 7


@pytest.mark.parametrize("heading", [heading for heading in RUN if "curl" not in heading])
def test_a_sample(heading: str, rabbit: PrivateRabbit, producer_python: Callable[[Environment], Path], tmp_path: Path) -> None:
    """It ends well, and its event is on the broker with all that the page asks for."""
    environment = CHANNELS_4 if "Django" in heading else CELERY
    code = (DJANGO_SETTINGS if "Django" in heading else "") + SAMPLES[heading]
    if "Shell" in heading:
        command = ["/bin/sh", "-euc", code]
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environ["TOWERWS_BROKER"] = rabbit.url
    else:
        sample = tmp_path / "sample.py"
        sample.write_text(code)
        command = [str(producer_python(environment)), str(sample)]
        environ = environment.environ(TOWERWS_BROKER=rabbit.url)
    with Queue(rabbit.url, "towerws") as queue:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
        assert done.returncode == 0, done.stderr
        method, properties, body = queue.get()
    assert (method.routing_key, body.replace(b" ", b"")) == ("orders.1042", b'{"status":"shipped"}')
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 1)
    assert properties.message_id


def test_the_sample_for_curl(tmp_path: Path) -> None:
    """To the embedded source, whose client sees the event. The page's group is in the configuration."""
    (heading,) = [heading for heading in RUN if "curl" in heading]
    (groups,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    config = tmp_path / "towerws.toml"
    config.write_text(groups)
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon:
        client = V1Client(daemon.url, {"orders": [1042]}).open()
        environ = {**os.environ, "ADMIN": f"http://127.0.0.1:{daemon.admin_port}"}
        subprocess.run(["/bin/sh", "-euc", SAMPLES[heading]], env=environ, check=True, timeout=2 * DEADLINE_S, stdout=subprocess.DEVNULL)
        client.until({"status": "shipped"})
        client.close()
