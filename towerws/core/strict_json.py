"""Reads JSON that has one meaning only, for every reader (RFC 8259 section 4, RFC 7493).

Python's own reader takes the last of two equal keys, and accepts `NaN` and `1e999`. Another reader of the same text may see another
user or topic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn


class AmbiguousJson(ValueError):
    """The text is refused though Python could read it. `code` is the code of docs/protocol.md. The text never repeats the input."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def decoder(parse_int: Callable[[str], int] | None = None) -> Callable[[str], Any]:
    """Return a function that reads one JSON value from text. `parse_int` converts integers, `int` by default.

    The function raises `AmbiguousJson`, any other `ValueError` for text that is no JSON, and `RecursionError` for deep nesting.
    """
    read = json.JSONDecoder(parse_int=parse_int, parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=_unique).raw_decode

    def decode(text: str) -> Any:
        text = text.strip(" \t\n\r")  # Python's `decode` looks for these with a regular expression
        value, end = read(text)
        if end < len(text):
            raise ValueError("there is more than one value")
        return value

    return decode


def _finite(text: str) -> float:
    # 1e999 is JSON, but Python reads it as an infinity, which can't be written as JSON again.
    if math.isinf(number := float(text)):
        raise AmbiguousJson("number_too_long", "a number that is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise AmbiguousJson("not_json", f"{name}, which is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise AmbiguousJson("duplicate_key", "the same key twice in one object")
    return found


decode = decoder()
"""Reads one JSON value from text."""
