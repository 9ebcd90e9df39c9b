"""`towerws publish`: publishes one event, or one per line of standard input, and waits until each is confirmed.

The destination is `--admin`. Without it, it is the broker of `--broker`, of TOWERWS_BROKER, or of the daemon's configuration file.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import click

from towerws.commands.publisher import MESSAGE_ID_BYTES, AdminPublisher, AmqpPublisher, GaveUp, NoQueue, Publisher
from towerws.commands.terminal import Command, StatusLine, bad_parameter, interrupted_by
from towerws.config.load import Loaded, load_all
from towerws.core.errors import BadDelivery, BrokerError, ConfigError
from towerws.core.payload import check_payload
from towerws.core.publication import check_message_id
from towerws.core.topics import AWX_GROUPS, WITHHELD, Topic, parse_routing_key

FAILED, USAGE, REFUSED, NO_QUEUE, BAD_INPUT = 1, 2, 3, 4, 5
"""Exit codes, as the command's help explains them."""

TIMEOUT_S = 10.0
BAD_LINES_SHOWN = 10
"""Most lines without an event that are reported one by one. Further ones are only counted."""

LINE_BYTES = 64 * 1024**2
"""Longest line that is read as an event. This bounds the command's memory, far above the largest payload of a daemon."""

JSON_SPACE = b" \t\r\n"
"""White space around JSON (RFC 8259 section 2)."""


