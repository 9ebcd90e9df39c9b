"""Reads the server's frames, and the lifetime of a token. Plain functions."""

from __future__ import annotations

import base64
import json
from typing import Any

_STRING_OR_NULL = (str, type(None))

_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "welcome": {},
    "event": {"group": str, "event": str},
    "subscribed": {"groups_current": list, "denied": list, "position": _STRING_OR_NULL},
    "gap": {"topics": list, "reason": str, "to": _STRING_OR_NULL},
    "revoked": {"groups_current": list, "denied": list, "position": _STRING_OR_NULL},
    "pong": {"position": _STRING_OR_NULL},
    "renewed": {},
    "error": {"code": str, "message": str},
    "bye": {"reconnect_after_ms": (int, float, type(None)), "reason": str},
}
"""What the client reads of each frame, with its types (docs/protocol.md)."""


class BadFrame(ValueError):
    """A frame that docs/protocol.md does not describe."""


class Unreadable(BadFrame):
    """A message that is no JSON at all."""


def read(data: str | bytes) -> dict[str, Any]:
    """Return a frame of a known type, or an empty dictionary for a type of a later server.

    The payload of an event may be no JSON (`NaN`): then `text` has the original, and NaN and infinities are None in `payload`, which is
    None altogether if it can't be read even so.

    Raises `Unreadable` if it is no JSON, and `BadFrame` for any other shape.
    """
    if not isinstance(data, str):
        raise Unreadable("a binary message")
    try:
        frame = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        frame = _read_head(data)
    kind = frame.get("type") if isinstance(frame, dict) else None
    if not isinstance(kind, str):
        raise BadFrame("it is no object with a type")
    if kind not in _KEYS:
        return {}
    for key, types in _KEYS[kind].items():
        if not isinstance(frame.get(key, ...), types):
            raise BadFrame(f"{kind}: {key} is missing or of another type")
    if kind == "event" and not ("payload" in frame and isinstance(frame.get("position"), _STRING_OR_NULL)):
        raise BadFrame("event: position or payload is missing or of another type")
    if kind in {"subscribed", "revoked"} and not all(_is_denied(item) for item in frame["denied"]):
        raise BadFrame(f"{kind}: denied is no list of topics with reasons")
    if not all(isinstance(topic, str) for key in ("topics", "groups_current") for topic in frame.get(key, ())):
        raise BadFrame(f"{kind}: a topic is no text")
    found: dict[str, Any] = frame
    return found


def _is_denied(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("topic"), str) and isinstance(item.get("reason"), str)


def _refuse(word: str) -> None:
    raise ValueError(word)


def _read_head(data: str) -> Any:
    """Read an event whose payload is no plain JSON: the keys before it are (docs/protocol.md, `event`)."""
    for mark in (',"payload":', ', "payload":'):
        head, found, payload = data.partition(mark)
        if not found:
            continue
        try:
            frame = json.loads(f"{head}}}")
        except (ValueError, RecursionError):
            continue
        if not isinstance(frame, dict) or frame.get("type") != "event":
            continue
        frame["text"] = payload.strip().removesuffix("}")
        try:
            frame["payload"] = json.loads(frame["text"], parse_constant=lambda word: None)
        except (ValueError, RecursionError):
            frame["payload"] = None
        return frame
    raise Unreadable("it is not JSON")


def lasts_s(token: str, now_s: float) -> float | None:
    """How many seconds a JSON Web Token lasts from now on (seconds since 1970). None if it does not say.

    This clock may be wrong. So if the token seems to have ended, or to last longer than its whole life, its life counts.
    """
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        ends_s, begins_s = float(claims["exp"]), float(claims.get("iat", "nan"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    left_s, life_s = ends_s - now_s, ends_s - begins_s
    if life_s > 0 and (left_s <= 0 or life_s < left_s):
        return life_s
    return left_s if abs(left_s) < float("inf") else None
