"""Generated clients: short conversations from a seed, against the edge in memory, while a well-behaved client is connected.

An input is what a client sends at once: random bytes, or a request, a head or frames of a corpus with a change. It is cut into
reads at random. Conversation `number` of `seed` is always the same, so that it can be run alone.
"""

from __future__ import annotations

import gc
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from tests.kit.hostile_heads import hostile_heads
from tests.kit.ws_kit import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WALL, Client, Edge, Edges, close, edges, frame, request, text
from towerws.auth.base import Refused, Unavailable
from towerws.auth.chain import Open
from towerws.core.errors import CloseReason
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import Secret

INPUT_S = 0.05
"""Seconds of our CPU time that one input may cost."""

HEAP_BYTES = 5 * 1024**2
"""Bytes that all of them together may leave."""

HTTP_STATUSES = {101, 400, 403, 404, 405, 426, 431, 503, 505}
SERVER_CODES = {1002, 1007} | {reason.value.code for reason in CloseReason}
"""docs/protocol.md lists them. The only other codes are echoes of the client's own."""

TOKEN = "c5rf"

HEADS = [
    *(
        request(path, v1=v1)
        for path in ("/websocket/", "/websocket", "/a/websocket/?token=x", "/websocket/?session_key=y")
        for v1 in (False, True)
    ),
    request(added=["Cookie: sessionid=s; csrftoken=c", "Origin: https://tower.example.com", "User-Agent: x"]),
    request(added=["Sec-WebSocket-Protocol: chat, towerws.v1", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]),
    request(added=["X-Forwarded-For: 203.0.113.1, 192.0.2.1", "Authorization: Bearer a.b.c"]),
    request(without=["Upgrade"]),
    request("/websocket/relay/"),
    request().replace(b"GET", b"POST"),
    request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    *(hostile.raw for hostile in hostile_heads()),
]

MESSAGES = [
    '{"groups": {"job_events": [1, 2, "3"], "jobs": ["status_changed", "summary"], "control": ["limit_reached_1"]}, "xrftoken": "c5rf"}',
    '{"groups": {}}',
    '{"groups": {"job_events": [1]}, "since": "0-1-abcdef", "id": {"a": [1]}}',
    '{"groups": {"job_events-42": true}}',
    '{"groups": {"chat": ["#", "*", "a.b", ""]}, "id": 1e999}',
    '{"groups": {"job_events": [1, 1.0, true, null, "abc", -1, 99999999999999999999]}}',
    '{"groups": {"job_events": [1], "job_events": [2]}, "xrftoken": NaN}',
    '{"groups": {"\\ud800": ["\\u0000"]}}',
    "[]",
    "null",
    "",
    "\ufeff{}",
]

LARGE = [text(whole) for whole in ("[" * 60_000, '{"groups":' * 6000, "9" * 60_000, '{"a":1,' * 9000, "x" * 65_536, "x" * 65_537)]

INTERESTING = [
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b" ",
    b"\x0b",
    b"\xed\xa0\x80",
    b"\xff" * 8,
    b"\x81\xfe\xff\xff",
    b":",
    b'"',
    b"{",
    b"[",
]


@dataclass(frozen=True)
class Step:
    """One step: `send` (the reads of one input), `wait` so many seconds, `stall`, `read`, `publish` or `decide`."""

    what: str
    reads: tuple[bytes, ...] = ()
    seconds: float = 0


@dataclass(frozen=True)
class Conversation:
    """The steps of one client, and the result of its authentication: `in`, `cookie`, `later`, `nobody`, `refused` or `unavailable`."""

    mood: str
    steps: tuple[Step, ...]


