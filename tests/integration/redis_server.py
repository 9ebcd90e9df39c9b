"""A private Redis for the channel layers of AWX 19 to 24: in memory, on loopback, removed with the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from private_rabbitmq import free_port, tied_to_us

START_S = 30.0


def redis_binary() -> Path | None:
    """The path of redis-server, None if it is not installed. `PRIVATE_REDIS` names another."""
    found = os.environ.get("PRIVATE_REDIS") or shutil.which("redis-server")
    return Path(found) if found else None


class PrivateRedis:
    """One server process."""

    def __init__(self, folder: Path) -> None:
        binary = redis_binary()
        assert binary is not None
        self.port = free_port()
        command = [str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(tied_to_us(command, "KILL"), cwd=folder, stdin=subprocess.DEVNULL, stdout=log)

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        give_up = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as client:
                    client.sendall(b"PING\r\n")
                    if client.recv(5) == b"+PONG":
                        return self
            except OSError:
                assert self._process.poll() is None, "redis-server ended"
                assert time.monotonic() < give_up, f"redis-server did not answer within {START_S} s"
                time.sleep(0.02)  # between two polls

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
