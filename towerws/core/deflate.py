"""`permessage-deflate` (RFC 7692) where one message goes to many: compressed once, and the same bytes for all who negotiated it.

That needs messages that do not refer to earlier ones (`no_context_takeover`, in both directions) and one window for all: 4 KiB,
which every client takes that takes any, and which costs a fifth of the usual 32 KiB to set up for each message.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from towerws.core.deliveries import Delivery
from towerws.core.frames import deflated_frame, text_frame
from towerws.core.wire import Dialect, TowerDialect, V1Dialect

WINDOW_BITS = 12
MEMORY_LEVEL = 5
LEVEL = 6
_TAIL = b"\x00\x00\xff\xff"  # what a sync flush ends with, and RFC 7692 section 7.2.1 takes away

_NAME = "permessage-deflate"
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")

# RFC 6455 section 9.1. A quoted value is a token, too, so no `,` or `;` can stand between quotes. Possessive: linear.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PARAMETER = rf"[ \t]*+;[ \t]*+{_WORD}(?:[ \t]*+=[ \t]*+(?:{_WORD}|\"{_WORD}\"))?+"
_ITEM = rf"[ \t]*+(?:{_WORD}(?:{_PARAMETER})*+[ \t]*+)?+"  # or nothing between two commas (RFC 9110 section 5.6.1)
_is_list = re.compile(rf"{_ITEM}(?:,{_ITEM})*+").fullmatch


def is_extension_list(header: str) -> bool:
    """Whether this is a `Sec-WebSocket-Extensions` header, of any extensions."""
    return _is_list(header) is not None


def negotiate(offers: str) -> str | None:
    """The answer to a `Sec-WebSocket-Extensions` header: the first offer that can be met, or None (RFC 7692 section 7.1)."""
    if not is_extension_list(offers):
        return None
    for offer in offers.split(","):
        name, *parameters = (part.strip(" \t") for part in offer.split(";"))
        if name.lower() == _NAME and (answer := _answer(parameters)) is not None:
            return answer
    return None


def _answer(parameters: list[str]) -> str | None:
    answer = "; ".join((_NAME, *_FLAGS))
    seen: set[str] = set()
    for parameter in parameters:
        name, has_value, value = (part.strip(" \t") for part in parameter.partition("="))
        bits = value.strip('"')
        if name in seen:
            return None
        seen.add(name)
        if name == "server_max_window_bits" and bits in _WINDOWS[WINDOW_BITS - 8 :]:
            answer += f"; {name}={WINDOW_BITS}"
        elif name == "client_max_window_bits" and (not has_value or bits in _WINDOWS):
            pass  # whatever window the client uses, the largest reads it
        elif name not in _FLAGS or has_value:
            return None
    return answer


_WINDOWS = tuple(str(bits) for bits in range(8, 16))


@dataclass(slots=True)
class Deflater:
    """Makes frames, those of at least `at_least` bytes compressed, and counts what that brought."""

    at_least: int
    frames: int = 0
    """Compressed, each of them once."""
    input_bytes: int = 0
    """Their payloads' bytes."""
    saved: int = 0
    """By how many of these the frames are shorter."""

    def frame(self, payload: bytes) -> bytes:
        """One whole text message, compressed if it is long enough and that makes it shorter."""
        if len(payload) < self.at_least:
            return text_frame(payload)
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
        deflated = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
        if len(deflated) >= len(payload):
            return text_frame(payload)
        self.frames += 1
        self.input_bytes += len(payload)
        self.saved += len(payload) - len(deflated)
        return deflated_frame(deflated)


class DeflatedTower(TowerDialect):
    """The Tower dialect with its events compressed."""

    name = "tower, deflated"

    def __init__(self, deflater: Deflater) -> None:
        self._deflater = deflater

    def frame(self, delivery: Delivery) -> bytes:
        """A delivery as a whole frame."""
        return self._deflater.frame(self.event(delivery))


class DeflatedV1(V1Dialect):
    """`towerws.v1` with its events compressed."""

    name = "v1, deflated"

    def __init__(self, deflater: Deflater) -> None:
        self._deflater = deflater

    def frame(self, delivery: Delivery) -> bytes:
        """A delivery as a whole frame."""
        return self._deflater.frame(self.event(delivery))


def deflated(deflater: Deflater) -> dict[str | None, Dialect]:
    """Both dialects, by subprotocol, with their events compressed by this one."""
    return {dialect.subprotocol: dialect for dialect in (DeflatedTower(deflater), DeflatedV1(deflater))}
