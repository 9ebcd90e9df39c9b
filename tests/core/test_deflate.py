from __future__ import annotations

import json
import zlib
from pathlib import Path

from autobahn.websocket.compress_deflate import PerMessageDeflate
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.linear import LONG_BYTES
from tests.kit.rows import each_row
from towerws.core.deflate import WINDOW_BITS, Deflater, deflated, is_extension_list, negotiate
from towerws.core.deliveries import Delivery
from towerws.core.frames import text_frame
from towerws.core.wire import SUBPROTOCOL, TOWER, V1

PLAIN_ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

EVENTS = [json.dumps(each["payload"]).encode() for each in json.loads((Path(__file__).parents[1] / "data" / "awx-events.json").read_text())]


def inflate(frame: bytes, window_bits: int = WINDOW_BITS) -> bytes:
    """The payload of a frame, as a client reads it that negotiated this window."""
    first, length = frame[0], frame[1]
    payload = frame[{126: 4, 127: 10}.get(length, 2) :]
    assert first & 0xBF == 0x81, "one whole text message"
    if not first & 0x40:
        return payload
    inflater = zlib.decompressobj(-window_bits)
    return inflater.decompress(payload + b"\x00\x00\xff\xff")


@each_row(
    ("offers", "answer"),
    [
        ("permessage-deflate", PLAIN_ANSWER),
        ("permessage-deflate; client_max_window_bits", PLAIN_ANSWER),  # Chromium, Firefox
        (
            "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
            f"{PLAIN_ANSWER}; server_max_window_bits=12",
        ),  # websockets
        ('permessage-deflate; server_max_window_bits="15"', f"{PLAIN_ANSWER}; server_max_window_bits=12"),
        ("Permessage-Deflate;server_no_context_takeover ; client_no_context_takeover", PLAIN_ANSWER),
        ("x-webkit-deflate-frame, permessage-deflate", PLAIN_ANSWER),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", PLAIN_ANSWER),
        ("permessage-deflate; server_max_window_bits=11", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; unheard_of", None),
        ("permessage-bzip2", None),
        ("", None),
        (";,;=,=", None),
        (";;;", None),
        ('foo; bar="a, permessage-deflate, b"', None),
        ('foo; bar="a", permessage-deflate', PLAIN_ANSWER),
        ('foo; bar="a; permessage-deflate"', None),
        ('foo; bar="permessage-deflate', None),
        ('permessage-deflate; client_max_window_bits="1\\5"', None),
        ("permessage-deflate; server_max_window_bits=\u00b2", None),
        (", ,permessage-deflate ,", PLAIN_ANSWER),
        ("permessage-deflate;", None),
        ("permessage-deflate permessage-deflate", None),
        ("permessage-deflate\u00a0", None),
        ("permessage-deflate,\tfoo;a=b", PLAIN_ANSWER),
    ],
)
def test_negotiation(offers: str, answer: str | None) -> None:
    """The first offer that can be met is taken, with the parameters it must be answered with; one with a parameter in doubt is declined."""
    assert negotiate(offers) == answer


@each_row("header", ["", " ", ",", "foo", "foo, bar;a;b=c", 'foo;a="b" , bar', "x-webkit-deflate-frame"])
def test_what_is_a_list_of_extensions(header: str) -> None:
    """RFC 6455 section 9.1, with empty elements."""
    assert is_extension_list(header)


def test_a_list_is_read_in_linear_time() -> None:
    """Lists 100 times as long as a head may be. A quadratic reader would not end before the timeout."""
    long = LONG_BYTES
    for header in (
        "a;" * (long // 2),
        "a=" * (long // 2),
        'a="' * (long // 3),
        "a;b=c" + " " * long + "x",
        "," * long + ";",
        "a" * long + " b",
    ):
        assert not is_extension_list(header)


@given(st.text(alphabet=st.sampled_from(' ;,="permessage-deflate_windobt019x')))
def test_any_header_is_read(offers: str) -> None:
    """For any text from a client the answer is one of the few that exist."""
    assert negotiate(offers) in (None, PLAIN_ANSWER, f"{PLAIN_ANSWER}; server_max_window_bits=12")


@given(st.binary(max_size=3000), st.integers(1, 50))
def test_what_is_compressed_comes_out_again(piece: bytes, times: int) -> None:
    """Every client gets the payload byte for byte, with a window of 4 KiB as with the largest."""
    payload = piece * times
    frame = Deflater(64).frame(payload)
    assert inflate(frame) == payload
    assert inflate(frame, 15) == payload
    assert len(frame) <= len(text_frame(payload))


def test_autobahn_reads_it() -> None:
    """An implementation of other people's making takes each of AWX's sample events."""
    reader = PerMessageDeflate(False, True, True, WINDOW_BITS, WINDOW_BITS, None)
    deflater = Deflater(0)
    for payload in EVENTS:
        frame = deflater.frame(payload)
        if frame[0] & 0x40:
            reader.start_decompress_message()
            assert reader.decompress_message_data(frame[{126: 4, 127: 10}.get(frame[1], 2) :]) == payload
            reader.end_decompress_message()
    assert deflater.frames > len(EVENTS) / 2


def test_what_does_not_pay_is_sent_as_it_is() -> None:
    """Short payloads, and those that do not get shorter, are plain frames; the rest is counted."""
    deflater = Deflater(100)
    assert deflater.frame(b"x" * 99) == text_frame(b"x" * 99)
    noise = zlib.compress(b"".join(EVENTS), 9)[100:1100]
    assert deflater.frame(noise) == text_frame(noise)
    assert (deflater.frames, deflater.input_bytes, deflater.saved) == (0, 0, 0)
    frame = deflater.frame(b"x" * 1000)
    assert (deflater.frames, deflater.input_bytes) == (1, 1000)
    assert deflater.saved == 1000 - len(frame) + 2


def test_both_dialects() -> None:
    """A deflated dialect says the same as the plain one, and its events inflate to the same."""
    delivery = Delivery(1, "job_events.42", max(EVENTS, key=len), 7, "q")
    dialects = deflated(Deflater(64))
    for subprotocol, plain in ((None, TOWER), (SUBPROTOCOL, V1)):
        dialect = dialects[subprotocol]
        assert dialect.subprotocol == subprotocol
        assert inflate(dialect.frame(delivery)) == plain.event(delivery)
        assert dialect.frame(delivery)[0] == 0xC1
