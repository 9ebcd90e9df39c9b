"""Reads the bodies of `POST /publish`: envelopes around payloads whose bytes are kept as they came. Names what can become of an event.

A body is read in one turn of the reactor. So the number of its values is bounded before it is decoded: 4 MiB of keys take a second.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from json.decoder import JSONDecoder

from towerws.core.topics import Topic, parse_routing_key

MAX_VALUES = 100_000
"""The most values in a body: AWX's largest events have a tenth of it. Decoding this many takes 60 ms."""

MAX_LINES = 1000
"""The most lines of a batch."""

MAX_MESSAGE_ID_CHARACTERS = 200
"""The longest id of an event, in characters. AMQP allows 255 bytes (AMQP 0-9-1 section 4.2.5.3), and a batch adds the line's number."""

_KEYS = frozenset({"topic", "group", "event", "payload", "message_id"})
_is_message_id = re.compile(rf"[\x21-\x7e]{{1,{MAX_MESSAGE_ID_CHARACTERS}}}").fullmatch

_decode = JSONDecoder().raw_decode
_drop_strings = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL).sub
_space = re.compile(r"[ \t\r\n]*").match


@dataclass(frozen=True, slots=True)
class Publication:
    """A payload, byte for byte as it was sent, and its topic. With a `message_id`, a repeat within history is delivered once."""

    topic: Topic
    payload: bytes
    message_id: str | None = None


class Outcome(enum.Enum):
    """What became of an event. The words are API: answers of `POST /publish`, and a label of its counter."""

    CONFIRMED = "confirmed"
    """The broker has it in every bound queue, or the embedded source has delivered it."""
    DUPLICATE = "duplicate"
    """The embedded source has an event with this topic and `message_id` in history already."""
    UNROUTABLE = "unroutable"
    """No queue is bound to the exchange for this topic. The broker dropped it."""
    NACKED = "nacked"
    """The broker did not put the event into every queue. Some queue may have it."""
    REFUSED = "refused"
    """The broker doesn't let the daemon publish: credentials, permissions, or a missing exchange."""
    UNAVAILABLE = "unavailable"
    """No broker could be reached in time, so nothing was sent."""
    BLOCKED = "blocked"
    """The broker has a memory or disk alarm, and nothing was sent."""
    FULL = "full"
    """Too many events wait for the broker, and this one was not sent."""
    UNKNOWN = "unknown"
    """The event was sent, and no confirm came in time. It may have been published."""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one event. `published` is None if it may have been published. `error` is a line for a person."""

    outcome: Outcome
    published: bool | None
    message_id: str | None = None
    position: str | None = None
    error: str | None = None


def parse_idempotency_key(value: bytes) -> str:
    """Return the id in a header `Idempotency-Key`, with or without quotes (draft-ietf-httpapi-idempotency-key-header, section 2.1).

    Raises `ValueError` that says what is wrong.
    """
    text = value.decode("latin-1").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return check_message_id("Idempotency-Key", text)


def check_message_id(name: str, text: str) -> str:
    """Return the id. Raises `ValueError` for one that is too long, or that has other characters than visible ASCII."""
    if not _is_message_id(text):
        raise ValueError(f"{name} must be 1 to {MAX_MESSAGE_ID_CHARACTERS} visible ASCII characters, without spaces")
    return text


def split_batch(body: bytes) -> list[bytes]:
    """Return the lines of a batch. Raises `ValueError` if there are none, too many, or too many values in all."""
    lines = body.removesuffix(b"\n").split(b"\n") if body else []
    if not body.strip():
        raise ValueError("the batch has no lines: expected one JSON object in each")
    if len(lines) > MAX_LINES:
        raise ValueError(f"the batch has {len(lines)} lines, and {MAX_LINES} are the most: send several batches")
    if _has_too_many_values(body.decode("utf-8", "replace")):
        raise ValueError(f"the batch holds more than {MAX_VALUES} values: send several batches")
    return lines


def parse_publication(body: bytes) -> Publication:
    """Read an envelope: `payload`, either `topic` or `group` and `event`, and maybe `message_id`. Raise `ValueError` for any other body.

    `NaN` and lone surrogates in a payload pass, as they do in a message from the broker.
    """
    try:
        text = body.decode()
        if _has_too_many_values(text):
            raise ValueError(f"it holds more than {MAX_VALUES} values")
        found = _keys(text)
    except (ValueError, RecursionError) as error:
        text = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f'the body is not {{"topic": "group.event", "payload": {{…}}}}: {text}') from None
    if "payload" not in found:
        raise ValueError("payload is missing")
    values = {name: json.loads(text) for name, text in found.items() if name != "payload"}
    message_id = values.pop("message_id", None)
    if message_id is not None:
        message_id = check_message_id("message_id", _string("message_id", message_id))
    if values.keys() == {"topic"}:
        routing_key = _string("topic", values["topic"])
    elif values.keys() == {"group", "event"}:
        event = values["event"]
        if isinstance(event, bool) or not isinstance(event, (str, int)):
            raise ValueError("give either topic, or group and event: event is neither a string nor an integer")
        routing_key = f"{_string('group', values['group'])}.{event}"
    else:
        raise ValueError("give either topic, or group and event")
    return Publication(parse_routing_key(routing_key), found["payload"].encode("utf-8", "surrogatepass"), message_id)


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def _keys(text: str) -> dict[str, str]:
    """Return the keys of the object in `text`, each with its value as it was written."""
    found: dict[str, str] = {}
    at = _after(text, 0, "{")
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            name, end = _decode(text, at)
            if not isinstance(name, str):
                raise ValueError(f"expected a key at character {at}")
            if name not in _KEYS:
                raise ValueError(f"unknown key {name[:80]!r}: expected topic (or group and event), payload, and maybe message_id")
            if name in found:
                raise ValueError(f"it has the key {name[:80]!r} twice")
            start = _after(text, end, ":")
            _, end = _decode(text, start)
            found[name] = text[start:end]
            at = _skip(text, end)
            if text[at : at + 1] == "}":
                at += 1
                break
            at = _after(text, at, ",")
    if _skip(text, at) != len(text):
        raise ValueError(f"something follows the object at character {at}")
    return found


def _has_too_many_values(text: str) -> bool:
    if _count(text) <= MAX_VALUES:
        return False
    # A lower bound of the unescaped quotes, of which each string has two. This test saves the search for strings in a text of strings.
    if text.count('"') - text.count('\\"') > 2 * MAX_VALUES:
        return True
    return _count(_drop_strings("", text)) > MAX_VALUES


def _count(text: str) -> int:
    """Return an upper bound for the number of values in the text, less one."""
    return text.count(",") + text.count("[") + text.count("{")


def _skip(text: str, at: int) -> int:
    match = _space(text, at)
    return at if match is None else match.end()


def _after(text: str, at: int, expected: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != expected:
        raise ValueError(f"expected {expected} at character {at}")
    return _skip(text, at + 1)
