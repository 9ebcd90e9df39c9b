"""Replacements for parts of Autobahn: its state per connection, its logger, its reader of compressed messages, and its timers.

Shared state: Autobahn gives each connection about fifty attributes at the start, and copies thirty options to it. It formats all of them
for a log line even if nobody reads it. Nearly all of these values are the same for every connection, or unused. As attributes
of the class they cost nothing: connect and subscribe take a third less CPU (make bench SCENARIO=storm), and 3 KB less memory.

Timers of many connections (pings, pongs and handshakes) replace txaio's batched timer. txaio's timer fires up to a second early. It makes
up to a thousand calls in one iteration of the reactor, and beyond those it calls cancelled timers, too. To cancel one it scans all timers
of a second. A timer of this module is never early, and at most `GRAIN_S` late. One iteration makes at most `MAX_CALLS` calls. Cancelling
has a constant cost: to make and cancel a timer takes 2 µs instead of 7, and each connection does it once.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.websocket.compress_deflate import PerMessageDeflate
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_IMMUTABLE = int | float | str | bytes | None
"""Types whose values can be attributes of the class: no connection can change them in place."""

LARGEST_WINDOW = 15

_TAIL = b"\x00\x00\xff\xff"  # the sender removed it (RFC 7692 section 7.2.1)
_LAST_BLOCK = b"\x01\x00\x00\xff\xff"  # an empty stored block, the last one: it is readable only where a block begins
_BEHIND_LAST = (b"", b"\x00")  # what a sender may put behind its own last block (RFC 7692 section 7.2.3.4)

GRAIN_S = 0.25
"""Timers that are due within the same span of this length fire together, at its end."""

MAX_CALLS = 100
"""The most timers that fire in one iteration of the reactor. A ping costs about 50 µs."""


class NullLogger:
    """Replaces Autobahn's logger, which formats several debug lines per write and repeats what clients sent."""

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        pass

    trace = debug = info = warn = error = failure = _drop


class _UnusedDeferred:
    """Replaces the two Deferreds that Autobahn fires when a connection opens and closes. Nothing here uses them."""

    def callback(self, result: object) -> None:
        """Do nothing."""


def with_shared_state(base: Any, factory: Any) -> Any:
    """Return a subclass of `base` that holds the options of `factory` and Autobahn's initial state as class attributes.

    Two things stay per connection: the handshake's timer, which `connectionMade` makes, and the UTF-8 validator, which is made on
    demand.
    """
    options = {name: getattr(factory, name) for name in base.CONFIG_ATTRS}
    # A plain function would become a method.
    options = {name: staticmethod(value) if callable(value) else value for name, value in options.items()}
    shared = {
        "trafficStats": TrafficStats(),
        "send_queue": deque(),  # stays empty: only chopped sends are queued
        "is_open": _UnusedDeferred(),
        "is_closed": _UnusedDeferred(),
        "_transport_details": None,
        "utf8validator": None,
    }
    probe = type(base.__name__, (base,), {**options, "CONFIG_ATTRS": (), "openHandshakeTimeout": 0})()
    probe.factory = factory
    WebSocketProtocol._connectionMade(probe)  # noqa: SLF001 - the attributes that it sets are the initial state
    start = {name: value for name, value in vars(probe).items() if isinstance(value, _IMMUTABLE) and name != "factory"}
    return type(base.__name__, (base,), {**start, **options, **shared, "CONFIG_ATTRS": ()})


