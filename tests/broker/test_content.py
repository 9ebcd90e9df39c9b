from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from tests.kit.rows import each_row
from towerws.broker.content import read_content, read_published
from towerws.core.measurements import PublishedAt

NAMES = st.text(max_size=20).filter(lambda name: name not in {"x-stream-offset", "timestamp_in_ms"})
LEAVES = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.none()
    | st.just(Decimal("1.25"))
    | st.just(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)
WORDS = st.none() | st.text(max_size=30)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": WORDS,
        "content_encoding": WORDS,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": WORDS,
        "reply_to": WORDS,
        "expiration": WORDS,
        "message_id": WORDS,
        "timestamp": st.integers(0, 2**63),
        "type": WORDS,
        "user_id": WORDS,
        "app_id": WORDS,
    },
)


@given(
    PROPERTIES,
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_pika_encodes_is_read(
    properties: dict[str, Any], before: dict[str, Any], after: dict[str, Any], offset: int | None, published_ms: int | None
) -> None:
    """Offset, message id and times are found among any other properties and header fields. Milliseconds come before whole seconds."""
    known = {"x-stream-offset": offset, "timestamp_in_ms": published_ms}
    headers = {
        **before,
        **{name: value for name, value in known.items() if value is not None},
        **{name: value for name, value in after.items() if name not in before},
    }
    data = b"".join(spec.BasicProperties(headers=headers or None, **properties).encode())
    content = read_content(b"xx" + data + b"yy", 2, 2 + len(data))
    assert (content.offset, content.message_id, content.damaged) == (offset, properties.get("message_id") or None, False)
    published = None
    if published_ms is not None:
        published = PublishedAt(published_ms / 1000, "millisecond")
    elif "timestamp" in properties:
        published = PublishedAt(float(properties["timestamp"]), "second")
    assert read_published(b"xx" + data + b"yy", 2, 2 + len(data)) == published


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    """Arbitrary bytes give an answer, never an exception."""
    content = read_content(data, 0, len(data))
    assert content.offset is None or isinstance(content.offset, int)
    published = read_published(data, 0, len(data))
    assert published is None or isinstance(published.seconds, float)


@given(PROPERTIES, st.dictionaries(NAMES, VALUES, max_size=5), st.data())
def test_no_damage_reaches_beyond_its_frame(properties: dict[str, Any], headers: dict[str, Any], data: st.DataObject) -> None:
    """One byte changed at random never raises. The values come from inside the frame, or the header is marked as damaged."""
    raw = bytearray(b"".join(spec.BasicProperties(headers={**headers, "x-stream-offset": 7}, **properties).encode()))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    end = len(raw)
    alone = read_content(bytes(raw), 0, end)
    followed = read_content(bytes(raw) + b"\xff" * 300, 0, end)
    assert followed.damaged or (alone.offset, alone.message_id) == (followed.offset, followed.message_id)
    assert followed.damaged or read_published(bytes(raw), 0, end) == read_published(bytes(raw) + b"\xff" * 300, 0, end)


def test_a_message_id_that_is_not_utf8_stays_distinct() -> None:
    """Two ids that are not UTF-8 are not taken for one another."""
    ids = {read_content(b"\x00\x80" + bytes([1]) + byte, 0, 4).message_id for byte in (b"\xfe", b"\xff")}
    assert len(ids) == 2


def test_the_layout_is_pikas() -> None:
    """The property flags begin 12 bytes into a header frame's payload, as pika writes it."""
    data = frame.Header(1, 5, spec.BasicProperties(message_id="m")).marshal()
    assert read_content(data, 7 + 12, len(data) - 1).message_id == "m"


def header(kind: bytes, value: bytes) -> bytes:
    """Property flags, and a table with this header and a time in whole seconds after it."""
    table = b"\x0ftimestamp_in_ms" + kind + value
    return struct.pack(">HI", 0x2040, len(table)) + table + struct.pack(">Q", 1_800_000_000)


FINE, COARSE = PublishedAt(1_800_000_000.123, "millisecond"), PublishedAt(1_800_000_000.0, "second")


@each_row(
    ("kind", "value", "published"),
    [
        (b"l", struct.pack(">q", 1_800_000_000_123), FINE),
        (b"L", struct.pack(">q", 1_800_000_000_123), FINE),
        (b"T", struct.pack(">Q", 1_800_000_000), COARSE),
        (b"S", struct.pack(">I", 13) + b"1800000000123", COARSE),
        (b"d", struct.pack(">d", 1.8e12), COARSE),
        (b"V", b"", COARSE),
        (b"?", b"", None),
    ],
)
def test_a_time_in_milliseconds_is_an_integer(kind: bytes, value: bytes, published: PublishedAt | None) -> None:
    """A header of that name with another type is not used, and the whole seconds are read instead."""
    data = header(kind, value)
    assert read_published(data, 0, len(data)) == published


def test_a_time_that_is_cut_off_is_none() -> None:
    """The last byte of the property lies beyond the frame."""
    data = b"".join(spec.BasicProperties(message_id="m", timestamp=1_800_000_000).encode())
    assert read_published(data, 0, len(data)) == COARSE
    assert read_published(data, 0, len(data) - 1) is None
