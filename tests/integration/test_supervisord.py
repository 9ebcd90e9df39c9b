"""towerws under the real supervisord, with the program in `deploy/supervisor`."""

from __future__ import annotations

import configparser
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_rabbitmq import free_port, tied_to_us
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.conftest import NO_SUPERVISOR, require
from tests.integration.test_start_and_stop import ROOT, V1, tcp
from tests.kit.daemon import DEADLINE_S, TWISTD
from tests.kit.proxy_process import adapted
from towerws.listening import EXIT_BAD_CONFIG, EXIT_TRY_AGAIN
from towerws.service import STOP_GRACE_S

SHIPPED = ROOT / "deploy" / "supervisor" / "towerws.conf"

SUPERVISORD = """\
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
childlogdir = {folder}
{user}
[unix_http_server]
file = {folder}/control.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{folder}/control.sock
[include]
files = {folder}/towerws.conf
"""


class Supervisor:
    """supervisord with the shipped program. Only its paths, its user and its settings are an operator's own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.settings = folder / "towerws.toml"
        self.settings.write_text(f'auth = ["open"]\nlisten = "{tcp(self.port)}"\nadmin = "{tcp(free_port())}"\n')
        program = adapted(
            SHIPPED.read_text(),
            ("command = /opt/towerws/bin/twistd", f"environment = PYTHONPATH={ROOT}\ncommand = {TWISTD}"),
            ("--config /etc/towerws/towerws.toml", f"--config {self.settings}"),
            ("user = towerws", f"user = {pwd.getpwuid(os.geteuid()).pw_name}"),
            ("/var/log/supervisor/", f"{folder}/"),
        )
        (folder / "towerws.conf").write_text(program)
        user = "user = root" if os.geteuid() == 0 else ""
        (folder / "supervisord.conf").write_text(SUPERVISORD.format(folder=folder, user=user))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start supervisord, which starts towerws."""
        program = shutil.which("supervisord")
        require(NO_SUPERVISOR, program)
        assert program is not None
        command = tied_to_us([program, "-c", str(self.folder / "supervisord.conf")], "TERM")
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)

    def command(self, *words: str) -> list[str]:
        """A command line of supervisorctl."""
        return ["supervisorctl", "-c", str(self.folder / "supervisord.conf"), *words]

    def control(self, *words: str) -> str:
        """The output of supervisorctl."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=60).stdout

    def until_started(self, count: int) -> None:
        """Wait until the log has so many starts."""
        give_up = time.monotonic() + DEADLINE_S
        while self.log().count("towerws 0.") < count:
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.05)  # between two polls of the file

    def until(self, pattern: str) -> str:
        """Wait until the status of towerws matches. Returns the status."""
        give_up = time.monotonic() + DEADLINE_S
        while not re.search(pattern, status := self.control("status", "towerws")):
            assert time.monotonic() < give_up, f"{status}\n{self.log()}"
            time.sleep(0.1)  # between two questions to supervisord
        return status

    def pid(self) -> int:
        """The daemon's process."""
        return int(self.until(r"RUNNING +pid (\d+)").split("pid ")[1].split(",")[0])

    def log(self) -> str:
        """The daemon's log."""
        log = self.folder / "towerws.log"
        return log.read_text() if log.exists() else ""

    def stop(self) -> None:
        """End supervisord, and with it the daemon."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(DEADLINE_S)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisord that is not started yet."""
    supervisor = Supervisor(tmp_path)
    yield supervisor
    supervisor.stop()


def test_a_client_a_crash_and_an_orderly_stop(supervisor: Supervisor) -> None:
    """supervisord starts towerws, starts it again after a kill, and lets it close its connections when it stops it."""
    supervisor.start()
    supervisor.until_started(1)
    first = supervisor.pid()
    url = f"ws://localhost:{supervisor.port}/websocket/"
    with connect(url, subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
    os.kill(first, signal.SIGKILL)
    supervisor.until_started(2)
    assert supervisor.pid() != first
    with connect(url, subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        client.recv(DEADLINE_S)
        stopping = subprocess.Popen(supervisor.command("stop", "towerws"), stdout=subprocess.DEVNULL)
        assert json.loads(client.recv(DEADLINE_S))["type"] == "bye"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert stopping.wait(DEADLINE_S) == 0
    supervisor.until("STOPPED")
    assert "towerws stopped" in supervisor.log()


def test_a_bad_configuration_is_not_tried_again(supervisor: Supervisor) -> None:
    """Status 2 is expected, so that supervisord leaves it. The log has the one line that says why."""
    supervisor.settings.write_text('auth = ["nobody"]\n')
    supervisor.start()
    supervisor.until("EXITED")
    assert supervisor.log().count("towerws: ") == 1
    assert "Traceback" not in supervisor.log()


def test_what_is_expected() -> None:
    """The exit statuses and times are those of the daemon. No secret and no root."""
    read = configparser.ConfigParser(inline_comment_prefixes=(";",))
    read.read_string(SHIPPED.read_text())
    program = read["program:towerws"]
    assert {int(status) for status in program["exitcodes"].split(",")} == {0, EXIT_BAD_CONFIG}
    assert EXIT_TRY_AGAIN not in (0, EXIT_BAD_CONFIG)
    assert int(program["stopwaitsecs"]) > 5 + STOP_GRACE_S
    assert program["user"] == "towerws"