@click.command("publish", cls=Command, short_help="Publish an event, or one for each line of input.")
@click.argument("words", metavar="[TOPIC] JSON|-|@FILE", nargs=-1)
@click.option("--group", metavar="GROUP", help="With --event, instead of TOPIC.")
@click.option("--event", metavar="EVENT", help="With --group, instead of TOPIC.")
@click.option(
    "--broker", metavar="URL", help="RabbitMQ: amqp://user:password@host:port/vhost (several: separated by commas). Or TOWERWS_BROKER."
)
@click.option("--admin", metavar="URL", help="A daemon's admin port: http://127.0.0.1:9051.")
@click.option("--exchange", metavar="NAME", help="The topic exchange.  [default: towerws]")
@click.option("--config", metavar="FILE", help="The daemon's configuration file, for its broker, exchange and groups.")
@click.option("--message-id", metavar="ID", help="An event that is published again with the same id reaches clients once.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    default=TIMEOUT_S,
    show_default=True,
    help="How long to wait for each event's confirm.",
)
@click.option(
    "--mandatory/--no-mandatory", default=True, show_default=True, help="Fail when no queue takes the event. --admin always does."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
def publish_command(
    words: tuple[str, ...],
    group: str | None,
    event: str | None,
    broker: str | None,
    admin: str | None,
    exchange: str | None,
    config: str | None,
    message_id: str | None,
    timeout: float,
    mandatory: bool,
    quiet: bool,
) -> NoReturn:
    """Publish an event on TOPIC, and wait for the broker's confirm.

    The event is a JSON object. @FILE reads it from a file. With - each line of standard input is one event. TOWERWS_TLS_CA names a file
    with the certificate authorities to trust for amqps://.

    \b
    Examples:
      towerws publish orders.1042 '{"status": "shipped"}'
      towerws publish --group orders --event 1042 @event.json
      generate-events | towerws publish job_events.42 -

    \b
    Exit codes:
      0  all events were confirmed
      1  an event was not confirmed in time, or Ctrl-C ended the command
      2  the command line is wrong
      3  refused: credentials, certificate, permissions or exchange
      4  no queue took an event: no daemon reads from this exchange
      5  some lines were no events; the others were confirmed
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    topic, source = _what(words, group, event)
    if message_id is not None:
        _check_id(message_id, source, admin=admin is not None)
    status = StatusLine(sys.stderr)
    loaded = _configuration(config, broker, exchange, named_files=admin is None)
    if admin is not None and broker is not None:
        raise click.UsageError("--broker and --admin are two ways to publish: give one of them")
    if admin is not None and not mandatory:
        raise click.UsageError("--no-mandatory is for a broker: the admin port always reports an event that no queue takes")
    for warning in _warnings(topic, loaded):
        status.say(f"towerws: warning: {warning}")
    max_payload = loaded.settings.max_payload_bytes
    run = _Run(topic, message_id, status, max_payload=max_payload, show_progress=source == "-")
    publisher = _publisher(loaded, admin, status, mandatory=mandatory, timeout=timeout)
    try:
        with interrupted_by(signal.SIGINT):
            run.publish_all(publisher, source)
    except BrokerError as error:
        status.say(f"towerws: {error}")
        status.say(_next_step(error, published=run.published, admin=admin is not None))
        sys.exit(FAILED if isinstance(error, GaveUp) else NO_QUEUE if isinstance(error, NoQueue) else REFUSED)
    except KeyboardInterrupt:
        status.say(f"towerws: stopped; {_count(run.published)} confirmed before")
        sys.exit(FAILED)
    finally:
        publisher.close()
    status.clear()
    if not quiet:
        status.say(f"{_count(run.published)} published on {topic.routing_key} and confirmed")
    if run.bad:
        status.say(f"towerws: {run.bad} of {run.lines} lines were no events and were left out")
    sys.exit(BAD_INPUT if run.bad else 0)


class _Run:
    """One run of the command: publishes the events, and counts them."""

    def __init__(self, topic: Topic, message_id: str | None, status: StatusLine, *, max_payload: int, show_progress: bool) -> None:
        self._topic = topic
        self._max_payload = max_payload
        self._message_id = message_id
        self._status = status
        self._show_progress = show_progress
        self.published = 0
        self.lines = 0
        self.bad = 0

    def publish_all(self, publisher: Publisher, source: str) -> None:
        """Publish all events of the source: JSON, `@FILE`, or `-` for standard input."""
        if source == "-":
            for line in _lines(sys.stdin.buffer):
                self._publish_line(publisher, line)
            return
        try:
            payload = _start_of(Path(source[1:])) if source.startswith("@") else source.encode("utf-8")
        except (OSError, UnicodeEncodeError) as error:
            raise click.BadParameter(f"can't be read: {getattr(error, 'strerror', None) or error}", param_hint=source[:80]) from None
        if (reason := why_no_event(self._topic.routing_key, payload, self._max_payload)) is not None:
            raise click.BadParameter(reason, param_hint="JSON")
        publisher.publish(self._topic.routing_key, payload, self._message_id)
        self.published += 1

    def _publish_line(self, publisher: Publisher, line: bytes) -> None:
        self.lines += 1
        if not line.strip():
            return
        event = line.strip(JSON_SPACE) if len(line) <= LINE_BYTES else line  # stripped, a line that was cut could look short enough
        if (reason := why_no_event(self._topic.routing_key, event, self._max_payload)) is not None:
            self.bad += 1
            if self.bad <= BAD_LINES_SHOWN:
                self._status.say(f"towerws: line {self.lines}: {reason}; left out")
            return
        publisher.publish(self._topic.routing_key, event)
        self.published += 1
        if self._show_progress:
            self._status.show(f"{self.published} events published")


def why_no_event(routing_key: str, payload: bytes, most: int) -> str | None:
    """Return why a daemon would skip this payload, or None. `most` is its `max_payload_bytes`. The text never repeats the payload."""
    if len(payload) > LINE_BYTES:
        return f"longer than {LINE_BYTES} bytes"
    try:
        check_payload(routing_key, payload)
    except BadDelivery as error:
        return str(error)
    return f"has {len(payload)} bytes, and the daemon skips events of more than {most} bytes" if len(payload) > most else None


def _start_of(path: Path) -> bytes:
    """Return the content of the file, cut after one byte more than the limit."""
    with path.open("rb") as file:
        return file.read(LINE_BYTES + 1)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of the stream. A line that is longer than `LINE_BYTES` is cut one byte after that limit."""
    while line := stream.readline(LINE_BYTES + 1):
        yield line
        while len(line) > LINE_BYTES and not line.endswith(b"\n"):  # skip the rest of a line that is too long
            line = stream.readline(LINE_BYTES + 1)
            if not line:
                return


def _what(words: tuple[str, ...], group: str | None, event: str | None) -> tuple[Topic, str]:
    """Return the topic, and the argument with the payload."""
    if (group is None) != (event is None):
        raise click.UsageError("--group and --event belong together: give both, or TOPIC")
    if group is None:
        if len(words) != 2:
            raise click.UsageError("expected TOPIC and a payload: JSON, @FILE, or - for a line each on standard input")
        name, source = words
    else:
        if len(words) != 1:
            raise click.UsageError("with --group and --event, expected a payload alone: JSON, @FILE, or -")
        name, source = f"{group}.{event}", words[0]
    if source == "-" and sys.stdin is None:
        raise click.BadParameter("standard input is closed", param_hint="-")
    with bad_parameter("TOPIC"):
        return parse_routing_key(name), source


def _check_id(message_id: str, source: str, *, admin: bool) -> None:
    """Raise `click.BadParameter` for an id that the destination would refuse. The daemon's rule is stricter than AMQP's."""
    if source == "-":
        raise click.BadParameter("an id names one event, and - publishes one for each line", param_hint="--message-id")
    with bad_parameter("--message-id"):
        if admin:
            check_message_id("an id", message_id)
        elif not (_is_utf8(message_id) and 1 <= len(message_id.encode()) <= MESSAGE_ID_BYTES):
            raise ValueError(f"an id must be 1 to {MESSAGE_ID_BYTES} bytes of UTF-8")


def _is_utf8(text: str) -> bool:
    """Whether an argument of the command line was UTF-8. Python turns each byte that is not into a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _configuration(config: str | None, broker: str | None, exchange: str | None, *, named_files: bool) -> Loaded:
    # The command uses neither auth nor listen. But the rules between settings check them, and these values are always valid.
    flags = {"config": config, "broker": broker, "exchange": exchange, "auth": "open", "listen": "tcp:8051:interface=127.0.0.1"}
    try:
        return load_all({name: value for name, value in flags.items() if value is not None}, os.environ, named_files=named_files)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _publisher(loaded: Loaded, admin: str | None, status: StatusLine, *, mandatory: bool, timeout: float) -> Publisher:
    broker = loaded.settings.broker
    if admin is not None:
        with bad_parameter("--admin"):
            return AdminPublisher(admin, status.say, patience_s=timeout)
    if broker is None:
        setting = loaded.by_key["broker"]
        if not setting.is_default:
            raise click.UsageError(f"{setting.origin}: embedded: is no broker to publish to; give --admin http://127.0.0.1:9051")
        raise click.UsageError("where to? Give --broker URL, --admin URL, --config FILE, or set TOWERWS_BROKER")
    return AmqpPublisher(
        broker.urls,
        broker.exchange,
        status.say,
        mandatory=mandatory,
        declare=False,
        patience_s=timeout,
        tls_ca=str(loaded.by_key["tls_ca"].value),
    )


def _warnings(topic: Topic, loaded: Loaded) -> Iterator[str]:
    if topic.routing_key in WITHHELD:
        yield f"{topic.routing_key} goes to no client: the daemon withholds it"
        return
    added = loaded.settings.groups.get(topic.group)
    if added is not None and added.policy == "never":
        yield f'no client may subscribe to {topic.group}: [groups.{topic.group}] in {loaded.file} says policy = "never"'
    elif added is None and topic.group not in AWX_GROUPS and loaded.file:
        yield f"no client can subscribe to {topic.group}: {loaded.file} has no [groups.{topic.group}]"


def _next_step(error: BrokerError, *, published: int, admin: bool) -> str:
    before = f" {_count(published)} confirmed before." if published else ""
    if admin and isinstance(error, GaveUp):
        return f"Is the daemon running, and is that its admin port (--admin of `twistd towerws`)?{before}"
    if admin and isinstance(error, NoQueue):
        return f"Ask the daemon's /readyz what is wrong: it binds its stream or queue again within 12 s.{before}"
    if admin:
        return f"Is that the admin port of a daemon, and may its user publish?{before}"
    if isinstance(error, NoQueue):
        return f"Is the daemon running, and does it read from this exchange and virtual host? --no-mandatory publishes anyway.{before}"
    if isinstance(error, GaveUp):
        return f"Is the broker running and reachable? Published again with the same --message-id, an event reaches clients once.{before}"
    return f"Check the URL, the exchange (the daemon declares it when it starts) and the user's permissions.{before}"


def _count(number: int) -> str:
    return f"{number} event{'' if number == 1 else 's'}"
