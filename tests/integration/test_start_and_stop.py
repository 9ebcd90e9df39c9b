"""How the daemon starts, ends and listens, as systemd, a container or a person at a terminal sees it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import jwt
import pytest
from private_rabbitmq import free_port
from websockets.sync.client import connect, unix_connect
from websockets.typing import Subprotocol

from tests.kit import preloaded
from tests.kit.daemon import DEADLINE_S, TWISTD
from towerws.listening import EXIT_BAD_CONFIG, EXIT_TRY_AGAIN

ROOT = Path(__file__).parents[2]
V1 = Subprotocol("towerws.v1")
SECRET = b"0123456789abcdef" * 2

SOON_S = 4.0
"""Seconds that a second signal may take: `LAST_S` plus what a loaded machine adds."""


class Process:
    """A `twistd -n towerws` process and its output. `before` are twistd's own flags."""

    def __init__(self, folder: Path, *flags: str, before: tuple[str, ...] = (), environ: Mapping[str, str] | None = None) -> None:
        self.log = folder / "output.log"
        self.admin_port = free_port()
        self._folder = folder
        self._arguments = ["-n", *before, "towerws", "--auth", "open", "--admin", f"tcp:{self.admin_port}:interface=127.0.0.1", *flags]
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
        self._forked = environ is None
        self._process: subprocess.Popen[bytes] | preloaded.Process | None = None

    def start(self, *, prefix: tuple[str, ...] = ()) -> Self:
        """Start it. `prefix` is a command that runs it, for example `unshare`."""
        command = [*prefix, TWISTD, *self._arguments]
        with self.log.open("ab") as log:
            if self._forked and not prefix:
                self._process = preloaded.start(command, output=log, cwd=self._folder, env=self._environ)
            else:
                self._process = subprocess.Popen(
                    command, cwd=self._folder, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """All of its output so far."""
        return self.log.read_text(encoding="utf-8")

    def says(self, text: str) -> Self:
        """Wait until its output contains this text."""
        assert self._process is not None
        give_up = time.monotonic() + DEADLINE_S
        while text not in self.output:
            assert self._process.poll() is None or text in self.output, self.output
            assert time.monotonic() < give_up, self.output
            time.sleep(0.02)  # between two polls of the file
        return self

    def runs(self) -> Self:
        """Wait until the reactor runs."""
        return self.says("towerws 0.")

    def answers(self) -> None:
        """Wait until its admin port answers, for a process whose log is elsewhere."""
        give_up = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.healthz()
            except OSError:
                assert time.monotonic() < give_up, self.output
                time.sleep(0.02)  # polled, as by a load balancer
            else:
                return

    def healthz(self) -> int:
        """The status of its admin port's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=DEADLINE_S)
        with closing(connection):
            connection.request("GET", "/healthz")
            return connection.getresponse().status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def ends(self, within_s: float = DEADLINE_S) -> int:
        """Wait for its end. Returns the exit status."""
        assert self._process is not None
        return self._process.wait(within_s)

    def clean_up(self) -> None:
        """End the process if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


Start = Callable[..., Process]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    """A maker of processes that end with the test."""
    with ExitStack() as leave:

        def make(*flags: str, **more: object) -> Process:
            process = Process(tmp_path, *flags, **more)  # type: ignore[arg-type]
            leave.callback(process.clean_up)
            return process

        yield make


def tcp(port: int, interface: str = "127.0.0.1") -> str:
    """An endpoint's description."""
    return f"tcp:{port}:interface={interface}"


# O5, A5: the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_end_has_status_0(make: Start, number: signal.Signals) -> None:
    """systemd, Docker and Kubernetes take any other status for a crash."""
    process = make("--listen", tcp(free_port())).start().runs()
    process.signal(number)
    assert process.ends() == 0
    assert "towerws stopped" in process.output


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(make: Start, first: signal.Signals, second: signal.Signals) -> None:
    """Otherwise a client that does not answer its close would delay the end by the drain window. The status is still 0."""
    port = free_port()
    process = make("--listen", tcp(port), "--websocket-drain-s", "60", "--websocket-linger-s", "60").start().runs()
    with (
        connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client,
        socket.create_connection(("127.0.0.1", port)) as mute,
    ):
        assert json.loads(client.recv())["type"] == "welcome"
        mute.sendall(
            b"GET /websocket/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert mute.recv(12) == b"HTTP/1.1 101"
        process.signal(first)
        process.says("a second one ends at once")
        process.signal(second)
        assert process.ends(SOON_S) == 0
    assert "again: ending at once" in process.output


def test_a_third_signal_needs_no_reactor(make: Start) -> None:
    """The third signal ends the process even if the reactor hangs, as the kernel's default would."""
    process = make("--listen", tcp(free_port())).start().runs()
    process.signal(signal.SIGSTOP)
    for _ in range(3):  # pending equal signals count once: SIGTERM, then SIGINT
        process.signal(signal.SIGTERM)
    process.signal(signal.SIGCONT)
    process.says("stopping")
    assert process.ends() in (0, -signal.SIGTERM)


def test_sighup_keeps_the_clients(make: Start) -> None:
    """The settings are read again, and the clients stay connected."""
    port = free_port()
    process = make("--listen", tcp(port)).start().runs()
    with connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        client.recv()
        for _ in range(3):
            process.signal(signal.SIGHUP)
            process.says("SIGHUP: reloaded: nothing has changed")
        client.send('{"groups": {"jobs": ["summary"]}}')
        assert json.loads(client.recv())["type"] == "subscribed"
    process.signal(signal.SIGTERM)
    assert process.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_while_the_address_is_awaited(make: Start, number: signal.Signals) -> None:
    """No signal that leaves a daemon running ends it before the reactor runs. SIGTERM ends the wait properly."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = make("--listen", tcp(taken.getsockname()[1])).start().says("trying again")
        process.signal(number)
        process.signal(signal.SIGTERM)
        assert process.ends(SOON_S) == 0


@pytest.mark.parametrize("before", [(), ("--logfile=-",), ("--syslog",)])
def test_sigusr1_without_a_log_file(make: Start, before: tuple[str, ...]) -> None:
    """Operators send SIGUSR1 to every daemon when logs are rotated. Without a file it ends none, and repeated ones leave one line."""
    port = free_port()
    process = make("--listen", tcp(port), before=before).start()
    process.answers()
    with connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        client.recv()
        for _ in range(3):
            process.signal(signal.SIGUSR1)
            assert process.healthz() == 200
        client.send('{"groups": {"jobs": ["summary"]}}')
        assert json.loads(client.recv())["type"] == "subscribed"
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    if before != ("--syslog",):
        assert process.output.count("[daemon#info] SIGUSR1: there is no log file to open again (twistd's --logfile)\n") == 1


def test_an_ignored_signal_stays_ignored(make: Start) -> None:
    """Under `nohup`, or in a shell's background job, the parent switched SIGINT and SIGHUP off."""
    ignored = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    process = make("--listen", tcp(free_port())).start(prefix=("env", *(f"--ignore-signal={each.name[3:]}" for each in ignored))).runs()
    for each in ignored:
        process.signal(each)
    assert process.healthz() == 200
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert not any(text in process.output for text in ("hand-over", *(each.name for each in ignored))), process.output


# O7: the pid file


@pytest.mark.parametrize(
    ("before", "file"),
    [
        ((), None),
        (("--pidfile=",), None),
        (("--logfile=-",), None),
        (("--pidfile=twistd.pid",), "twistd.pid"),
        (("--pidfile", "own.pid"), "own.pid"),
        (("--pidf=own.pid",), "own.pid"),
    ],
)
def test_no_pid_file_unless_asked_for(make: Start, tmp_path: Path, before: tuple[str, ...], file: str | None) -> None:
    """twistd's default is a file in the current folder, which would keep a second daemon from starting there."""
    process = make("--listen", tcp(free_port()), before=before).start().runs()
    assert [path.name for path in tmp_path.glob("*.pid")] == ([file] if file else [])
    if file:
        assert (tmp_path / file).read_text() == str(process.pid)
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert list(tmp_path.glob("*.pid")) == []


def test_a_pid_file_is_removed_when_the_start_ends(make: Start, tmp_path: Path) -> None:
    """The file is removed even if the daemon never gets to run."""
    (tmp_path / "file").write_text("")
    process = make("--listen", f"unix:{tmp_path}/file", before=("--pidfile=own.pid",)).start()
    assert process.ends() == EXIT_BAD_CONFIG
    assert list(tmp_path.glob("*.pid")) == []


def test_two_daemons_in_one_folder(make: Start, tmp_path: Path) -> None:
    """No file that the first daemon writes stops the second."""
    first = make("--listen", tcp(free_port())).start().runs()
    second = make("--listen", tcp(free_port()))
    second.log = tmp_path / "second.log"
    second.start().runs()
    assert (first.healthz(), second.healthz()) == (200, 200)


def test_a_folder_that_can_t_be_written_to(make: Start) -> None:
    """A container with a read-only root. `/proc` is a folder to which not even root can write."""
    process = make("--listen", tcp(free_port()), before=("--rundir=/proc",)).start().runs()
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--pidfile=nowhere/own.pid", "can't be written: No such file or directory"),
        ("--pidfile=/proc/own.pid", "can't be written: No such file or directory"),
        ("--pidfile=.", "can't be written: Is a directory"),
        ("--logfile=nowhere/own.log", "can't be written: No such file or directory"),
        ("--logfile=/proc/own.log", "can't be written: No such file or directory"),
        ("--logfile=.", "can't be written: Is a directory"),
        ("--rundir=nowhere", "there is no such folder"),
    ],
)
def test_files_of_twistd_s_that_can_t_be_written(make: Start, tmp_path: Path, flag: str, reason: str) -> None:
    """O7: one line names the flag, and the status is that of a bad configuration."""
    process = make("--listen", tcp(free_port()), before=(flag,)).start()
    assert process.ends() == EXIT_BAD_CONFIG
    name, _, value = flag.partition("=")
    assert process.output == f"towerws: {name} = {value!r}: {reason}; choose another one\n"
    assert {path.name for path in tmp_path.iterdir()} == {"output.log"}


