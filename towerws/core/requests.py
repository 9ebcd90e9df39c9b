"""Reads a client's messages strictly (docs/protocol.md, awx-contract 1.3).

There are three kinds of message:
- `{"groups": {"<group>": [<event>, …], …}, "since": "<position>"?, "id": <any>?, "xrftoken": "…"?}`
- `{"token": "…", "id": <any>?}`
- `{"ping": <any>}`

A message that is refused as a whole raises `BadRequest`, and changes nothing. A single item that names no topic becomes a `Denied`,
and the rest of the request counts.

The text is checked before it is parsed. Deep nesting and numbers with thousands of digits cost the parser far more than their size.
On CPython 3.11 64 KiB of `[` raise a RecursionError, and digits take quadratic time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from towerws.core.errors import BadRequest
from towerws.core.settings import Secret
from towerws.core.strict_json import AmbiguousJson, decode, decoder
from towerws.core.topics import GroupTable, UnknownItem, parse_routing_key

MAX_DEPTH = 8
MAX_BRACKETS = 4096
"""More than twice what a request of 1,000 topics has. Checking this many takes 1 ms, and checking 64 KiB of them takes 13 ms."""

MAX_NUMBER_DIGITS = 20
MAX_ID_BYTES = 256
MAX_SHOWN = 80
"""The most characters of an item that an answer repeats to its client."""

# A string without an end matches up to the end of the text: trying each quote in it again would be quadratic.
_drop_all_but_brackets = re.compile(r'(?:"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[^][{}"]++)++', re.DOTALL).sub
_square = str.maketrans("{}", "[]")
_has_long_number = re.compile(rf"[0-9]{{{MAX_NUMBER_DIGITS + 1}}}").search
_has_surrogate = re.compile("[\ud800-\udfff]").search


@dataclass(frozen=True, slots=True)
class Denied:
    """An item of a request that was left out. `group` and `item` are the client's own, as text and shortened."""

    group: str
    item: str
    reason: str


def denied_topics(refusals: Mapping[str, str]) -> list[Denied]:
    """Return a `Denied` for each refused topic. `refusals` maps routing keys to reasons."""
    return [Denied(*parse_routing_key(topic), reason) for topic, reason in refusals.items()]


class Request(NamedTuple):
    """A whole new set of topics (routing keys, in the client's order), and the items that were left out of it."""

    topics: tuple[str, ...]
    denied: tuple[Denied, ...] = ()
    since: str | None = None
    request_id: object = None
    xrftoken: object = None


@dataclass(frozen=True, slots=True)
class TokenMessage:
    """A credential: the connection's first one, or one that replaces it."""

    token: Secret
    request_id: object = None


@dataclass(frozen=True, slots=True)
class PingMessage:
    """A client asks whether the connection is alive. Browsers don't show ping frames to pages."""

    ping: object


Message = Request | TokenMessage | PingMessage


def parse_message(payload: bytes, groups: GroupTable, max_topics: int, *, is_binary: bool) -> Message:
    """Read one websocket message. Raises `BadRequest` if it is refused as a whole."""
    if is_binary:
        raise BadRequest("binary", "message is binary, not text")
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise BadRequest("not_json", "message is not UTF-8") from None
    return parse_message_text(text, groups, max_topics)


def parse_message_text(text: str, groups: GroupTable, max_topics: int) -> Message:
    """Read the text of one message. Raises `BadRequest` if it is refused as a whole."""
    message = _object(text)
    request_id = message.get("id")
    if request_id is not None and len(json.dumps(request_id)) > MAX_ID_BYTES:
        raise BadRequest("bad_id", f"id is longer than {MAX_ID_BYTES} bytes")
    try:
        if "token" in message:
            return _token(message, request_id)
        if "ping" in message and "groups" not in message:
            return _ping(message)
        return _request(message, groups, max_topics, request_id)
    except BadRequest as error:
        error.request_id = request_id
        raise


def _token(message: dict[str, object], request_id: object) -> TokenMessage:
    # A message has a token or groups, not both: what the groups may be depends on the token, whose check may take a while.
    if not isinstance(token := message["token"], str) or "groups" in message:
        raise BadRequest("bad_token", '"token" must be a string, and "groups" must come in another message')
    return TokenMessage(Secret(token), request_id)


def _ping(message: dict[str, object]) -> PingMessage:
    ping = message["ping"]
    if len(json.dumps(ping)) > MAX_ID_BYTES:
        raise BadRequest("bad_ping", f'"ping" is longer than {MAX_ID_BYTES} bytes')
    return PingMessage(ping)


def _request(message: dict[str, object], groups: GroupTable, max_topics: int, request_id: object) -> Request:
    if "groups" not in message:
        raise BadRequest("no_groups", 'message has no "groups"')
    asked = message["groups"]
    if not isinstance(asked, dict):
        raise BadRequest("groups_not_an_object", '"groups" is not an object')
    since = message.get("since")
    if since is not None and not isinstance(since, str):
        raise BadRequest("bad_since", '"since" is not a string')
    count = 0
    for items in asked.values():
        if not isinstance(items, list):
            # Up to AWX 9.3.0 such a value joined the bare name without an access check (fixed in AWX's commit 04dd1352c9).
            raise BadRequest("not_a_list", "the value of each group must be a list")
        count += len(items)
    if count > max_topics:
        raise BadRequest("too_many_topics", f"more than {max_topics} topics in one request")
    topics: dict[str, None] = {}
    denied: list[Denied] = []
    for group, items in asked.items():
        for item in items:
            try:
                topics[groups.routing_key(group, item)] = None
            except UnknownItem as unknown:
                denied.append(Denied(_shown(group), _shown(item), str(unknown)))
    return Request(tuple(topics), tuple(denied), since, request_id, message.get("xrftoken"))


def _object(text: str) -> dict[str, object]:
    if _depth_exceeds(text, MAX_DEPTH):
        raise BadRequest("too_deep", f"message nests deeper than {MAX_DEPTH} levels, or holds more than {MAX_BRACKETS} brackets")
    try:
        # Without a long number the parser converts integers itself: 30,000 of them take 1 ms instead of 6 ms.
        message = (_decode_long if _has_long_number(text) else decode)(text)
    except AmbiguousJson as error:
        raise BadRequest(error.code, f"message holds {error}") from None
    except (ValueError, RecursionError):
        raise BadRequest("not_json", "message is not JSON") from None
    if not isinstance(message, dict):
        raise BadRequest("not_an_object", "message is not a JSON object")
    if "\\" in text and _has_surrogate(json.dumps(message, ensure_ascii=False)):
        raise BadRequest("not_unicode", "message holds half of a surrogate pair")
    return message


def _depth_exceeds(text: str, levels: int) -> bool:
    """Return whether a text nests deeper than `levels`, or holds more than `MAX_BRACKETS` opening brackets.

    Each round removes the innermost pairs, at the speed of `str.replace`. Pairs that are left after `levels` rounds are too deep.
    """
    opening = text.count("[") + text.count("{")
    if opening <= levels:
        return False
    if opening > MAX_BRACKETS:
        return True
    brackets = _drop_all_but_brackets("", text).translate(_square)
    for _ in range(levels):
        brackets = brackets.replace("[]", "")
    return brackets.count("[") > levels or "[]" in brackets


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise AmbiguousJson("number_too_long", f"an integer of more than {MAX_NUMBER_DIGITS} digits")
    return int(digits)


def _shown(item: object) -> str:
    # AWX writes items into its error text with `str`: "resource id None", "resource id abc".
    text = str(item)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


_decode_long = decoder(_integer)
