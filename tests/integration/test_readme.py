"""Findings O15: runs the README's samples as a reader copies them. Only the reader's own values are replaced: URLs and ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from private_rabbitmq import PrivateRabbit

from tests.kit.chromium import Chromium
from tests.kit.daemon import DEADLINE_S, Daemon, V1Client

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BROKER_URL = "amqp://user:password@rabbit-1/vhost"
EVENT = {"unified_job_id": 42, "status": "running"}


def block(language: str) -> str:
    """The README's only code block in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


def inline(start: str) -> str:
    """The README's only inline code with this start."""
    (found,) = re.findall(rf"`({re.escape(start)}[^`]+)`", README)
    return str(found)


def at(sample: str, daemon: Daemon) -> str:
    """A sample with the ports of this daemon in place of the default ports."""
    assert ":8051" in sample or ":9051" in sample
    return sample.replace(":8051", f":{daemon.port}").replace(":9051", f":{daemon.admin_port}")


@pytest.fixture
def vhost(rabbit: PrivateRabbit) -> Iterator[str]:
    """The URL of a fresh virtual host."""
    rabbit.add_vhost("readme")
    user = rabbit.url.partition("://")[2].partition(":")[0]
    rabbit.permit(user, ".*", ".*", ".*", vhost="readme")
    yield f"{rabbit.url.rpartition('/')[0]}/readme"
    rabbit.delete_vhost("readme")


def publish(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the Python sample as a script."""
    sample = block("python")
    assert sample.count(BROKER_URL) == 1
    (folder / "sample.py").write_text(sample.replace(BROKER_URL, url))
    command = [sys.executable, str(folder / "sample.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)


def daemon_flags() -> list[str]:
    """The README's flags for the daemon, without the broker."""
    (line,) = re.findall(r"^twistd -n towerws (.*)$", README, re.MULTILINE)
    flags = shlex.split(line)
    assert flags[:2] == ["--broker", BROKER_URL]
    return flags[2:]


def test_python_sample(vhost: str, tmp_path: Path) -> None:
    """It waits for confirms: it fails before there is a daemon. Later publications arrive, and so do those in between."""
    first = publish(vhost, tmp_path)
    assert first.returncode != 0, "nothing took the event"
    assert daemon_flags() == ["--auth", "open"]
    daemon = Daemon(tmp_path, vhost, auth="open")
    with daemon:
        client = V1Client(daemon.url, {"jobs": ["status_changed"]}).open()
        done = publish(vhost, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        client.until(EVENT)
        client.close()
        daemon.kill()
        done = publish(vhost, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        daemon.start()
        client.open()
        while len(client.payloads) < 2:
            client.receive()
        assert client.payloads == [EVENT, EVENT]
        client.close()


def test_javascript_sample(chromium: Chromium, tmp_path: Path) -> None:
    """In the console of the page that the README names it logs the answer, then the event of the README's curl."""
    (page_url,) = re.findall(r"console of a page that is open at `(http://[^`]+)`", README)
    with Daemon(tmp_path, "embedded:") as daemon:
        page = chromium.open(at(page_url, daemon))
        page.run("window.logged = []; window.more = () => {}; console.log = frame => { logged.push(frame); more(); }; 0")
        page.run(f"{at(block('js'), daemon)}; 0")
        wait = "new Promise(done => {{ more = () => {{ if (logged.length >= {}) done(logged); }}; more(); }})"
        welcome, subscribed = page.run(wait.format(2))
        assert (welcome["type"], subscribed["type"]) == ("welcome", "subscribed")
        assert subscribed["groups_current"] == ["job_events.42", "jobs.status_changed"]
        done = subprocess.run(["/bin/sh", "-euc", at(inline("curl 127"), daemon)], capture_output=True, timeout=DEADLINE_S, check=True)
        assert set(json.loads(done.stdout)) == {"outcome", "published", "position"}, "taken, without a warning"
        event = page.run(wait.format(3))[2]
        assert (event["group"], event["event"], event["payload"]) == ("jobs", "status_changed", EVENT)
        page.run("socket.close(); 0")


def test_tail_sample(tmp_path: Path) -> None:
    """The README's line for the terminal shows that event, too."""
    with Daemon(tmp_path, "embedded:") as daemon:
        words = [*shlex.split(inline("towerws tail")), "--url", daemon.url]
        command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as tail:
            assert tail.stdout is not None
            while daemon.get("/status")[1]["requests"]["taken"] == 0:
                assert tail.poll() is None
            subprocess.run(["/bin/sh", "-euc", at(inline("curl 127"), daemon)], stdout=subprocess.DEVNULL, timeout=DEADLINE_S, check=True)
            assert tail.stdout.readline().split()[1:] == ["jobs.status_changed", "system", "job", "42", "running"]
            tail.terminate()


def test_events_sample(tmp_path: Path) -> None:
    """The README's line for Server-Sent Events shows that event, too."""
    with Daemon(tmp_path, "embedded:") as daemon:
        command = ["/bin/sh", "-euc", f"exec {at(inline('curl -N '), daemon)}"]
        publishing = ["/bin/sh", "-euc", at(inline("curl 127"), daemon)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as curl:
            assert curl.stdout is not None
            for line in curl.stdout:
                if line == "event: subscribed\n":
                    subprocess.run(publishing, stdout=subprocess.DEVNULL, timeout=DEADLINE_S, check=True)
                if line.startswith("data: ") and '"payload"' in line:
                    assert json.loads(line.removeprefix("data: "))["payload"] == EVENT
                    break
            curl.terminate()


def test_group_sample(tmp_path: Path) -> None:
    """The group that the README adds to the configuration can be published and subscribed to."""
    config = tmp_path / "towerws.toml"
    config.write_text(block("toml"))
    with Daemon(tmp_path, "embedded:", "--config", str(config)) as daemon:
        client = V1Client(daemon.url, {"orders": ["created", "paid"]}).open()
        assert client.subscribed[0]["denied"] == []
        daemon.publish("orders.paid", {"order": 7})
        client.until({"order": 7})
        client.close()


def test_links() -> None:
    """Every page of docs/ is linked, and every link has a target."""
    links = set(re.findall(r"\]\(([^)#]+)", README))
    assert {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")} <= links
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("start", [block, inline])
def test_a_sample_that_is_missing_is_noticed(start: Callable[[str], str]) -> None:
    """The checks above fail if the README changes its form."""
    with pytest.raises(ValueError, match="unpack"):
        start("cobol")
