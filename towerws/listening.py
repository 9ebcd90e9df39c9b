"""Opens the addresses that the daemon listens on, and retries while one isn't available yet.

At boot an address may appear after the daemon starts (DHCP, IPv6's duplicate address detection, a folder in /run). After a restart its
port may still be taken for a moment. The daemon then logs a line and retries for `LISTEN_S`. Then it ends with `EXIT_TRY_AGAIN`, and
systemd restarts it. An error that waiting can't resolve ends the daemon with `EXIT_BAD_CONFIG`, and systemd doesn't restart it.

The daemon connects to a UNIX socket to test whether it is still in use. A stored pid is no test: in a container every daemon is pid 1. A
stale socket is removed, under a lock on its folder, so that two daemons can't remove each other's.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.config.addresses import parse_address
from towerws.handover.ports import SystemdReactor

EXIT_BAD_CONFIG = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL, sysexits.h

LISTEN_S = 30.0
"""How long an address is retried."""

PAUSE_S = 0.5
"""Time between two attempts."""

NOT_HANDED_OVER = "systemd has handed over no such socket (start towerws by its socket unit, and compare the index or name)"

FAMILIES = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}
"""systemd's sockets by the `domain` of their endpoint."""

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
    """Ends the process with a status before the reactor runs.

    It is an `Exception`, too, so that twistd removes its pid file and reports to the parent of a daemon.
    """


def listen(
    reactor: Any, key: str, description: str, factory: Any, ending: Callable[[], bool], tell: Callable[[str], None] | None = None
) -> IListeningPort:
    """Open the port of `description`, which is the value of the setting `key`. Raises `EndOfStart` if that fails.

    `tell` gets the reason before that.

    Blocks for up to `LISTEN_S`, or until `ending()` is true. Blocking harms nothing: the daemon drops its privileges after the ports are
    open, so nothing else can start before that.
    """
    give_up = time.monotonic() + LISTEN_S
    logged_reason = ""

    def end(reason: str, status: int) -> NoReturn:
        line = f"{key} = {description!r}: can't listen there: {reason}; choose another address with --{key}"
        print(f"towerws: {line}", file=sys.__stderr__, flush=True)
        if tell is not None:
            tell(line)
        raise EndOfStart(status)

    while True:
        try:
            return _listen(reactor, description, factory)
        except OSError as error:
            reason = error.strerror or str(error)
            if not may_pass(error):
                end(reason, EXIT_BAD_CONFIG)
        if time.monotonic() >= give_up:
            end(f"{reason}, for {LISTEN_S:.0f} s", EXIT_TRY_AGAIN)
        if reason != logged_reason:
            logged_reason = reason
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
    """Whether waiting may resolve the error. True for a name that can't be resolved: at boot there may be no resolver yet."""
    return isinstance(error, socket.gaierror) or error.errno in _MAY_PASS


def _listen(reactor: Any, description: str, factory: Any) -> IListeningPort:
    """Open the port. Raises `OSError` if it isn't available now."""
    address = parse_address(description)
    if address.kind == "unix":
        with _socket_file(Path(address.path)):
            return _open(reactor, _lockfile.sub("", description) + ":lockfile=0", factory)
    if address.kind == "systemd":
        _check_socket(reactor, description.removeprefix("haproxy:"), address.systemd_domain)
        return _open(SystemdReactor(reactor), description, factory)
    return _open(reactor, description, factory)


def _open(reactor: Any, description: str, factory: Any) -> IListeningPort:
    ports: list[IListeningPort] = []
    failures: list[Failure] = []
    try:
        serverFromString(reactor, description).listen(factory).addCallbacks(ports.append, failures.append)
    except (IndexError, KeyError):  # Twisted raises these for a socket that systemd didn't pass
        raise OSError(errno.EBADF, NOT_HANDED_OVER + _handed_over(os.environ)) from None
    except Exception as error:  # noqa: BLE001 - systemd passed a descriptor that is no listening socket, or of another family
        raise OSError(errno.EINVAL, str(error) or type(error).__name__) from None
    if ports:
        return ports[0]
    cause: Any = failures[0].value
    cause = getattr(cause, "socketError", cause)
    raise cause if isinstance(cause, OSError) else OSError(errno.EINVAL, str(cause) or type(cause).__name__)


def _handed_over(environ: Mapping[str, str]) -> str:
    """Return the names of the sockets that systemd handed over, for an error text. Twisted leaves this variable in the environment."""
    names = environ.get("LISTEN_FDNAMES", "")
    return f"; it handed over {', '.join(names.split(':'))!r}" if names else ""


def _check_socket(reactor: Any, description: str, domain: str) -> None:
    """Raise `OSError` if a socket of systemd's can't be served as `domain`. Twisted would accept some, and fail with each client."""
    with suppress(IndexError, KeyError), socket.socket(fileno=os.dup(serverFromString(reactor, description).fileno)) as handed_over:
        if not handed_over.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(
                errno.EINVAL, "systemd's socket does not listen for connections; use ListenStream= and Accept=no in the socket unit"
            )
        family = FAMILIES.get(handed_over.family, str(handed_over.family))
        if family != domain:
            raise OSError(errno.EINVAL, f"systemd's socket is of the domain {family}; write domain={family}, or change ListenStream=")


@contextmanager
def _socket_file(path: Path) -> Iterator[None]:
    """Lock the folder of a UNIX socket against other daemons, and remove a stale socket first."""
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
            raise OSError(errno.ENOTSOCK, "the path exists and isn't a socket; remove it, or choose another path")
        if _answers(path):
            raise OSError(errno.EADDRINUSE, "another process listens there")
        path.unlink()
    lock = Path(f"{path}.lock")  # Twisted's lock file, which an older towerws left
    if lock.is_symlink():
        lock.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether a process listens there. True, too, if its queue is full or connecting isn't permitted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
