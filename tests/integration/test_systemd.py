"""The units of `systemd/`, checked by systemd's own programs. A real daemon gets a notify socket, listening sockets and credentials."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import jwt
import pytest
from private_rabbitmq import PrivateRabbit, free_port
from websockets.sync.client import connect, unix_connect
from websockets.typing import Subprotocol

from tests.integration.conftest import NO_SYSTEMD, require
from tests.integration.test_start_and_stop import ROOT, V1, Process, make, tcp
from tests.kit.daemon import DEADLINE_S, TOWERWS, TWISTD, Daemon
from tests.kit.handed import RESTART_S, HandedDaemon, wait_for_end
from tests.test_outgoing import certificate
from towerws.listening import EXIT_BAD_CONFIG, LISTEN_S
from towerws.service import STOP_GRACE_S
from towerws.tap import STOP_MARGIN_S

__all__ = ["make"]

SHIPPED = ROOT / "systemd"
UNIT = (SHIPPED / "towerws.service").read_text()
UNITS = ["towerws.service", "towerws.socket"]


def value(name: str, text: str = UNIT) -> str:
    """The value of the only line that sets this name."""
    (found,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return str(found)


def run(*command: str | Path, **environ: str) -> str:
    """The output of one of systemd's programs. A failure fails the test."""
    program = shutil.which(str(command[0]))
    require(NO_SYSTEMD, program)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environ})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder of units as they would be installed. Only the program's path is another one, because systemd looks for it."""
    folder = tmp_path / "units"
    shutil.copytree(SHIPPED, folder)
    for path in (folder / "towerws.service", folder / "towerws.service.d" / "awx.conf"):
        path.write_text(re.sub("/opt/towerws/bin/(?:twistd|towerws)", shutil.which("true") or "", path.read_text()))
    return folder


@pytest.mark.parametrize("drop_in", [True, False])
def test_systemd_accepts_the_units(units: Path, drop_in: bool) -> None:
    """`systemd-analyze verify` finds no unknown setting, no bad value and no missing dependency, with the drop-in or without."""
    if not drop_in:
        shutil.rmtree(units / "towerws.service.d")
    path = f"{units}:"  # and systemd's own folders
    assert run("systemd-analyze", "verify", *(units / name for name in UNITS), SYSTEMD_UNIT_PATH=path) == ""


def test_the_guide_on_a_machine_without_our_folders(tmp_path: Path) -> None:
    """docs/deploy.md's commands work in Debian's folders: /etc/sysusers.d isn't one. Files that are written then get their rights."""
    if os.geteuid():
        pytest.skip("only root makes users")
    section = (ROOT / "docs" / "deploy.md").read_text().split("\n## systemd\n")[1].split("\n### ")[0]
    root, secret = tmp_path / "root", "broker-password"
    for folder in ("etc/tmpfiles.d", "etc/systemd/system"):
        (root / folder).mkdir(parents=True)
    before_the_files, *after_them = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    def follow(commands: str) -> None:
        for line in commands.splitlines():
            if re.match("(?:cp|install) ", line):
                command = line.replace(" /etc/", f" {root}/etc/")
            elif re.match("systemd-(?:sysusers|tmpfiles) ", line):
                command = line.replace(" ", f" --root={root} ", 1)
            else:
                continue
            subprocess.run(["sh", "-c", command], cwd=ROOT, check=True, timeout=60)

    follow(before_the_files)
    for name in ("towerws.toml", secret):
        path = root / "etc" / "towerws" / name
        path.write_text("")
        path.chmod(0o600 if name == "towerws.toml" else 0o644)  # as root's umask has it
    follow("".join(after_them))
    settings, password = ((root / "etc" / "towerws" / name).stat() for name in ("towerws.toml", secret))
    assert (oct(settings.st_mode & 0o777), settings.st_gid != 0) == ("0o640", True)
    assert (oct(password.st_mode & 0o777), password.st_uid) == ("0o600", 0)


