from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import read_frames
from towerws.core.frames import text_frame


@pytest.mark.parametrize(
    ("octets", "head"),
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
def test_the_length_is_written_in_its_shortest_form(octets: int, head: str) -> None:
    """FIN and text, no mask, and 7, 16 or 64 bits of length (RFC 6455 section 5.2)."""
    payload = b"x" * octets
    assert text_frame(payload) == bytes.fromhex(head) + payload


def test_the_rfcs_own_example() -> None:
    """RFC 6455 section 5.7: a single-frame unmasked text message."""
    assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")


@given(st.lists(st.binary() | st.integers(100, 140).map(bytes) | st.integers(65530, 65540).map(bytes), max_size=5))
def test_frames_put_together_are_read_one_by_one(payloads: list[bytes]) -> None:
    """Joined frames are the same messages, octet for octet."""
    assert read_frames(b"".join(map(text_frame, payloads))) == payloads
