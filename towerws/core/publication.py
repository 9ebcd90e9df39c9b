"""Reads the body of `POST /publish`: an envelope around a payload whose bytes are kept as they came.

A body is read in one turn of the reactor. So the number of its values is bounded before it is decoded: 4 MiB of keys take a second.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from json.decoder import JSONDecoder

from towerws.core.topics import Topic, parse_routing_key

MAX_VALUES = 100_000
"""The most values in a body: AWX's largest events have a tenth of it. Decoding this many takes 60 ms."""

_KEYS = frozenset({"topic", "group", "event", "payload"})

_decode = JSONDecoder().raw_decode
_drop_strings = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL).sub
_space = re.compile(r"[ \t\r\n]*").match


@dataclass(frozen=True, slots=True)
class Publication:
    """A payload, byte for byte as it was sent, and its topic."""

    topic: Topic
    payload: bytes


def parse_publication(body: bytes) -> Publication:
    """Read an envelope: `payload`, and either `topic` or `group` and `event`. Raise `ValueError` that says what is wrong.

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
    if values.keys() == {"topic"}:
        key = _string("topic", values["topic"])
    elif values.keys() == {"group", "event"}:
        event = values["event"]
        if isinstance(event, bool) or not isinstance(event, (str, int)):
            raise ValueError("give either topic, or group and event: event is neither a string nor an integer")
        key = f"{_string('group', values['group'])}.{event}"
    else:
        raise ValueError("give either topic, or group and event")
    return Publication(parse_routing_key(key), found["payload"].encode("utf-8", "surrogatepass"))


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
                raise ValueError(f"unknown key {name[:80]!r}: expected topic (or group and event), and payload")
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
    # At most the number of unescaped quotes, of which each string has two. It saves the search for strings in a text of strings.
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
