"""The cyclic garbage collector, set for a process that holds many connections.

A full collection looks at every container in the process while everything else waits. Measured in a daemon (CPython 3.11, CPU time):

connections | a full collection | with what the start made frozen
0           | 26 to 42 ms       | 0 ms
1,000       | 21 ms             | 1.1 ms
10,000      | 99 ms             | 58 ms

A connection is 17 containers. When it ends it leaves none, so full collections can be rare. They bound the memory of the little
that is cyclic: a new connection to the Tower API leaves up to 60 containers of Twisted's endpoints.
"""

from __future__ import annotations

import gc

FULL_AFTER = 50
"""After how many collections of the middle generation a full one may come (CPython: 10).

That is 350,000 more containers. If all are garbage they take about 49 MB, at 140 bytes each. 10,000 new clients make 24 collections
of the middle generation, so a storm of 20,000 needs no full one in a daemon that has just started.
"""


def collect_rarely() -> None:
    """Make full collections rare. Young containers are looked at as often as before."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_AFTER)
