"""The `towerws` command. The daemon itself is `twistd towerws`."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from towerws import __version__
from towerws.commands.config import check_command, config_command
from towerws.commands.demo import events
from towerws.commands.publish import publish_command
from towerws.commands.publisher import AdminPublisher, AmqpPublisher, Publisher
from towerws.commands.tail import CLEAN, FAILED, Tail, TailOptions, check_url
from towerws.commands.tail_topics import DEFAULT_TOPICS
from towerws.commands.terminal import StatusLine
from towerws.config.broker_url import parse_broker_url, split_urls
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings
from towerws.core.topics import parse_routing_key

ADMIN_URL = "http://127.0.0.1:9051"
WEBSOCKET_URL = "ws://127.0.0.1:8051/websocket/"

LATE_S = 1.0
"""How far the demo may lag behind its own schedule. After a longer pause it continues from now, without catching up."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="towerws")
def main() -> None:
    """Live events from RabbitMQ to browsers.

    The daemon is started with `twistd -n towerws` (--help lists its options).
    """


@main.command(short_help="Publish the events of made-up AWX jobs.")
@click.option("--broker", metavar="URL", help="Publish to RabbitMQ: amqp://user:password@host:port/vhost (several: with commas).")
@click.option("--admin", metavar="URL", help=f"Publish to a daemon with the embedded source, by its admin port.  [default: {ADMIN_URL}]")
@click.option("--exchange", metavar="NAME", default=BrokerSettings(urls=()).exchange, show_default=True, help="The topic exchange.")
@click.option("--rate", type=float, default=10.0, show_default=True, help="Events per second, on average.")
@click.option("--seed", type=int, help="Play the same again: a number that decides everything.  [default: by chance]")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many events.  [default: never]")
@click.option("-q", "--quiet", is_flag=True, help="No counter: for a terminal that others write to, too.")
def demo(broker: str | None, admin: str | None, exchange: str, rate: float, seed: int | None, count: int | None, *, quiet: bool) -> None:
    """Play AWX-like events: jobs that start, print and end. Until Ctrl-C."""
    status = StatusLine(sys.stderr)
    try:
        play = events(random.randrange(2**32) if seed is None else seed, datetime.now(UTC), rate)  # noqa: S311 - a demo's dice
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rate") from None
    publisher = _publisher(broker, admin, exchange, status)
    published = 0
    # Whoever starts it in the background ends it with SIGTERM: the same as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        due = time.monotonic()
        for event in itertools.islice(play, count):
            due += event.delay_s
            if (ahead_s := due - time.monotonic()) > 0:
                publisher.idle(ahead_s)
            elif ahead_s < -LATE_S:
                due = time.monotonic()
            publisher.publish(event.topic, event.payload)
            published += 1
            if not quiet:
                status.show(f"{published} events published")
    except KeyboardInterrupt:
        pass
    except BrokerError as error:
        status.say(f"towerws: {error}")
        sys.exit(FAILED)
    finally:
        status.clear()
        publisher.close()


def _publisher(broker: str | None, admin: str | None, exchange: str, status: StatusLine) -> Publisher:
    if broker is not None and admin is not None:
        raise click.UsageError("--broker and --admin are two ways to publish: give one of them")
    if broker is None:
        try:
            return AdminPublisher(admin or ADMIN_URL, status.say)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--admin") from None
    try:
        return AmqpPublisher([parse_broker_url(url) for url in split_urls(broker)], exchange, status.say)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--broker") from None


@main.command(short_help="Show live events in the terminal.")
@click.argument("topics", metavar="[TOPIC]...", nargs=-1)
@click.option("--url", default=WEBSOCKET_URL, show_default=True, help="The daemon's websocket.")
@click.option("--follow/--no-follow", default=None, help="Show the output of jobs that start, too.  [default: when no topic is given]")
@click.option("--json", "raw", is_flag=True, help="One raw event per line, with its topic and position.")
@click.option("--token", metavar="TOKEN", help="Sent as a bearer token; @FILE reads it from a file, which keeps it out of `ps`.")
def tail(topics: tuple[str, ...], url: str, follow: bool | None, raw: bool, token: str | None) -> NoReturn:
    """Show live events: of TOPICs (jobs.status_changed, job_events.42), or of all jobs.

    Goes on after a lost connection where it was. Notices go to standard error. Exit codes: 0 ended by Ctrl-C or a closed pipe,
    1 no connection, 2 usage, 3 access refused.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    for topic in topics:
        try:
            parse_routing_key(topic)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="TOPIC") from None
    options = TailOptions(
        url=url,
        topics=topics or DEFAULT_TOPICS,
        follow=not topics if follow is None else follow,
        raw=raw,
        colour=sys.stdout.isatty(),
        columns=_columns if sys.stdout.isatty() else None,
        token=_token(token),
    )
    sys.exit(_run_tail(options))


def _columns() -> int:
    """How wide the terminal is now; 80 for one that does not say."""
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def _token(given: str | None) -> str | None:
    if given is not None and given.startswith("@"):
        try:
            given = Path(given[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise click.BadParameter(f"can't be read: {error}", param_hint="--token") from None
    if given is not None and not (given.isascii() and given.isprintable() and given):
        raise click.BadParameter("a token is printable ASCII, and not empty", param_hint="--token")
    return given


def _run_tail(options: TailOptions) -> int:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it: not for the other commands

    from towerws.clock import use_monotonic_clock  # noqa: PLC0415

    use_monotonic_clock(reactor)
    codes = [CLEAN]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding lacks is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def finish(code: int) -> None:
        codes[0] = code
        reactor.callWhenRunning(reactor.stop)

    session = Tail(reactor, options, write=write, say=StatusLine(sys.stderr).say, finish=finish)
    reactor.callWhenRunning(session.connect)
    reactor.addSystemEventTrigger("before", "shutdown", session.stop)
    reactor.run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain when it flushes
    return codes[0]


main.add_command(publish_command)
main.add_command(config_command)
main.add_command(check_command)
