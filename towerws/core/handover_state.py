"""What one process tells its successor about an open connection, as JSON (docs/architecture.md, "Hand-over").

The format has a version. Both sides must have the same one: a running daemon can't learn the format of a later release. Times are seconds
of the machine's monotonic clock, which all its processes share. Places in the log are positions, because each process counts its `seq` by
itself. Bytes are base64.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import cycle, islice
from typing import Any, Final

from towerws.core.frames import masked_frame_head

VERSION: Final = 3
"""Changes with every change of the format that an older release would misread."""

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Bound of one message between the two processes."""

MAX_UNSENT_BYTES: Final = 4 * 1024 * 1024
"""A connection with more unsent bytes is not handed over."""

MAX_STATE_BYTES: Final = 16 * 1024 * 1024
"""A connection with a longer state, as JSON, is not handed over. So a batch and one more state fit into a message."""

BucketLevel = tuple[float, float]
"""A token bucket: the tokens in it, and when they were counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionState:
    """One open connection, without its socket."""

    identity: Mapping[str, Any]
    """The user and the credential, as `towerws.auth.transfer` writes them."""
    address: str
    subprotocol: str | None
    compressed: bool
    """Whether `permessage-deflate` is in use. No more has to be known: neither side keeps a window from one message to the next."""
    position: str
    """The place in the log up to which the client has got everything."""
    topics: tuple[str, ...]
    joined_later: Mapping[str, str] = field(default_factory=dict)
    """The topics that it joined while it was behind, each with the position after which it gets deliveries. Empty: see `flush_to_place`."""
    unsent: bytes = b""
    """Bytes for the client that are not in the kernel yet."""
    unread: bytes = b""
    """Bytes of the client that make no whole message yet, as frames."""
    fragments: int = 0
    """Frames of the unfinished message."""
    assembly_left_s: float | None = None
    """Seconds that are left for the unfinished message."""
    before: tuple[str, ...] | None = None
    """The subscriptions when the request came that was begun and is not answered. None: they have not changed since."""
    inbox: tuple[tuple[bytes, bool], ...] = ()
    """Messages that wait for their turn, each with whether it was binary. The first one may have been begun: it is handled again."""
    opened_at: float = 0.0
    valid_at: float = 0.0
    """When the credential was checked last."""
    requests: int = 0
    malformed: int = 0
    wrong_tokens: int = 0
    messages: BucketLevel | None = None
    controls: BucketLevel | None = None
    continuations: BucketLevel | None = None


_BYTES: Final = ("unsent", "unread")
_BUCKETS: Final = ("messages", "controls", "continuations")
_NAMES: Final = tuple(each.name for each in fields(ConnectionState))


def state_to_json(state: ConnectionState) -> dict[str, Any]:
    """Return the state as a JSON-compatible dictionary. It shares the state's collections."""
    found = {name: getattr(state, name) for name in _NAMES}  # `dataclasses.asdict` copies deeply, at a third of a move's cost
    for name in _BYTES:
        found[name] = _text(found[name])
    found["inbox"] = [[_text(payload), is_binary] for payload, is_binary in state.inbox]
    return found


def state_from_json(found: Mapping[str, Any]) -> ConnectionState:
    """Return the state in a dictionary of `state_to_json`. Raises `ValueError` for any other."""
    try:
        if unknown := found.keys() - set(_NAMES):
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        read = dict(found)
        for name in _BYTES:
            read[name] = b64decode(read[name], validate=True)
        for name in _BUCKETS:
            read[name] = None if read[name] is None else (float(read[name][0]), float(read[name][1]))
        read["topics"] = tuple(read["topics"])
        read["before"] = None if read["before"] is None else tuple(read["before"])
        read["inbox"] = tuple((b64decode(payload, validate=True), bool(is_binary)) for payload, is_binary in read["inbox"])
        return ConnectionState(**read)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a connection's state: {error!r}") from None


def encode_state(state: ConnectionState) -> str:
    """Return the state as text, for `encode_message`."""
    return _encode(state_to_json(state))


def encode_message(kind: str, states: Sequence[str] | None = None, **content: object) -> bytes:
    """Return one message between the two processes: a JSON object with its `kind`. `states` are texts of `encode_state`."""
    text = _encode({"kind": kind, **content})
    if states is not None:
        text = f'{text[:-1]},"states":[{",".join(states)}]}}'
    return text.encode("ascii")


def decode_message(body: bytes) -> dict[str, Any]:
    """Return a message of `encode_message`. Raises `ValueError` for any other bytes."""
    message = json.loads(body)
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("not a message of a hand-over")
    return message


Event = tuple[str, bytes, int, str | None]
"""An event of history: routing key, payload, offset, `message_id`."""


def events_to_json(events: Iterable[Event]) -> list[list[object]]:
    """Return events of history as JSON-compatible lists."""
    return [[routing_key, _text(payload), offset, message_id] for routing_key, payload, offset, message_id in events]


def events_from_json(found: Iterable[Any]) -> list[Event]:
    """Return the events of `events_to_json`. Raises `ValueError` for anything else."""
    try:
        return [
            (str(routing_key), b64decode(payload, validate=True), int(offset), None if message_id is None else str(message_id))
            for routing_key, payload, offset, message_id in found
        ]
    except TypeError as error:
        raise ValueError(f"not a list of events: {error!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedFrame:
    """A client's frame that has come only in part. `mask` is the client's own: the rest of the frame is masked with it."""

    opcode: int
    final: bool
    rsv: int
    length: int
    mask: bytes
    data: bytes
    """The part of the frame's payload that has come, unmasked."""


def rebuild_input(opcode: int, whole: bytes | None, frame: UnfinishedFrame | None, rest: bytes, *, compressed: bool) -> bytes:
    """Return frames that bring a new parser to the state of the old one.

    `opcode` and `compressed` are those of the unfinished message. `whole` is the payload of its complete frames, None if it has none.
    `rest` are bytes that the parser has not looked at. The complete frames become a single one.
    """
    built = b""
    if whole is not None:
        built = masked_frame_head(opcode, 4 if compressed else 0, len(whole), bytes(4), final=False) + whole
    if frame is not None:
        head = masked_frame_head(frame.opcode, frame.rsv, frame.length, frame.mask, final=frame.final)
        built += head + bytes(byte ^ key for byte, key in zip(frame.data, islice(cycle(frame.mask), len(frame.data)), strict=True))
    return built + rest


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
