"""Replacements for parts of Autobahn: the state that it keeps per connection, its logger, and its reader of compressed messages.

Shared state: Autobahn gives each connection about fifty attributes at the start, copies thirty options to it, and formats all of them
for a log line even if nobody reads it. Nearly all of these values are the same for every connection, or unused. As attributes
of the class they cost nothing: connect and subscribe take a third less CPU (make bench SCENARIO=storm), and 3 KB less memory.
"""

from __future__ import annotations

import zlib
from collections import deque
from typing import Any

from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.websocket.compress_deflate import PerMessageDeflate
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol

_IMMUTABLE = int | float | str | bytes | None
"""Types whose values can be attributes of the class: no connection can change them in place."""

LARGEST_WINDOW = 15

_TAIL = b"\x00\x00\xff\xff"  # the sender removed it (RFC 7692 section 7.2.1)
_LAST_BLOCK = b"\x01\x00\x00\xff\xff"  # an empty stored block, the last one: it is readable only where a block begins
_BEHIND_LAST = (b"", b"\x00")  # what a sender may put behind its own last block (RFC 7692 section 7.2.3.4)


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
        self._left = 0
        self._empty = True

    def start_decompress_message(self) -> None:
        """Begin a message."""
        self._reader = zlib.decompressobj(-LARGEST_WINDOW)
        self._left = self.max_message_size
        self._empty = True

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        """Inflate the next piece. The bound counts over all pieces; Autobahn's `max_output_len` is not used."""
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
        if not whole:
            raise PayloadCorruptError("the deflate stream has no end, or something behind it")

    def _inflate(self, data: bytes, at_most: int) -> bytes:
        try:
            inflated: bytes = self._reader.decompress(data, at_most)
        except zlib.error as error:
            raise PayloadCorruptError(str(error)) from None
        return inflated