# O2: the address


def test_an_address_that_comes_later(make: Start) -> None:
    """If the port is in use for a moment, the daemon says so, waits and starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = make("--listen", tcp(port)).start().says("can't listen there yet: Address already in use; trying again for up to 30 s")
    process.runs()
    with connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        assert json.loads(client.recv())["type"] == "welcome"
    assert process.output.count("trying again") == 1


@pytest.mark.parametrize(
    "listen",
    [
        "tcp:{port}:interface=192.0.2.7",
        "tcp6:{port}:interface=2001\\:db8\\:\\:7",
        "unix:{folder}/later/web.sock",
        "tcp:{port}:interface=no-such-host.invalid",
    ],
)
@pytest.mark.parametrize("key", ["listen", "admin", "monitor"])
def test_an_address_that_is_not_there_yet(make: Start, tmp_path: Path, listen: str, key: str) -> None:
    """An address, folder or name that is not available yet at boot: all ports wait for theirs."""
    flags = [f"--{key}", listen.format(port=free_port(), folder=tmp_path), "--insecure"]
    if key != "listen":
        flags += ["--listen", tcp(free_port())]
    process = make(*flags).start().says("trying again")
    process.signal(signal.SIGTERM)
    assert process.ends(SOON_S) == 0


def test_an_address_that_never_comes(make: Start) -> None:
    """The exit status makes systemd start the daemon again: the unit only gives up after status 2."""
    program = (
        "import towerws.listening as it, sys; it.LISTEN_S = 1.0; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--auth", "open", "--listen", tcp(taken.getsockname()[1]), "--admin", tcp(free_port())]
        done = subprocess.run(
            [sys.executable, "-c", program, "-n", "towerws", *flags],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=DEADLINE_S,
        )
    assert done.returncode == EXIT_TRY_AGAIN
    assert done.stderr.startswith("towerws: listen = 'tcp:")
    assert done.stderr.endswith("can't listen there: Address already in use, for 1 s; choose another address with --listen\n")
    unit = (ROOT / "systemd" / "towerws.service").read_text()
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE) == [str(EXIT_BAD_CONFIG)]


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("systemd:domain=INET:index=0", "systemd has handed over no such socket"),
        ("systemd:domain=INET6:index=3", "systemd has handed over no such socket"),
        ("systemd:domain=UNIX:name=web", "systemd has handed over no such socket"),
        ("haproxy:systemd:domain=INET:index=0", "systemd has handed over no such socket"),
        ("unix:{folder}/file", "the path exists and isn't a socket"),
        ("unix:{folder}", "the path exists and isn't a socket"),
        ("unix:{folder}/file/web.sock", "Not a directory"),
        ("unix:/" + 120 * "x", "AF_UNIX path too long"),
    ],
)
def test_what_waiting_can_t_cure(make: Start, tmp_path: Path, listen: str, words: str) -> None:
    """O6 and similar: one clear line and status 2, at once."""
    (tmp_path / "file").write_text("")
    process = make("--insecure", "--listen", listen.format(folder=tmp_path)).start()
    assert process.ends() == EXIT_BAD_CONFIG
    (line,) = [line for line in process.output.splitlines() if line.startswith("towerws: ")]
    assert words in line
    assert "choose another address with --listen" in line
    assert "Traceback" not in process.output


def test_sockets_that_systemd_hands_over(make: Start) -> None:
    """Both ports may come from systemd. A client gets through."""
    program = (
        "import fcntl, os, sys\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='web:admin')\n"
        "passed = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 5) for number in sys.argv[1:3]]\n"  # neither may be 3 or 4
        "os.dup2(passed[0], 3), os.dup2(passed[1], 4)\n"
        "os.execv(sys.argv[3], sys.argv[3:])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as admin:
        flags = ["--auth", "open", "--insecure", "--listen", "systemd:domain=INET:name=web", "--admin", "systemd:domain=INET:name=admin"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(web.fileno()), str(admin.fileno()), TWISTD, "-n", "towerws", *flags],
            pass_fds=(web.fileno(), admin.fileno()),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        try:
            with connect(f"ws://127.0.0.1:{web.getsockname()[1]}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
                assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


# O3: a socket file that was left behind


def _leave_a_socket(path: Path) -> None:
    """Leave a socket file as a killed process does: bound, without a listener."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()


