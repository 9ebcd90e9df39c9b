"""Reads single values of settings: sizes, durations, counts, lists.

Each reader takes a value from TOML, a flag or an environment variable. It raises `ValueError` with the broken rule. The text never
repeats the value, so the caller decides what to show of it.
"""

from __future__ import annotations

import re

from towerws.core.settings import GIB, KIB, MIB

_SIZE_UNITS = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# The bounds on digits keep int() and float() cheap for any input. No setting needs more.
_is_size = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)", re.ASCII).fullmatch
_is_duration = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|)", re.ASCII).fullmatch
_is_whole = re.compile(r"[0-9]{1,15}", re.ASCII).fullmatch
_is_number = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII).fullmatch

AUTO = "auto"
"""The word for a number that the daemon finds itself."""

Value = str | int | float | bool | tuple[str, ...]
"""The type of a setting."""


def read_size(value: object) -> int:
    """Return the bytes of `64MiB`, `256KiB`, `1048576` or an integer."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _is_size(value)):
        return int(match[1]) * _SIZE_UNITS[match[2]]
    raise ValueError("a size is a whole number of bytes, or one followed by KiB, MiB or GiB (64MiB)")


def format_size(size: int) -> str:
    """Return the shortest text that `read_size` reads as this number: `64MiB`, `1000`."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def read_duration(value: object) -> int | float:
    """Return the seconds of `120`, `1.5`, `120s`, `2m`, `1h`, `500ms` or a number. Whole seconds are an integer."""
    if isinstance(value, str) and (match := _is_duration(value)):
        # Rounded to the nanosecond, so that "300ms" doesn't become 0.30000000000000004.
        return _whole_as_int(round(float(match[1]) * _DURATION_UNITS[match[2]], 9))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9:
        return _whole_as_int(float(value))
    raise ValueError("a duration is a number of seconds, or one followed by ms, s, m or h (500ms, 2m)")


def read_whole_seconds(value: object) -> int:
    """Return whole seconds, from the same values as `read_duration`. The broker needs some values so."""
    seconds = read_duration(value)
    if not isinstance(seconds, int):
        raise ValueError("a duration here is in whole seconds (30, 30s, 2m)")
    return seconds


def format_number(number: float) -> str:
    """Return the text that `read_duration` and `read_rate` read as this number, without an exponent."""
    if isinstance(number, int) or number.is_integer():
        return str(int(number))
    return f"{number:.9f}".rstrip("0")


def read_count_or_auto(value: object) -> int | str:
    """Return a whole number, or `auto`."""
    if value == AUTO:
        return AUTO
    try:
        return read_count(value)
    except ValueError:
        raise ValueError(f"must be a whole number, or {AUTO}") from None


def read_count(value: object) -> int:
    """Return a whole number, which is not negative."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and _is_whole(value):
        return int(value)
    raise ValueError("must be a whole number of at least 0")


def read_rate(value: object) -> int | float:
    """Return a rate per second. A whole rate is an integer."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9:
        return _whole_as_int(float(value))
    if isinstance(value, str) and _is_number(value):
        return _whole_as_int(float(value))
    raise ValueError("must be a number of at least 0")


def read_bool(value: object) -> bool:
    """Return True or False. Refuses 0, 1, "yes" and the like."""
    if isinstance(value, bool):
        return value
    raise ValueError("must be true or false")


def read_text(value: object) -> str:
    """Return printable text."""
    if isinstance(value, str) and value.isprintable():
        return value
    raise ValueError("must be printable text")


def read_words(value: object) -> tuple[str, ...]:
    """Return the words of a list (`["open"]`) or of comma-separated text, at least one. Refuses a word that occurs twice."""
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if isinstance(words, (list, tuple)) and words and all(isinstance(word, str) and word and word.isprintable() for word in words):
        if len(set(words)) < len(words):
            raise ValueError("must not name anything twice")
        return tuple(words)
    raise ValueError('must be a list of words (["a", "b"] in the file, a,b elsewhere)')


def read_list(value: object) -> tuple[str, ...]:
    """Return the same as `read_words`, or an empty tuple for `[]` and empty text."""
    return () if value in ("", [], ()) else read_words(value)


def _whole_as_int(number: float) -> int | float:
    return int(number) if number.is_integer() else number