def test_the_check_finds_a_bad_unit(units: Path) -> None:
    """The test above would see an unknown setting in the unit and in the drop-in."""
    for path in (units / "towerws.service", units / "towerws.service.d" / "awx.conf"):
        path.write_text(path.read_text().replace("[Service]", "[Service]\nNoSuchSetting=yes"))
    said = run("systemd-analyze", "verify", units / "towerws.service", SYSTEMD_UNIT_PATH=f"{units}:")
    assert len(re.findall("NoSuchSetting", said)) == 2


def test_hardening(units: Path) -> None:
    """`systemd-analyze security` rates the exposure at 1.3 or less, of 10."""
    said = run("systemd-analyze", "security", "--offline=true", "--no-pager", units / "towerws.service")
    (exposure,) = re.findall(r"Overall exposure level for towerws.service: ([0-9.]+)", said)
    assert float(exposure) <= 1.3


def test_the_timeouts_are_above_the_daemons_own() -> None:
    """A start waits `LISTEN_S` for each of three addresses. A stop takes its drain window and `STOP_GRACE_S`."""
    assert int(value("TimeoutStartSec")) > 3 * LISTEN_S
    assert int(value("TimeoutStopSec")) > 5 + STOP_GRACE_S + STOP_MARGIN_S
    assert value("Type") == "notify"


def test_the_user_and_the_folders(tmp_path: Path) -> None:
    """`systemd-sysusers` makes the unit's user. `systemd-tmpfiles` gives the settings to it, and the secrets to root."""
    if os.geteuid():
        pytest.skip("only root makes users")
    root = tmp_path / "root"
    (root / "etc" / "towerws").mkdir(parents=True)
    secrets = re.findall(r"^#LoadCredential=[^:]+:(\S+)$", UNIT, re.MULTILINE)
    for path in ("/etc/towerws/towerws.toml", *secrets):
        (root / path[1:]).write_text("")
    run("systemd-sysusers", f"--root={root}", SHIPPED / "towerws.sysusers.conf")
    user = next(line.split(":") for line in (root / "etc" / "passwd").read_text().splitlines() if line.startswith(f"{value('User')}:"))
    assert user[6] == "/usr/sbin/nologin"
    assert re.search(rf"^{value('Group')}:x:{user[3]}:", (root / "etc" / "group").read_text(), re.MULTILINE)
    run("systemd-tmpfiles", "--create", f"--root={root}", SHIPPED / "towerws.tmpfiles.conf")
    found = {path: (root / path[1:]).stat() for path in ("/etc/towerws", "/etc/towerws/towerws.toml", *secrets)}
    rights = {path: (oct(each.st_mode & 0o777), each.st_uid, each.st_gid) for path, each in found.items()}
    gid = int(user[3])
    assert rights == {
        "/etc/towerws": ("0o750", 0, gid),
        "/etc/towerws/towerws.toml": ("0o640", 0, gid),
        **dict.fromkeys(secrets, ("0o600", 0, 0)),
    }
    assert len(secrets) == 4


# sd_notify


