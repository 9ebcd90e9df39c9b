"""The quickstarts for the shell and for Django, typed line by line as a new user does, and the examples for the terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
from private_rabbitmq import PrivateRabbit, free_port

from tests.integration.conftest import require
from tests.integration.test_examples import at, blocks, job, subscribed, until
from tests.kit.chromium import Chromium
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.producer_pythons import CHANNELS_4, Environment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

_color = re.compile(r"\x1b\[\d*m")


def daemon_flags(line: str) -> list[str]:
    """The flags of a quickstart's line that starts the daemon."""
    assert line.startswith("twistd -n towerws ")
    assert line.endswith(" &")
    return shlex.split(line.removesuffix(" &"))[3:]


def flag(flags: list[str], name: str) -> str:
    """The value of a flag."""
    return flags[flags.index(name) + 1]


class Terminal:
    """A program in a terminal of its own, and what it has written, without colors."""

    def __init__(self, command: list[str], folder: Path, **environ: str) -> None:
        self.text = ""
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            cwd=folder,
            env={**os.environ, **PROGRAMS, "COLUMNS": "100", "LINES": "20", **environ},
            start_new_session=True,
        )
        os.close(inside)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, f"{line}\n".encode())

    def until(self, pattern: str) -> str:
        """Wait until what was written after the last match has this pattern. Returns the match, which is forgotten then."""
        give_up = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.text)):
            left_s = give_up - time.monotonic()
            assert left_s > 0, f"{pattern} did not come:\n{self.text}"
            if select.select([self._screen], [], [], left_s)[0]:
                self.text = _color.sub("", self.text + self._read())
        self.text = self.text[found.end() :]
        return found[0]

    def _read(self) -> str:
        try:
            return os.read(self._screen, 65536).decode(errors="replace")
        except OSError:  # what Linux answers once the program has ended
            raise AssertionError(f"it ended:\n{self.text}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        os.close(self._screen)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The module's daemon, as the quickstart for the shell starts it."""
    flags = daemon_flags(blocks("shell", "sh")[0].strip())
    assert flags == ["--auth", "open"]
    with Daemon(tmp_path_factory.mktemp("daemon"), "embedded:", auth=flag(flags, "--auth")) as running:
        yield running


def test_shell(daemon: Daemon, tmp_path: Path) -> None:
    """Both readers show the events of both publishers."""
    require("curl is not installed", shutil.which("curl"))
    _, follow, publish = blocks("shell", "sh")
    curl, tail = follow.splitlines()
    with_command, with_curl = publish.splitlines()
    assert tail == "towerws tail jobs.status_changed &", "the daemon has its default ports"
    with Terminal(["/bin/bash", "--norc", "--noprofile"], tmp_path) as shell:
        shell.type("stty -echo; set +m; PS1=")
        shell.type(at(curl, daemon))
        shell.until("event: subscribed")
        shell.type(f"{tail.removesuffix(' &')} --url {daemon.url} &")
        wait_for_subscribers(daemon, 2)
        for line, status in ((with_command, "running"), (with_curl, "successful")):
            shell.type(at(line, daemon))
            event = rf'data: {{.*"status": ?"{status}"'
            row = rf"jobs\.status_changed +system job 42 +{status}"
            shell.until(rf"(?s)({event}.*{row})|({row}.*{event})")
        shell.type("kill $(jobs -p)")
        wait_for_subscribers(daemon, 0)


def wait_for_subscribers(daemon: Daemon, count: int) -> None:
    """Wait until so many connections have a subscription. The daemon tells nobody, so its figures are asked."""
    give_up = time.monotonic() + DEADLINE_S
    while (found := daemon.get("/status")[1]["hub"]["subscribers"]) != count:
        assert time.monotonic() < give_up, found
        time.sleep(0.02)


def test_terminal_dashboard(daemon: Daemon, tmp_path: Path) -> None:
    """It shows each job's newest status, and how many have it. A payload can't write control characters.

    It says that the connection is lost, and after a restart without history, that events were missed. Ctrl-C leaves the screen.
    """
    command = [sys.executable, str(EXAMPLES / "terminal" / "dashboard.py"), "--url", daemon.url]
    with Terminal(command, tmp_path) as screen:
        screen.until("connection: open")
        subscribed(daemon)
        daemon.publish("jobs.status_changed", job(42, "running"))
        screen.until("events: 1(?s:.)*running 1(?s:.)*42  running")
        daemon.publish("jobs.status_changed", job(42, "\x1b[2Jdone\a"))
        screen.until(r"42  \?\[2Jdone\?")
        daemon.kill()
        screen.until("connection: waiting")
        daemon.start()
        screen.until("connection: open(?s:.)*stale: some events were missed")
        subscribed(daemon)
        daemon.publish("jobs.status_changed", job(43, "running"))
        shown = screen.until(r"\x1b\[H((?!\x1b\[H)(?s:.))*43  running(?s:.)*?\x1b\[J")
        assert "42  " not in shown
        os.kill(screen.process.pid, signal.SIGINT)
        screen.until(re.escape("\x1b[?1049l"))
        assert screen.process.wait(DEADLINE_S) == 0


def test_terminal_dashboard_that_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """It ends with status 1, and the reason."""
    url = daemon.url.replace("/websocket/", "/nothing/")
    with Terminal([sys.executable, str(EXAMPLES / "terminal" / "dashboard.py"), "--url", url], tmp_path) as screen:
        screen.until(re.escape("\x1b[?1049l") + r".*404\)")
        assert screen.process.wait(DEADLINE_S) == 1


def test_bad_command_lines(tmp_path: Path) -> None:
    """One line names the value and the rule. Nothing is started."""
    rows = [
        (["terminal/dashboard.py"], "standard output is no terminal: `towerws tail --json` is for pipes and files"),
        (
            ["flaky/demo.py", "--url", "wss://x/"],
            "--url wss://x/: it must be like ws://host:port/websocket/, because the proxy speaks no TLS",
        ),
    ]
    for (program, *flags), error in rows:
        command = [sys.executable, str(EXAMPLES / program), *flags]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **PROGRAMS}, capture_output=True, text=True, check=False, timeout=100
        )
        assert (done.returncode, done.stderr.splitlines()[-1].partition("error: ")[2]) == (2, error)


