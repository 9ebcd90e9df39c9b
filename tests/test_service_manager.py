from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.error import ConnectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure

from towerws.service_manager import MOVING, START_S, STATUS_CHARACTERS, STATUS_S, TELL_S, ServiceManager


class Manager:
    """A service manager's socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self.socket.setblocking(False)

    def received(self) -> list[list[str]]:
        """The datagrams since the last call, each as its lines."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return found


class Daemon:
    """What a daemon would answer."""

    accepting = True
    status = "ready; 0 clients"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager with a socket of either kind."""
    manager = Manager(f"{tmp_path}/notify" if request.param == "path" else f"@towerws-test-{os.getpid()}")
    with manager.socket:
        yield manager


@pytest.fixture
def made() -> Iterator[Callable[..., tuple[ServiceManager, Daemon, Clock]]]:
    """A maker of the daemon's side. At the end its socket is closed."""
    all_made: list[ServiceManager] = []

    def make(address: str, **environ: str) -> tuple[ServiceManager, Daemon, Clock]:
        daemon, clock = Daemon(), Clock()
        ours = ServiceManager(
            {"NOTIFY_SOCKET": address, **environ},
            clock,
            accepting=lambda: daemon.accepting,
            status=lambda: daemon.status,
            stop_s=lambda: 13.0,
        )
        all_made.append(ours)
        return ours, daemon, clock

    yield make
    for ours in all_made:
        ours.close()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log's lines."""
    found: list[str] = []

    def observe(event: Any) -> None:
        found.append(event["log_format"].format(**event))

    observer = cast("ILogObserver", observe)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


Made = Callable[..., tuple[ServiceManager, Daemon, Clock]]


def test_ready_once_and_each_new_status(manager: Manager, made: Made) -> None:
    """READY is sent once, when clients are accepted. A status is sent when it has changed."""
    ours, daemon, clock = made(manager.address)
    daemon.accepting, daemon.status = False, "not ready: connecting; 0 clients"
    ours.start()
    assert manager.received() == [["STATUS=not ready: connecting; 0 clients"]]
    clock.pump([START_S] * 3)
    assert manager.received() == []
    daemon.accepting = True
    clock.advance(START_S)
    assert manager.received() == [["READY=1"]]
    clock.advance(STATUS_S)
    daemon.status = "ready; 7 clients"
    clock.advance(STATUS_S)
    clock.advance(STATUS_S)
    assert manager.received() == [["STATUS=ready; 7 clients"]]


def test_a_reload(manager: Manager, made: Made) -> None:
    """RELOADING has the time by which systemd matches it to its request. READY follows, also if systemd's queue was full for a moment."""
    ours, daemon, clock = made(manager.address)
    daemon.accepting = False
    ours.start()
    ours.reloading()
    ours.reloaded()
    assert manager.received() == [["STATUS=ready; 0 clients"]], "a start that goes on"
    daemon.accepting = True
    clock.advance(START_S)
    manager.received()
    before = time.monotonic_ns() // 1000
    ours.reloading()
    ((reloading, at),) = manager.received()
    assert reloading == "RELOADING=1"
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    ours.reloaded()
    assert manager.received() == [["READY=1"]]
    sent = fill(ours)
    ours.reloaded()
    assert len(manager.received()) == sent
    clock.advance(STATUS_S)
    assert manager.received()[-1][0] == "READY=1"


def fill(ours: ServiceManager) -> int:
    """Fill the service manager's queue. Returns how many messages it holds."""
    sent = 0
    while ours._send("STATUS=x"):
        sent += 1
    return sent


def test_the_successor_is_named_as_soon_as_there_is_room(manager: Manager, made: Made) -> None:
    """Otherwise the service manager would take the end of this process for the end of the daemon. Nothing follows."""
    ours, _, clock = made(manager.address, WATCHDOG_USEC="3000000")
    ours.start()
    assert fill(ours) > 0
    ours.hand_over(4711)
    clock.pump([START_S] * 3)
    ended: list[None] = []
    waits = ours.stopping()
    assert waits is not None
    waits.addCallback(ended.append)
    clock.advance(START_S)
    assert ["MAINPID=4711"] not in manager.received()
    assert not ended, "the end of this process waits"
    clock.advance(START_S)
    assert ended == [None]
    clock.pump([1.0] * 10)
    assert manager.received() == [["MAINPID=4711"]]


