"""The subcommands that ask a running daemon's admin port: `towerws explain` and `towerws restart`.

`explain` says why a user does not get the events of a topic. `restart` asks the daemon to hand its connections to a new process, and
reports the result. It needs the daemon's configuration. The daemon starts the new process, not this command.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NoReturn
from urllib.parse import urlencode

import click

from towerws.commands.config import config_options, load_or_exit
from towerws.commands.publisher import admin_connection
from towerws.commands.terminal import Command, bad_parameter, complain, print_out
from towerws.config.addresses import Address, parse_address
from towerws.core.errors import printable
from towerws.workers.worker import worker_count

FAILED, NOT_DELIVERED, NO_DAEMON = 1, 3, 3
"""Exit codes, as the commands' help explains them."""

TIMEOUT_S = 120.0
"""Deadline of `explain`. The daemon may ask AWX about ten connections, each for at most 10 s."""

MOVE_S = 60.0
"""How long the answer to `restart` may take, beyond `restart_s`: the time to move the connections."""

_MARKS = {True: "yes", False: "NO", None: "?"}
"""The marks of a rule that a client passes, does not pass, or perhaps passes."""


@click.command("explain", cls=Command, short_help="Say why a user does not get the events of a topic.")
@click.argument("topic")
@click.argument("user", default="")
@click.option(
    "--admin", metavar="URL", default="http://127.0.0.1:9051", show_default=True, help="The daemon's admin port: http://127.0.0.1:9051."
)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer, which is JSON.")
def explain_command(topic: str, user: str, admin: str, as_json: bool) -> NoReturn:
    """Apply the daemon's rules to USER's connections and TOPIC, and name the rule that decides.

    USER is the user's id. Without USER, the answer is about anonymous clients (auth open). Each daemon knows only its own connections.

    \b
    Examples:
      towerws explain job_events.42 7
      towerws explain orders.1042 alice --admin http://127.0.0.1:9051

    \b
    Exit codes:
      0  the client gets the events
      1  the daemon can't be asked, or standard output can't be written
      2  the command line is wrong, the topic included
      3  the client does not get the events, or that can't be known
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    with bad_parameter("--admin"):
        connection = admin_connection(admin)
    connection.timeout = TIMEOUT_S
    status, answer = _ask(connection, admin, "/console/explain?" + urlencode({"user": user, "topic": topic}))
    if status == 400:
        raise click.BadParameter(str(answer.get("error")), param_hint="TOPIC")
    if status != 200:
        _fail(f"{admin} answers {status}: {answer.get('error', 'is that the admin port of a daemon with /console/explain?')}")
    if as_json:
        print_out(json.dumps(answer))
    else:
        for line in explanation(answer):
            print_out(line)
    sys.exit(0 if answer["verdict"]["passes"] else NOT_DELIVERED)


def explanation(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines to print: the rule that decides, then all rules."""
    verdict = answer["verdict"]
    yield f"{_MARKS[verdict['passes']]}: {verdict['rule']}{_of(verdict)}"
    yield f"     {verdict['text']}"
    yield ""
    yield from _steps(answer["steps"])
    for connection in answer["connections"]:
        yield _connection(connection)
        yield from _steps(connection["steps"])
    if answer["more_connections"]:
        yield f"and {answer['more_connections']} more connections, which were not looked at"