class Manager:
    """A service manager's socket, and what it received."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self.lines: list[str] = []

    def until(self, pattern: str) -> list[str]:
        """Receive until a line matches. Returns the lines since the last call, that one included."""
        before, give_up = len(self.lines), time.monotonic() + DEADLINE_S
        while not any(re.fullmatch(pattern, line) for line in self.lines[before:]):
            self._socket.settimeout(max(0.01, give_up - time.monotonic()))
            self.lines += self._socket.recv(65536).decode().split("\n")
        return self.lines[before:]

    def received(self) -> list[str]:
        """What has arrived until now."""
        self._socket.setblocking(False)
        found: list[str] = []
        try:
            while True:
                found += self._socket.recv(65536).decode().split("\n")
        except BlockingIOError:
            return found

    def silent(self, seconds: float) -> bool:
        """Whether nothing arrives in this time."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(65536)
        except TimeoutError:
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager."""
    with Manager(tmp_path) as manager:
        yield manager


WATCHDOG_S = 1.5


@pytest.fixture
def watched(manager: Manager) -> dict[str, str]:
    """The environment that systemd gives a service of `Type=notify` with a watchdog. WATCHDOG_PID has its own test."""
    return {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}


def test_a_life(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    """READY when clients are accepted, STATUS with their number, STOPPING with the time that the stop may take, and then the end."""
    daemon = Daemon(tmp_path, "embedded:", "--websocket-drain-s", "20", environment=watched)
    with daemon:
        assert "STATUS=ready; 0 clients" in manager.until("READY=1") + manager.received()
        with connect(daemon.url, subprotocols=[Subprotocol("towerws.v1")], open_timeout=DEADLINE_S) as client:
            client.recv(DEADLINE_S)
            assert "WATCHDOG=1" in manager.until("STATUS=ready; 1 clients")
            daemon.begin_stop()
            said = manager.until("EXTEND_TIMEOUT_USEC=.*")
        assert said[-3:] == [
            "STOPPING=1",
            "STATUS=ready; 1 clients",
            f"EXTEND_TIMEOUT_USEC={int((20 + STOP_GRACE_S + STOP_MARGIN_S) * 1e6)}",
        ]
        assert daemon.stop() == 0
    assert "READY=1" not in said


def test_ready_without_a_broker(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    """A broker that is away does not end the start. The status says what is missing, and clients connect."""
    broker = f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F"
    daemon = Daemon(tmp_path, broker, environment=watched).start(ready=False)
    try:
        manager.until("READY=1")
        assert daemon.get("/readyz")[0] == 503
        with connect(daemon.url, subprotocols=[Subprotocol("towerws.v1")], open_timeout=DEADLINE_S) as client:
            assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
            manager.until("STATUS=not ready: .*onnection .*refused.*; 1 clients")
    finally:
        daemon.stop()


def test_the_lag_behind_the_broker(tmp_path: Path, manager: Manager, watched: dict[str, str], rabbit: PrivateRabbit) -> None:
    """With a broker the status has the time from publishing a marker to reading it."""
    names = ("--exchange", "systemd", "--stream", "systemd.events")
    with Daemon(tmp_path, rabbit.url, *names, environment=watched):
        manager.until(r"STATUS=ready; 0 clients; lag [0-9.]+ s")


def test_a_stopped_process_sends_no_ping(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    """SIGSTOP: systemd would end it after WATCHDOG_USEC. Before that, pings come well within that time."""
    with Daemon(tmp_path, "embedded:", environment=watched, forked=False) as daemon:
        manager.until("READY=1")
        manager.until("WATCHDOG=1")
        os.kill(daemon.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        manager.received()
        assert manager.silent(2 * WATCHDOG_S)
        os.kill(daemon.pid, signal.SIGCONT)
        manager.until("WATCHDOG=1")


def test_a_hanging_reactor_sends_no_ping(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    """The process lives, a thread runs and the socket is open, but the event loop hangs."""
    hangs = tmp_path / "hangs"
    os.mkfifo(hangs)
    program = (
        "import sys, threading\n"
        "from twisted.internet import reactor\n"
        f"def hang():\n    open({str(hangs)!r}, 'w').write('it hangs')\n    open({str(hangs)!r}).read()\n"
        "reactor.callWhenRunning(reactor.callLater, 1.0, hang)\n"
        "sys.argv[0] = 'twistd'\n"
        "from twisted.scripts.twistd import run\nrun()\n"
    )
    flags = ["--auth", "open", "--listen", tcp(free_port()), "--admin", tcp(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "-n", "--pidfile=", "towerws", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), **watched},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    try:
        manager.until("WATCHDOG=1")
        assert hangs.read_text() == "it hangs"
        manager.received()
        assert manager.silent(2 * WATCHDOG_S)
        assert process.poll() is None
        hangs.write_text("go on")
        manager.until("WATCHDOG=1")
    finally:
        process.kill()
        process.wait()


def test_another_process_s_watchdog(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    """WATCHDOG_PID names this test: the daemon pings nobody, but it still says READY."""
    with Daemon(tmp_path, "embedded:", environment={**watched, "WATCHDOG_PID": str(os.getpid())}) as daemon:
        manager.until("STATUS=ready; 0 clients")
        with connect(daemon.url, subprotocols=[Subprotocol("towerws.v1")], open_timeout=DEADLINE_S):
            manager.until("STATUS=ready; 1 clients")
    assert "READY=1" in manager.lines
    assert "WATCHDOG=1" not in manager.lines


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    """The daemon serves, and one log line says that the service manager can't be told."""
    with Daemon(tmp_path, "embedded:", environment={"NOTIFY_SOCKET": f"{tmp_path}/nowhere"}) as daemon:
        pass
    (line,) = [line for line in daemon.log.read_text().splitlines() if "NOTIFY_SOCKET" in line]
    assert "No such file or directory; trying again" in line


