from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.config.units import (
    format_number,
    format_size,
    read_bool,
    read_count,
    read_duration,
    read_rate,
    read_size,
    read_text,
    read_whole_seconds,
    read_words,
)


@each_row(
    ("written", "raw"),
    [("1048576", 1048576), (1048576, 1048576), ("64MiB", 64 * 1024**2), ("256 KiB", 262144), ("1GiB", 1024**3), (0, 0)],
)
def test_sizes(written: object, raw: int) -> None:
    """A size is bytes, or has a binary unit."""
    assert read_size(written) == raw


@each_row("written", ["64MB", "64M", "64mib", "1.5MiB", "-1", "", "MiB", "\uff11", "9" * 16, -1, 1.0, True, None, [], "1\n"])
def test_bad_sizes(written: object) -> None:
    """An ambiguous or invalid size is refused with the allowed forms."""
    with pytest.raises(ValueError, match="KiB, MiB or GiB"):
        read_size(written)


@given(st.integers(0, 10**15 - 1))
def test_sizes_round_trip(raw: int) -> None:
    """Every size is read back as the same value."""
    assert read_size(format_size(raw)) == raw


@each_row(
    ("written", "seconds"),
    [
        ("120", 120),
        ("120s", 120),
        ("2m", 120),
        ("500ms", 0.5),
        ("1h", 3600),
        ("1.5", 1.5),
        (0.5, 0.5),
        (20.0, 20),
        (120, 120),
        ("2 m", 120),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    """A duration is seconds, or has a unit. Whole ones are integers."""
    assert read_duration(written) == seconds
    assert isinstance(read_duration(written), type(seconds))


@each_row("written", ["2 min", "-1", "", "s", "1e3", "inf", "nan", float("inf"), float("nan"), -1, 10**400, True, None, {}])
def test_bad_durations(written: object) -> None:
    """An invalid duration is refused with the allowed forms."""
    with pytest.raises(ValueError, match="ms, s, m or h"):
        read_duration(written)


@given(st.one_of(st.integers(0, 10**9 - 1), st.integers(0, 10**15).map(lambda n: read_duration(n / 10**9))))
def test_durations_round_trip(seconds: float) -> None:
    """Every duration is read back as the same value, down to the nanosecond."""
    assert read_duration(format_number(seconds)) == seconds


def test_whole_seconds() -> None:
    """A value that the broker counts in whole seconds must be whole, in any unit."""
    assert read_whole_seconds("2000ms") == 2
    with pytest.raises(ValueError, match="whole seconds"):
        read_whole_seconds("500ms")


@each_row(("written", "count"), [("1000", 1000), (1000, 1000), ("0", 0)])
def test_counts(written: object, count: int) -> None:
    """A count is a whole number, as a number or as text."""
    assert read_count(written) == count


@each_row("written", ["-1", -1, 1.0, "1.0", "1k", "", True, None])
def test_bad_counts(written: object) -> None:
    """Any other value is refused."""
    with pytest.raises(ValueError, match="must be a whole number of at least 0"):
        read_count(written)


def test_rates() -> None:
    """A rate may be a fraction."""
    assert (read_rate("0.5"), read_rate(20), read_rate(20.0)) == (0.5, 20, 20)
    for written in ("x", "", True, None, float("nan"), -1):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            read_rate(written)


def test_booleans_are_strict() -> None:
    """Only true and false are booleans."""
    assert read_bool(True) is True
    for written in (1, 0, "true", "yes", None):
        with pytest.raises(ValueError, match="true or false"):
            read_bool(written)


def test_text_is_printable() -> None:
    """Text has no control characters."""
    assert read_text("towerws.events") == "towerws.events"
    for written in ("a\nb", "\0", 5, None, ["a"]):
        with pytest.raises(ValueError, match="printable"):
            read_text(written)


def test_words() -> None:
    """A list is a list, or comma-separated."""
    assert read_words("open, jwt") == ("open", "jwt") == read_words(["open", "jwt"])
    for written in ([], "", "a,,b", [1], 5, {"a": 1}):
        with pytest.raises(ValueError, match="list of words"):
            read_words(written)
    with pytest.raises(ValueError, match="twice"):
        read_words("open,open")
