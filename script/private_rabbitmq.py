"""A private RabbitMQ node: its own data directory, free ports on 127.0.0.1, no system service touched, nothing left behind.

`python script/private_rabbitmq.py --data DIR` starts a node, prints its URL on one line and runs until SIGINT or SIGTERM.
Tests import `PrivateRabbit`. Standard library only, so that it runs before anything is installed.

How it stays private:
- Debian's `/usr/sbin/rabbitmq-server` changes to the user `rabbitmq`; the script below `/usr/lib/rabbitmq` runs as its caller.
- A node registers with epmd, which Erlang starts as a daemon that outlives the node. Each node here has its own epmd, in the
  foreground and on a port of its own, so that exactly that one can be ended.
- Ports come from below the kernel's ephemeral range (32768 and up). In that range another program's outgoing connection may
  hold the port when the node comes back, and a client that retries may connect to itself.
- The node is named after 127.0.0.1 (a long name): a minimal system has no `/etc/hosts` to look `localhost` up in.
- `setpriv --pdeathsig` (util-linux) makes the kernel end both processes with the thread that started them, even if that one is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

# A node takes 3-8 s on two idle cores. CI's cores may be shared. On a busier machine the variable gives it more time.
START_S = float(os.environ.get("PRIVATE_RABBITMQ_START_S", "60"))
STOP_S = 20
# Processes that run tests in parallel have a part of them each (tests/conftest.py).
PORTS = range(*map(int, os.environ.get("PRIVATE_RABBITMQ_PORTS", "15000-32000").split("-")))
_given: set[int] = set()
CTL_PORTS = 10  # each rabbitmqctl listens on one while it runs

# RabbitMQ loads every module of its applications at its start, one by one, and each stops the whole VM. All at once need 2.5 s of CPU
# instead of 6 s. Erlang's code server does that before RabbitMQ's own start. What can't be loaded so is loaded later, as without this.
# Another VM that the node starts, to look for its epmd, needs none of them.
LOAD_MODULES = """
os:unsetenv("ERL_AFLAGS"),
Read = fun Read([], Apps) -> Apps;
    Read([App | Rest], Apps) when is_map_key(App, Apps) -> Read(Rest, Apps);
    Read([App | Rest], Apps) ->
        case file:consult(code:where_is_file(atom_to_list(App) ++ ".app")) of
            {ok, [{application, _, Keys}]} ->
                Needs = proplists:get_value(applications, Keys, []),
                Read(Needs ++ Rest, Apps#{App => proplists:get_value(modules, Keys, [])});
            _ -> Read(Rest, Apps#{App => []})
        end
    end,
code:ensure_modules_loaded(lists:append(maps:values(Read([rabbit, rabbitmq_prelaunch, mnesia], #{}))))
"""

CONFIG = """\
# A test's disk may be nearly full: publishing must not be blocked for that.
disk_free_limit.absolute = 1MB
log.console = true
log.console.level = info
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs. By default it is on loopback, where it shares the network with everybody."""

    cluster_host: str = "127.0.0.1"
    """The node is named after this address. Other nodes reach it there."""
    client_host: str = "127.0.0.1"
    """Clients connect to this address."""
    enter: tuple[str, ...] = ()
    """The command that starts another one in the node's network namespace. Empty on loopback."""


LOOPBACK = Place()


class RabbitError(Exception):
    """The node can't be started or asked. The text says why, with the end of its log."""


def rabbitmq_bin() -> Path | None:
    """The directory of RabbitMQ's own scripts, None where RabbitMQ is not installed. `PRIVATE_RABBITMQ_BIN` names another."""
    folder = Path(os.environ.get("PRIVATE_RABBITMQ_BIN") or "/usr/lib/rabbitmq/bin")
    return folder if (folder / "rabbitmq-server").exists() and _epmd(folder) else None


def rabbitmq_version() -> str:
    """The version of the programs in `rabbitmq_bin`, like `3.10.8`. It is asked of the files: `rabbitmqctl` would start an epmd."""
    folder = rabbitmq_bin()
    if folder is None:
        raise RabbitError("RabbitMQ is not installed: apt-get install rabbitmq-server")
    # script/rabbitmq4 makes a folder of programs next to the /usr that they run with.
    roots = [folder.parent / "lib", *folder.parent.glob("*/usr/lib/rabbitmq/lib")]
    names = [found.name for root in roots for found in root.glob("rabbitmq_server-*")]
    if not names:
        raise RabbitError(f"no rabbitmq_server-VERSION was found for {folder}")
    return names[0].partition("-")[2]


def _epmd(folder: Path) -> str | None:
    """Erlang's own, or that of the folder."""
    own = folder / "epmd"
    return str(own) if own.exists() else shutil.which("epmd")


def tied_to_us(command: list[str], signal_name: str) -> list[str]:
    """The command, to which the kernel sends this signal when the thread that starts it ends for any reason."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return command
    # We may have ended before the kernel was asked: then there is another parent by now.
    still_ours = 'test "$PPID" = "$0" && exec "$@"'
    return [setpriv, "--pdeathsig", signal_name, "/bin/sh", "-c", still_ours, str(os.getpid()), *command]


class PrivateRabbit:
    """One node. `start`, `stop` and `kill` may be called again and again: ports, name and data stay the same.

    Start it from a thread that outlives it (the main thread): the kernel ends the node with that thread.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        place: Place = LOOPBACK,
        config: str = "",
        cookie: str = "",
        epmd_port: int = 0,
        erlang_args: str = "",
        environment: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        """`config` is added to rabbitmq.conf, `environment` to the server's (not to rabbitmqctl's). Both count from the next start on.

        Without `plugins` none is switched on.

        Nodes of one cluster share a `cookie` and an `epmd_port`.
        """
        folder = rabbitmq_bin()
        if folder is None:
            raise RabbitError("RabbitMQ is not installed: apt-get install rabbitmq-server")
        self._bin = folder
        self.data_dir = Path(data_dir).resolve()
        self.place = place
        self.config = config
        self.environment = dict(environment or {})
        self._cookie = cookie
        self._erlang_args = erlang_args
        self._plugins = plugins
        self.port, self._dist_port, self._epmd_port, self._ctl_port = _free_ports()
        self._epmd_port = epmd_port or self._epmd_port
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Where clients connect: the default user is allowed from loopback, which is all the node listens on."""
        return f"amqp://guest:guest@{self.place.client_host}:{self.port}/%2F"

    @property
    def name(self) -> str:
        """The node's name. The data belong to it, and the node is found through its own epmd only."""
        return f"towerws@{self.place.cluster_host}"

    @property
    def pid(self) -> int:
        """The process of the Erlang VM."""
        if self._node is None:
            raise RabbitError("the node is not running")
        return self._node.pid

    @property
    def running(self) -> bool:
        """True while the node's process lives."""
        return self._node is not None and self._node.poll() is None

    def start(self) -> None:
        """Start the node and return when its AMQP port answers. `RabbitError` after `START_S` or when it ends before."""
        if not self.running:
            self.launch()
            self.wait_until_it_answers()

    def launch(self) -> None:
        """Start the processes and return at once. Nodes of a cluster wait for each other, so all are launched first."""
        self.stop()
        self._prepare()
        host = self.place.cluster_host
        self._epmd = self._spawn([_epmd(self._bin) or "epmd", "-address", host, "-port", str(self._epmd_port)], {})
        load_modules = f"-eval '{' '.join(LOAD_MODULES.split())}'"
        self._node = self._spawn([str(self._bin / "rabbitmq-server")], {"ERL_AFLAGS": load_modules, **self.environment})

    def wait_until_it_answers(self) -> None:
        """Return when the AMQP port answers. `RabbitError`, and no node, after `START_S` or when the node ends before."""
        assert self._node is not None
        deadline = time.monotonic() + START_S
        try:
            while not _speaks_amqp(self.place.client_host, self.port):
                if self._node.poll() is not None:
                    raise RabbitError(f"RabbitMQ ended with exit status {self._node.returncode} while starting\n{self._log_tail()}")
                if time.monotonic() > deadline:
                    raise RabbitError(f"RabbitMQ did not answer on port {self.port} within {START_S} s\n{self._log_tail()}")
                time.sleep(0.1)  # nothing announces the port: it is asked
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the node in an orderly way (by force after `STOP_S`), then its epmd. Safe when it is not running."""
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._node.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the node as a crash would (SIGKILL), then its epmd. Data stays; `start` brings it back on the same ports."""
        for process in (self._node, self._epmd):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # each leads a group of its own
                process.wait()
        self._node = self._epmd = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def restart(self) -> None:
        """Stop in an orderly way and start."""
        self.stop()
        self.start()

    def save(self) -> None:
        """Write what was declared to disk: it survives a `kill` after this.

        Mnesia and Ra write it seconds later. A node killed before that comes back without its first stream, or with a stream whose
        binding is gone: then it confirms messages that it routes nowhere. Of nodes killed right after a declaration, five of five came
        back so (3.10.8), and none of 16 after this call.
        """
        self.eval("[dets:sync(Table) || Table <- dets:all()], mnesia:dump_log()")

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): its connections stay open, and nothing is answered until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen node go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._node is not None and self._node.poll() is None:
            os.killpg(self._node.pid, number)

    @property
    def stream_dir(self) -> Path:
        """Where the node keeps its streams: a folder for each, with `.segment` and `.index` files."""
        return self.data_dir / "mnesia" / self.name / "stream"

    def eval(self, code: str) -> str:
        """Evaluate Erlang code in the node and return the result as Erlang writes it. `RabbitError` when the code fails.

        `erl_call` needs 5 ms for it, a `rabbitmqctl` 0.7 s and half a second of CPU.
        """
        program = shutil.which("erl_call")
        if program is None:
            raise RabbitError("erl_call is missing: apt-get install erlang-base")
        result = self._run([program, "-name", self.name, "-R", "-e"], f"{code}.\n")
        found = re.fullmatch(r"\{ok, (.*)\}", result.stdout.strip(), re.DOTALL)
        if found is None:
            raise RabbitError(f"{code}: {result.stdout}{result.stderr}")
        return found[1]

    def add_user(self, name: str, password: str) -> None:
        """Add a user without permissions."""
        self._call("rabbit_auth_backend_internal:add_user", name, password)

    def delete_user(self, name: str) -> None:
        """Delete a user. The broker ends its connections."""
        self._call("rabbit_auth_backend_internal:delete_user", name)

    def change_password(self, name: str, password: str) -> None:
        """Give a user another password."""
        self._call("rabbit_auth_backend_internal:change_password", name, password)

    def permit(self, user: str, configure: str, write: str, read: str, *, vhost: str = "/") -> None:
        """Set a user's permissions: three regular expressions."""
        self._call("rabbit_auth_backend_internal:set_permissions", user, vhost, configure, write, read)

    def forbid(self, user: str) -> None:
        """Take a user's permissions in the virtual host `/` away."""
        self._call("rabbit_auth_backend_internal:clear_permissions", user, "/")

    def permit_topics(self, user: str, exchange: str, write: str, read: str) -> None:
        """Set which routing keys a user may write to an exchange and bind to it: two regular expressions."""
        self._call("rabbit_auth_backend_internal:set_topic_permissions", user, "/", exchange, write, read)

    def add_vhost(self, name: str) -> None:
        """Add a virtual host."""
        self._call("rabbit_vhost:add", name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host, with all that is in it."""
        self._call("rabbit_vhost:delete", name)

    def queues(self, vhost: str = "/") -> list[str]:
        """The names of all queues, streams included."""
        return self._names(f'rabbit_amqqueue:list_names(<<"{vhost}">>)')

    def queues_at(self, exchange: str, vhost: str = "/") -> list[str]:
        """The names of the queues that are bound to an exchange. Empty without such an exchange."""
        source = f'rabbit_misc:r(<<"{vhost}">>, exchange, <<"{exchange}">>)'
        return self._names(f"[element(4, Binding) || Binding <- rabbit_binding:list_for_source({source})]")

    def blocked(self) -> set[str]:
        """The connections that published in an alarm, by the ids of their processes."""
        return set(
            re.findall(r"<.+?>", self.eval("[Id || [{pid, Id}, {state, blocked}] <- rabbit_networking:connection_info_all([pid, state])]"))
        )

    def limit_memory(self, fraction: str) -> None:
        """Set the memory alarm's threshold. `0.000001` of the machine's memory causes the alarm, `0.4` (the default) ends it."""
        self.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({fraction})")

    def _names(self, resources: str) -> list[str]:
        """The names of what this code lists."""
        return re.findall(r'"([^"]*)"', self.eval(f"[unicode:characters_to_list(element(4, Resource)) || Resource <- {resources}]"))

    def _call(self, function: str, *names: str) -> None:
        """Call a function of RabbitMQ that takes names and, at last, who asks for it."""
        values = (*names, "private_rabbitmq")
        binaries = [f"<<{','.join(map(str, value.encode()))}>>" for value in values]
        self.eval(f"{function}({', '.join(binaries)})")

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl` against this node and return what it printed. `RabbitError` with its output when it fails."""
        return self.tool("rabbitmqctl", *args)

    def tool(self, program: str, *args: str) -> str:
        """Run one of RabbitMQ's programs (`rabbitmq-streams`) against this node, as `ctl` does."""
        result = self._run([str(self._bin / program), "--longnames", "--node", self.name, "--quiet", *args])
        if result.returncode != 0:
            raise RabbitError(f"{program} {' '.join(args)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def _run(self, command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        command = [*self.place.enter, *command]
        return subprocess.run(command, env=self._env(), input=text, capture_output=True, text=True, timeout=60, check=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        for folder in ("home", "mnesia", "log", "conf.d"):
            (self.data_dir / folder).mkdir(parents=True, exist_ok=True)
        (self.data_dir / "rabbitmq.conf").write_text(CONFIG + self.config)
        cookie = self.data_dir / "home" / ".erlang.cookie"
        if self._cookie and not cookie.exists():
            cookie.touch(0o600)
            cookie.write_text(self._cookie)
        (self.data_dir / "advanced.config").write_text("[].\n")
        (self.data_dir / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        (self.data_dir / "rabbitmq-env.conf").write_text("")
        self._lock = (self.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise RabbitError(f"another node is running on {self.data_dir}") from error

    def _env(self) -> dict[str, str]:
        """The whole environment: nothing that the caller's may say about RabbitMQ or Erlang comes through."""
        here = "-kernel inet_dist_use_interface {" + self.place.cluster_host.replace(".", ",") + "}"
        data = self.data_dir
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(data / "home"),  # the Erlang cookie is made there
            "LANG": "C.UTF-8",
            "ERL_CRASH_DUMP_SECONDS": "0",  # no dump: the log says what happened
            "ERL_EPMD_ADDRESS": self.place.cluster_host,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(data / "advanced.config"),
            # The shell steps aside for the Erlang VM, so that our child is the node itself and gets our signals.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(data / "conf.d"),
            "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self._ctl_port),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self._ctl_port + CTL_PORTS - 1),
            "RABBITMQ_CTL_ERL_ARGS": here,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": self.place.client_host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 2:2 +A 16 {here} {self._erlang_args}",  # threads for two cores, not for the host's
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_USE_LONGNAME": "true",
        }

    def _spawn(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self.data_dir / "log" / "node.log").open("ab") as log:
            return subprocess.Popen(
                tied_to_us([*self.place.enter, *command], "KILL"),
                env={**self._env(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                start_new_session=True,
            )

    def _log_tail(self, lines: int = 60) -> str:
        log = self.data_dir / "log" / "node.log"
        tail = log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- the end of {log}:", *tail])


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody has, and that was not given before; below those that outgoing connections take."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - not a secret
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _free_ports() -> tuple[int, int, int, int]:
    """Three free ports and the first of `CTL_PORTS` free ones in a row."""
    wanted = 3 + CTL_PORTS
    while True:
        first = random.choice(PORTS)  # noqa: S311 - not a secret
        ports = range(first, first + wanted)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first, first + 1, first + 2, first + 3


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _speaks_amqp(host: str, port: int) -> bool:
    """True when a client gets Connection.Start (a method frame: type 1, channel 0; AMQP 0-9-1 sections 2.2.4 and 4.2.3)."""
    try:
        with socket.create_connection((host, port), timeout=5) as sock:
            sock.sendall(b"AMQP\x00\x00\x09\x01")
            return sock.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False


def main() -> int:
    """Run one node in the foreground until a signal."""
    parser = argparse.ArgumentParser(description="Run a private RabbitMQ node until SIGINT or SIGTERM; its URL is the only line printed.")
    parser.add_argument("--data", required=True, metavar="DIR", help="directory for everything the node writes")
    args = parser.parse_args()
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)
    try:
        with PrivateRabbit(args.data) as rabbit:
            print(rabbit.url, flush=True)
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # until the node or its epmd ends, or a signal comes
            print("RabbitMQ ended by itself", file=sys.stderr)
            return 1
    except RabbitError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
