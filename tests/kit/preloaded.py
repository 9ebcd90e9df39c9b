"""Daemons from a process that has already imported their modules: a start needs a fifth of the CPU.

`start` asks the process for a fork. It becomes `twistd` with the given command line, folder and environment.
What users start is tested in tests/integration/test_start_and_stop.py and others, which start `twistd` itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).parents[2]
MODULES: Final = (
    *("twisted.scripts.twistd", "twisted.internet.epollreactor", "twisted.internet._newtls", "twisted.web.client"),
    *("autobahn.twisted.websocket", "pika", "pika.adapters.utils.connection_workflow", "prometheus_client", "jwt", "cryptography.x509"),
    *("towerws.admin", "towerws.auth.chain", "towerws.config.load", "towerws.websocket.plain_http"),
)
"""What a daemon imports before there is a reactor. Pika's Twisted adapter makes one, which processes can't share."""

MAX_REQUEST: Final = 1 << 20
"""Bytes of the longest request: a command line and an environment."""


class Process:
    """A daemon that `start` made. It has the parts of `subprocess.Popen` that tests need."""

    def __init__(self, pid: int, ended: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def __del__(self) -> None:
        """Close the socket of a daemon that is not waited for."""
        self._ended.close()

    def poll(self) -> int | None:
        """The exit status, minus the signal's number if a signal ended it. None while it runs."""
        return self._result(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Returns the exit status. `subprocess.TimeoutExpired` after `timeout` seconds."""
        result = self._result(timeout)
        if result is None:
            raise subprocess.TimeoutExpired("twistd", timeout or 0)
        return result

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _result(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._ended.settimeout(timeout)
            try:
                told = self._ended.recv(16)
            except (BlockingIOError, TimeoutError):
                return None
            self._ended.close()
            assert told, f"the process that forks has ended, so the status of daemon {self.pid} is unknown: look at this test's output"
            self.returncode = int(told)
        return self.returncode


@cache
def _control() -> socket.socket:
    """Start the process that forks. Returns the socket for requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        forking = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.preloaded", str(theirs.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
        )
    atexit.register(forking.wait)
    atexit.register(ours.close)  # called first
    return ours


def start(command: Sequence[str], *, output: IO[bytes], cwd: Path, env: Mapping[str, str]) -> Process:
    """Start `twistd` with these arguments. `command[0]` is its path. Standard output and standard error go to `output`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps([list(command), str(cwd), dict(env)]).encode()
    with theirs:
        socket.send_fds(_control(), [request], [output.fileno(), theirs.fileno()])
    pid = ours.recv(16)
    assert pid, "the process that forks has ended: its error is in the output of this test"
    return Process(int(pid), ours)


def _serve(control: socket.socket) -> tuple[int, list[str], str, dict[str, str]]:
    """Fork for each request, and tell how the processes end. Ends when the tests' process does.

    Returns in each fork: where the output goes, and what was asked for.
    """
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            for pidfd in ready & running.keys():
                pid, ended = running.pop(pidfd)
                selector.unregister(pidfd)
                os.close(pidfd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with ended, suppress(OSError):  # nobody waits for it any more
                    ended.send(str(status).encode())
            if control.fileno() not in ready:
                continue
            request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST, 2)
            if not request:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                sys.exit(0)
            output, told = descriptors
            pid = os.fork()
            if pid == 0:
                return (output, *json.loads(request))
            os.close(output)
            ended = socket.socket(fileno=told)
            ended.send(str(pid).encode())
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, ended
            selector.register(pidfd, selectors.EVENT_READ)


def main() -> None:
    """Import the modules, and serve. In a fork: become the daemon."""
    for module in MODULES:
        importlib.import_module(module)
    assert "twisted.internet.reactor" not in sys.modules, "a module of MODULES makes a reactor"
    gc.collect()
    gc.freeze()  # so that a collection in a fork does not copy these objects
    output, command, folder, environment = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv[:] = [sys.executable, *command]
    sys.argv[:] = command
    gc.unfreeze()
    atexit.register(gc.freeze)  # without it the last collection looks at all that was imported: 0.1 s of CPU for each daemon
    run = importlib.import_module("twisted.scripts.twistd").run
    sys.exit(run())


if __name__ == "__main__":
    main()
