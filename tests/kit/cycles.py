"""Cyclic garbage: objects that a path leaves behind and that only the collector would free.

Full collections are rare (towerws/process.py). A path that repeats must leave no cycles: their memory would stay for hours.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMES = 400
"""How often a path runs. What it leaves each time is left once per run: more runs would find nothing more."""

WARM_UP = 20
"""How often it runs before the count: objects that are made once (a cache, a class, a compiled pattern) are no leak."""


@contextmanager
def garbage_kept() -> Iterator[Counter[str]]:
    """Switch the collector off. At the end the counter has the objects that only a collection would free, by type."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


def garbage_of(path: Callable[[], object], times: int = TIMES) -> Counter[str]:
    """The objects that `times` runs of `path` leave: their types, with the number of each."""
    for _ in range(WARM_UP):
        path()
    with garbage_kept() as found:
        for _ in range(times):
            path()
    return found