# Socket activation


@contextmanager
def activated(folder: Path, listen: str, *flags: str, endpoint: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """systemd's own `systemd-socket-activate`, which starts a daemon at the first connection to `listen`, and its output."""
    program = shutil.which("systemd-socket-activate")
    require(NO_SYSTEMD, program)
    assert program is not None
    log = folder / "output.log"
    towerws = [TWISTD, "-n", "--pidfile=", "towerws", "--auth", "open", "--insecure", "--admin", tcp(free_port()), "--listen", endpoint]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "--listen", listen, "--setenv=PYTHONPATH", *flags, *towerws],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        give_up = time.monotonic() + DEADLINE_S
        while "Listening on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.02)  # between two polls of the file
        yield process, log
    finally:
        process.kill()
        process.wait()


def shipped_endpoint(domain: str) -> str:
    """The endpoint that the socket unit's comment tells for this domain."""
    told: list[str] = re.findall(r'listen = "(.*?)"', (SHIPPED / "towerws.socket").read_text())
    return next(text for text in told if f"domain={domain}:" in text)


@pytest.mark.parametrize(("domain", "host"), [("INET", "127.0.0.1"), ("INET6", "[::1]")])
def test_socket_activation(tmp_path: Path, domain: str, host: str) -> None:
    """The name and the endpoints of the shipped socket unit: the client whose connection starts the daemon gets through."""
    name, port = value("FileDescriptorName", (SHIPPED / "towerws.socket").read_text()), free_port()
    with activated(tmp_path, f"{host}:{port}", f"--fdname={name}", endpoint=shipped_endpoint(domain)) as (process, log):
        with connect(f"ws://{host}:{port}/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
            assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert "Traceback" not in log.read_text()


def test_activation_of_a_unix_socket(tmp_path: Path) -> None:
    """The file keeps the mode that the unit gave it (SocketMode), and stays after a stop: systemd listens on it again."""
    path = tmp_path / "web.sock"
    with activated(tmp_path, str(path), "--fdname=websocket", endpoint="systemd:domain=UNIX:name=websocket") as (process, log):
        path.chmod(0o600)
        with unix_connect(str(path), "ws://localhost/websocket/", subprotocols=[V1], open_timeout=DEADLINE_S) as client:
            assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert path.is_socket()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("flags", "endpoint", "words"),
    [
        (["--fdname=towerws.socket"], "systemd:domain=INET:name=websocket", "it handed over 'towerws.socket'"),
        (["--fdname=websocket"], "systemd:domain=INET:index=1", "it handed over 'websocket'"),
        (["--fdname=websocket"], "systemd:domain=INET6:name=websocket", "is of the domain INET; write domain=INET,"),
        (["--fdname=websocket"], "systemd:domain=UNIX:name=websocket", "is of the domain INET; write domain=INET,"),
    ],
)
def test_a_socket_unit_that_does_not_fit(tmp_path: Path, flags: list[str], endpoint: str, words: str) -> None:
    """One clear line, and status 2: a new start would find the same sockets."""
    port = free_port()
    with activated(tmp_path, f"127.0.0.1:{port}", *flags, endpoint=endpoint) as (process, log):
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S):
            assert process.wait(DEADLINE_S) == EXIT_BAD_CONFIG
        (line,) = [line for line in log.read_text().splitlines() if line.startswith("towerws: ")]
        assert words in line
        assert "Traceback" not in log.read_text()


