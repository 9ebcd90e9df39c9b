"""The cyclic garbage collector, set for a process that holds many connections.

A full collection looks at every container in the process while everything else waits: 43, 99, 128 and 207 ms, one after the
other, while 10,000 clients connected (make bench SCENARIO=storm); CPython begins one when the old generation has grown by a
quarter. Hardly anything here is a cycle when it is let go of, so full collections are made rarer, and not switched off.
"""

from __future__ import annotations

import gc

FULL_AFTER = 1000
"""How many collections of the middle generation come before a full one at the least (CPython: 10)."""


def collect_rarely() -> None:
    """Have full collections at most every seven million containers made and not yet let go of."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_AFTER)
