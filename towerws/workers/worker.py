"""A worker's side: what it inherits from its parent, its share of the limits, and the port that it shares with the other workers."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from twisted.internet import tcp
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from towerws.config.load import Loaded
from towerws.core.settings import LimitSettings, Settings

VARIABLE: Final = "_TOWERWS_WORKER"
"""The variable with the `Membership`, in the environment of a worker and of the process that a worker hands over to."""

CONTROL_GROUP: Final = Path("/proc/self/cgroup")
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
"""The file that names this process's control groups, and the folder where control groups are mounted (cgroups(7))."""

PARENT_CHECK_S: Final = 1.0
"""Interval between two checks whether the parent has ended."""

DIVIDED: Final = ("connections", "per_address", "per_user", "half_open", "replay_bytes_per_s")
"""Limits for the whole daemon, of which each worker gets a share. `accepts_per_s` is none: it protects the event loop of one process."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One worker of a parent. `number` counts from 1 to `count`. `folder` holds its sockets."""

    number: int
    count: int
    folder: str
    parent: int
    """The parent's process id."""
    page_port: int
    """The TCP port of the parent's admin port, whose pages may connect to the websockets. 0: it has none."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self | None:
        """Return this process's membership. None: it is no worker."""
        text = environ.get(VARIABLE, "")
        return cls(**json.loads(text)) if text else None

    def to_text(self) -> str:
        """Return the value of `VARIABLE`."""
        return json.dumps(asdict(self))

    @property
    def admin_path(self) -> str:
        """The path of the UNIX socket of this worker's admin port."""
        return f"{self.folder}/admin-{self.number}"

    @property
    def notify_path(self) -> str:
        """The path of the UNIX socket on which the parent reads this worker's notifications."""
        return f"{self.folder}/notify-{self.number}"

    def loaded(self, loaded: Loaded) -> Loaded:
        """Return the configuration as this worker uses it: its own admin port, no port of `monitor`, and its share of the limits."""
        settings = loaded.settings
        path = "".join(f"\\{each}" if each in "\\:=" else each for each in self.admin_path)
        tower = settings.tower
        if tower is not None:
            calls, password_calls = _share(tower.calls, self.count), _share(tower.password_calls, self.count)
            tower = replace(tower, calls=calls, password_calls=password_calls, sharers=self.count)
        own = replace(
            settings, workers=1, admin=f"unix:{path}:mode=600", monitor="", limits=divide(settings.limits, self.count), tower=tower
        )
        return replace(loaded, settings=own)


def worker_count(settings: Settings) -> int:
    """Return the number of workers. For `auto` that is one for each CPU that this process may use."""
    return settings.workers if isinstance(settings.workers, int) else _usable_cpus()


def divide(limits: LimitSettings, count: int) -> LimitSettings:
    """Return one worker's share of the limits, rounded up. A limit of connections of 0 stays 0: each process has its own descriptors."""
    return replace(limits, **{name: _share(getattr(limits, name), count) for name in DIVIDED})


def _share(limit: int, count: int) -> int:
    return -(-limit // count)


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may run on, at most the whole CPUs that its control groups allow."""
    return max(1, min([len(os.sched_getaffinity(0)), *(int(limit) for limit in _cpu_limits())]))


def _cpu_limits() -> Iterator[float]:
    """Yield the limits of this process's control group and of those around it, in CPUs. A group without a limit yields none."""
    # Version 2: `200000 100000`, or `max 100000`. Version 1: the quota is -1 without a limit.
    for words in _group_files(CONTROL_GROUP, "cpu", ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(ValueError):
            quota, period = map(int, words)
            if quota > 0:
                yield quota / period


def memory_limits(process: Path) -> Iterator[int]:
    """Yield the limits of a process's control group and of those around it, in bytes. `process` is its `/proc/PID/cgroup`."""
    for words in _group_files(process, "memory", ["memory.max"], ["memory.limit_in_bytes"]):
        with suppress(ValueError):  # `max` is no limit
            (limit,) = map(int, words)
            yield limit


def _group_files(process: Path, controller: str, version_2: Sequence[str], version_1: Sequence[str]) -> Iterator[list[str]]:
    """Yield the words in some files of a process's control group, and of each group around it, the innermost group first.

    The files are `version_2` or `version_1`, by the version of control groups that has the `controller`. `process` is a `/proc/PID/cgroup`.
    """
    try:
        places = [line.split(":", 2) for line in process.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    except OSError:  # a system without control groups
        return
    for _, controllers, place in places:
        if not controllers:
            root, names = CONTROL_GROUPS, version_2
        elif controller in controllers.split(","):
            root, names = CONTROL_GROUPS / controller, version_1
        else:
            continue
        inner = root / place.lstrip("/")
        for folder in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # no such file, or the folder is outside this container
                yield " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if folder == root:
                break


class SharingReactor:
    """Opens TCP ports that several processes may listen on (SO_REUSEPORT). Every other call goes to the reactor.

    Each process has an accept queue of its own, and the kernel spreads connections evenly over them. One inherited queue would not do that:
    the process that wakes first takes most connections.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorTCP`."""
        opened = _SharedPort(port, factory, backlog, interface, self._reactor)
        opened.startListening()
        return opened

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorSSL`. Twisted's method wraps the factory in the same way."""
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)


class _SharedPort(tcp.Port):
    def createInternetSocket(self) -> socket.socket:
        """Make the socket, with SO_REUSEPORT before it is bound."""
        made: socket.socket = super().createInternetSocket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return made


class ParentWatch:
    """Stops a worker whose parent has ended. Nobody would supervise the worker, and another daemon may take the port.

    `stop` stops this process. The last worker to end removes the folder of the sockets. `successor`: whether a worker's old process started
    this one, to hand over to it. Then the old process may be the parent of this one, until it has ended.
    """

    _log = Logger()

    def __init__(self, membership: Membership, reactor: Any, stop: Callable[[], None], *, successor: bool) -> None:
        self._membership = membership
        self._allowed = {membership.parent, os.getppid()} if successor else {membership.parent}
        self._stop = stop
        self._reactor = reactor
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor
        reactor.callWhenRunning(self._checks.start, PARENT_CHECK_S)

    def _check(self) -> None:
        if os.getppid() not in self._allowed:
            self._checks.stop()
            self._log.error("the parent, process {pid}, has ended; this worker stops", pid=self._membership.parent)
            self._reactor.addSystemEventTrigger("after", "shutdown", self._remove_folder)
            self._stop()

    def _remove_folder(self) -> None:
        """Remove the folder of the sockets, unless another worker still listens in it."""
        folder = Path(self._membership.folder)
        for path in folder.glob("admin-*"):
            with socket.socket(socket.AF_UNIX) as other, suppress(OSError):
                other.settimeout(1)
                other.connect(str(path))
                return
        shutil.rmtree(folder, ignore_errors=True)