class Generator:
    """Makes conversations."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def conversation(self, number: int) -> Conversation:
        """The conversation with this number."""
        random = Random(f"{self._seed}/{number}")
        mood = random.choices(["in", "cookie", "later", "nobody", "refused", "unavailable"], [60, 15, 15, 3, 4, 3])[0]
        if number < len(HEADS):
            first = Step("send", (HEADS[number],))  # each head once, unchanged
        else:
            first = self._send(random, self._head(random)) if random.random() < 0.2 else Step("send", (random.choice(HEADS[:10]),))
        steps = [first]
        for _ in range(random.choice([0, 1, 2, 3, 5, 8])):
            what = random.choices(["send", "wait", "stall", "read", "publish", "decide"], [70, 8, 3, 3, 8, 8])[0]
            seconds = random.choice([0.25, 0.25, 1, 3, 11, 21]) if what == "wait" else 0
            steps.append(self._send(random, self._frames(random)) if what == "send" else Step(what, seconds=seconds))
        return Conversation(mood, tuple(steps))

    def _send(self, random: Random, raw: bytes) -> Step:
        size = len(raw)
        how = random.random()
        if how < 0.5 or size < 2:
            cuts: Sequence[int] = ()
        elif how < 0.9:
            cuts = sorted(random.randrange(size) for _ in range(random.choice([1, 1, 2, 5, 8])))
        else:
            cuts = range(0, size, random.choice([1, 2, 7]) if size < 600 else 1 + size // 20)
        return Step("send", tuple(raw[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)))

    def _head(self, random: Random) -> bytes:
        kind = random.random()
        if kind < 0.1:
            return random.randbytes(random.choice([1, 10, 100, 1000]))
        if kind < 0.15:
            return b"GET /websocket/ HTTP/1.1\r\nX: " + b"a" * random.randrange(20_000)
        raw = random.choice(HEADS)
        return raw if kind < 0.4 else self._changed(random, raw)

    def _frames(self, random: Random) -> bytes:
        kind = random.random()
        if kind < 0.1:
            return random.randbytes(random.choice([1, 2, 5, 20, 200]))
        raw = b"".join(self._frame(random) for _ in range(random.choice([1, 1, 1, 2, 3])))
        if kind < 0.12 and len(raw) < 400:
            raw *= random.choice([10, 50, 100])
        return raw if kind < 0.6 else self._changed(random, raw)

    def _frame(self, random: Random) -> bytes:
        kind = random.random()
        if kind < 0.45:
            return self._message(random)
        if kind < 0.6:
            return frame(random.choice([PING, PONG]), random.randbytes(random.choice([0, 1, 125, 126])))
        if kind < 0.7:
            code = random.choice([0, 999, *range(1000, 1016), 2999, 3000, 4999, 5000, 65535])
            return random.choice(
                [close(code), frame(CLOSE), frame(CLOSE, b"x"), frame(CLOSE, struct.pack("!H", 1000) + random.randbytes(9))]
            )
        if kind < 0.8:
            return frame(
                random.choice([TEXT, BINARY, CONTINUATION, PING]), raw=random.choice([0, 125, 126, 65535, 65536, 2**31, 2**63 - 1])
            )
        if kind < 0.81:
            return random.choice(LARGE)
        return frame(
            random.randrange(16),
            random.randbytes(random.choice([0, 1, 125, 126, 300])),
            fin=random.random() < 0.6,
            rsv=random.choice([0, 0, 0, 1, 4, 7]),
            masked=random.random() < 0.8,
        )

    def _message(self, random: Random) -> bytes:
        payload = random.choice(MESSAGES).encode("utf-8", "surrogatepass")
        if random.random() < 0.4:
            payload = self._changed(random, payload)
        opcode = BINARY if random.random() < 0.05 else TEXT
        if random.random() < 0.8:
            return frame(opcode, payload)
        at = random.randrange(len(payload) + 1)
        middle = frame(CONTINUATION, fin=False) * random.choice([0, 1, 30, 62, 63, 64])
        return frame(opcode, payload[:at], fin=False) + middle + frame(CONTINUATION, payload[at:])

    def _changed(self, random: Random, raw: bytes) -> bytes:
        for _ in range(random.choice([1, 1, 2, 4])):
            at = random.randrange(len(raw) + 1)
            to = min(len(raw), at + random.choice([1, 2, 8, 40]))
            how = random.randrange(6)
            if how == 0 and at < len(raw):
                raw = raw[:at] + bytes((raw[at] ^ 1 << random.randrange(8),)) + raw[at + 1 :]
            elif how == 1:
                raw = raw[:at] + raw[to:]
            elif how == 2:
                raw = raw[:to] + raw[at:]
            elif how == 3:
                raw = raw[:at] + random.choice(INTERESTING) + raw[at:]
            elif how == 4:
                raw = raw[:at] + random.choice(INTERESTING) + raw[to:]
            else:
                raw = raw[:at]
        return raw


class ChosenAnswer(Open):
    """A method that authenticates as the conversation says."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.mood = "bystander"
        self._waiting: list[tuple[Deferred[Any], Any]] = []
        self._now = now

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """The user, now or later."""
        if self.mood == "bystander":
            return succeed(Identity(8))
        if self.mood == "refused":
            return fail(Refused("no"))
        if self.mood == "unavailable":
            return fail(Unavailable("not now"))
        if self.mood == "nobody":
            return succeed(None)
        cookie = self.mood == "cookie"
        expires_at = self._now() + 20 if self.mood == "later" else None
        return self._answer(Identity(7, session="5e55", cookie=cookie, csrftoken=Secret(TOKEN) if cookie else None, expires_at=expires_at))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """A topic that ends with 2 is refused."""
        return self._answer({topic: "no" for topic in topics if topic.endswith("2")})

    def _answer(self, result: Any) -> Deferred[Any]:
        if self.mood != "later":
            return succeed(result)
        asked: Deferred[Any] = Deferred()
        self._waiting.append((asked, result))
        return asked

    def decide(self) -> None:
        """Answer all pending questions, also those that were cancelled."""
        waiting, self._waiting = self._waiting, []
        for asked, result in waiting:
            if not asked.called:
                asked.callback(result)


