"""What a scenario is: a function with a name, found by the runner, that gets a `Case` and returns an `Outcome`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.faults.judge import Tally

if TYPE_CHECKING:
    from tests.faults.case import Case


@dataclass
class Outcome:
    """One line of the table. `broken` holds the promises that broke, in words; empty: all held."""

    injected: str = ""
    tally: Tally = field(default_factory=Tally)
    worst_ms: float = 0.0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scenario:
    """A named scenario. Its docstring says promise, injection and what is counted."""

    name: str
    run: Callable[[Case], Outcome]
    text: str
    versions: tuple[int, ...]
    """The major versions of RabbitMQ that it runs with; empty: it needs no broker."""
    short: bool
    """Part of the short selection that runs in the test suite."""
    cluster: bool
    """It runs on the cluster, of which there is one at a time."""
    alone: bool
    """Thousands of clients, or a latency that is judged: nothing else runs beside it."""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, *variants: Any, versions: tuple[int, ...] = (3, 4), short: bool = False, cluster: bool = False, alone: bool = False
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a function under this name. With `variants`, once for each: it stands for `{}` in the name and is the second argument."""

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        text = inspect.cleandoc(function.__doc__ or "")
        for variant in variants or (None,):
            full = name if variant is None else name.format(variant)
            assert full not in SCENARIOS, full

            def run(case: Case, variant: Any = variant) -> Outcome:
                return function(case) if variant is None else function(case, variant)

            SCENARIOS[full] = Scenario(full, run, text, versions, short, cluster, alone)
        return function

    return register
