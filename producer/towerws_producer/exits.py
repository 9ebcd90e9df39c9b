"""What happens to buffered events when a process ends.

`atexit` covers scripts, web servers and `os.fork` children that return. Children of multiprocessing and of Celery's pool (billiard)
end with `os._exit` and run no atexit handlers; both have finalizers of their own. A process that ends in another way (a signal
without a handler, `os._exit`) loses what is buffered, unless it calls `flush` before.
"""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any, Set

_producers: Set[Any] = set()
_processes: Set[int] = set()


def register(producer: Any) -> None:
    """Flush this producer when the process ends. It is kept until it is closed: what it holds must outlive its last reference."""
    _producers.add(producer)


def unregister(producer: Any) -> None:
    """The producer was closed."""
    _producers.discard(producer)


def register_process() -> None:
    """Take part in the ways in which this process may end. Called once a process starts to publish."""
    pid = os.getpid()
    if pid in _processes:
        return
    _processes.clear()
    _processes.add(pid)
    for name in ("multiprocessing.util", "billiard.util"):
        util = sys.modules.get(name)
        if util is not None:
            # A high priority: before the queues and pools that the application made are torn down.
            util.Finalize(None, flush_all, exitpriority=100)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_celery_process_ends, weak=False, dispatch_uid="towerws-producer")


def flush_all() -> None:
    """Flush every producer, each within its own bound. It never raises."""
    for producer in list(_producers):
        with suppress(Exception):
            producer.flush_at_exit()


def _celery_process_ends(**_: Any) -> None:
    flush_all()


atexit.register(flush_all)