class FuzzTarget:
    """The edge, the well-behaved client, and the checks after every input and every conversation."""

    def __init__(self, make: Edges) -> None:
        self.make = make
        clock = make.clock
        self._method = ChosenAnswer(lambda: WALL + clock.seconds())
        self.edge: Edge = make(self._method)
        self.edge.factory.log_of_connections.line = self._note  # type: ignore[method-assign]
        self.edge.context.credential_monitor.start()
        self.bystander = self.edge.open(v1=True)
        self.bystander.ask({"jobs": ["status_changed"]})
        assert self.bystander.take()[0]["type"] == "subscribed"
        self._pongs = 0
        self._published = 0
        self.inputs = 0
        """The inputs that were sent. A client that was refused or closed sends no more."""
        self.slowest_s = 0.0
        self.statuses: dict[int, int] = {}
        self._ended = ""
        """The reason in the log for the end of the last open connection. When there are very many, the log leaves some out."""
        self.codes: dict[int | None, int] = {}
        self._timers: int | None = None
        self.settle()
        self._timers = len(clock.getDelayedCalls())

    def _note(self, text: str, **fields: object) -> None:
        if "reason" in fields:
            self._ended = str(fields["reason"])

    def run(self, conversation: Conversation) -> None:
        """Run the conversation. Raises any failure that it causes."""
        self._method.mood = conversation.mood
        self._ended = ""
        client = self.edge.connect()
        self.edge.clients.pop()
        for step in conversation.steps:
            self._take(step, client)
        client.transport.stalled = False
        client.transport.drain()
        client.hang_up()
        self._method.decide()
        self.make.clock.advance(0)
        self._check(client)

    def cost(self, conversation: Conversation) -> float:
        """The CPU time of its slowest input."""
        self.slowest_s = 0.0
        self.run(conversation)
        return self.slowest_s

    def _take(self, step: Step, client: Client) -> None:
        if step.what == "send":
            self.inputs += client.transport.reading and not client.transport.lost
            started = time.thread_time()
            client.send(*step.reads)
            self.slowest_s = max(self.slowest_s, time.thread_time() - started)
        elif step.what == "wait":
            self._pass(step.seconds)
        elif step.what == "publish":
            self.edge.publish("job_events.1", {"x": "y" * 50_000})
        elif step.what == "decide":
            self._method.decide()
        else:
            client.transport.stalled = step.what == "stall"
            if not client.transport.stalled:
                client.transport.drain()

    def _pass(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.make.clock.advance(0.25)
            self._answer_pings()

    def _answer_pings(self) -> None:
        pings = self.bystander.control(PING)
        self.bystander.frames = [found for found in self.bystander.frames if found[0] != PING]
        for ping in pings:
            self.bystander.send(frame(PONG, ping))

    def _check(self, client: Client) -> None:
        assert not self.make._failures, self.make._failures[0]
        if client.transport.received:
            status = client.status
            assert status in HTTP_STATUSES, client.response
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 101:
                self._check_frames(client)
            else:
                head, _, body = client.response.partition(b"\r\n\r\n")
                assert f"Content-Length: {len(body)}\r\n".encode() in head, "one answer, and no more"
        edge = self.edge
        assert list(edge.factory.connections) == [self.bystander.connection]
        assert edge.factory.connection_limits.present == 1
        assert edge.factory.countConnections == 1
        assert (len(edge.hub.subscribers), edge.hub.topics) == (1, 1)
        self._published += 1
        edge.publish("jobs.status_changed", {"n": self._published})
        assert [event["payload"] for event in self.bystander.take()] == [{"n": self._published}], "the bystander gets each event, once"
        if len(self.bystander.transport.received) > 100_000:
            self.bystander.transport.received = bytearray(self.bystander.response)
            self.bystander._read = len(self.bystander.response)

    def _check_frames(self, client: Client) -> None:
        assert all(isinstance(message, dict) for message in client.take())
        code = client.close_code()
        self.codes[code] = self.codes.get(code, 0) + 1
        if self._ended.startswith("closed with "):
            assert code in SERVER_CODES, (code, self._ended)
            assert self._ended.startswith(f"closed with {code} ")
        elif code is not None:
            # A close is echoed, also one without a code.
            assert self._ended == f"closed by the client with {None if code == 1005 else code}", (code, self._ended)
            assert code in CLIENT_CODES

    def settle(self) -> None:
        """Let all timers of ended connections run out. No timer and no unhandled error may be left."""
        self._pass(31)
        timers = [str(call) for call in self.make.clock.getDelayedCalls()]
        failures = self.make.failures()
        assert not failures, failures
        assert self._timers in (None, len(timers)), timers


@contextmanager
def fuzz_target() -> Iterator[FuzzTarget]:
    """An fuzz_target in memory. Nothing is left of it at the end."""
    with edges() as make:
        made = FuzzTarget(make)
        try:
            yield made
            made.settle()
        finally:
            made.edge.context.credential_monitor.stop()


CLIENT_CODES = {1000, 1001, 1002, 1003, 1005, *range(1007, 1015), *range(3000, 5000)}
"""Codes that a client may send (RFC 6455 section 7.4), and so codes that may be echoed. 1005 stands for no code."""


def heap() -> tuple[int, int]:
    """Blocks of the heap in use, and bytes of the process in memory."""
    for _ in range(3):
        gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * 4096


def fails(conversation: Conversation, spoil: Callable[[FuzzTarget], None] = lambda _: None) -> bool:
    """Whether this conversation alone causes a failure."""
    try:
        with fuzz_target() as alone:
            spoil(alone)
            alone.run(conversation)
    except Exception:  # noqa: BLE001 - whatever it is
        return True
    return False


def smaller(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation with one step, one read or half of a read less."""
    steps = conversation.steps
    for place, step in enumerate(steps):
        before, after = steps[:place], steps[place + 1 :]
        yield Conversation(conversation.mood, before + after)
        for at, raw in enumerate(step.reads):
            less = [raw[: len(raw) // 2], raw[len(raw) // 2 :], raw[1:], raw[:-1]] if len(raw) > 1 else []
            for reads in [(), *((part,) for part in less)]:
                yield Conversation(conversation.mood, (*before, Step("send", step.reads[:at] + reads + step.reads[at + 1 :]), *after))


def shrunk(conversation: Conversation, fails: Callable[[Conversation], bool], tries: int = 2000) -> Conversation:
    """The smallest conversation found that still fails."""
    going = True
    while going:
        going = False
        for candidate in smaller(conversation):
            tries -= 1
            if tries > 0 and fails(candidate):
                conversation, going = candidate, True
                break
    return conversation
