"""A daemon with workers, as a test sees it: the parent's process, and those of its workers."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from typing import Any, Self

from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.handed import wait_for_end


class WorkersDaemon(Daemon):
    """A `Daemon` with `--workers`. `pid` is the parent's."""

    def __init__(self, folder: Path, broker: str, *flags: str, **more: Any) -> None:
        super().__init__(folder, broker, *flags, **more)
        self.environment.setdefault("TMPDIR", str(folder))  # if all processes are killed, the folder of their sockets stays

    def start(self, *, ready: bool = True) -> Self:
        """Start it. With `ready`, wait until each worker accepts clients."""
        super().start(ready=ready)
        if ready:
            self.serving()
        return self

    def workers(self) -> list[dict[str, Any]]:
        """The entries of the workers in `/status`."""
        found: list[dict[str, Any]] = self.get("/status")[1]["workers"]
        return found

    def serving(self) -> list[int]:
        """Wait until each worker accepts clients and gets events. Returns their processes."""
        give_up = time.monotonic() + 2 * DEADLINE_S
        while time.monotonic() < give_up:
            status, answer = self.get("/readyz")
            if status == 200 and all(each["ready"] for each in answer["workers"]):
                return [each["pid"] for each in self.workers()]
            time.sleep(0.05)  # polled, as by a load balancer
        raise AssertionError(f"not all workers are ready: {answer}\n{self.log.read_text()[-3000:]}")

    def new_process(self, number: int, before: int) -> int:
        """Wait until a worker has another process than before. Returns it."""
        give_up = time.monotonic() + 2 * DEADLINE_S
        while time.monotonic() < give_up:
            pid = self.workers()[number - 1]["pid"]
            if pid not in (None, before):
                return int(pid)
            time.sleep(0.02)  # polled, as by a load balancer
        raise AssertionError(f"worker {number} has no new process:\n{self.log.read_text()[-3000:]}")

    def says(self, text: str) -> None:
        """Wait until the log has this text."""
        give_up = time.monotonic() + 4 * DEADLINE_S
        while text not in self.log.read_text():
            assert time.monotonic() < give_up, self.log.read_text()[-3000:]
            time.sleep(0.02)  # polled: a file can't be awaited

    def text(self, path: str, port: int = 0) -> str:
        """The admin port's answer as text, or that of another port."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.admin_port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def wait_for_all_to_end(self, pids: list[int]) -> None:
        """Wait until these processes have ended."""
        for pid in pids:
            wait_for_end(pid)


def children(pid: int) -> dict[int, str]:
    """The child processes of a process, with the state of each (proc(5))."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            found[int(path.parent.name)] = state
    return found