def _nothing_left(path: Path) -> None:
    """A clean start."""


def _lock_of_pid_1(path: Path) -> None:
    _leave_a_socket(path)
    Path(f"{path}.lock").symlink_to("1")


def _lock_of_a_living_pid(path: Path) -> None:
    _leave_a_socket(path)
    Path(f"{path}.lock").symlink_to(str(os.getpid()))


def _lock_without_a_socket(path: Path) -> None:
    Path(f"{path}.lock").symlink_to("1")


def _bound_but_not_listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def _datagram_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))


@pytest.mark.parametrize(
    "leave",
    [
        _nothing_left,
        _leave_a_socket,
        _lock_of_pid_1,
        _lock_of_a_living_pid,
        _lock_without_a_socket,
        _bound_but_not_listening,
        _datagram_socket,
    ],
)
@pytest.mark.parametrize(
    "shapes",
    [
        {"listen": "unix:{path}", "admin": "unix:{path}:mode=660", "monitor": "unix:{path}:lockfile=1"},
        {"listen": "haproxy:unix:{path}", "admin": "unix:{path}:lockfile=0"},
    ],
    ids=["unix", "haproxy"],
)
def test_a_stale_socket_is_replaced(make: Start, tmp_path: Path, leave: Callable[[Path], None], shapes: dict[str, str]) -> None:
    """The next daemon starts and serves its clients, even if a killed one left something there or another process has its pid now."""
    paths = {key: tmp_path / f"{key}.sock" for key in shapes}
    for path in paths.values():
        leave(path)
    process = make(*(f"--{key}={shape.format(path=paths[key])}" for key, shape in shapes.items())).start().runs()
    for key, path in paths.items():
        if key != "listen":
            assert unix_healthz(path) == 200
        elif shapes[key].startswith("unix:"):
            with unix_connect(str(path), "ws://localhost/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
                assert json.loads(client.recv())["type"] == "welcome"
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert not any(path.exists() for path in paths.values())
    assert "Traceback" not in process.output


def unix_healthz(path: Path) -> int:
    """The status of the answer on a UNIX socket."""
    connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
    with closing(connection), socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(str(path))
        connection.request("GET", "/healthz")
        return connection.getresponse().status


@pytest.mark.parametrize("lockfile", ["", ":lockfile=0", ":lockfile=1"])
def test_a_socket_that_is_in_use(make: Start, tmp_path: Path, lockfile: str) -> None:
    """The socket and the other daemon are left alone, with any content of the lock file."""
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        process = make("--listen", f"unix:{path}{lockfile}").start().says("can't listen there yet: another process listens there")
        assert path.exists()
        process.signal(signal.SIGTERM)
        assert process.ends(SOON_S) == 0
        assert path.exists()


def test_a_socket_whose_owner_is_too_busy_to_answer(make: Start, tmp_path: Path) -> None:
    """A full backlog does not prove that the owner is dead."""
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as other, ExitStack() as waiting:
        other.bind(str(path))
        other.listen(0)
        for _ in range(2):
            client = waiting.enter_context(closing(socket.socket(socket.AF_UNIX)))
            client.setblocking(False)
            client.connect_ex(str(path))
        inode = path.stat().st_ino
        process = make("--listen", f"unix:{path}").start().says("another process listens there")
        process.signal(signal.SIGTERM)
        assert process.ends() == 0
        assert path.stat().st_ino == inode, "the socket is the owner's still"


def test_two_that_start_at_once(make: Start, tmp_path: Path) -> None:
    """While one checks and makes its socket, the other waits. Otherwise it could remove a socket that was just made."""
    path = tmp_path / "web.sock"
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        process = make("--listen", f"unix:{path}").start().says("trying again")
        assert not path.exists()
    finally:
        os.close(folder)
    process.runs()
    with unix_connect(str(path), "ws://127.0.0.1/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        assert json.loads(client.recv())["type"] == "welcome"


def test_killed_in_a_container_and_started_again(make: Start, tmp_path: Path) -> None:
    """In a container each daemon has pid 1, so the pid of the last one is always alive."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this needs the right to make pid namespaces")
    path = tmp_path / "web.sock"
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    flags = ("--listen", f"unix:{path}")
    first = make(*flags, before=(f"--pidfile={tmp_path}/own.pid",)).start(prefix=prefix).runs()
    assert (tmp_path / "own.pid").read_text() == "1"
    first.signal(signal.SIGKILL)
    first.ends()
    first.log.unlink()
    second = make(*flags, before=(f"--pidfile={tmp_path}/own.pid",)).start(prefix=prefix).runs()
    with unix_connect(str(path), "ws://localhost/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        assert json.loads(client.recv())["type"] == "welcome"
    second.signal(signal.SIGKILL)
    second.ends()


# O4: a port for probes


def test_a_port_for_probes(make: Start) -> None:
    """It is reachable from other machines without `insecure`, under any Host, and has only three answers."""
    port = free_port()
    process = make("--listen", tcp(free_port()), "--monitor", f"tcp:{port}").start().runs()

    def ask(method: str, path: str, host: str = "towerws.example.com", body: bytes | None = None) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, body, {"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read()

    assert ask("GET", "/healthz") == (200, b'{"healthy": true}\n')
    assert ask("GET", "/readyz", "10.1.2.3:9052") == (200, b'{"ready": true}\n')
    assert ask("HEAD", "/readyz") == (200, b"")
    for method, path in (
        ("GET", "/"),
        ("GET", "/status"),
        ("GET", "/live.js"),
        ("POST", "/publish"),
        ("POST", "/disconnect"),
        ("GET", "/publish"),
    ):
        assert ask(method, path)[0] == 404, path
    assert ask("POST", "/healthz")[0] == 405
    assert ask("POST", "/publish", body=b"x")[0] == 413
    process.signal(signal.SIGTERM)
    assert process.ends() == 0


# O10: a full daemon


def test_a_full_daemon_says_so(make: Start) -> None:
    """The log says that clients are refused, and by which option's limit: once, not for each client."""
    port = free_port()
    process = make("--listen", tcp(port), "--limits-connections", "2").start().runs()
    with ExitStack() as leave:
        for _ in range(2):
            leave.enter_context(connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S)).recv()
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /websocket/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 503"
        process.says("full: ")
        process.says("room for 2 connections; raise limits.connections")
    assert process.output.count("full: ") == 1


def test_more_connections_than_open_files(make: Start) -> None:
    """The start and a reload warn with both numbers. The lower one counts, so that 64 descriptors stay free."""
    flags = ("--listen", tcp(free_port()), "--limits-connections", "5000")
    process = make(*flags).start(prefix=("prlimit", "--nofile=1000:1000")).runs()
    line = "limits.connections = 5000: this process may open 1000 files, and 64 of them are reserved, so 936 connections are its limit: "
    process.says(f"[daemon#warn] {line}set LimitNOFILE=5064 or more in the unit, or lower limits.connections\n")
    with urllib.request.urlopen(f"http://127.0.0.1:{process.admin_port}/status", timeout=DEADLINE_S) as answer:
        assert json.load(answer)["connections"]["max"] == 936
    subprocess.run(["prlimit", f"--pid={process.pid}", "--nofile=900:1000"], check=True)
    process.signal(signal.SIGHUP)
    process.says("this process may open 900 files, and 64 of them are reserved, so 836 connections are its limit")
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert process.output.count("are reserved") == 2


# O11, O12: the log


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {},
    ],
)
def test_the_log_is_utf_8(make: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    """No line is lost, with any locale."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    port = free_port()
    flags = ("--listen", tcp(port), "--auth", "jwt", "--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret))
    process = make(*flags, environ=environ).start().runs()
    token = jwt.encode({"sub": "Jürgen 東京", "exp": time.time() + 60}, SECRET, "HS256")
    with connect(
        f"ws://127.0.0.1:{port}/websocket/", additional_headers={"Authorization": f"Bearer {token}"}, open_timeout=DEADLINE_S
    ) as client:
        client.recv(DEADLINE_S)
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert "connection opened: user Jürgen 東京 from 127.0.0.1" in process.output


def test_json(make: Start) -> None:
    """Every line is one object, from the first to the last."""
    port = free_port()
    process = make("--listen", tcp(port), "--log-format", "json").start().says("towerws 0.")
    with connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
        client.recv()
    process.signal(signal.SIGHUP)
    process.says("nothing has changed")
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    lines = [json.loads(line) for line in process.output.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (opened,) = [line for line in lines if line["message"].startswith("connection opened")]
    assert (opened["level"], opened["logger"]) == ("info", "websocket")
    assert opened["fields"]["address"] == "127.0.0.1"
    assert {line["logger"] for line in lines} <= {"admin", "daemon", "twisted", "websocket"}


def test_levels(make: Start, tmp_path: Path) -> None:
    """`--log-level warn` leaves out lines of normal operation."""
    file = tmp_path / "towerws.toml"
    file.touch(0o600)
    flags = ("--config", str(file), "--log-level", "warn", "--monitor", tcp(port := free_port()))
    process = make("--listen", tcp(free_port()), *flags).start()
    give_up = time.monotonic() + DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < give_up
            time.sleep(0.02)  # nothing announces the port, so it is polled
    file.write_text("lissen = 1")
    process.signal(signal.SIGHUP)
    process.says("not reloaded")
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    said = [line.split(" ", 1)[1] for line in process.output.splitlines()]
    assert [line for line in said if "it runs as root" not in line] == [  # if root runs the tests
        f"[daemon#error] SIGHUP: not reloaded: {file}: unknown key 'lissen'; did you mean listen?; the settings from before stay in force"
    ]


def test_priorities_under_systemd(tmp_path: Path) -> None:
    """If standard output is the journal, each line carries its priority, and no time: the journal has that."""
    reader, writer = socket.socketpair()
    found = os.fstat(writer.fileno())
    file = tmp_path / "towerws.toml"
    file.touch(0o600)
    process = subprocess.Popen(
        [TWISTD, "-n", "towerws", "--config", str(file), "--auth", "open", "--listen", tcp(free_port()), "--admin", tcp(free_port())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
        stdout=writer.fileno(),
        stderr=writer.fileno(),
    )
    writer.close()
    with reader, reader.makefile(encoding="utf-8") as lines:
        seen = []
        for line in lines:
            seen.append(line)
            if "towerws 0." in line:
                file.write_text("admin = 'tcp:1:interface=127.0.0.1'\nmonitor = 'tcp:2:interface=127.0.0.1'")
                process.send_signal(signal.SIGHUP)
            if "needs a restart" in line:
                process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    assert all(re.match(r"<[2-7]>(\[\w+\] |\t)", line) for line in seen), seen
    assert [line for line in seen if line.startswith("<4>") and "runs as root" not in line] == [
        f"<4>[daemon] SIGHUP: {file}: monitor = 'tcp:2:interface=127.0.0.1': needs a restart; '' stays in force until then\n"
    ]


@pytest.mark.parametrize("creates", ["create 0600", "nocreate"])
def test_logrotate_moves_the_log_file(make: Start, tmp_path: Path, creates: str) -> None:
    """SIGUSR1 makes the daemon write to a new file of the name in `--logfile`. The file that logrotate has moved stays as it is."""
    process = make("--listen", tcp(port := free_port()), before=("--logfile=own.log",)).start()
    settings = tmp_path / "logrotate.conf"
    settings.write_text(f"{tmp_path}/own.log {{\n{creates}\nrotate 5\npostrotate\nkill -USR1 {process.pid}\nendscript\n}}\n")
    settings.chmod(0o600)
    process.answers()
    for _ in range(2):
        subprocess.run(["/usr/sbin/logrotate", "--force", "--state", tmp_path / "state", settings], check=True, timeout=DEADLINE_S)
        assert process.healthz() == 200  # after the signal
        with connect(f"ws://127.0.0.1:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
            client.recv()
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    opened = {each.name: each.read_text().count("[websocket#info] connection opened") for each in tmp_path.glob("own.log*")}
    assert opened == {"own.log": 1, "own.log.1": 1, "own.log.2": 0}
    assert process.output == ""
