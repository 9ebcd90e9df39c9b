"""`towerws restart`: hands the connections of a running daemon to a new process, and says how that went.

It asks the daemon's admin port, and so needs the daemon's configuration. The new process is started by the daemon, not by this command.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NoReturn

import click

from towerws.commands.config import config_options, load_or_exit
from towerws.config.addresses import Address, parse_address
from towerws.workers.worker import worker_count

FAILED, BAD_CONFIG, NO_DAEMON = 1, 2, 3
"""Exit codes, as the command's help explains them."""

MOVE_S = 60.0
"""Seconds beyond `restart_s` until the answer: for moving the connections."""


@click.command("restart", short_help="Restart the daemon without closing a connection.")
@config_options
def restart_command(**values: object) -> None:
    """Restart the running daemon without closing a connection.

    The daemon starts a new process with its own command line, waits until that one is ready, and hands it the listening sockets and all
    open connections. If that fails, the old process goes on. The new process reads the configuration and the program again.
    With several workers, one after the other does this.

    Give it the daemon's own configuration: it finds the admin port there, and refuses a configuration that the new process couldn't use.

    \b
    Examples:
      towerws restart --config /etc/towerws/towerws.toml
      towerws restart --auth open --admin tcp:9051:interface=127.0.0.1

    \b
    Exit codes:
      0  a new process serves all clients
      1  it failed: standard error says why, and the old process goes on
      2  the configuration can't be used
      3  no daemon answers on the admin port, or it can't hand over
         (nor can this command ask TLS, the PROXY protocol, systemd's socket)
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    settings = load_or_exit(values).settings
    address = parse_address(settings.admin)
    if (why := _why_not_asked(settings.admin, address)) is not None:
        _end(NO_DAEMON, f"admin = {settings.admin!r}: this command can't ask there: {why}; use kill -USR2, and read the log")
    try:
        status, answer = _ask(address, worker_count(settings) * (settings.restart_s + MOVE_S))
    except (OSError, http.client.HTTPException, ValueError) as error:
        _end(NO_DAEMON, f"admin = {settings.admin!r}: no answer from a daemon there: {error}; is it running, with this configuration?")
    if status == 200:
        closed = sum(answer["closed"].values())
        workers = answer.get("workers", [])
        who = f"Processes {', '.join(str(each['pid']) for each in workers)} serve" if workers else f"Process {answer['pid']} serves"
        click.echo(f"{who} now: {answer['moved']} connections moved in {answer['seconds']:.3f} s, {closed} not moved.")
    elif status == 503:
        _end(FAILED, f"{answer.get('error')}; the old process{'es go' if worker_count(settings) > 1 else ' goes'} on")
    else:
        _end(NO_DAEMON, f"the daemon answers {status}: {answer.get('error')}")


def _why_not_asked(admin: str, address: Address) -> str | None:
    """Return why this command can't ask this admin port. None if it can: on plain TCP and on a UNIX socket."""
    if admin.startswith("haproxy:"):
        return "it expects the PROXY protocol"
    if address.kind == "systemd":
        return "the address of a systemd socket is in its unit"
    return "it speaks TLS" if address.kind in ("ssl", "tls") else None


def _ask(address: Address, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Post to the admin port. Returns the status and the answer."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(address.interface, address.interface)  # noqa: S104 - replaced
    connection = http.client.HTTPConnection("localhost" if address.kind == "unix" else host, address.port or None, timeout=timeout_s)
    if address.kind == "unix":
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(address.path)
    try:
        connection.request("POST", "/restart", b"")
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")
    return response.status, answer


def _end(status: int, text: str) -> NoReturn:
    click.echo(f"towerws: {text}", err=True)
    raise SystemExit(status)
