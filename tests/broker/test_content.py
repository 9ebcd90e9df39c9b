from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from towerws.broker.content import read_content

NAMES = st.text(max_size=20).filter(lambda name: name != "x-stream-offset")
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
)
def test_whatever_pika_encodes_is_read(
    properties: dict[str, Any], before: dict[str, Any], after: dict[str, Any], offset: int | None
) -> None:
    """Offset and message id are found among any other properties and header fields."""
    headers = {**before, **({} if offset is None else {"x-stream-offset": offset}), **{k: v for k, v in after.items() if k not in before}}
    data = b"".join(spec.BasicProperties(headers=headers or None, **properties).encode())
    content = read_content(b"xx" + data + b"yy", 2, 2 + len(data))
    assert (content.offset, content.message_id, content.damaged) == (offset, properties.get("message_id") or None, False)


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    """Arbitrary bytes give an answer, never an exception."""
    content = read_content(data, 0, len(data))
    assert content.offset is None or isinstance(content.offset, int)


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


def test_a_message_id_that_is_not_utf8_stays_distinct() -> None:
    """Two ids that are not UTF-8 are not taken for one another."""
    ids = {read_content(b"\x00\x80" + bytes([1]) + byte, 0, 4).message_id for byte in (b"\xfe", b"\xff")}
    assert len(ids) == 2


def test_the_layout_is_pikas() -> None:
    """The property flags begin 12 bytes into a header frame's payload, as pika writes it."""
    data = frame.Header(1, 5, spec.BasicProperties(message_id="m")).marshal()
    assert read_content(data, 7 + 12, len(data) - 1).message_id == "m"
