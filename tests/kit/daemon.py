"""The daemon as its users run it: a process, started through the plugin, with clients and producers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pika
from private_rabbitmq import free_port
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.kit import preloaded

DEADLINE_S = 30.0
"""Seconds that a test waits for any step. It is far longer than expected, and only reached when something is broken."""

TWISTD = str(Path(sys.executable).with_name("twistd"))

TOWERWS = (sys.executable, "-c", "from towerws.cli import main; main(prog_name='towerws')")
"""Runs the command `towerws`."""

SUBPROTOCOL = Subprotocol("towerws.v1")


class Daemon:
    """One `twistd -n towerws`. It can be killed and started again on the same ports.

    With `tls_pem`, a file with key and certificate, it serves TLS. `environment` is added to the process's environment.

    Without `forked` it imports its modules itself, as for users (see `tests.kit.preloaded`).
    """

    def __init__(
        self,
        folder: Path,
        broker: str,
        *flags: str,
        auth: str = "open",
        tls_pem: str = "",
        environment: Mapping[str, str] | None = None,
        forked: bool = True,
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.log = folder / f"daemon-{self.port}.log"
        self._folder = folder
        self._tls_pem = tls_pem
        # Variables for the interpreter or the linker have to be there when the process starts.
        self._forked = forked and not any(name.startswith(("PYTHON", "LD_")) for name in environment or {})
        self.environment = dict(environment or {})
        self._flags = ["--broker", broker, "--auth", auth, *flags]
        self._process: subprocess.Popen[bytes] | preloaded.Process | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"ws://127.0.0.1:{self.port}/websocket/"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True) -> Self:
        """Start it. With `ready`, wait until `/readyz` answers 200, otherwise until it listens."""
        self._stopping = False
        endpoint = f"ssl:{self.port}:privateKey={self._tls_pem}" if self._tls_pem else f"tcp:{self.port}"
        listen = ["--listen", f"{endpoint}:interface=127.0.0.1", "--admin", f"tcp:{self.admin_port}:interface=127.0.0.1"]
        with self.log.open("ab") as log:
            command = [TWISTD, "-n", "--pidfile=", "towerws", *listen, *self._flags]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **self.environment}
            if self._forked:
                self._process = preloaded.start(command, output=log, cwd=self._folder, env=environment)
            else:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, env=environment)
        self.wait_for("/readyz" if ready else "/healthz")
        return self

    def wait_for(self, path: str) -> None:
        """Wait until the admin port answers 200 on this path."""
        give_up = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up:
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self._process.returncode}:\n{self.log.read_text()[-3000:]}")
            try:
                if self.get(path)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)  # polled, as by a load balancer: a daemon announces readiness to systemd only
        raise AssertionError(f"{path} did not answer 200 within {DEADLINE_S} s:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> tuple[int, Any]:
        """The admin port's answer: the status and the JSON."""
        return self.ask("GET", path)

    def until_connections(self, count: int) -> None:
        """Wait until the daemon has this many connections. It tells nobody, so its figures are asked."""
        give_up = time.monotonic() + DEADLINE_S
        while (found := self.get("/status")[1]["hub"]["subscribers"]) != count:
            assert time.monotonic() < give_up, found
            time.sleep(0.02)

    def ask(self, method: str, path: str, body: bytes | None = None, within_s: float = DEADLINE_S) -> tuple[int, Any]:
        """Send one request to the admin port. Each wait for a part of its answer has this deadline."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=within_s)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def publish(self, topic: str, payload: object) -> str:
        """Publish through the admin port (embedded source). Returns the position."""
        status, answer = self.ask("POST", "/publish", json.dumps({"topic": topic, "payload": payload}).encode())
        assert status == 202, answer
        return str(answer["position"])

    def kill(self) -> None:
        """`kill -9`, and wait for the end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def begin_stop(self) -> None:
        """Send SIGTERM once. The daemon then waits for its clients' answers to its closes, for at most the drain window."""
        assert self._process is not None
        if self._process.poll() is None and not self._stopping:
            self._stopping = True
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Send SIGTERM and wait. Returns the exit status."""
        self.begin_stop()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end. Returns the exit status."""
        assert self._process is not None
        return self._process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        if self.log.exists():
            log = self.log.read_text()
            assert "Unhandled" not in log, log[-5000:]
            assert "Traceback" not in log, log[-5000:]

    def rss_kib(self) -> int:
        """The process's resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])


class V1Client:
    """A `towerws.v1` client on the library `websockets`. It keeps its messages and its position."""

    def __init__(self, url: str, groups: dict[str, list[int | str]]) -> None:
        self.url, self.groups = url, groups
        self.position: str | None = None
        self.payloads: list[Any] = []
        self.positions: list[str] = []
        self.gaps: list[dict[str, Any]] = []
        self.subscribed: list[dict[str, Any]] = []
        self._socket: ClientConnection | None = None
        self._leave = ExitStack()

    def open(self) -> Self:
        """Connect and subscribe, from the last position if there is one. Returns after the answer."""
        connection = connect(self.url, subprotocols=[SUBPROTOCOL], open_timeout=DEADLINE_S, max_size=None, max_queue=None)
        self._socket = self._leave.enter_context(connection)
        welcome = self.receive()
        assert welcome["type"] == "welcome"
        request: dict[str, Any] = {"groups": self.groups}
        if self.position is not None:
            request["since"] = self.position
        self._socket.send(json.dumps(request))
        while self.receive()["type"] != "subscribed":
            pass
        return self

    def receive(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next frame. Its payload and position are kept."""
        assert self._socket is not None
        frame: dict[str, Any] = json.loads(self._socket.recv(timeout_s))
        kind = frame["type"]
        if kind == "event":
            self.payloads.append(frame["payload"])
            self.positions.append(frame["position"])
            self.position = frame["position"]
        elif kind == "gap":
            self.gaps.append(frame)
        elif kind == "subscribed":
            self.subscribed.append(frame)
            self.position = frame["position"]
        return frame

    def until(self, payload: object) -> None:
        """Receive until this payload has arrived."""
        while not self.payloads or self.payloads[-1] != payload:
            self.receive()

    def until_lost(self) -> None:
        """Receive until the connection ends."""
        try:
            while True:
                self.receive()
        except (ConnectionClosed, OSError):
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._leave.close()
        self._socket = None


def publish_all(url: str, messages: list[tuple[str, bytes]], exchange: str = "towerws") -> None:
    """Publish with an independent client (pika's blocking one). Returns once the broker has accepted every message."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for routing_key, body in messages:
        channel.basic_publish(exchange, routing_key, body, pika.BasicProperties(content_type="application/json"))
    channel.close()  # the broker answers this after all that was published
    connection.close()


class NumberedLoad:
    """Runs `tests/kit/numbered_load.py`. `count` is the number of messages that the broker has confirmed."""

    def __init__(self, url: str, topic: str, *, exchange: str, stream: str = "", per_s: float = 200) -> None:
        self._command = [sys.executable, "-m", "tests.kit.numbered_load", url, exchange, topic, str(per_s), stream]
        self.count = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def wait_for(self, more: int) -> None:
        """Wait until this many more were confirmed."""
        assert self._process.stdout is not None
        for _ in range(more):
            line = self._process.stdout.readline()
            assert line, "the producer ended"
            self.count = int(line)

    def finish(self) -> int:
        """Stop it. Returns how many messages were published."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        for line in self._process.stdout:
            self.count = int(line)
        return self.count
