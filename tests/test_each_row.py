from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.rows import each_row


def failure(test: Callable[..., Any], **fixtures: object) -> str:
    """The report of a test that fails."""
    with pytest.raises(pytest.fail.Exception) as caught:
        test(**fixtures)
    return str(caught.value)


def test_all_rows_are_checked_and_each_failing_row_is_named() -> None:
    """A failing row does not hide the next one. The report has a line for each, and the traceback of the first ones."""
    seen = []

    @each_row("number", range(10))
    def odd(number: int) -> None:
        seen.append(number)
        assert number % 2, f"{number} is even"

    report = failure(odd)
    assert seen == list(range(10))
    assert report.startswith("5 of 10 rows fail:\n  [0] AssertionError: 0 is even\n  [2] AssertionError: 2 is even\n")
    for number in (4, 6, 8):
        assert f"\n  [{number}] AssertionError: {number} is even\n" in report
    assert report.count("Traceback") == 3


def test_exceptions_and_missing_exceptions_fail_a_row() -> None:
    """A row fails by an exception of any kind, and where `pytest.raises` gets none."""

    @each_row("text", ["1", "x", ""])
    def refused(text: str) -> None:
        with pytest.raises(ValueError, match=r"invalid literal for int.*'x'"):
            int(text)

    report = failure(refused)
    assert "2 of 3 rows fail:\n  ['1'] Failed: DID NOT RAISE" in report
    assert "\n  [''] AssertionError: Regex pattern did not match" in report


def test_names_of_rows() -> None:
    """A row's name is its id, or else its values. Long values are cut."""

    @each_row("value, wanted", [pytest.param(1, 2, id="one"), (b"\0" * 1000, len)])
    def never(value: object, wanted: object) -> None:
        raise AssertionError

    named, by_value = failure(never).splitlines()[1:3]
    assert named == "  [one] AssertionError: "
    assert by_value.endswith("-len] AssertionError: ")
    assert len(by_value) < 100

    @each_row("value", [1, 2], ids=["first", "second"])
    @each_row("other", [3], ids=lambda value: f"other {value}")
    def crossed(value: int, other: int) -> None:
        raise AssertionError

    assert failure(crossed).splitlines()[1:3] == ["  [first-other 3] AssertionError: ", "  [second-other 3] AssertionError: "]


def test_each_row_has_its_own() -> None:
    """What a keyword makes is made for each row, and closed after it. A failure at the close is the row's."""
    log: list[str] = []

    @contextlib.contextmanager
    def made() -> Iterator[list[int]]:
        mine: list[int] = []
        yield mine
        log.append(f"closed {mine}")
        assert mine != [2]

    @each_row("number", [1, 2, 3], make=made)
    def test(make: list[int], number: int) -> None:
        make.append(number)

    assert failure(test).startswith("1 of 3 rows fail:\n  [2] AssertionError")
    assert log == ["closed [1]", "closed [2]", "closed [3]"]


def test_a_row_that_hangs_is_the_last() -> None:
    """The timeout of pytest-timeout ends the test, and the report names the row. No later row runs without a bound."""
    seen = []

    @each_row("number", [1, 2, 3])
    def hangs(number: int) -> None:
        seen.append(number)
        if number == 2:
            pytest.fail("Timeout (>120.0s) from pytest-timeout.")

    assert "\n  [2] Failed: Timeout (>120.0s) from pytest-timeout." in failure(hangs)
    assert seen == [1, 2]


@each_row("name", ["same", "same"])
def test_each_row_has_an_empty_folder(tmp_path: Path, name: str) -> None:
    """A file of one row is not there for the next."""
    (tmp_path / name).touch(exist_ok=False)


def test_other_fixtures_are_asked_for(request: pytest.FixtureRequest) -> None:
    """pytest sees the arguments that no table gives."""
    assert {"name", "tmp_path"}.isdisjoint(request.fixturenames)

    @each_row("number", [1])
    def test(number: int, capsys: object) -> None:
        assert capsys == "captured"

    test(capsys="captured")


@each_row(
    "names, rows, says",
    [
        ("a", [], "a table without rows checks nothing"),
        ("a, b", [(1, 2), (1, 2, 3)], "row 1 has 3 values for a, b"),
        ("a, c", [(1, 2)], "takes_two has no argument c"),
        ("a", [pytest.param(1, marks=pytest.mark.slow)], "row 0: a row can have no marks"),
    ],
)
def test_tables_that_do_not_fit(names: str, rows: list[Any], says: str) -> None:
    """A table that would check nothing, or something else, is refused when the module is imported."""

    def takes_two(a: int, b: int) -> None:
        """Never called."""

    with pytest.raises(TypeError, match=says):
        each_row(names, rows)(takes_two)
    with pytest.raises(TypeError, match="1 rows have 2 ids"):
        each_row("a", [1], ids=["x", "y"])(takes_two)


def test_an_awaitable_is_refused() -> None:
    """A decorator that makes a test awaitable stands above the table. Below it, no row would run."""

    @each_row("number", [1])
    def test(number: int) -> object:
        return object()

    assert "an awaitable would never run" in failure(test)
