"""Reads the server's frames, and the lifetime of a token. Plain functions without I/O."""

from __future__ import annotations

import base64
import json
from typing import Any

_STRING_OR_NULL = (str, type(None))

_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "welcome": {},
    "event": {"group": str, "event": str},
    "subscribed": {"groups_current": list, "groups_joined": list, "denied": list, "position": _STRING_OR_NULL},
    "gap": {"topics": list, "reason": str, "to": _STRING_OR_NULL},
    "revoked": {"groups_current": list, "denied": list, "position": _STRING_OR_NULL},
    "pong": {"position": _STRING_OR_NULL},
    "renewed": {},
    "error": {"code": str, "message": str},
    "bye": {"reconnect_after_ms": (int, float, type(None)), "reason": str},
}
"""The keys that the client needs in each type of frame, with the types of their values (docs/protocol.md)."""


class BadFrame(ValueError):
    """A frame that docs/protocol.md does not describe."""


class Unreadable(BadFrame):
    """A message that is not JSON."""


def read(data: str | bytes) -> dict[str, Any]:
    """Return a frame of a known type, or an empty dictionary for a type that only a later server has.

    The payload of an event may be no plain JSON, for example with `NaN`. Then `text` has the original payload, and in `payload` each NaN
    and infinity is None. If the payload can't be read even so, `payload` itself is None.

    Raises `Unreadable` for a message that is not JSON, and `BadFrame` for a frame of a wrong shape.
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
    if not all(isinstance(topic, str) for key in ("topics", "groups_current", "groups_joined") for topic in frame.get(key, ())):
        raise BadFrame(f"{kind}: a topic is no text")
    found: dict[str, Any] = frame
    return found


def _is_denied(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("topic"), str) and isinstance(item.get("reason"), str)


def _refuse(word: str) -> None:
    raise ValueError(word)


def _read_head(data: str) -> Any:
    """Read an event whose payload is no plain JSON. The keys before the payload are JSON (docs/protocol.md, `event`)."""
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
    """Return for how many seconds a JSON Web Token is still valid. None if the token does not say.

    `now_s` is this machine's time, in seconds since 1970, which may be wrong. It is wrong if the token seems to have ended already, or to
    be valid for longer than from `iat` to `exp`. Then the time from `iat` to `exp` is returned.
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
