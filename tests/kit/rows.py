"""A table inside one test: `each_row` runs the test for each row, and names all rows that fail.

`pytest.mark.parametrize` makes a test item of each row, with its own fixtures and line in the report. That pays where a row is a promise of
its own. For tables of bytes it costs more than the check, and hides the number of promises.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import reprlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Fresh = dict[str, Callable[[], AbstractContextManager[Any]]]
"""By the name of an argument: makes what each row gets for itself."""

IN_FULL = 3
"""For so many failing rows the report has the traceback. All have their line."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class Row(NamedTuple):
    """A row: the name in the report, and the arguments."""

    name: str
    values: dict[str, Any]


class _Table(NamedTuple):
    test: Callable[..., Any]
    rows: list[Row]
    fresh: Fresh


def each_row(
    names: str | Sequence[str],
    rows: Iterable[Any],
    *,
    ids: Iterable[object] | Callable[[Any], object] | None = None,
    **fresh: Callable[[], AbstractContextManager[Any]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a test once for each row, in one item. All rows are checked. The failure names each row that fails.

    `names`, `rows` and `ids` are those of `pytest.mark.parametrize`. Two tables on one test give all pairs of their rows.
    A keyword names an argument that each row gets for itself, and what makes it: `make=edges`, `monkeypatch=pytest.MonkeyPatch.context`.
    `tmp_path` is an empty folder for each row. All rows share every other fixture.
    On an `async` test it stands below the decorator that runs the test in the reactor.

    Raises `TypeError` for a table without rows, and for rows that don't fit the names.
    """
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = list(_rows(columns, list(rows), ids))

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        inner: _Table = getattr(test, "each_row_table", _Table(test, [Row("", {})], {}))
        crossed = [
            Row("-".join(filter(None, (above.name, below.name))), above.values | below.values)
            for above, below in itertools.product(table, inner.rows)
        ]
        return _one_test(_Table(inner.test, crossed, inner.fresh | fresh))

    return decorate


def _rows(columns: list[str], rows: list[Any], ids: Iterable[object] | Callable[[Any], object] | None) -> Iterator[Row]:
    if not rows:
        raise TypeError("a table without rows checks nothing")
    of_values = ids if callable(ids) else None
    of_rows = None if ids is None or callable(ids) else [str(each) for each in ids]
    if of_rows is not None and len(of_rows) != len(rows):
        raise TypeError(f"{len(rows)} rows have {len(of_rows)} ids")
    for number, row in enumerate(rows):
        marked = isinstance(row, tuple) and hasattr(row, "marks")  # pytest.param
        if marked and row.marks:
            raise TypeError(f"row {number}: a row can have no marks, since all rows are one test")
        values = tuple(row.values) if marked else (row,) if len(columns) == 1 else tuple(row)
        if len(values) != len(columns):
            raise TypeError(f"row {number} has {len(values)} values for {', '.join(columns)}")
        name = row.id if marked else None if of_rows is None else of_rows[number]
        yield Row(name or "-".join(_name(value, of_values) for value in values), dict(zip(columns, values, strict=True)))


def _name(value: Any, ids: Callable[[Any], object] | None) -> str:
    named = None if ids is None else ids(value)
    if named is not None:
        return str(named)
    return getattr(value, "__name__", None) or _short.repr(value)


def _one_test(table: _Table) -> Callable[..., Any]:
    test = table.test
    parameters = inspect.signature(test).parameters
    missing = [name for name in (*table.rows[0].values, *table.fresh) if name not in parameters]
    if missing:
        raise TypeError(f"{test.__qualname__} has no argument {', '.join(missing)}")

    wrapper: Callable[..., Any]
    if inspect.iscoroutinefunction(test):

        async def in_reactor(*args: Any, **fixtures: Any) -> None:
            failures: list[tuple[str, BaseException]] = []
            for number, row in enumerate(table.rows):
                with _noted(row, failures, len(table.rows)), ExitStack() as leave:
                    await test(*args, **_arguments(table, number, fixtures, leave))
            _report(failures, len(table.rows))

        wrapper = in_reactor
    else:

        def at_once(*args: Any, **fixtures: Any) -> None:
            failures: list[tuple[str, BaseException]] = []
            for number, row in enumerate(table.rows):
                with _noted(row, failures, len(table.rows)), ExitStack() as leave:
                    answer = test(*args, **_arguments(table, number, fixtures, leave))
                    assert answer is None, "a test returns nothing: an awaitable would never run"
            _report(failures, len(table.rows))

        wrapper = at_once

    functools.update_wrapper(wrapper, test)
    left = [parameter for name, parameter in parameters.items() if name not in table.rows[0].values and name not in table.fresh]
    # pytest reads the fixtures from the signature.
    vars(wrapper).update(__signature__=inspect.Signature(left), each_row_table=table)
    return wrapper


def _arguments(table: _Table, number: int, fixtures: dict[str, Any], leave: ExitStack) -> dict[str, Any]:
    own = {name: leave.enter_context(make()) for name, make in table.fresh.items()}
    folder = fixtures.get("tmp_path")
    if isinstance(folder, Path):
        own["tmp_path"] = folder / str(number)
        own["tmp_path"].mkdir()
    return fixtures | table.rows[number].values | own


@contextmanager
def _noted(row: Row, failures: list[tuple[str, BaseException]], count: int) -> Iterator[None]:
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 # the other rows are checked, and then the test fails
        failures.append((row.name, error))
        if "from pytest-timeout" in str(error):  # it bounds the whole test, and only once: the next row could hang without an end
            _report(failures, count)


def _report(failures: list[tuple[str, BaseException]], count: int) -> None:
    if not failures:
        return
    lines = [f"{len(failures)} of {count} rows fail:"]
    lines += [f"  [{name}] {type(error).__name__}: {next(iter(str(error).splitlines()), '')}" for name, error in failures]
    for name, error in failures[:IN_FULL]:
        lines += ["", f"[{name}]", *(piece.rstrip("\n") for piece in traceback.format_exception(error))]
    pytest.fail("\n".join(lines), pytrace=False)
