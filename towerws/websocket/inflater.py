"""Reads what clients compressed (RFC 7692), exactly: a message is whole and within its bound, or it is refused.

Autobahn's own reader cuts a message that is up to 256 bytes too long. It also takes a stream whose end is missing, or that has
something behind its end.
"""

from __future__ import annotations

import zlib
from typing import Any

from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.websocket.compress_deflate import PerMessageDeflate

LARGEST_WINDOW = 15

_TAIL = b"\x00\x00\xff\xff"  # the sender took it away (RFC 7692 section 7.2.1)
_LAST_BLOCK = b"\x01\x00\x00\xff\xff"  # an empty stored block, the last one: it can be read only where a block begins
_BEHIND_LAST = (b"", b"\x00")  # what a sender may put behind a last block of its own (RFC 7692 section 7.2.3.4)


class Inflater(PerMessageDeflate):  # type: ignore[misc]
    """One connection's reader. It holds nothing between messages: a window is 32 KiB, and clients speak rarely.

    A message of more than `max_bytes` bytes once it is inflated raises `PayloadExceededError`, and no more of it is inflated.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(True, True, True, LARGEST_WINDOW, LARGEST_WINDOW, None, max_bytes)
        self.max_wire_bytes = max_bytes + (max_bytes + 7 >> 3) + (max_bytes + 63 >> 6) + 11
        """How long a message of `max_bytes` bytes may be while it is compressed (zlib's `deflateBound`)."""
        self._reader: Any = None
        self._left = 0
        self._empty = True

    def start_decompress_message(self) -> None:
        """A message begins."""
        self._reader = zlib.decompressobj(-LARGEST_WINDOW)
        self._left = self.max_message_size
        self._empty = True

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        """Inflate the next piece. The bound is this reader's own, over all pieces."""
        inflated = self._inflate(data, self._left + 1)  # one more than allowed shows what zlib would hold back
        self._empty = self._empty and not data
        self._left -= len(inflated)
        if self._left < 0:
            raise PayloadExceededError("the message is too long")
        return inflated

    def end_decompress_message(self) -> None:
        """The message is over. `PayloadCorruptError` if its stream is not."""
        reader = self._reader
        if reader.eof:
            whole = reader.unused_data in _BEHIND_LAST
        else:
            # A sender's zlib makes nothing at all of the second empty message in a row.
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