def test_a_socket_unit_with_accept(tmp_path: Path) -> None:
    """Accept=yes hands over a connection instead of the socket that listens."""
    port, said, flags = free_port(), "", ("--accept", "--fdname=websocket")
    with activated(tmp_path, f"127.0.0.1:{port}", *flags, endpoint="systemd:domain=INET:name=websocket") as (_, log):
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
            assert client.recv(1) == b""
        said = log.read_text()
    (line,) = [line for line in said.splitlines() if line.startswith("towerws: ")]
    assert "does not listen for connections; use ListenStream= and Accept=no" in line


# LoadCredential


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """A folder as systemd makes it for a service: readable for its user only."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    return folder


def environment(credentials: Path, *names: str) -> dict[str, str]:
    """The variables that the unit's commented lines set for these credentials, with `%d` as systemd replaces it."""
    found = {}
    for name in names:
        assert re.search(rf"^#LoadCredential={re.escape(name)}:/etc/towerws/", UNIT, re.MULTILINE)
        ((variable, text),) = re.findall(rf"^#Environment=(\w+)=(.*%d/{re.escape(name)})$", UNIT, re.MULTILINE)
        found[variable] = text.replace("%d", str(credentials))
        (credentials / name).chmod(0o400)
    credentials.chmod(0o500)
    return {"CREDENTIALS_DIRECTORY": str(credentials), **found}


def test_the_drop_in_for_awx_with_the_migration_guide(tmp_path: Path) -> None:
    """With the guide's settings the drop-in is refused, and the guides say which password to leave out."""
    guide, deploy = ((ROOT / "docs" / name).read_text() for name in ("migrate-awx.md", "deploy.md"))
    (settings,) = re.findall(r"^```toml\n(broker = .*?)^```", guide, re.MULTILINE | re.DOTALL)
    config, password = tmp_path / "towerws.toml", tmp_path / "broker-password"
    password.write_text("secret\n")
    password.chmod(0o600)
    for text, status in ((settings, EXIT_BAD_CONFIG), (settings.replace("awx:password@", "awx@"), 0)):
        config.write_text(text)
        environ = {**os.environ, "TOWERWS_BROKER_PASSWORD_FILE": str(password)}
        done = subprocess.run([*TOWERWS, "check", "--config", config], env=environ, capture_output=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
    for text in (guide, deploy):
        assert re.search(r"drop-in [^\n]{,20}takes the broker's\spassword from `/etc/towerws/broker-password`", text)
        assert re.search(r"leave (?:it|the password) out of `broker`", text)


def test_secrets_and_tls_from_credentials(tmp_path: Path, credentials: Path) -> None:
    """A client with a token that the secret signed connects over TLS. The daemon does not warn that others can read the files."""
    secret, port = b"0123456789abcdef" * 2, free_port()
    (credentials / "jwt-secret").write_bytes(secret)
    chain, key = certificate(tmp_path)
    (credentials / "tls.pem").write_bytes(key.read_bytes() + chain.read_bytes())
    environ = environment(credentials, "jwt-secret", "tls.pem")
    environ["TOWERWS_LISTEN"] = environ["TOWERWS_LISTEN"].replace("8051", str(port)) + ":interface=127.0.0.1"
    process = Process(tmp_path, "--auth", "jwt", "--jwt-algorithms", "HS256", environ=environ)
    try:
        process.start().runs()
        token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 60}, secret, "HS256")
        trust = ssl.create_default_context(cafile=str(chain))
        with connect(
            f"wss://127.0.0.1:{port}/websocket/",
            ssl=trust,
            subprotocols=[V1],
            additional_headers={"Authorization": f"Bearer {token}"},
            open_timeout=DEADLINE_S,
        ) as client:
            assert json.loads(client.recv(DEADLINE_S))["type"] == "welcome"
        process.signal(signal.SIGTERM)
        assert process.ends() == 0
    finally:
        process.clean_up()
    assert "readable" not in process.output
    assert "chmod" not in process.output


