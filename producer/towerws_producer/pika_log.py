"""Filters pika's log lines about the producer's connections. pika logs pages for each failed attempt, the producer one line."""

import logging
import threading
from typing import Optional, Set


class _NotFromOurThread(logging.Filter):
    """Drops the log lines of some threads."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: Set[Optional[int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.threads


_filter = _NotFromOurThread()
_filtered: Set[str] = set()


def quiet_pika() -> None:
    """Drop pika's log lines from the calling thread. Lines about the application's own pika connections stay."""
    _filter.threads.add(threading.get_ident())
    for name in list(logging.Logger.manager.loggerDict):
        if (name == "pika" or name.startswith("pika.")) and name not in _filtered:
            _filtered.add(name)
            logging.getLogger(name).addFilter(_filter)


def forget_quiet() -> None:
    """Stop filtering for the calling thread, which ends, because another thread may get its number."""
    _filter.threads.discard(threading.get_ident())


def forget_all_quiet() -> None:
    """Stop filtering for all threads, after a fork: the parent's threads do not exist in this process."""
    _filter.threads.clear()
