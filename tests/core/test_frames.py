from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.fakes import read_frames
from tests.kit.rows import each_row
from tests.kit.ws_kit import frame
from towerws.core.frames import text_frame, whole_text


@each_row(
    ("raw", "head"),
    [
        (0, "8100"),
        (1, "8101"),
        (125, "817d"),
        (126, "817e007e"),
        (127, "817e007f"),
        (65535, "817effff"),
        (65536, "817f0000000000010000"),
        (2**20, "817f0000000000100000"),
    ],
)
def test_the_length_is_written_in_its_shortest_form(raw: int, head: str) -> None:
    """FIN and text, no mask, and 7, 16 or 64 bits of length (RFC 6455 section 5.2)."""
    payload = b"x" * raw
    assert text_frame(payload) == bytes.fromhex(head) + payload


def test_the_rfcs_own_example() -> None:
    """RFC 6455 section 5.7: a single-frame unmasked text message."""
    assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")


@given(st.lists(st.binary() | st.integers(100, 140).map(bytes) | st.integers(65530, 65540).map(bytes), max_size=5))
def test_frames_put_together_are_read_one_by_one(payloads: list[bytes]) -> None:
    """Joined frames are the same messages, byte for byte."""
    assert read_frames(b"".join(map(text_frame, payloads))) == payloads


MAX_BYTES = 65536


@given(st.text(max_size=200) | st.integers(120, 130).map("x".__mul__) | st.integers(65530, 65536).map("x".__mul__))
def test_a_whole_text_message_is_read(message: str) -> None:
    """One masked text frame in UTF-8, with 7 or 16 bits of length, gives its payload."""
    payload = message.encode()
    assert whole_text(frame(1, payload), MAX_BYTES) == (payload if len(payload) < 65536 else None)


@each_row(
    "raw",
    [
        b"",
        b"\x81",
        b"\x81\x80\0\0\0",
        frame(1, b"x", fin=False),
        frame(1, b"x", rsv=4),
        frame(0, b"x"),
        frame(2, b"x"),
        frame(8, b"\x03\xe8"),
        frame(9, b"x"),
        frame(1, b"x", masked=False),
        frame(1, b"x" * 200, masked=False),
        frame(1, b"x" * 65536),
        frame(1, b"\xff"),
        frame(1, b"\xed\xa0\x80"),
        frame(1, b"x")[:-1],
        frame(1, b"x") + b"\x81",
        frame(1, b"x") * 2,
        frame(1, b"x", raw=2),
        b"\x81\xfe\x00\x05" + bytes(4) + b"short",
        b"\x81\xff" + (119).to_bytes(8) + bytes(4) + b"x" * 119,
        b"\x81\xff" + bytes(131),
    ],
)
def test_other_frames_are_left_to_autobahn(raw: bytes) -> None:
    """Fragments, other opcodes, extensions, frames without a mask, lengths in a longer form than needed, more or less than one frame."""
    assert whole_text(raw, MAX_BYTES) is None


def test_a_message_over_the_bound_is_left_to_autobahn() -> None:
    """It ends the connection with 1009."""
    assert whole_text(frame(1, b"x" * 100), 100) == b"x" * 100
    assert whole_text(frame(1, b"x" * 101), 100) is None


@given(st.binary(max_size=150))
def test_any_bytes_are_read_as_another_reader_reads_them(raw: bytes) -> None:
    """No bytes raise, and what is read is what another reader of frames makes of them."""
    payload = whole_text(raw, MAX_BYTES)
    if payload is not None:
        mask = raw[2:6] if raw[1] < 0xFE else raw[4:8]
        assert raw == frame_with(payload, mask)


def frame_with(payload: bytes, mask: bytes) -> bytes:
    """A text frame with this mask."""
    head = bytes((0x81, 0x80 | len(payload))) if len(payload) < 126 else b"\x81\xfe" + len(payload).to_bytes(2)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