def test_flaky_network(daemon: Daemon, tmp_path: Path) -> None:
    """Through cuts, delays and freezes each event comes exactly once and in order, and the demo says so."""
    admin = f"http://127.0.0.1:{daemon.admin_port}"
    command = [
        sys.executable,
        str(EXAMPLES / "flaky" / "demo.py"),
        "--url",
        daemon.url,
        "--admin",
        admin,
        "--events",
        "300",
        "--per-s",
        "200",
    ]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **PROGRAMS}, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"300 events: each came exactly once and in order\. The client resumed [1-9]\d* times", last), done.stdout
    for fault in ("cut", "delay", "freeze"):
        assert f"{fault}, after" in done.stdout


def test_flaky_network_without_a_daemon(tmp_path: Path) -> None:
    """One line says that there is none."""
    nothing = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(EXAMPLES / "flaky" / "demo.py"), "--url", f"ws://{nothing}/websocket/", "--admin", f"http://{nothing}"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **PROGRAMS}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr == f"http://{nothing} can't be reached, or is not ready: <urlopen error [Errno 111] Connection refused>\n"


@contextmanager
def django_project(
    folder: Path, environment: Environment, python: Path, urls: str, command: list[str], broker: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A new project with these URLs, served as the quickstart says."""
    environ = environment.environ(TOWERWS_BROKER=broker)
    subprocess.run([str(python), "-m", "django", "startproject", "shop", "."], cwd=folder, env=environ, check=True, timeout=DEADLINE_S)
    (folder / "shop" / "urls.py").write_text(urls)
    with (folder / "django.log").open("wb") as log:
        # The server starts a second process, which watches the files. Both are ended.
        served = subprocess.Popen(
            [str(python), *command], cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield served
        finally:
            os.killpg(served.pid, signal.SIGKILL)
            served.wait(DEADLINE_S)


def test_django(rabbit: PrivateRabbit, chromium: Chromium, producer_python: Callable[[Environment], Path], tmp_path: Path) -> None:
    """A new project with the quickstart's urls.py: the page of one visit shows the event of the next one."""
    python = producer_python(CHANNELS_4)
    start, serve = "".join(blocks("django", "sh")).splitlines()
    (urls,) = blocks("django", "python")
    flags = daemon_flags(start)
    setting, *command = serve.removesuffix(" &").split()
    assert setting == f"TOWERWS_BROKER={flag(flags, '--broker')}"
    assert command[:3] == ["python3", "manage.py", "runserver"]
    assert flag(flags, "--origins") == f"http://localhost:{command[3]}"
    name = f"django-{uuid4().hex}"
    rabbit.add_vhost(name)
    rabbit.permit("guest", ".*", ".*", ".*", vhost=name)
    broker, port = rabbit.url.replace("%2F", name), free_port()
    origin = f"http://localhost:{port}"
    daemon = Daemon(tmp_path, broker, "--origins", origin, auth=flag(flags, "--auth"))
    command = [*command[1:3], str(port)]
    with django_project(tmp_path, CHANNELS_4, python, at(urls, daemon), command, broker) as served, daemon:
        give_up = time.monotonic() + DEADLINE_S
        while not visited(f"{origin}/jobs/42/running"):
            assert served.poll() is None, (tmp_path / "django.log").read_text()
            assert time.monotonic() < give_up, (tmp_path / "django.log").read_text()
            time.sleep(0.05)
        page = chromium.open(f"{origin}/jobs/42/running")
        subscribed(daemon)
        assert visited(f"{origin}/jobs/42/successful")
        until(page, "document.body.innerText.includes('successful')")
        page.go("about:blank")


def visited(url: str) -> bool:
    """Visit a page. False while the server does not listen."""
    try:
        with urlopen(url, timeout=DEADLINE_S) as answer:
            return bool(answer.status == 200)
    except URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return False
        raise
