"""`script/run.py`, the part of `script/run` that runs once the environment is installed."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from private_rabbitmq import PrivateRabbit, free_port

from tests.kit.daemon import DEADLINE_S, V1Client

ROOT = Path(__file__).parents[2]


@contextmanager
def _running(*flags: str | Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The script after it reported that events flow, and a pidfd of each of its processes."""
    command = [sys.executable, ROOT / "script" / "run.py", "--listen", str(free_port()), "--admin", str(free_port()), *flags]
    with ExitStack() as stack:
        script = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        stack.callback(script.kill)
        assert script.stdout is not None
        seen = []
        for line in script.stdout:
            seen.append(line)
            if "Ctrl-C ends everything" in line:
                break
        assert script.poll() is None, "".join(seen)
        parts = [os.pidfd_open(pid) for pid in _children(script)]
        for part in parts:
            stack.callback(os.close, part)
        yield script, parts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_cleanly(number: signal.Signals) -> None:
    """Ctrl-C ends the demo and the daemon with status 0."""
    with _running() as (script, parts):
        assert len(parts) == 2  # the daemon and the demo
        script.send_signal(number)
        output, _ = script.communicate()
        assert script.returncode == 0, output
        _assert_ended(parts)
        assert "Traceback" not in output


def test_every_line_of_a_terminal_is_its_own() -> None:
    """Findings O14: no line of the output is mixed with another, so the daemon's log stays readable."""
    ours, theirs = pty.openpty()
    listen = free_port()
    command = [sys.executable, str(ROOT / "script" / "run.py"), "--listen", str(listen), "--admin", str(free_port())]
    read = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as script:
        os.close(theirs)
        try:
            while b"Ctrl-C ends everything" not in read:
                read += os.read(ours, 4096)
            client = V1Client(f"ws://127.0.0.1:{listen}/websocket/", {"jobs": ["status_changed"]}).open()
            while len(client.payloads) < 2:
                client.receive()
            client.close()
        finally:
            script.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end has been closed
            while more := os.read(ours, 4096):
                read += more
        assert script.wait(DEADLINE_S) == 0
    os.close(ours)
    assert b"\r" not in read.replace(b"\r\n", b""), read


def test_the_lines_that_it_prints_work() -> None:
    """Both commands do what the text says: one shows the event that the other publishes."""
    command = [sys.executable, str(ROOT / "script" / "run.py"), "--listen", str(free_port()), "--admin", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as script:
        assert script.stdout is not None
        said = {}
        for line in script.stdout:
            what, _, how = line.partition(":  ")
            said[what] = how.strip()
            if "Ctrl-C ends everything" in line:
                break
        listen, publish = said["==> or in another terminal"], said["==> an event of your own"]
        try:
            with subprocess.Popen(["/bin/sh", "-euc", f"exec {listen}"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tail:
                assert tail.stdout is not None
                tail.stdout.readline()  # a line of the demo's: it is subscribed
                subprocess.run(["/bin/sh", "-euc", publish], cwd=ROOT, check=True, timeout=DEADLINE_S, capture_output=True)
                assert any(line.endswith("system job 42 running\n") for line in tail.stdout)
                tail.terminate()
        finally:
            script.terminate()
            script.communicate()


def test_with_a_private_rabbitmq(rabbit: PrivateRabbit, tmp_path: Path) -> None:
    """`--rabbitmq` starts a private node, which ends with the other parts."""
    with _running("--rabbitmq", "--data", tmp_path) as (script, parts):
        assert len(parts) == 4  # the daemon, the demo, the node and its epmd
        script.terminate()
        output, _ = script.communicate()
        assert script.returncode == 0, output
        _assert_ended(parts)


def test_with_a_given_broker(rabbit: PrivateRabbit) -> None:
    """`--broker` uses that RabbitMQ: the exchange exists once events flow."""
    with _running("--broker", rabbit.url) as (script, parts):
        assert "towerws" in rabbit.ctl("list_exchanges", "name").split()
        script.terminate()
        output, _ = script.communicate()
        assert script.returncode == 0, output
        _assert_ended(parts)


def test_a_part_that_dies_is_named_and_ends_the_rest() -> None:
    """Half a demonstration would mislead: the script names the part that ended, ends the others, and fails."""
    with _running() as (script, parts):
        (daemon,) = [pid for pid in _children(script) if b"/twistd\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(daemon, signal.SIGKILL)
        output, _ = script.communicate()
        assert script.returncode == 1
        assert "script/run: the daemon ended by itself (exit status -9); ending the rest" in output
        _assert_ended(parts)


def test_nothing_survives_the_script(rabbit: PrivateRabbit) -> None:
    """Even SIGKILL leaves no process behind."""
    with _running() as (script, parts):
        script.kill()
        _assert_ended(parts)


def test_a_taken_port_is_told() -> None:
    """If a requested port is in use, the script ends before it starts anything."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run([sys.executable, ROOT / "script" / "run.py", "--admin", port], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, f"script/run: port {port} can't be used as the admin port: Address already in use\n")


def _children(script: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()]


def _assert_ended(parts: list[int]) -> None:
    """A pidfd is readable once its process has ended."""
    for part in parts:
        assert select.select([part], [], [], 15)[0], "a part is still running"
