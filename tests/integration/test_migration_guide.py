"""Runs docs/migrate-awx.md as written: its files, its commands and their output, with the test's addresses.

AWX is not here: `awx-manage` is a stand-in that makes AWX's calls on real channels (producer/tests/programs/awx_manage.py).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from private_rabbitmq import PrivateRabbit, free_port
from websockets.sync.client import connect

from tests.integration.conftest import NO_NGINX, require
from tests.integration.redis_server import PrivateRedis
from tests.integration.test_start_and_stop import V1
from tests.kit.daemon import DEADLINE_S, Daemon, V1Client
from tests.kit.nginx import NGINX_CONF, Nginx, nginx_binary
from tests.kit.producer_pythons import CHANNELS_1, CHANNELS_2, CHANNELS_3, CHANNELS_4, PRODUCER, Environment
from tests.kit.proxy_process import ProxyProcess, adapted

GUIDE = (Path(__file__).parents[2] / "docs" / "migrate-awx.md").read_text()
BIN = Path(sys.executable).parent

RANGES = [
    pytest.param("AWX 3.0 to 9.3", CHANNELS_1, id="AWX 3.0 to 9.3"),
    pytest.param("AWX 10 to 18", CHANNELS_2, id="AWX 10 to 18"),
    pytest.param("AWX 19 to 24", CHANNELS_3, id="AWX 19 to 24"),
    pytest.param("AWX 19 to 24", CHANNELS_4, id="AWX 19 to 24 with current channels"),
]


class Tower(BaseHTTPRequestHandler):
    """AWX's API. The daemon asks it which user a credential belongs to."""

    def do_GET(self) -> None:
        """The user of the guide's token."""
        good = self.headers.get("Authorization") == "Bearer a-token" and self.path == "/api/v2/me/"
        user = {"id": 7, "username": "ada", "is_superuser": True, "is_system_auditor": False}
        body = json.dumps({"count": 1, "results": [user]} if good else {"detail": "no"}).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def tower() -> Iterator[str]:
    """AWX's API on its own port. Gives its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Tower) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def blocks(language: str) -> list[str]:
    """The guide's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def commands() -> dict[str, str]:
    """The guide's commands that show their output, with that output."""
    found = {}
    for block in blocks("console"):
        command, _, printed = block.removeprefix("$ ").partition("\n")
        found[command] = printed
    return found


