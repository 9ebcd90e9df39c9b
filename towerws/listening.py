"""The addresses that the daemon listens on: tried again while one is not there yet, and refused in one line.

At boot an address may come a moment later than the daemon (DHCP, IPv6's duplicate address detection, a folder in /run), and after a
restart its port may still be taken for a moment. Then the daemon waits, with a log line, and ends with `EXIT_TRY_AGAIN`, after which
systemd starts it again. What waiting can't cure ends with `EXIT_BAD_CONFIG`, after which systemd leaves it alone.

Whether a UNIX socket is still in use is asked of the socket, not of a pid that was written down: in a container every daemon is
pid 1. A socket that nobody answers on is removed, under a lock on its folder so that two daemons can't remove each other's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.config.addresses import parse_address

EXIT_BAD_CONFIG = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL, sysexits.h

LISTEN_S = 30.0
"""For how long an address is tried."""

PAUSE_S = 0.5

NOT_HANDED_OVER = "systemd has handed over no such socket (start towerws by its socket unit, and compare the index or name)"

_MAY_PASS = frozenset(
    {
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENODEV,  # fe80::1%eth0 before eth0 is there
        errno.ENOENT,  # a UNIX socket's folder
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENXIO,
    }
)

_lockfile = re.compile(r"(?<!\\):lockfile=[01](?=:|$)")

_log = Logger()


class EndOfStart(SystemExit, Exception):
    """Ends the process before the reactor runs, with a status.

    It is an `Exception` too: twistd then removes its pid file and tells the parent of a daemon.
    """


def listen(reactor: Any, key: str, description: str, factory: Any, ending: Callable[[], bool]) -> IListeningPort:
    """The port that `description`, the value of the setting `key`, names. `EndOfStart` when it can't be had.

    Blocks for up to `LISTEN_S`, or until `ending` says that somebody asked for the end: privileges are dropped after this, and
    nothing else can be done before.
    """
    give_up = time.monotonic() + LISTEN_S
    said = ""
    while True:
        try:
            return _listen(reactor, description, factory)
        except OSError as error:
            reason = error.strerror or str(error)
            if not may_pass(error):
                _give_up(key, description, reason, EXIT_BAD_CONFIG)
        if time.monotonic() >= give_up:
            _give_up(key, description, f"{reason}, for {LISTEN_S:.0f} s", EXIT_TRY_AGAIN)
        if reason != said:
            said = reason
            _log.warn(
                "{key} = {address!r}: can't listen there yet: {reason}; trying again for up to {seconds:.0f} s",
                key=key,
                address=description,
                reason=reason,
                seconds=max(0.0, give_up - time.monotonic()),
            )
        time.sleep(PAUSE_S)
        if ending():
            raise EndOfStart(0)


def may_pass(error: OSError) -> bool:
    """Whether waiting may cure it. A name that can't be resolved counts: at boot there may be no resolver yet."""
    return isinstance(error, socket.gaierror) or error.errno in _MAY_PASS


def _listen(reactor: Any, description: str, factory: Any) -> IListeningPort:
    """The port; `OSError` when it can't be had now."""
    address = parse_address(description)
    if address.kind == "unix":
        with _socket_file(Path(address.path)):
            return _open(reactor, _lockfile.sub("", description) + ":lockfile=0", factory)
    return _open(reactor, description, factory)


def _open(reactor: Any, description: str, factory: Any) -> IListeningPort:
    ports: list[IListeningPort] = []
    failures: list[Failure] = []
    try:
        serverFromString(reactor, description).listen(factory).addCallbacks(ports.append, failures.append)
    except (IndexError, KeyError):  # Twisted's answer to a socket that systemd has not handed over
        raise OSError(errno.EBADF, NOT_HANDED_OVER) from None
    except Exception as error:  # noqa: BLE001 - a handed over descriptor that is no listening socket, or of another family
        raise OSError(errno.EINVAL, str(error) or type(error).__name__) from None
    if ports:
        return ports[0]
    cause: Any = failures[0].value
    cause = getattr(cause, "socketError", cause)
    raise cause if isinstance(cause, OSError) else OSError(errno.EINVAL, str(cause) or type(cause).__name__)


@contextmanager
def _socket_file(path: Path) -> Iterator[None]:
    """Within it no other daemon removes or makes a socket in this folder. One that nobody answers on is gone when it begins."""
    folder = -1
    try:
        with suppress(PermissionError):  # a folder that may be written to but not read can't be locked
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_stale(path)
        yield
    finally:
        if folder >= 0:
            os.close(folder)


def _remove_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.ENOTSOCK, "there is something there that is not a socket; remove it, or choose another path")
        if _answers(path):
            raise OSError(errno.EADDRINUSE, "another process listens there")
        path.unlink()
    lock = Path(f"{path}.lock")  # of Twisted's, from before towerws asked the socket
    if lock.is_symlink():
        lock.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether a process listens. One whose queue is full, or whose socket we may not use, does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _give_up(key: str, description: str, reason: str, status: int) -> NoReturn:
    line = f"towerws: {key} = {description!r}: can't listen there: {reason}; choose another address with --{key}"
    print(line, file=sys.__stderr__, flush=True)
    raise EndOfStart(status)
