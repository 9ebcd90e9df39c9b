"""`towerws tail`: live events in a terminal or a pipe."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import click

from towerws.commands.terminal import Command, StatusLine, bad_parameter, drop_output
from towerws.core.topics import parse_routing_key
from towerws.tail.session import DEFAULT_TOPICS, Tail, TailOptions

WEBSOCKET_URL = "ws://127.0.0.1:8051/websocket/"

_is_plain = re.compile("[!-~]+").fullmatch


@click.command("tail", cls=Command, short_help="Show live events in the terminal.")
@click.argument("topics", metavar="[TOPIC]...", nargs=-1)
@click.option("--url", default=WEBSOCKET_URL, show_default=True, help="The daemon's websocket.")
@click.option("--follow/--no-follow", default=None, help="Also show the output of jobs that start.  [default: only without TOPIC]")
@click.option("--json", "raw", is_flag=True, help="One frame per line, with its topic and position.")
@click.option("--token", metavar="TOKEN", help="The bearer token. @FILE reads it from a file, which hides it from `ps`.")
def tail_command(topics: tuple[str, ...], url: str, follow: bool | None, raw: bool, token: str | None) -> NoReturn:
    """Show live events of the given topics, or of all AWX jobs. Ctrl-C ends it.

    A TOPIC is GROUP.EVENT, as in jobs.status_changed or job_events.42. After a lost connection, tail reconnects and shows what it
    missed. Events go to standard output, and notices to standard error.

    \b
    Examples:
      towerws tail
      towerws tail job_events.42
      towerws tail --json orders.1042 | jq .payload
      towerws tail --url wss://tower.example.com/websocket/ --token @token.txt

    \b
    Exit codes:
      0  ended by Ctrl-C, SIGTERM or a closed pipe
      1  no connection, the daemon takes no new one, or standard
         output can't be written
      2  the command line is wrong
      3  access refused: the token, or every topic
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    with bad_parameter("--url"):
        _check_url(url)
    for topic in topics:
        with bad_parameter("TOPIC"):
            parse_routing_key(topic)
    options = TailOptions(
        url=url,
        topics=topics or DEFAULT_TOPICS,
        follow=not topics if follow is None else follow,
        raw=raw,
        colour=sys.stdout.isatty(),
        columns=_columns if sys.stdout.isatty() else None,
        token=read_token(token),
    )
    sys.exit(_run(options))


def _check_url(url: str) -> None:
    """Raise `ValueError` with the rule, if this is no URL of a websocket."""
    parts = urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname or "#" in url or parts.username is not None:
        raise ValueError("the URL of a websocket must be ws://host:port/websocket/ or wss://…, without a user or a fragment")
    if parts.port == 0:  # `port` raises if it is no port
        raise ValueError("the port must be 1 to 65535")
    if not _is_plain(url):
        raise ValueError("a URL must be ASCII without spaces: write other characters as %C3%A4, and a host's name in its xn-- form")


def _columns() -> int:
    """Return the terminal's current width, or 80 if the terminal doesn't report one."""
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def read_token(given: str | None) -> str | None:
    """Return the token of a `--token` option, read from a file if it is `@FILE`."""
    if given is not None and given.startswith("@"):
        try:
            given = Path(given[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise click.BadParameter(f"can't be read: {error}", param_hint="--token") from None
    if given is not None and not (given.isascii() and given.isprintable() and given):
        raise click.BadParameter("a token must be printable ASCII, and not empty", param_hint="--token")
    return given


def _run(options: TailOptions) -> int:
    """Run until the session ends. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding lacks becomes an escape, and no error
        sys.stdout.reconfigure(errors="backslashreplace")

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    async def run() -> int:
        tail = Tail(options, write=write, say=StatusLine(sys.stderr).say)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, tail.stop)
        return await tail.run()

    code = asyncio.run(run())
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()  # `write` has got the same error, and has ended the run
    return code