class Site:
    """The guide's host, with the test's addresses and files in place of the guide's."""

    def __init__(self, folder: Path, broker: str, tower: str, redis: str, python: Path, environment: Environment) -> None:
        (self.settings,) = {block for block in blocks("toml") if 'auth = ["tower"]' in block}
        self.port, self.admin_port = free_port(), free_port()
        vhost = broker.rpartition("/")[0]
        # The guide's virtual host is AWX's. The test's broker has the default one.
        self._instead = {
            "amqp://awx:password@127.0.0.1:5672/awx": vhost,
            "tcp:8061:": f"tcp:{self.port}:",
            "127.0.0.1:8061": f"127.0.0.1:{self.port}",
            "tcp:9051:": f"tcp:{self.admin_port}:",
            "127.0.0.1:9051": f"127.0.0.1:{self.admin_port}",
            "http://127.0.0.1:8052": tower,
            "/etc/towerws": str(folder / "etc"),
        }
        self.conf_d = folder / "conf.d"
        self.conf_d.mkdir()
        (folder / "etc").mkdir()
        (folder / "etc" / "towerws.toml").write_text(self.put_in(self.settings))
        (folder / "etc" / "token").write_text("a-token\n")
        tools = folder / "bin"
        tools.mkdir()
        environ = environment.environ(AWX_CONF_D=str(self.conf_d), AWX_REDIS=redis)
        words = [f"{name}={environ[name]}" for name in ("PYTHONPATH", "AWX_CONF_D", "AWX_REDIS")]
        shim = tools / "awx-manage"
        program = PRODUCER / "tests" / "programs" / "awx_manage.py"
        shim.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, str(python), str(program)])} "$@"\n')
        shim.chmod(0o755)
        self.environ = {**os.environ, "PATH": f"{tools}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(PRODUCER.parent)}
        (variables,) = {block for block in blocks("sh") if "BROKER=" in block}
        self._variables = self.put_in(variables)

    def put_in(self, text: str) -> str:
        """The guide's text with the test's addresses."""
        for theirs, ours in self._instead.items():
            text = text.replace(theirs, ours)
        return text

    def command(self, text: str) -> list[str]:
        """A command of the guide, split as a shell does."""
        return ["/bin/sh", "-c", f"{self._variables}\n{self.put_in(text)}"]

    def run(self, text: str) -> str:
        """Run it. Returns its output on both streams. It has to succeed."""
        done = subprocess.run(
            self.command(text), env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=2 * DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.mark.parametrize(("heading", "environment"), RANGES)
def test_the_guide_step_by_step(
    heading: str,
    environment: Environment,
    rabbit: PrivateRabbit,
    redis: PrivateRedis,
    tower: str,
    tmp_path: Path,
    producer_python: Callable[[Environment], Path],
) -> None:
    """Each command prints what the guide says, and AWX's event arrives in the terminal with `towerws tail`."""
    site = Site(tmp_path, rabbit.url, tower, redis.url, producer_python(environment), environment)
    said = commands()
    (check,) = [command for command in said if "towerws check" in command]
    assert site.run(check) == said.pop(check)
    daemon = Daemon(tmp_path, site.put_in("amqp://awx:password@127.0.0.1:5672/awx"), auth="tower")
    daemon.port, daemon.admin_port = site.port, site.admin_port
    exchange = f"guide-{uuid4().hex}"
    daemon._flags = ["--config", str(tmp_path / "etc" / "towerws.toml"), "--exchange", exchange, "--stream", f"{exchange}.events"]
    (snippet,) = [block for block in blocks("python") if block.startswith(f"# /etc/tower/conf.d/zz_towerws.py for {heading}\n")]
    settings = f'{site.put_in(snippet)}\nCHANNEL_LAYERS["default"]["CONFIG"]["exchange"] = "{exchange}"\n'  # the test's own
    (site.conf_d / "zz_towerws.py").write_text(settings)
    (tail,) = [command for command in said if command.startswith("towerws tail")]
    (emit,) = [command for command in said if "emit_channel_notification" in command]
    (shown,) = blocks("text")
    with daemon:
        for command, printed in said.items():
            # Steps that do not depend on AWX's version run once.
            if command not in (tail, emit) and (environment is CHANNELS_1 or command.startswith("awx-manage")):
                more = f" --exchange {exchange}" if command.startswith("towerws publish") else ""
                assert site.run(command + more).rstrip("\n") == printed.rstrip("\n"), command
        listening = subprocess.Popen(site.command(f"exec {tail}"), env=site.environ, stdout=subprocess.PIPE, text=True)
        try:
            wait_for_a_subscriber(daemon)
            site.run(emit)
            assert listening.stdout is not None
            assert shown.strip() in listening.stdout.readline()
        finally:
            listening.terminate()
            listening.communicate()


def wait_for_a_subscriber(daemon: Daemon) -> None:
    """Wait until a client is subscribed to a topic."""
    status: Any = {}
    for _ in range(int(DEADLINE_S / 0.05)):
        _, status = daemon.get("/status")
        if status["hub"]["topics"]:
            return
        threading.Event().wait(0.05)  # between two polls
    raise AssertionError(f"nobody subscribed: {status}")


class GuidesNginx(Nginx):
    """nginx with the guide's blocks in its own server. Nothing listens at daphne's address."""

    def __init__(self, folder: Path, upstream: str) -> None:
        ProxyProcess.__init__(self, folder)
        (folder / "conf.d").mkdir(parents=True)
        user = "user root;" if os.geteuid() == 0 else ""  # its worker must be able to enter the test's folder
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, user=user, more="access_log off;"))
        whole, relay = blocks("nginx")
        ours, _, location = adapted(whole, ("127.0.0.1:8061", upstream)).partition("\n\n")
        server = f"upstream daphne {{ server 127.0.0.1:9; }}\nserver {{\nlisten 127.0.0.1:{self.port};\n{relay}{location}}}\n"
        (folder / "conf.d" / "guide.conf").write_text(f"{ours}\n{server}")


def test_the_guides_settings_know_the_clients_of_its_nginx(tmp_path: Path) -> None:
    """Each client counts with its own address. All had nginx's, and shared the limits of one address."""
    require(NO_NGINX, nginx_binary())
    trusted = tomllib.loads(blocks("toml")[0]).get("trusted_proxies", [])
    flags = ("--trusted-proxies", ",".join(trusted)) if trusted else ()
    with (
        Daemon(tmp_path, "embedded:", *flags) as daemon,
        GuidesNginx(tmp_path / "nginx", f"127.0.0.1:{daemon.port}") as nginx,
        connect(nginx.url, subprotocols=[V1], open_timeout=DEADLINE_S, source_address=("127.0.0.2", 0)) as client,
    ):
        assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
        _, found = daemon.get("/console/connections?limit=1")
        assert [each["address"] for each in found["connections"]] == ["127.0.0.2"]


def test_the_guides_nginx(tmp_path: Path) -> None:
    """Clients reach the daemon through it. The guide's check prints the same as without it, and daphne keeps its path."""
    require(NO_NGINX, nginx_binary())
    with Daemon(tmp_path, "embedded:") as daemon, GuidesNginx(tmp_path / "nginx", f"127.0.0.1:{daemon.port}") as nginx:
        client = V1Client(nginx.url, {"jobs": ["status_changed"]}).open()
        daemon.publish("jobs.status_changed", {"n": 1})
        client.until({"n": 1})
        client.close()
        check, printed = next(
            (command, printed) for command, printed in commands().items() if "/websocket/" in command and "curl" in command
        )
        for path, said in (("/websocket/", printed.strip()), ("/websocket/relay/", "502")):
            command = check.replace("127.0.0.1:8061/websocket/", f"127.0.0.1:{nginx.port}{path}")
            assert subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True).stdout.strip() == said
