"""A reader of event streams, by the letter of WHATWG HTML section 9.2.6, and a client on a plain socket."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

from tests.kit.daemon import DEADLINE_S


@dataclass
class Event:
    """One event. `id` and `retry` are None if it has none; in `EventReader.last_id` an id stays."""

    kind: str
    data: str
    id: str | None
    retry: int | None

    @property
    def frame(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data)


class EventReader:
    """Takes the stream's bytes in pieces, and gives its events."""

    def __init__(self) -> None:
        self._text = b""
        self._fields: list[tuple[str, str]] = []
        self.comments = 0
        self.last_id: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now."""
        self._text += data
        held = b"\r" if self._text.endswith(b"\r") else b""  # its line feed may follow
        *lines, rest = re.split(rb"\r\n|\n|\r", self._text.removesuffix(held))
        self._text = rest + held
        return [event for line in lines if (event := self._line(line.decode())) is not None]

    def _line(self, line: str) -> Event | None:
        if line.startswith(":"):
            self.comments += 1
        elif line:
            name, _, value = line.partition(":")
            self._fields.append((name, value.removeprefix(" ")))
        elif self._fields:
            return self._event()
        return None

    def _event(self) -> Event | None:
        fields, self._fields = self._fields, []
        found: dict[str, str] = dict(fields)
        assert found.keys() <= {"event", "data", "id", "retry"}, fields
        data = "\n".join(value for name, value in fields if name == "data")
        self.last_id = found.get("id", self.last_id)
        retry = int(found["retry"]) if "retry" in found else None
        return Event(found.get("event", "message"), data, found.get("id"), retry) if "data" in found else None


def read_events(data: bytes) -> list[Event]:
    """The events of a whole stream."""
    return EventReader().feed(data)


class StreamClient:
    """Reads a daemon's event stream on a plain socket, and resumes when told. `numbers` are those of the payloads.

    It speaks HTTP/1.0, so that no proxy on the way sends chunks.
    """

    def __init__(self, port: int, path: str, *headers: str, timeout_s: float = DEADLINE_S) -> None:
        self._port, self._path, self._timeout_s = port, path, timeout_s
        self.headers = headers
        self.events: list[Event] = []
        self.status = 0
        self.head = b""
        self.last_id: str | None = None
        self.reader = EventReader()
        self._leave = ExitStack()

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self._leave.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self._leave.close()

    def open(self) -> Self:
        """Connect, with the last id if there is one. Returns once the head has come."""
        self._socket = self._leave.enter_context(socket.create_connection(("127.0.0.1", self._port), self._timeout_s))
        last = [] if self.last_id is None else [f"Last-Event-ID: {self.last_id}"]
        lines = [f"GET {self._path} HTTP/1.0", "Host: localhost", *self.headers, *last, "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError(data)
            data += more
        self.head, _, body = data.partition(b"\r\n\r\n")
        self.status = int(self.head[9:12])
        self.reader = EventReader()
        self._take(body)
        return self

    def _take(self, data: bytes) -> None:
        self.events += self.reader.feed(data)
        self.last_id = self.reader.last_id or self.last_id

    def read(self) -> bool:
        """Read more. False at the end of the stream."""
        try:
            data = self._socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self._take(data)
        return data != b""

    def until(self, kind: str, count: int = 1) -> Event:
        """Read until there are so many events of this kind. Returns the newest of them."""
        while len(found := [event for event in self.events if event.kind == kind]) < count:
            assert self.read(), self.events[-5:]
        return found[-1]

    def until_end(self) -> None:
        """Read until the stream ends."""
        while self.read():
            pass
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._leave.close()

    @property
    def numbers(self) -> list[Any]:
        """The numbers in the payloads of the deliveries so far."""
        return [event.frame["payload"]["n"] for event in self.events if event.kind == "message"]


class StreamFollower:
    """A client that comes back by itself, with its last id, as an EventSource does. It takes a silence of `silence_s` for a dead link.

    `token` gives the token for each connection. Use it as a context manager.
    """

    def __init__(self, port: int, path: str, *, token: Callable[[], str] | None = None, silence_s: float = DEADLINE_S) -> None:
        self._client = StreamClient(port, path, timeout_s=silence_s)
        self._token = token
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="StreamFollower")
        self.statuses: list[int] = []
        """The HTTP statuses of its connections."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        while not self._stop.wait(0.05):  # its backoff
            with suppress(OSError):
                if self._token is not None:
                    self._client.headers = (f"Authorization: Bearer {self._token()}",)
                self._client.open()
                self.statuses.append(self._client.status)
                while self._client.read() and not self._stop.is_set():
                    with self._news:
                        self._news.notify_all()
            self._client.close()

    @property
    def numbers(self) -> list[Any]:
        """The numbers in the payloads of the deliveries so far."""
        return self._client.numbers

    def frames(self, kind: str) -> list[Any]:
        """The frames of this kind so far."""
        return [event.frame for event in list(self._client.events) if event.kind == kind]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true."""
        give_up = time.monotonic() + DEADLINE_S
        with self._news:
            while not condition():
                left_s = give_up - time.monotonic()
                assert left_s > 0, f"it did not come within {DEADLINE_S} s: {self.numbers[-5:]}, {self.statuses[-5:]}"
                self._news.wait(left_s)

    def until_subscribed(self) -> None:
        """Wait for the first answer."""
        self.until_recovered(0)

    def until_recovered(self, count: int) -> None:
        """Wait until it has resumed this many times."""
        self.until(lambda: len(self.frames("subscribed")) > count)

    def until_number(self, number: int) -> None:
        """Wait for the event with this number, or a later one."""
        self.until(lambda: self.numbers[-1:] >= [number])
