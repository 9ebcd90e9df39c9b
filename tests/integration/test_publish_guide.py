"""Runs the samples of docs/publish.md exactly as written. Each publishes one event on the exchange towerws."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from private_rabbitmq import PrivateRabbit

from tests.integration.conftest import NO_LANGUAGE, require
from tests.integration.producer_queue import Queue
from tests.kit.daemon import DEADLINE_S, Daemon, V1Client
from tests.kit.producer_pythons import CELERY, CHANNELS_4, Environment
from tests.languages import ALL as LANGUAGES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "publish.md").read_text()

# The heading, and the first block after it.
SAMPLES = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).)*?^```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))

OTHERS = {heading: language for heading in SAMPLES for language in LANGUAGES if heading.startswith(f"{language.name},")}
"""The samples in other languages than Python."""

DJANGO_SETTINGS = """
import django, logging, os
logging.basicConfig()
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, TOWERWS_BROKER=os.environ["TOWERWS_BROKER"]
)
django.setup()
"""


@pytest.fixture(scope="module")
def broker(rabbit: PrivateRabbit) -> str:
    """A virtual host in which no other test uses the page's exchange."""
    name = f"guide-{uuid4().hex}"
    rabbit.add_vhost(name)
    rabbit.permit("guest", ".*", ".*", ".*", vhost=name)
    return rabbit.url.replace("%2F", name)


def test_the_list_of_samples() -> None:
    """The page has a sample for each way to publish."""
    words = ("Shell", "towerws-producer", "Django", "Celery", "pika", "aio-pika", "curl", "Node", "Go", "Java", "PHP", "POST /publish")
    assert all(any(word in heading for heading in SAMPLES) for word in words)
    assert len(SAMPLES) == len(words)
    assert len(OTHERS) == len(LANGUAGES)


@pytest.mark.parametrize("heading", [heading for heading in SAMPLES if heading not in {"curl", "POST /publish", *OTHERS}])
def test_a_sample(heading: str, broker: str, producer_python: Callable[[Environment], Path], tmp_path: Path) -> None:
    """It exits with 0, and its event is on the broker with all that the page asks for."""
    environment = CHANNELS_4 if "Django" in heading else CELERY
    code = (DJANGO_SETTINGS if "Django" in heading else "") + SAMPLES[heading]
    if "Shell" in heading:
        command = ["/bin/sh", "-euc", code]
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    else:
        sample = tmp_path / "sample.py"
        sample.write_text(code)
        command = [str(producer_python(environment)), str(sample)]
        environ = environment.environ()
    run(command, environ, broker, tmp_path)


@pytest.mark.parametrize("heading", OTHERS)
def test_a_sample_in_another_language(heading: str, broker: str, tmp_path: Path) -> None:
    """The same, with the tools of that language."""
    language = OTHERS[heading]
    require(f"{NO_LANGUAGE}: {language.name} (apt-get install {language.packages})", True if language.here() else None)
    language.prepare()
    (tmp_path / language.file).write_text(SAMPLES[heading])
    run(language.command(tmp_path), language.environ(), broker, tmp_path)


def run(command: list[str], environ: dict[str, str], broker: str, folder: Path) -> None:
    """Run a sample, and check its event. Run it again without a queue: it has to report that."""

    def sample() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**environ, "TOWERWS_BROKER": broker},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=4 * DEADLINE_S,
            check=False,
        )

    with Queue(broker, "towerws") as queue:
        done = sample()
        assert done.returncode == 0, done.stderr
        method, properties, body = queue.get()
    assert (method.routing_key, body.replace(b" ", b"")) == ("orders.1042", b'{"status":"shipped"}')
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 1)
    assert properties.message_id
    done = sample()
    assert done.returncode != 0 or "no queue took orders.1042" in done.stderr or "no queue is bound" in done.stderr, done.stderr


def test_the_samples_for_curl(tmp_path: Path) -> None:
    """They publish to the embedded source, whose client gets the events. The page's group is in the configuration."""
    (groups,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    config = tmp_path / "towerws.toml"
    config.write_text(groups)
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon:
        client = V1Client(daemon.url, {"orders": [1042, 1, 2]}).open()
        environ = {**os.environ, "ADMIN": f"http://127.0.0.1:{daemon.admin_port}"}
        for heading in ("POST /publish", "curl"):
            subprocess.run(
                ["/bin/sh", "-euc", SAMPLES[heading]], env=environ, check=True, timeout=2 * DEADLINE_S, stdout=subprocess.DEVNULL
            )
        client.until({"status": "shipped"})
        assert client.payloads == [{}, {}, {"status": "shipped"}]
        client.close()