def test_the_end_of_a_process_waits_for_a_while_only(manager: Manager, made: Made) -> None:
    """A service manager that never reads keeps no process."""
    ours, _, clock = made(manager.address)
    ours.start()
    sent = fill(ours)
    ours.hand_over(4711)
    ended: list[None] = []
    waits = ours.stopping()
    assert waits is not None
    waits.addCallback(ended.append)
    clock.advance(TELL_S - START_S / 2)
    assert not ended
    clock.advance(START_S)
    assert ended == [None]
    assert len(manager.received()) == sent + 1
    clock.pump([START_S] * 5)
    assert manager.received() == []


def test_after_a_hand_over_nothing_is_said(manager: Manager, made: Made) -> None:
    """The messages would be about another process."""
    ours, _, clock = made(manager.address)
    ours.start()
    ours.hand_over(4711)
    assert ours.stopping() is None
    clock.pump([STATUS_S] * 3)
    assert manager.received()[1:] == [["MAINPID=4711"]]


def test_a_process_that_takes_over_says_so_first(manager: Manager, made: Made) -> None:
    """Its READY would otherwise be taken for that of another process. The pings go on."""
    before, _, _ = made(manager.address)
    before.start()
    sent = fill(before)
    ours, _, clock = made(manager.address, WATCHDOG_USEC="3000000")
    ours.take_over()
    clock.pump([START_S] * 3)
    assert len(manager.received()) == sent + 1
    clock.advance(START_S)
    assert manager.received() == [["WATCHDOG=1"], [f"MAINPID={os.getpid()}"], ["READY=1", "STATUS=ready; 0 clients"]]


def test_moving_is_said_again(manager: Manager, made: Made) -> None:
    """Only the last word counts."""
    ours, _, clock = made(manager.address)
    ours.start()
    clock.advance(START_S)
    fill(ours)
    ours.moving(True)
    ours.moving(False)
    manager.received()
    clock.advance(START_S)
    assert manager.received() == [[f"{MOVING}=0"]]
    ours.moving(True)
    assert manager.received() == [[f"{MOVING}=1"]]


def test_no_watchdog_unless_asked_for(manager: Manager, made: Made) -> None:
    """Without WATCHDOG_USEC no ping is sent."""
    ours, _, clock = made(manager.address)
    ours.start()
    clock.pump([1.0] * 60)
    assert manager.received() == [["READY=1", "STATUS=ready; 0 clients"]]


@pytest.mark.parametrize("named", [False, True])
def test_the_watchdog_gets_three_pings_in_its_time(manager: Manager, made: Made, named: bool) -> None:
    """A ping goes out at once, and then every third of WATCHDOG_USEC."""
    ours, _, clock = made(manager.address, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()) if named else "")
    ours.start()
    assert manager.received() == [["WATCHDOG=1"], ["READY=1", "STATUS=ready; 0 clients"]]
    clock.advance(START_S)  # the delay that was in force before READY
    clock.pump([0.5] * 6)
    assert manager.received() == [["WATCHDOG=1"]] * 4


@pytest.mark.parametrize(("usec", "pid", "complains"), [("3000000", "1", False), ("0", "", True), ("-1", "", True), ("x", "", True)])
def test_a_watchdog_that_is_not_for_us(made: Made, lines: list[str], tmp_path: Path, usec: str, pid: str, complains: bool) -> None:
    """Another process's watchdog gets no ping. A value that can't be read is one log line."""
    manager = Manager(f"{tmp_path}/notify")
    with manager.socket:
        ours, _, clock = made(manager.address, WATCHDOG_USEC=usec, WATCHDOG_PID=pid)
        ours.start()
        clock.pump([1.0] * 10)
        assert manager.received() == [["READY=1", "STATUS=ready; 0 clients"]]
    assert [line.split(": must")[0] for line in lines] == ([f"WATCHDOG_USEC = {usec!r}"] if complains else [])


