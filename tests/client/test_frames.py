from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.client.frames import BadFrame, Unreadable, lasts_s, read

SAMPLES = json.loads((Path(__file__).parents[1] / "data" / "protocol-samples.json").read_text())
EVENT = '{"type":"event","position":"p1","group":"jobs","event":"a","payload":%s}'


@each_row(
    "text, payload",
    [
        (
            '{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN, \\" Infinity \\\\"}',
            {"a": None, "b": [None, None], "c": 'NaN, " Infinity \\'},
        ),
        ('{"payload":1,"x":NaN,"y":",\\"payload\\":"}', {"payload": 1, "x": None, "y": ',"payload":'}),
        ("{nonsense}", None),
        ("9" * 5000, None),
        ('{"a":' * 100_000, None),
    ],
)
def test_payloads_that_are_not_plain_json(text: str, payload: object) -> None:
    """They arrive, with their text."""
    frame = read(EVENT % text)
    assert (frame["payload"], frame["text"], frame["position"]) == (payload, text, "p1")


def test_plain_payloads() -> None:
    """They have no text besides."""
    frame = read(EVENT % '{"a": "\\ud800"}')
    assert frame["payload"] == {"a": "\ud800"}
    assert "text" not in frame


@each_row("data", ["nonsense", "", '{"type":"ev', b"{}", '{"type":"welcome","user":NaN}', "NaN"])
def test_messages_that_are_no_json(data: str | bytes) -> None:
    """They can't be read at all."""
    with pytest.raises(Unreadable):
        read(data)


@each_row(
    "frame",
    [
        None, [], "text", 5, {}, {"type": []}, {"type": "event"},
        {"type": "event", "group": "own", "event": "a", "position": 5, "payload": {}},
        {"type": "subscribed", "groups_current": [], "groups_joined": [], "denied": [1], "position": None}, {"type": "subscribed"},
        {"type": "subscribed", "groups_current": [], "groups_joined": [5], "denied": [], "position": None}, {"type": "gap", "topics": 5},
        {"type": "gap", "topics": [5], "reason": "history", "to": None}, {"type": "bye"}, {"type": "error"}, {"type": "revoked"},
        {"type": "bye", "reason": "x", "reconnect_after_ms": "soon"}, {"type": "pong"}, {"type": "pong", "position": 5},
    ],
)  # fmt: skip
def test_frames_of_another_shape(frame: object) -> None:
    """They are told from frames of a later server."""
    with pytest.raises(BadFrame):
        read(json.dumps(frame))
    assert read('{"type":"news","position":5}') == {}


def test_the_samples_of_the_protocol() -> None:
    """Each frame of docs/protocol.md is read."""
    frames = [
        json.loads(sample["frame"]) for sample in SAMPLES if sample["dialect"] == "towerws.v1" and sample["direction"] == "from server"
    ]
    kinds = {frame["type"] for frame in frames if read(json.dumps(frame))}
    assert kinds == {"welcome", "event", "subscribed", "gap", "revoked", "pong", "renewed", "error", "bye"}


@given(st.text() | st.binary() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_message(data: str | bytes) -> None:
    """No message raises anything else."""
    with contextlib.suppress(BadFrame):
        assert isinstance(read(data), dict)


def jwt(claims: object) -> str:
    """A token with these claims."""
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.sig"


@each_row(
    "token, expected",
    [
        (jwt({"exp": 1100}), 100.0), (jwt({"exp": 1100, "iat": 1000}), 100.0), (jwt({"exp": 900, "iat": 800}), 100.0),
        (jwt({"exp": 5000, "iat": 4900}), 100.0), (jwt({"exp": 900}), -100.0), (jwt({}), None), (jwt([]), None), (jwt({"exp": "x"}), None),
        (jwt({"exp": None}), None), (jwt({"exp": 1e400}), None), ("", None), ("a.b.c", None), ("opaque", None),
    ],
)  # fmt: skip
def test_how_long_a_token_lasts(token: str, expected: float | None) -> None:
    """Its own life counts if this clock can't be right."""
    assert lasts_s(token, 1000.0) == expected
