"""The command `towerws` in processes: its signals, exit codes and output on a full disk."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from private_rabbitmq import free_port

from tests.commands.test_admin_port import ANSWER, MOVED, Port
from tests.commands.test_publisher import Admin
from tests.kit.daemon import DEADLINE_S, TOWERWS
from tests.kit.rows import each_row
from tests.test_cli import COMMANDS

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@contextmanager
def serving() -> Iterator[int]:
    """The port of a daemon's admin port that explains and restarts."""
    with Port() as server:
        server.answer = 200, json.dumps({**ANSWER, **MOVED}).encode()
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


def test_a_command_loads_what_it_needs_only() -> None:
    """`towerws tail` loads no library of the daemon, so it starts in half the time."""
    program = """
import sys
from click.testing import CliRunner
from towerws.cli import main
assert CliRunner().invoke(main, ["tail", "--help"]).exit_code == 0
print(*sorted({"autobahn", "pika", "prometheus_client", "towerws.commands.doctor", "twisted"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_demo_plays_to_a_daemon() -> None:
    """`demo --count` publishes that many events of a seed and ends. Without a terminal it prints nothing."""
    admin = Admin()
    arguments = [*TOWERWS, "demo", "--admin", admin.url, "--count", "50", "--rate", "2000", "--seed", "7"]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, check=True, timeout=DEADLINE_S)
    admin.stop()
    assert (done.stdout, done.stderr) == (b"", b"")
    assert len(admin.bodies) == 50
    assert admin.bodies[0][1]["topic"] == "jobs.status_changed"


@each_row("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_ends_cleanly(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the demo with exit code 0. A terminal shows a counter before."""
    admin = Admin()
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*TOWERWS, "demo", "--admin", admin.url, "--rate", "100"], env=ENVIRONMENT, stderr=theirs)
    os.close(theirs)
    read = b""
    while b"events published" not in read:
        read += os.read(ours, 1024)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    admin.stop()
    os.close(ours)


def test_demo_ends_cleanly_while_it_waits() -> None:
    """Without a daemon it says so once, waits, and still ends cleanly."""
    arguments = [*TOWERWS, "demo", "--admin", f"http://127.0.0.1:{free_port()}"]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"trying again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_demo_refused() -> None:
    """A daemon refuses: exit code 1, with the daemon's text."""
    admin = Admin()
    admin.answers = [404]
    done = subprocess.run([*TOWERWS, "demo", "--admin", admin.url], env=ENVIRONMENT, capture_output=True, check=False, timeout=DEADLINE_S)
    admin.stop()
    assert done.returncode == 1
    assert b"no such thing" in done.stderr


@each_row(
    ("command", "code"),
    [
        (["--help"], 1),
        (["--version"], 1),
        *(([name, "--help"], 1) for name in COMMANDS),
        (["config", "--auth", "open"], 1),
        (["config", "--example"], 1),
        (["check", "--auth", "open", "--listen", "tcp:0:interface=127.0.0.1", "--admin", "unix:/tmp/t.sock"], 1),
        (["explain", "a.b", "--admin", "PORT"], 1),
        (["doctor", "--auth", "open", "--admin", "unix:/none/t.sock"], 1),
        (["doctor", "--auth", "open", "--admin", "unix:/none/t.sock", "--json"], 1),
        (["restart", "--auth", "open", "--admin", "tcp:PORT:interface=127.0.0.1"], 0),
    ],
)
def test_standard_output_on_a_full_disk(command: list[str], code: int) -> None:
    """One line says so, without a traceback. `restart` has done its work, and says that."""
    with serving() as port:
        words = [f"http://127.0.0.1:{port}" if word == "PORT" else word.replace("PORT", str(port)) for word in command]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*TOWERWS, *words], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=DEADLINE_S
            )
    assert (done.returncode, done.stderr) == (code, "towerws: can't write: No space left on device\n")


@each_row("command", [["--help"], ["--version"], ["config", "--help"], ["config", "--example"]])
def test_standard_output_that_nobody_reads(command: list[str]) -> None:
    """A closed pipe ends the command without a line: its reader has had enough."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*TOWERWS, *command], env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=DEADLINE_S
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@each_row(
    ("command", "code"),
    [
        (["config"], 2),
        (["check", "--auth", "open", "--listen", "unix:/none/t.sock"], 2),
        (["explain", "a.b", "--admin", f"http://127.0.0.1:{free_port()}"], 1),
        (["restart", "--auth", "open", "--admin", f"tcp:{free_port()}:interface=127.0.0.1"], 3),
    ],
)
def test_standard_error_on_a_full_disk(command: list[str], code: int) -> None:
    """The exit code still says what is wrong."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*TOWERWS, *command], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=full, check=False, timeout=DEADLINE_S
        )
    assert done.returncode == code