def test_stopping_and_how_long_it_may_take(manager: Manager, made: Made) -> None:
    """The stop extends systemd's timeout by its own deadline. Pings and status go on while connections are drained."""
    ours, daemon, clock = made(manager.address, WATCHDOG_USEC="3000000")
    ours.start()
    clock.advance(1.0)
    manager.received()
    daemon.status = "not ready: the daemon is stopping; 5 clients"
    ours.stopping()
    clock.advance(1.0)
    assert manager.received() == [
        ["STOPPING=1", "STATUS=not ready: the daemon is stopping; 5 clients", "EXTEND_TIMEOUT_USEC=13000000"],
        ["WATCHDOG=1"],
        ["STATUS=not ready: the daemon is stopping; 5 clients"],
    ]


def test_a_status_is_one_short_line(manager: Manager, made: Made) -> None:
    """A line feed in a reason would begin another assignment, such as MAINPID=1."""
    ours, daemon, _ = made(manager.address)
    daemon.status = "not ready: the broker said\nMAINPID=1" + "x" * 1000
    ours.start()
    ((ready, status),) = manager.received()
    assert ready == "READY=1"
    assert status.startswith("STATUS=not ready: the broker said MAINPID=1x")
    assert len(status) == len("STATUS=") + STATUS_CHARACTERS


@pytest.mark.parametrize("name", ["notify", "@", "/", "vsock:2:1234", "-"])
def test_an_address_that_can_t_be_used(made: Made, lines: list[str], name: str) -> None:
    """One log line, and the daemon runs on."""
    ours, _, clock = made(name, WATCHDOG_USEC="3000000")
    ours.start()
    clock.pump([1.0] * 10)
    ours.stopping()
    (line,) = lines
    assert line.startswith(f"NOTIFY_SOCKET = {name!r}: ")


def test_a_manager_that_comes_back(made: Made, lines: list[str], tmp_path: Path) -> None:
    """READY and the status are sent again until the socket takes them. The failure is logged once."""
    path = tmp_path / "notify"
    ours, _, clock = made(str(path))
    ours.start()
    clock.pump([START_S] * 5)
    with (manager := Manager(str(path))).socket:
        clock.advance(START_S)
        assert manager.received() == [["READY=1", "STATUS=ready; 0 clients"]]
    (line,) = lines
    assert os.strerror(errno.ENOENT) in line


def test_a_manager_that_does_not_read(manager: Manager, made: Made) -> None:
    """A full queue never blocks the reactor."""
    ours, daemon, clock = made(manager.address, WATCHDOG_USEC="3000000")
    ours.start()
    for number in range(2000):
        daemon.status = f"{number} clients"
        clock.advance(1.0)
    assert 0 < len(manager.received()) < 2000
    clock.advance(1.0)
    assert manager.received() == [["WATCHDOG=1"], ["STATUS=1999 clients"]]


def test_an_error_in_the_status_ends_no_ping(manager: Manager) -> None:
    """The timer and the ping come before anything else."""
    clock = Clock()

    def status() -> str:
        raise ZeroDivisionError

    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"}
    ours = ServiceManager(environ, clock, accepting=lambda: True, status=status, stop_s=lambda: 1.0)
    with pytest.raises(ZeroDivisionError):
        ours.start()
    with pytest.raises(ZeroDivisionError):
        clock.advance(1.0)
    assert manager.received() == [["WATCHDOG=1"]] * 2
    ours.close()


@pytest.mark.parametrize("address", ["", None])
def test_without_a_service_manager(address: str | None) -> None:
    """Nothing is installed."""
    reactor = SelectReactor()
    try:
        environ = {} if address is None else {"NOTIFY_SOCKET": address}
        ServiceManager(environ, reactor, accepting=lambda: True, status=str, stop_s=lambda: 1.0).install()
        assert not _triggers(reactor)
    finally:
        for reader in reactor.removeAll():
            reader.connectionLost(Failure(ConnectionDone()))


def _triggers(reactor: ReactorBase) -> list[object]:
    return [
        function
        for event in reactor._eventTriggers.values()
        for function, _, _ in event.before + event.during + event.after
        if getattr(function, "__self__", None).__class__ is ServiceManager
    ]
