"""A numbered publisher process. Its journal has the published, confirmed and returned numbers.

Message n is `{"n": n, "k": index of its topic, "t": monotonic nanoseconds of its first publish, "x": filler}` with the `message_id`
`<run>/<n>`. It is published again, to the next host, until the broker confirms it. Numbers are sent in order. After a lost
connection all unconfirmed ones are sent again, in order, before any new one.

Lines on stdin: `rate PER_S`, `size BYTES`, `burst COUNT`, `last` (one more for each topic, after the burst), `finish` (end when
all are confirmed). Lines on stdout: `p n k t` (published for the first time), `c n` (confirmed), `r n` (returned: no queue took it),
`w low high` (numbers that are sent again), `h host port` (connected).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import pika
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import AMQPError

WINDOW: Final = 200
"""The most messages that may be unconfirmed."""

TICK_S: Final = 0.01
FORGOTTEN_S: Final = 20.0
"""Seconds, at least `silence_s`. A message that waits longer for its confirm ends the connection, even if others are confirmed."""
SILENCE_S: Final = 6.0
"""Without a confirm for this many seconds, with some outstanding, the publisher tries the next host."""

ATTEMPT_S: Final = 5.0
BACKOFF_S: Final = 0.2
STATE_S: Final = 5.0
WAIT_S: Final = 60.0


@dataclass
class Journal:
    """The published numbers. Arrays are indexed by the message's number."""

    topics: list[str]
    topic_of: array[int] = field(default_factory=lambda: array("H"))
    sent_ns: array[int] = field(default_factory=lambda: array("q"))
    confirmed: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)
    resent: list[tuple[int, int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    """Numbers that the scenario removed on the broker, or may have. Clients with positions must be told of them."""

    @property
    def count(self) -> int:
        """The number of published messages."""
        return len(self.sent_ns)

    def read_line(self, line: str) -> None:
        """Handle one line of the publisher's output."""
        kind, *numbers = line.split()
        if kind == "p":
            assert int(numbers[0]) == self.count
            self.topic_of.append(int(numbers[1]))
            self.sent_ns.append(int(numbers[2]))
        elif kind == "c":
            self.confirmed.add(int(numbers[0]))
        elif kind == "r":
            self.returned.add(int(numbers[0]))
        elif kind == "w":
            self.resent.append((int(numbers[0]), int(numbers[1])))


class Publisher:
    """The parent's side. Every wait ends with `AssertionError` after `WAIT_S`, unless another timeout is given."""

    def __init__(
        self,
        hosts: list[tuple[str, int]],
        topics: list[str],
        *,
        exchange: str,
        stream: str = "",
        per_s: float = 200,
        size: int = 40,
        user: str = "guest:guest",
        seed: int = 0,
        silence_s: float = SILENCE_S,
        forgotten_s: float = FORGOTTEN_S,
    ) -> None:
        self.journal = Journal(topics)
        flow = {"per_s": per_s, "size": size, "seed": seed, "silence_s": silence_s, "forgotten_s": forgotten_s}
        self._config = {"hosts": hosts, "topics": topics, "exchange": exchange, "stream": stream, "user": user, **flow}
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="journal", daemon=True)
        self._states, self._state = 0, "It did not say how it is."

    def start(self) -> Self:
        """Start publishing."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.publisher", json.dumps(self._config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self._reader.start()
        return self

    def rate(self, per_s: float) -> None:
        """Publish this many per second from now on. 0 pauses."""
        self._say(f"rate {per_s}")

    def size(self, size: int) -> None:
        """Set the filler bytes of later messages."""
        self._say(f"size {size}")

    def burst(self, count: int, within_s: float = WAIT_S) -> None:
        """Publish this many more as fast as the broker confirms them. Returns once they are confirmed."""
        with self._changed:
            before = self.journal.count
        self._say(f"burst {count}")
        self._wait(lambda: self.journal.count >= before + count and self._settled(), within_s)

    def publish(self, count: int = 1) -> None:
        """Publish this many more. Returns at once."""
        self._say(f"burst {count}")

    def wait_for(self, more: int, within_s: float = WAIT_S) -> None:
        """Wait until this many more numbers were confirmed."""
        with self._changed:
            goal = len(self.journal.confirmed) + more
        self._wait(lambda: len(self.journal.confirmed) >= goal, within_s)

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Numbers published inside this block may be lost on the broker."""
        with self._changed:
            first = self.journal.count
        yield
        with self._changed:
            self.journal.gone.update(range(first, self.journal.count))

    def last_round(self, within_s: float = WAIT_S) -> None:
        """Stop the flow, publish one more message for each topic, and wait until all are confirmed."""
        with self._changed:
            before = self.journal.count
        self._say("rate 0")
        self._say("last")
        self._wait(lambda: self.journal.count >= before + len(self.journal.topics) and self._settled(), within_s)

    def stop(self) -> None:
        """End the process. Unconfirmed numbers stay unconfirmed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join(WAIT_S)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _settled(self) -> bool:
        return len(self.journal.confirmed) == self.journal.count

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _wait(self, done: Any, within_s: float) -> None:
        with self._changed:
            if self._changed.wait_for(done, within_s):
                return
            before, journal = self._states, self.journal
            self._say("state")
            self._changed.wait_for(lambda: self._states > before, STATE_S)
            raise AssertionError(
                f"the publisher waited {within_s:g} s: {journal.count} published, {len(journal.confirmed)} confirmed. {self._state}"
            )

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                if line.startswith("s "):
                    self._states, self._state = self._states + 1, line[2:].strip()
                else:
                    self.journal.read_line(line)
                self._changed.notify_all()


class _Worker:
    """The child: one connection at a time, on pika's own loop."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._hosts = [(str(host), int(port)) for host, port in config["hosts"]]
        self._topics: list[str] = config["topics"]
        self._exchange, self._stream = config["exchange"], config["stream"]
        self._user, _, self._password = config["user"].partition(":")
        self._per_s, self._size = float(config["per_s"]), int(config["size"])
        self._random = random.Random(config["seed"])
        self._silence_s = float(config["silence_s"])
        self._forgotten_s = max(float(config["forgotten_s"]), self._silence_s)
        self._run = f"{os.getpid()}-{time.time_ns():x}"
        self._commands: deque[str] = deque()
        self._due = 0.0
        self._burst = 0
        self._last = self._finish = False
        self._unconfirmed: dict[int, tuple[str, bytes]] = {}
        self._resend: deque[int] = deque()
        self._tags: dict[int, tuple[int, float]] = {}  # delivery tag -> number, and when it was sent
        self._next = 0
        self._tried = 0
        self._channel: Any = None
        self._tag = 0
        self._heard = self._ticked = 0.0
        self._failed = self._refused = ""

    def work(self) -> None:
        """Publish until `finish`."""
        threading.Thread(target=self._read_stdin, daemon=True).start()
        while not (self._finish and not self._unconfirmed):
            host, port = self._hosts[self._tried % len(self._hosts)]
            self._tried += 1
            self._connect(host, port)
            time.sleep(BACKOFF_S)  # the publisher's own backoff

    def _read_stdin(self) -> None:
        for line in sys.stdin:
            if line == "state\n":  # answered here, also while nothing else works
                _say(f"s {self._state}")
                sys.stdout.flush()
            else:
                self._commands.append(line.strip())
        self._commands.append("finish")

    @property
    def _state(self) -> str:
        now = time.monotonic()
        oldest = min((at for _, at in list(self._tags.values())), default=now)
        return (
            f"connection {self._tried} {'open' if self._channel is not None else 'not open'}, {len(self._unconfirmed)} unconfirmed, "
            f"{len(self._resend)} to send again, {len(self._tags)} sent and {now - oldest:.1f} s old, heard {now - self._heard:.1f} s ago, "
            f"ticked {now - self._ticked:.1f} s ago, next {self._next}, due {self._due:.1f} at {self._per_s:g}/s, burst {self._burst}, "
            f"last {self._last}, {len(self._commands)} commands; connection ended: {self._failed or 'never'}; "
            f"channel closed: {self._refused or 'never'}"
        )

    def _connect(self, host: str, port: int) -> None:
        """Run one connection from its start to its end."""
        parameters = pika.ConnectionParameters(
            host, port, "/", pika.PlainCredentials(self._user, self._password), heartbeat=5, connection_attempts=1,
            socket_timeout=ATTEMPT_S, stack_timeout=ATTEMPT_S, blocked_connection_timeout=None,
        )  # fmt: skip
        self._channel = None
        self._tags.clear()  # those of the connection before: nothing confirms them any more
        self._heard = self._ticked = time.monotonic()
        try:
            connection = SelectConnection(
                parameters,
                on_open_callback=self._opened,
                on_open_error_callback=self._closed,
                on_close_callback=self._closed,
            )
            connection.ioloop.call_later(TICK_S, functools.partial(self._tick, connection))
            connection.ioloop.start()
            connection.ioloop.close()
        except (AMQPError, OSError, AttributeError) as error:  # AttributeError: pika's workflow, if a socket ends half-way
            self._failed = repr(error)

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._returned)
        if self._stream:
            # A booting RabbitMQ 3.10 accepts messages before its streams are ready, and never confirms them.
            channel.queue_declare(self._stream, passive=True, callback=lambda _: self._confirm(channel))
        else:
            self._confirm(channel)

    def _confirm(self, channel: Any) -> None:
        channel.confirm_delivery(self._acknowledged, callback=lambda _: self._begin(channel))

    def _begin(self, channel: Any) -> None:
        self._channel, self._tag, self._heard = channel, 0, time.monotonic()
        self._tags.clear()
        self._resend = deque(self._unconfirmed)
        if self._resend:
            _say(f"w {self._resend[0]} {self._resend[-1]}")

    def _closed(self, connection: Any, reason: Exception) -> None:
        self._failed = repr(reason)
        connection.ioloop.stop()

    def _channel_closed(self, channel: Any, reason: Exception) -> None:
        self._channel = None
        self._refused = repr(reason)
        if channel.connection.is_open:
            channel.connection.close()

    def _acknowledged(self, frame: Any) -> None:
        method = frame.method
        self._heard = time.monotonic()
        tags = [tag for tag in self._tags if tag <= method.delivery_tag] if method.multiple else [method.delivery_tag]
        for tag in tags:
            if tag not in self._tags:
                continue
            number, _ = self._tags.pop(tag)
            if isinstance(method, pika.spec.Basic.Nack):
                self._resend.append(number)
                _say(f"w {number} {self._next - 1}")
            elif self._unconfirmed.pop(number, None) is not None:
                _say(f"c {number}")
        sys.stdout.flush()

    def _returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        _say(f"r {properties.message_id.rpartition('/')[2]}")

    def _tick(self, connection: Any) -> None:
        now = time.monotonic()
        self._obey()
        self._due = min(self._due + (now - self._ticked) * self._per_s, max(1.0, self._per_s))
        self._ticked = now
        if self._channel is not None:
            self._send()
        if self._finish and not self._unconfirmed:
            connection.ioloop.stop()
            return
        if not self._unconfirmed and self._channel is not None:
            self._heard = now
        # A booting RabbitMQ may forget single messages, and confirm all others.
        _, oldest_at = next(iter(self._tags.values()), (0, now))
        if now - oldest_at > self._forgotten_s or now - self._heard > self._silence_s:
            connection.ioloop.stop()  # the socket is closed with the process's last reference to it
            _abort(connection)
            return
        connection.ioloop.call_later(TICK_S, functools.partial(self._tick, connection))

    def _obey(self) -> None:
        while self._commands:
            name, _, value = self._commands.popleft().partition(" ")
            if name == "rate":
                self._per_s, self._due = float(value), 0.0
            elif name == "size":
                self._size = int(value)
            elif name == "burst":
                self._burst += int(value)
            elif name == "last":
                self._last = True
            elif name == "finish":
                self._finish, self._per_s, self._burst = True, 0.0, 0

    def _send(self) -> None:
        while self._resend and len(self._tags) < WINDOW:
            number = self._resend.popleft()
            if number in self._unconfirmed:
                self._publish(number)
        if self._resend:
            return
        while len(self._tags) < WINDOW and (self._burst or self._due >= 1):
            if self._burst:
                self._burst -= 1
            else:
                self._due -= 1
            self._publish(self._new(self._random.randrange(len(self._topics))))
        if self._last and not self._burst and len(self._tags) < WINDOW:
            self._last = False
            for topic in range(len(self._topics)):
                self._publish(self._new(topic))
        sys.stdout.flush()

    def _new(self, topic: int) -> int:
        number, self._next = self._next, self._next + 1
        sent_ns = time.monotonic_ns()
        body = json.dumps({"n": number, "k": topic, "t": sent_ns, "x": "x" * self._size}, separators=(",", ":")).encode()
        self._unconfirmed[number] = (self._topics[topic], body)
        _say(f"p {number} {topic} {sent_ns}")
        return number

    def _publish(self, number: int) -> None:
        topic, body = self._unconfirmed[number]
        self._tag += 1
        self._tags[self._tag] = number, time.monotonic()
        properties = pika.BasicProperties(message_id=f"{self._run}/{number}", delivery_mode=2, content_type="application/json")
        self._channel.basic_publish(self._exchange, topic, body, properties, mandatory=True)


def _abort(connection: Any) -> None:
    """Close the socket under the connection: a stopped broker would not answer a close."""
    transport = getattr(connection, "_transport", None)
    if transport is not None:
        transport.abort()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    """Run the child."""
    logging.disable(logging.CRITICAL)  # pika's messages about a killed broker are expected
    _Worker(json.loads(sys.argv[1])).work()


if __name__ == "__main__":
    main()