def test_the_brokers_password_from_a_credential(tmp_path: Path, credentials: Path, rabbit: PrivateRabbit) -> None:
    """The URL has no password: the credentials have it, and the key for positions."""
    user, password = "credential-user", "from a: credential/"
    rabbit.add_user(user, password)
    rabbit.permit(user, ".*", ".*", ".*")
    (credentials / "broker-password").write_text(password)
    (credentials / "position-key").write_text("0123456789abcdef\n")
    environ = environment(credentials, "broker-password", "position-key")
    url = f"amqp://{user}@127.0.0.1:{rabbit.port}/%2F"
    with Daemon(tmp_path, url, "--exchange", "credential", "--stream", "credential.events", environment=environ) as daemon:
        assert daemon.get("/readyz")[0] == 200
    assert password not in daemon.log.read_text()


def test_a_credential_that_is_missing(tmp_path: Path, credentials: Path) -> None:
    """One line names the variable and the path."""
    environ = {"TOWERWS_JWT_SECRET_FILE": f"{credentials}/jwt-secret"}
    process = Process(tmp_path, "--auth", "jwt", "--jwt-algorithms", "HS256", environ=environ).start()
    try:
        assert process.ends() == EXIT_BAD_CONFIG
    finally:
        process.clean_up()
    (line,) = process.output.splitlines()
    assert "jwt-secret" in line
    assert "can't be read: No such file or directory" in line


def test_a_reload_without_the_credentials(tmp_path: Path, credentials: Path) -> None:
    """systemd gives them to ExecStart only. ExecReload has the same variables, and `systemctl reload` hands over."""
    (credentials / "position-key").write_text("0123456789abcdef\n")
    environ = environment(credentials, "position-key")
    environ["TOWERWS_BROKER_PASSWORD_FILE"] = f"{credentials}/broker-password"
    assert "TOWERWS_BROKER_PASSWORD_FILE=%d/broker-password" in (SHIPPED / "towerws.service.d" / "awx.conf").read_text()
    unseen = {name: text.replace(str(credentials), "/run/credentials/towerws.service") for name, text in environ.items()}
    with HandedDaemon(tmp_path, "embedded:", environment=environ) as daemon:
        configuration = tmp_path / "towerws.toml"
        configuration.write_text(
            f'broker = "amqp://u@127.0.0.1/v"\nauth = ["open"]\nadmin = "tcp:{daemon.admin_port}:interface=127.0.0.1"\n'
        )
        words = value("ExecReload").replace("/etc/towerws/towerws.toml", str(configuration)).split()
        assert words[0] == "/opt/towerws/bin/towerws"
        before = daemon.pid
        done = subprocess.run(
            [*TOWERWS, *words[1:]],
            env={**os.environ, "PYTHONPATH": str(ROOT), **unseen},
            capture_output=True,
            text=True,
            check=False,
            timeout=RESTART_S,
        )
        assert (done.returncode, done.stderr) == (0, "")
        daemon.serving = int(re.findall("^Process ([0-9]+) serves now", done.stdout)[0])
        wait_for_end(before)
