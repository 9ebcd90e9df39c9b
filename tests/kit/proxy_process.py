"""A proxy of the tests: a process of its own that listens on a free port and keeps all its files in one folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from private_rabbitmq import free_port, tied_to_us

from tests.kit.daemon import DEADLINE_S


def adapted(text: str, *changes: tuple[str, str]) -> str:
    """A shipped file with an operator's changes. Each text must occur once, otherwise the test would test something else."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the shipped file"
        text = text.replace(old, new)
    return text


class ProxyProcess:
    """A program in front of a daemon. It ends with the test's process, however that ends."""

    ended_by = signal.SIGKILL

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.port = free_port()
        self.tls = tls
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Its command line, in the foreground."""
        raise NotImplementedError

    def check_logs(self) -> None:
        """Check at its end that it logged no error."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/websocket/"

    def logs(self) -> dict[str, str]:
        """The contents of all its logs, by file name."""
        return {path.name: path.read_text(errors="surrogateescape") for path in self.folder.glob("*.log")}

    def __enter__(self) -> Self:
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                tied_to_us(self.command(), "TERM"),
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        give_up = time.monotonic() + DEADLINE_S
        while True:
            assert self._process.poll() is None, self.logs()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S).close()
            except OSError:
                assert time.monotonic() < give_up, self.logs()
                time.sleep(0.02)  # nothing announces the port, so it is polled
            else:
                return self

    def __exit__(self, *exc: object) -> None:
        """End it at once, and check its logs."""
        assert self._process is not None
        self._process.send_signal(self.ended_by)
        self._process.wait(DEADLINE_S)
        self.check_logs()
