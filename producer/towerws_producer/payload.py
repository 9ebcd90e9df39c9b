"""Encodes and checks payloads, one JSON object each. A mapping is encoded once. Text and bytes are JSON already, and are not changed."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Union

from towerws_producer.errors import BadPayload, PayloadTooLarge

Payload = Union["Mapping[str, Any]", str, bytes, bytearray]

_is_braced = re.compile(rb"[ \t\r\n]*\{.*\}[ \t\r\n]*", re.DOTALL).fullmatch


def _default(value: Any) -> Any:
    """Encode dates, decimals, UUIDs and lazy texts as Django does, if the application uses Django. The standard encoder can't."""
    if "django" in sys.modules:
        from django.core.serializers.json import DjangoJSONEncoder  # noqa: PLC0415 - an application without Django has none

        return DjangoJSONEncoder().default(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


# NaN is refused, because a browser's JSON.parse fails on it, and the event would be lost there silently.
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_default).encode


def encode(payload: Payload, max_bytes: int) -> bytes:
    """Return the payload's bytes. Raises `BadPayload` or `PayloadTooLarge` with what is wrong."""
    if isinstance(payload, str):  # first, because AWX sends thousands of texts per second
        try:
            data = _bounded(payload.encode("utf-8"), max_bytes)
        except UnicodeEncodeError as error:
            raise BadPayload(f"the payload is not UTF-8: a lone surrogate at character {error.start}") from None
    elif isinstance(payload, (bytes, bytearray)):
        data = _bounded(bytes(payload), max_bytes)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadPayload(f"the payload is not UTF-8 at byte {error.start}") from None
    elif isinstance(payload, Mapping):
        return _bounded(_encoded(payload), max_bytes)
    else:
        raise BadPayload(f"a payload is a mapping, or text or bytes that are a JSON object; this is a {type(payload).__name__}")
    if not (data.startswith(b"{") and data.endswith(b"}") and len(data) > 1) and not _is_braced(data):
        raise BadPayload("the payload is not a JSON object: it does not begin with { and end with }")
    return data


def _encoded(payload: "Mapping[str, Any]") -> bytes:
    try:
        return _encode(payload if isinstance(payload, dict) else dict(payload)).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadPayload(f"the payload can't be encoded as JSON: {str(error)[:200]}") from None
    except Exception as error:  # noqa: BLE001 - a value's own methods may raise anything
        raise BadPayload(f"the payload can't be encoded as JSON: {type(error).__name__}") from None


def _bounded(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise PayloadTooLarge(f"the payload has {len(data)} bytes, more than max_payload_bytes = {max_bytes}")
    return data
