"""What a process tells its successor about a connection survives the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.handover_state import (
    ConnectionState,
    Event,
    UnfinishedFrame,
    decode_message,
    encode_message,
    encode_state,
    events_from_json,
    events_to_json,
    rebuild_input,
    state_from_json,
    state_to_json,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.floats(0, 1e9, allow_nan=False)
BUCKETS = st.none() | st.tuples(TIMES, TIMES)
STATES = st.builds(
    ConnectionState,
    identity=st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.booleans(), max_size=4),
    address=TEXTS,
    subprotocol=st.sampled_from([None, "towerws.v1"]),
    compressed=st.booleans(),
    position=TEXTS,
    topics=st.lists(TEXTS, max_size=5).map(tuple),
    joined_later=st.dictionaries(TEXTS, TEXTS, max_size=3),
    unsent=st.binary(max_size=200),
    unread=st.binary(max_size=200),
    fragments=st.integers(0, 99),
    assembly_left_s=st.none() | TIMES,
    before=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    inbox=st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=3).map(tuple),
    opened_at=TIMES,
    valid_at=TIMES,
    requests=st.integers(0),
    malformed=st.integers(0, 99),
    wrong_tokens=st.integers(0, 99),
    messages=BUCKETS,
    controls=BUCKETS,
    continuations=BUCKETS,
)


@given(STATES)
def test_a_state_survives_the_way(state: ConnectionState) -> None:
    """The other process reads exactly what was written, through the channel's own encoding."""
    message = decode_message(encode_message("batch", [encode_state(state)]))
    assert [state_from_json(each) for each in message["states"]] == [state]


@given(
    STATES,
    st.sampled_from(
        sorted(state_to_json(ConnectionState(identity={}, address="", subprotocol=None, compressed=False, position="", topics=())))
    ),
)
def test_a_state_without_one_of_its_fields_is_refused(state: ConnectionState, name: str) -> None:
    """Nothing is guessed: a field that is missing is an error, and so is one too many."""
    found = state_to_json(state)
    del found[name]
    if name not in ("address", "position", "subprotocol"):
        with pytest.raises(ValueError, match="not a connection"):
            state_from_json(found) if name in ("unsent", "unread", "topics", "inbox") else state_from_json({**found, "topics": None})
    with pytest.raises(ValueError, match="unknown fields: surplus"):
        state_from_json({**state_to_json(state), "surplus": 1})


@given(st.lists(st.tuples(TEXTS, st.binary(max_size=200), st.integers(0), st.none() | TEXTS), max_size=5))
def test_events_survive_the_way(events: list[Event]) -> None:
    """With the `message_id`, by which a repeat is recognized."""
    message = decode_message(encode_message("history", events=events_to_json(events)))
    assert events_from_json(message["events"]) == events


@each_row("body", [b"", b"[]", b"{}", b'{"kind": 1}', b"\xff"])
def test_other_bytes_are_no_message(body: bytes) -> None:
    """A message is an object with its kind."""
    with pytest.raises(ValueError, match=r".*"):
        decode_message(body)


@given(
    st.lists(st.binary(max_size=300), max_size=3),
    st.binary(max_size=300),
    st.integers(0, 300),
    st.binary(min_size=4, max_size=4),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_rebuilt_frames_say_the_same(before: list[bytes], last: bytes, read: int, mask: bytes, compressed: bool, opcode: int) -> None:
    """A parser that reads the rebuilt frames, and then the rest of the client's own bytes, gets the client's message."""
    read = min(read, len(last))
    whole = b"".join(before) if before else None
    frame = UnfinishedFrame(
        opcode=0 if before else opcode, final=True, rsv=0 if before or not compressed else 4, length=len(last), mask=mask, data=last[:read]
    )
    rest = bytes(byte ^ mask[place % 4] for place, byte in enumerate(last))[read:]
    frames = parse(rebuild_input(opcode, whole, frame, rest, compressed=compressed))
    assert b"".join(payload for *_, payload in frames) == b"".join(before) + last
    assert frames[0][0] == opcode
    assert frames[0][1] == (4 if compressed else 0)
    assert [final for _, _, final, _ in frames] == [*[False] * (len(frames) - 1), True]


def parse(data: bytes) -> list[tuple[int, int, bool, bytes]]:
    """The frames in these bytes: opcode, reserved bits, FIN, and the payload."""
    frames: list[tuple[int, int, bool, bytes]] = []
    while data:
        first, length, data = data[0], data[1] & 127, data[2:]
        if length == 126:
            length, data = int.from_bytes(data[:2]), data[2:]
        elif length == 127:
            length, data = int.from_bytes(data[:8]), data[8:]
        mask, masked, data = data[:4], data[4 : 4 + length], data[4 + length :]
        assert len(masked) == length
        frames.append((first & 15, first >> 4 & 7, first > 127, bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))))
    return frames


def test_a_state_is_plain_json() -> None:
    """The format is text that another release can be written for, and never Python objects."""
    state = ConnectionState(
        identity={"user_id": 7}, address="192.0.2.1", subprotocol=None, compressed=False, position="5-ab", topics=("a.b",)
    )
    found: dict[str, Any] = json.loads(json.dumps(state_to_json(state)))
    assert found["position"] == "5-ab"
