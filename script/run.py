"""What `script/run` starts once the environment is there: the daemon, a demo producer, and RabbitMQ where it is asked for.

usage: script/run [--broker URL[,URL...] | --rabbitmq [--data DIR]] [--listen PORT] [--admin PORT]

  (nothing)       no broker: the demo publishes through the daemon's admin port
  --broker URL    through this RabbitMQ: amqp://user:password@host:port/vhost
  --rabbitmq      through a private RabbitMQ node, started for this (free ports, no system service touched)
  --data DIR      where that node keeps what it writes (default .run/rabbitmq)
  --listen PORT   where websocket clients connect on 127.0.0.1 (default 8051; when taken, a free one)
  --admin PORT    the admin port, with the live page, on 127.0.0.1 (default 9051; when taken, a free one)
  --help          this text

Ctrl-C ends everything.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from private_rabbitmq import PrivateRabbit, RabbitError, tied_to_us

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STOP_S = 15  # the daemon itself promises less: it drains for 5 s and has a hard limit of 10 s


class Failed(Exception):
    """A part could not start, or ended by itself. The text is what the person should read."""


class Interrupted(BaseException):
    """A signal asks us to end. No Exception: nothing on the way may swallow it."""


class Parts:
    """The processes that were started, by name. `end` ends them in the reverse order: the demo, the daemon, RabbitMQ."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._rabbit: PrivateRabbit | None = None

    def start_rabbit(self, data_dir: Path) -> str:
        """Start a private RabbitMQ; its URL."""
        self._rabbit = PrivateRabbit(data_dir)
        self._rabbit.start()
        return self._rabbit.url

    def spawn(self, name: str, command: list[str]) -> None:
        """Start a part in a session of its own: a Ctrl-C in the terminal then reaches us alone, and we end the parts in order."""
        self._processes[name] = subprocess.Popen(tied_to_us(command, "TERM"), cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait(self) -> NoReturn:
        """Wait until a part ends by itself, and raise `Failed`."""
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        self.check()
        raise Failed("RabbitMQ ended by itself; ending the rest")

    def check(self) -> None:
        """Raise `Failed` when a part has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended by itself (exit status {process.returncode}); ending the rest")

    def end(self) -> None:
        """Ask each to end; after `STOP_S`, or a second Ctrl-C, don't ask any more."""
        for process in reversed(self._processes.values()):
            try:
                process.terminate()
                process.wait(STOP_S)
            except (subprocess.TimeoutExpired, Interrupted):
                process.kill()
                process.wait()
        if self._rabbit is not None:
            try:
                self._rabbit.stop()
            except Interrupted:
                self._rabbit.kill()


def main() -> int:
    """Run everything until a signal (0) or until a part ends by itself (1)."""
    args = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    parts = Parts()
    try:
        _start(parts, args)
        parts.wait()
    except Interrupted:
        _say("stopping")
        return 0
    except (Failed, RabbitError) as error:
        print(f"script/run: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        parts.end()


def _start(parts: Parts, args: argparse.Namespace) -> None:
    listen, admin = _port(args.listen, 8051, "websocket"), _port(args.admin, 9051, "admin")
    broker = args.broker
    if args.rabbitmq:
        _say(f"starting a private RabbitMQ (data in {args.data})")
        broker = parts.start_rabbit(args.data)
    _say("starting the daemon")
    endpoints = ["--listen", f"tcp:{listen}:interface=127.0.0.1", "--admin", f"tcp:{admin}:interface=127.0.0.1"]
    daemon = ["twistd", "-n", "--pidfile=", "towerws", "--auth", "open", "--broker", broker or "embedded:", *endpoints]
    parts.spawn("the daemon", [str(BIN / daemon[0]), *daemon[1:]])
    _wait_until_ready(parts, admin)
    source = ["--broker", broker] if broker else ["--admin", f"http://127.0.0.1:{admin}"]
    parts.spawn("the demo producer", [str(BIN / "towerws"), "demo", "--quiet", *source])
    tail = f"{(BIN / 'towerws').relative_to(ROOT)} tail --url ws://127.0.0.1:{listen}/websocket/ --follow"
    _say(f"events are flowing; see them in a browser:  http://127.0.0.1:{admin}/live  (the console: http://127.0.0.1:{admin}/)")
    _say(f"or in another terminal:  {tail}")
    # A URL that was given may hold a password, which nobody expects to see here.
    where = "--broker URL" if args.broker else f"--broker {broker}" if broker else f"--admin http://127.0.0.1:{admin}"
    event = """jobs.status_changed '{"unified_job_id": 42, "status": "running"}'"""
    _say(f"an event of your own:  {(BIN / 'towerws').relative_to(ROOT)} publish {where} {event}")
    _say("Ctrl-C ends everything")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/run", add_help=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--broker")
    where.add_argument("--rabbitmq", action="store_true")
    parser.add_argument("--data", type=Path, default=ROOT / ".run" / "rabbitmq")
    parser.add_argument("--listen", type=int, choices=range(1, 65536), metavar="PORT")
    parser.add_argument("--admin", type=int, choices=range(1, 65536), metavar="PORT")
    return parser.parse_args()


def _port(asked: int | None, default: int, name: str) -> int:
    """The port asked for (which must be free), or the default, or a free one when the default is taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", asked or default))
        except OSError as error:
            if asked:
                raise Failed(f"port {asked} can't be used as the {name} port: {error.strerror}") from error
            sock.bind(("127.0.0.1", 0))
            _say(f"port {default} is taken: the {name} port is {sock.getsockname()[1]}")
        port: int = sock.getsockname()[1]
        return port


def _wait_until_ready(parts: Parts, admin: int) -> None:
    """Return when /readyz answers 200. Meanwhile every new reason why not is shown."""
    shown = ""
    while True:
        parts.check()
        with contextlib.suppress(OSError):
            status, body = _get(admin, "/readyz")
            if status == http.HTTPStatus.OK:
                return
            if (reason := _reason(body)) != shown:
                _say(f"waiting: {reason}")
                shown = reason
        time.sleep(0.1)  # nothing announces readiness: it is asked


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200])


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def _say(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}==>{plain} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
