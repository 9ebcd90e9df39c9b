"""Numbered messages with a time stamp, all of the same length, so that counting bytes counts messages."""

from __future__ import annotations

import time
import zlib

STAMP_AT = len('{"n":"00000000","t":"')
"""The time in a payload: 20 digits of nanoseconds of the monotonic clock, which is the same in every process."""

MARKER = b'"n":"'
"""Occurs once in every message, and nowhere else."""


def payload(number: int, size: int, *, stamp: bool = False) -> bytes:
    """Message `number`, of exactly `size` bytes."""
    head = f'{{"n":"{number:08d}","t":"{time.monotonic_ns() if stamp else 0:020d}","group_name":"jobs","pad":"'
    return f'{head}{"x" * (size - len(head) - 2)}"}}'.encode("ascii")


def frame(data: bytes) -> bytes:
    """One unmasked text frame (RFC 6455 section 5.2). It is implemented here again, so that the measured code does not check itself."""
    size = len(data)
    if size < 126:
        return bytes((0x81, size)) + data
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + data
    return b"\x81\x7f" + size.to_bytes(8, "big") + data


def frame_end(data: bytes, at: int) -> int:
    """The end of the frame that begins at `at`, 0 while its head is incomplete."""
    if len(data) < at + 2:
        return 0
    size = data[at + 1]
    if size < 126:
        return at + 2 + size
    width = 2 if size == 126 else 8
    head = at + 2 + width
    return head + int.from_bytes(data[at + 2 : head], "big") if len(data) >= head else 0


class FrameCounter:
    """Counts a connection's frames, in pieces of any size."""

    def __init__(self) -> None:
        self._head = b""
        self._ahead = 0
        self._within = False

    def count(self, piece: bytes) -> int:
        """How many frames this piece completes."""
        data = self._head + piece
        at, whole = self._ahead, 0
        self._head = b""
        while at <= len(data):
            whole += self._within
            end = frame_end(data, at)
            self._within = bool(end)
            if not end:
                self._head, self._ahead = data[at:], 0
                return whole
            at = end
        self._ahead = at - len(data)
        return whole


def unframe(data: bytes, *, deflated: bool = False) -> list[bytes]:
    """The payloads of whole text frames. Raises `ValueError` for anything else, half a frame at the end included.

    `deflated`: they may be compressed, each on its own (RFC 7692 without context takeover).
    """
    payloads = []
    at = 0
    while at < len(data):
        if data[at] not in ((0x81, 0xC1) if deflated else (0x81,)):
            raise ValueError(f"byte {at} begins no text frame: {data[at : at + 40]!r}")
        end = frame_end(data, at)
        if not end or end > len(data):
            raise ValueError("the last frame is not whole")
        size = data[at + 1]
        found = data[at + (2 if size < 126 else 4 if size == 126 else 10) : end]
        payloads.append(found if data[at] == 0x81 else inflate(found))
        at = end
    return payloads


def split_events(data: bytes) -> list[bytes]:
    """The data of the whole events of a stream. Raises `ValueError` for half an event at the end."""
    *events, rest = data.split(b"\n\n")
    if rest:
        raise ValueError("the last event is not whole")
    return [event.partition(b"data: ")[2] for event in events if event != b":"]


def inflate(data: bytes) -> bytes:
    """The inflated message (RFC 7692 section 7.2.2)."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data + b"\x00\x00\xff\xff")


def numbers(payloads: list[bytes], size: int) -> list[int]:
    """The numbers of the messages. Each is compared with the published bytes, except its stamp. It may be bare or within an event."""
    found = []
    for data in payloads:
        begin = data.index(b'{"n":"')
        message = data[begin : begin + size]
        number = int(message[6:14])
        expected = payload(number, size)
        if message[:STAMP_AT] + bytes(20).translate(b"0" * 256) + message[STAMP_AT + 20 :] != expected:
            raise ValueError(f"message {number} is not what was published: {message[:80]!r}")
        found.append(number)
    return found
