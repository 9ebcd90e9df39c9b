"""The messages of a benchmark: numbered, stamped, all of one length, so that counting octets counts messages."""

from __future__ import annotations

import time

STAMP_AT = len('{"n":"00000000","t":"')
"""Where the time stands in a payload: 20 digits of nanoseconds of the monotonic clock, the same in every process."""

MARKER = b'"n":"'
"""Stands in every message once and nowhere else."""


def payload(number: int, octets: int, *, stamp: bool = False) -> bytes:
    """Message `number`, of exactly so many octets."""
    head = f'{{"n":"{number:08d}","t":"{time.monotonic_ns() if stamp else 0:020d}","group_name":"jobs","pad":"'
    return f'{head}{"x" * (octets - len(head) - 2)}"}}'.encode("ascii")


def frame(data: bytes) -> bytes:
    """One unmasked text frame (RFC 6455 section 5.2), written here once more: the code measured does not check itself."""
    size = len(data)
    if size < 126:
        return bytes((0x81, size)) + data
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + data
    return b"\x81\x7f" + size.to_bytes(8, "big") + data


def unframe(data: bytes) -> list[bytes]:
    """The payloads of whole text frames; `ValueError` for anything else, half a frame at the end included."""
    payloads = []
    at = 0
    while at < len(data):
        if data[at] != 0x81:
            raise ValueError(f"octet {at} begins no text frame: {data[at : at + 40]!r}")
        size = data[at + 1]
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if at + size > len(data):
            raise ValueError("the last frame is not whole")
        payloads.append(data[at : at + size])
        at += size
    return payloads


def numbers(payloads: list[bytes], octets: int) -> list[int]:
    """The numbers of messages, each compared octet by octet (but its stamp) with what was published; bare or within an event."""
    found = []
    for data in payloads:
        begin = data.index(b'{"n":"')
        message = data[begin : begin + octets]
        number = int(message[6:14])
        expected = payload(number, octets)
        if message[:STAMP_AT] + bytes(20).translate(b"0" * 256) + message[STAMP_AT + 20 :] != expected:
            raise ValueError(f"message {number} is not what was published: {message[:80]!r}")
        found.append(number)
    return found
