"""`towerws demo`: publishes the events of made-up AWX jobs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime

import click

from towerws.commands.publisher import AdminPublisher, AmqpPublisher, Publisher
from towerws.commands.terminal import Command, StatusLine, bad_parameter, interrupted_by
from towerws.config.addresses import parse_broker_url, split_urls
from towerws.config.load import load_all
from towerws.core.errors import BrokerError, ConfigError
from towerws.core.settings import BrokerSettings
from towerws.demo.events import events

FAILED = 1
"""Exit code if the daemon or the broker refuses the events."""

ADMIN_URL = "http://127.0.0.1:9051"

LATE_S = 1.0
"""How far the demo may be behind its schedule, in seconds. If it is later than this, the schedule starts again from now."""


@click.command("demo", cls=Command, short_help="Publish the events of made-up AWX jobs.")
@click.option(
    "--broker", metavar="URL", help="Publish to RabbitMQ: amqp://user:password@host:port/vhost. Several URLs: separated by commas."
)
@click.option("--admin", metavar="URL", help=f"Publish to the admin port of a daemon.  [default: {ADMIN_URL}]")
@click.option("--exchange", metavar="NAME", default=BrokerSettings(urls=()).exchange, show_default=True, help="The topic exchange.")
@click.option("--rate", type=float, default=10.0, show_default=True, help="Events per second, on average.")
@click.option("--seed", type=int, help="The same seed gives the same events.  [default: random]")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many events.  [default: never]")
@click.option("-q", "--quiet", is_flag=True, help="Show no counter.")
def demo_command(
    broker: str | None,
    admin: str | None,
    exchange: str,
    rate: float,
    seed: int | None,
    count: int | None,
    *,
    quiet: bool,
) -> None:
    """Publish events as AWX does: jobs that start, print and end. Ctrl-C ends it.

    It publishes to the admin port of a daemon, or with --broker to RabbitMQ. If the daemon or the broker can't be reached, it retries
    until it can. TOWERWS_TLS_CA names a file with the certificate authorities to trust for amqps://.

    \b
    Examples:
      towerws demo
      towerws demo --rate 200 --count 10000
      towerws demo --broker amqp://guest:guest@localhost/

    \b
    Exit codes:
      0  ended by Ctrl-C, SIGTERM or --count
      1  refused: credentials, permissions, or the exchange
      2  the command line is wrong
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    status = StatusLine(sys.stderr)
    with bad_parameter("--rate"):
        sequence = events(random.randrange(2**32) if seed is None else seed, datetime.now(UTC), rate)  # noqa: S311 - protects nothing
    publisher = _publisher(broker, admin, exchange, status)
    published = 0
    try:
        # SIGTERM ends a demo in the background as Ctrl-C does.
        with interrupted_by(signal.SIGINT, signal.SIGTERM):
            due = time.monotonic()
            for event in itertools.islice(sequence, count):
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
        with bad_parameter("--admin"):
            return AdminPublisher(admin or ADMIN_URL, status.say)
    with bad_parameter("--broker"):
        urls = [parse_broker_url(url) for url in split_urls(broker)]
    return AmqpPublisher(urls, exchange, status.say, tls_ca=_authorities())


def _authorities() -> str:
    """Return the file that TOWERWS_TLS_CA names, after the configuration's checks. Empty if it names none."""
    environment = {name: os.environ[name] for name in ("TOWERWS_TLS_CA",) if name in os.environ}
    try:
        return str(load_all({"broker": "embedded:", "auth": "open"}, environment).by_key["tls_ca"].value)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