class Inflater(PerMessageDeflate):
    """Inflates the messages of one client (RFC 7692) exactly: a message is complete and within its bound, or it is refused.

    Autobahn's own reader truncates a message that is up to 256 bytes too long. It also accepts a stream without an end, or
    with data behind its end. This reader holds no memory between messages: a window takes 32 KiB, and clients send rarely.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` bounds the inflated message. A longer one raises `PayloadExceededError`, and the rest is not inflated."""
        super().__init__(True, True, True, LARGEST_WINDOW, LARGEST_WINDOW, None, max_bytes)
        self.max_wire_bytes = max_bytes + (max_bytes + 7 >> 3) + (max_bytes + 63 >> 6) + 11
        """The longest compressed form of `max_bytes` bytes (zlib's `deflateBound`)."""
        self._reader: Any = None
        self.wire: list[bytes] = []
        """The compressed bytes of the unfinished message: another process reads them again (websocket/movable.py)."""
        self._left = 0
        self._empty = True

    def start_decompress_message(self) -> None:
        """Begin a message."""
        self._reader = zlib.decompressobj(-LARGEST_WINDOW)
        self.wire = []
        self._left = self.max_message_size
        self._empty = True

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        """Inflate the next piece. The bound counts over all pieces; Autobahn's `max_output_len` is not used."""
        self.wire.append(data)
        inflated = self._inflate(data, self._left + 1)  # one byte more than allowed shows what zlib would hold back
        self._empty = self._empty and not data
        self._left -= len(inflated)
        if self._left < 0:
            raise PayloadExceededError("the message is too long")
        return inflated

    def end_decompress_message(self) -> None:
        """End the message. Raises `PayloadCorruptError` if its stream is incomplete or has data behind its end."""
        reader = self._reader
        if reader.eof:
            whole = reader.unused_data in _BEHIND_LAST
        else:
            # zlib writes nothing at all for the second empty message in a row.
            surplus = b"" if self._empty else self._inflate(_TAIL, 1) + self._inflate(_LAST_BLOCK, 1)
            whole = self._empty or (reader.eof and not reader.unused_data and not surplus)
        self._reader = None
        self.wire = []
        if not whole:
            raise PayloadCorruptError("the deflate stream has no end, or something behind it")

    def _inflate(self, data: bytes, at_most: int) -> bytes:
        try:
            inflated: bytes = self._reader.decompress(data, at_most)
        except zlib.error as error:
            raise PayloadCorruptError(str(error)) from None
        return inflated


class Timer:
    """A scheduled call.

    A timer has only the number of its bucket. A reference to the bucket would be a cycle, which stays until a full garbage
    collection: 5.7 MiB a minute with pings to 18,000 connections.
    """

    __slots__ = ("_call", "_grain", "_timers")

    def __init__(self, timers: Timers, grain: int, call: Callable[[], object]) -> None:
        self._timers = timers
        self._grain = grain
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Cancel the call. Does nothing after the call, or a second time."""
        if self._call is not None:
            self._call = None
            self._timers.drop(self, self._grain)

    def fire(self) -> None:
        """Make the call, unless it was cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class TimerBucket:
    """Timers that fire together."""

    __slots__ = ("grain", "reactor_call", "timers")

    def __init__(self, grain: int, reactor_call: Any) -> None:
        self.grain = grain
        self.reactor_call = reactor_call
        """The reactor's delayed call for all of them."""
        self.timers: dict[Timer, None] = {}


class Timers:
    """The timers of one factory."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._buckets: dict[int, TimerBucket] = {}  # by the number of the time span before which they are due

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Call this after `delay_s` seconds, or up to `GRAIN_S` later. An exception in the call is logged, and other timers go on."""
        now = self._reactor.seconds()
        grain = int((now + delay_s) / GRAIN_S) + 1
        if (bucket := self._buckets.get(grain)) is None:
            delayed = self._reactor.callLater(grain * GRAIN_S - now, self._fire, grain)
            bucket = self._buckets[grain] = TimerBucket(grain, delayed)
        timer = Timer(self, bucket.grain, call)  # the bucket's own int object, shared by all its timers
        bucket.timers[timer] = None
        return timer

    def drop(self, timer: Timer, grain: int) -> None:
        """Remove a cancelled timer. With the last timer of a bucket, cancel the reactor's call."""
        bucket = self._buckets.get(grain)
        if bucket is not None and bucket.timers.pop(timer, timer) is None and not bucket.timers:
            del self._buckets[grain]
            bucket.reactor_call.cancel()

    def _fire(self, grain: int) -> None:
        self._fire_some(deque(self._buckets.pop(grain).timers))

    def _fire_some(self, due: deque[Timer]) -> None:
        for _ in range(min(MAX_CALLS, len(due))):
            try:
                due.popleft().fire()
            except Exception:  # noqa: BLE001 - one connection's failure must not stop the others' timers
                self._log.failure("a timer of a connection failed")
        if due:
            self._reactor.callLater(0, self._fire_some, due)
