"""What happens to buffered events when a process ends.

`atexit` covers scripts, web servers and `os.fork` children that return. Children of multiprocessing and of Celery's pool (billiard)
end with `os._exit` and run no atexit handlers. Both have their own finalizers. A process that ends in another way (a signal
without a handler, `os._exit`) loses its buffered events, unless it calls `flush` before.
"""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any, Set

_producers: Set[Any] = set()
_processes: Set[int] = set()


def register(producer: Any) -> None:
    """Flush this producer when the process ends.

    This module keeps a reference until the producer is closed. Otherwise its events would be lost with the application's last reference.
    """
    _producers.add(producer)


def unregister(producer: Any) -> None:
    """Remove a closed producer."""
    _producers.discard(producer)


def register_process() -> None:
    """Register `flush_all` for all ways in which this process may end. A second call in a process does nothing."""
    pid = os.getpid()
    if pid in _processes:
        return
    _processes.clear()
    _processes.add(pid)
    for name in ("multiprocessing.util", "billiard.util"):
        util = sys.modules.get(name)
        if util is not None:
            # The high priority makes this run before the application's own queues and pools end.
            util.Finalize(None, flush_all, exitpriority=100)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_celery_process_ends, weak=False, dispatch_uid="towerws-producer")


def flush_all() -> None:
    """Flush every producer, each within its own deadline. It never raises."""
    for producer in list(_producers):
        with suppress(Exception):
            producer.flush_at_exit()


def _celery_process_ends(**_: Any) -> None:
    flush_all()


atexit.register(flush_all)
