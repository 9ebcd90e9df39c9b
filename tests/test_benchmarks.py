from __future__ import annotations

import zlib
from itertools import accumulate, cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.messages import FrameCounter, frame, unframe


def deflated(message: bytes) -> bytes:
    """A message of less than 126 bytes as a compressed frame (RFC 7692 section 7.2.1)."""
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = (squeeze.compress(message) + squeeze.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    return bytes((0xC1, len(body))) + body


@given(st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536])), st.lists(st.integers(1, 70_000), min_size=1))
def test_frames_are_counted_whatever_the_pieces(sizes: list[int], pieces: list[int]) -> None:
    """The load generator counts each frame once, and only when it is whole."""
    stream = b"".join(frame(bytes(size)) for size in sizes)
    ends = list(accumulate(len(frame(bytes(size))) for size in sizes))
    counter, counted, at = FrameCounter(), 0, 0
    for piece in cycle(pieces):
        if at >= len(stream):
            break
        counted += counter.count(stream[at : at + piece])
        at += piece
        assert counted == sum(end <= at for end in ends)


def test_only_what_may_be_compressed_is_inflated() -> None:
    """A compressed frame is read where compression was negotiated, and is an error elsewhere."""
    stream = deflated(b"x" * 500) + frame(b"plain")
    assert unframe(stream, deflated=True) == [b"x" * 500, b"plain"]
    with pytest.raises(ValueError, match="begins no text frame"):
        unframe(stream)