def _steps(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for step in steps:
        yield f"  {_MARKS[step['passes']]:<4} {step['rule']}: {step['text']}"


def _of(verdict: Mapping[str, Any]) -> str:
    return f" ({_connection(verdict)})" if "connection" in verdict else ""


def _connection(found: Mapping[str, Any]) -> str:
    of = f" of worker {found['worker']}" if "worker" in found else ""
    return f"connection {found['connection']}{of}"


def _ask(connection: http.client.HTTPConnection, admin: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        status, answer = _answer(connection, "GET", path)
    except (OSError, http.client.HTTPException) as error:
        _fail(
            f"{admin}: {getattr(error, 'strerror', None) or str(error) or repr(error)}; is the daemon running, and is that its admin port?"
        )
    except ValueError:
        _fail(f"{admin} answers without JSON: is that the admin port of a daemon?")
    if not isinstance(answer, dict):
        _fail(f"{admin} answers without an object: is that the admin port of a daemon?")
    return status, answer


def _fail(text: str) -> NoReturn:
    _end(FAILED, printable(text) if not text.isprintable() else text)


@click.command("restart", cls=Command, short_help="Restart the daemon without closing a connection.")
@config_options
def restart_command(**values: object) -> None:
    """Restart the running daemon without closing a connection.

    The daemon starts a new process with its own command line, waits until that process is ready, and hands it the listening sockets and
    all open connections. If that fails, the old process goes on. The new process reads the configuration and the program again. With
    several workers, one after the other does this.

    Give this command the daemon's own configuration. It finds the admin port there, and refuses a configuration that breaks a rule. It
    does not read the files that the configuration names, such as a password or a key. The new process reads them.

    \b
    Examples:
      towerws restart --config /etc/towerws/towerws.toml
      towerws restart --auth open --admin tcp:9051:interface=127.0.0.1

    \b
    Exit codes:
      0  a new process serves all clients
      1  it failed: standard error says why, and the old process goes on
      2  the configuration can't be used
      3  no daemon answers on the admin port, or the daemon can't hand over,
         or the admin port uses TLS, the PROXY protocol or systemd's socket,
         where this command can't ask: use kill -USR2
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    # systemd gives credentials to ExecStart only. So this command, as ExecReload, can't read files that are credentials.
    settings = load_or_exit(values, named_files=False).settings
    address = parse_address(settings.admin)
    if (why := _why_not_asked(settings.admin, address)) is not None:
        _end(NO_DAEMON, f"admin = {settings.admin!r}: this command can't ask there: {why}; use kill -USR2, and read the log")
    try:
        status, answer = _hand_over(address, worker_count(settings) * (settings.restart_s + MOVE_S))
    except (OSError, http.client.HTTPException, ValueError) as error:
        _end(NO_DAEMON, f"admin = {settings.admin!r}: no answer from a daemon there: {error}; is it running, with this configuration?")
    if status == 200:
        closed = sum(answer["closed"].values())
        workers = answer.get("workers", [])
        who = f"Processes {', '.join(str(each['pid']) for each in workers)} serve" if workers else f"Process {answer['pid']} serves"
        line = f"{who} now: {answer['moved']} connections moved in {answer['seconds']:.3f} s, {closed} not moved."
        print_out(line, unwritten=0)  # the exit code 1 would mean that the old process goes on
    elif status == 503:
        _end(FAILED, f"{answer.get('error')}; the old process{'es go' if worker_count(settings) > 1 else ' goes'} on")
    else:
        _end(NO_DAEMON, f"the daemon answers {status}: {answer.get('error')}")


def _why_not_asked(admin: str, address: Address) -> str | None:
    """Return why this command can't ask this admin port. None if it can: it asks plain TCP and UNIX sockets."""
    if admin.startswith("haproxy:"):
        return "it expects the PROXY protocol"
    if address.kind == "systemd":
        return "the address of a systemd socket is in its unit"
    return "it speaks TLS" if address.kind in ("ssl", "tls") else None


def _hand_over(address: Address, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Post `/restart` to the admin port. Returns the HTTP status and the answer. Raises `OSError`, `HTTPException` or `ValueError`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.interface, address.interface)  # noqa: S104 - replaced
    connection = http.client.HTTPConnection("localhost" if address.kind == "unix" else host, address.port or None, timeout=timeout_s)
    if address.kind == "unix":
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(address.path)
    status, answer = _answer(connection, "POST", "/restart")
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")
    return status, answer


def _answer(connection: http.client.HTTPConnection, method: str, path: str) -> tuple[int, object]:
    """Send a request without a body, and close the connection. Returns the HTTP status and the answer's JSON."""
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def _end(status: int, text: str) -> NoReturn:
    complain(text)
    sys.exit(status)
