"""The measured servers: towerws, started through its plugin, and the references. Each is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from private_rabbitmq import free_port

ROOT = Path(__file__).parents[1]
START_S = 30.0


class Server:
    """One process and its CPU. `command` and `env` start it. It listens on `port` when `start` returns."""

    name = ""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log

    def start(self, *command: str) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = self.launch(command, log)
        give_up = time.monotonic() + START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def launch(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Run Python with these arguments. A test has another way to start `Towerws`."""
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def answers(self) -> bool:
        """Whether it is ready."""
        return "ready\n" in self._log.read_text()

    @property
    def pids(self) -> list[int]:
        """Its processes: the one that was started, and those that it started."""
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    @property
    def cpu_ns(self) -> int:
        """User and system time of all threads of all its processes in nanoseconds, as the scheduler counted it."""
        tasks = [task for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    @property
    def peak_bytes(self) -> int:
        """The peak of resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def freeze(self) -> None:
        """Stop its processes: messages published now wait for them."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue its processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.thaw()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Towerws(Server):
    """The real daemon. Relevant options are fixed, all others have their defaults."""

    name = "towerws"

    def __init__(self, log: Path, broker: str, exchange: str, *flags: str, pem: Path | None = None) -> None:
        super().__init__(log)
        self.exchange = exchange
        self.admin_port = free_port()
        listen = f"tcp:{self.port}" if pem is None else f"ssl:{self.port}:privateKey={pem}:certKey={pem}"
        self.start(
            *(str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "towerws"),
            *("--broker", broker, "--exchange", exchange, "--stream", f"{exchange}.events", "--auth", "open"),
            *(
                "--listen",
                f"{listen}:interface=127.0.0.1:backlog=4096",
                "--admin",
                f"tcp:{self.admin_port}:interface=127.0.0.1",
            ),
            *("--websocket-ping-s", "3600"),  # only events are counted
            # One machine runs all clients.
            *("--limits-per-address", "100000", "--limits-per-user", "100000", "--limits-half-open", "100000"),
            *flags,
        )

    @property
    def admin_url(self) -> str:
        """The admin port's URL."""
        return f"http://127.0.0.1:{self.admin_port}"

    def answers(self) -> bool:
        """Whether `/readyz` answers 200, for each of its workers."""
        try:
            return all(each["ready"] for each in self.get("/readyz").get("workers", []))
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """The admin port's answer."""
        with urllib.request.urlopen(self.admin_url + path, timeout=START_S) as answer:
            return json.loads(answer.read())


class Plain(Server):
    """The straightforward server: `benchmarks/plain.py`."""

    name = "plain"

    def __init__(self, log: Path, broker: str, exchange: str) -> None:
        super().__init__(log)
        self.exchange = exchange
        self.start("-m", "benchmarks.plain", broker, exchange, str(self.port))


class Floor(Server):
    """The bare loop: `benchmarks/floor.py`."""

    name = "floor"

    def __init__(self, log: Path, clients: int, size: int) -> None:
        super().__init__(log)
        self.start("-m", "benchmarks.floor", str(self.port), str(clients), str(size))

    def run(self, messages: int, per_s: float) -> None:
        """Send this many messages to each client, `per_s` per second, or all at once for 0. Does not wait."""
        with socket.create_connection(("127.0.0.1", self.port)) as control:
            control.sendall(f"{messages} {per_s}\n".encode())


class Relay(Server):
    """Floor behind the broker: `benchmarks/relay.py`."""

    name = "relay"

    def __init__(self, log: Path, broker: str, exchange: str, clients: int) -> None:
        super().__init__(log)
        self.exchange = exchange
        self.start("-m", "benchmarks.relay", broker, exchange, str(self.port), str(clients))


class Greeter(Server):
    """The floor of connecting: `benchmarks/greeter.py`."""

    name = "greeter"

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.start("-m", "benchmarks.greeter", str(self.port))
