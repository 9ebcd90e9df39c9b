"""pika logs pages for each failed attempt. The producer says the same in one line, so pika's lines about its connections are kept back."""

import logging
import threading
from typing import Optional, Set


class _NotFromOurThread(logging.Filter):
    """Keeps back what pika logs about our connections: pages for each failed attempt, said in one line here."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: Set[Optional[int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.threads


_filter = _NotFromOurThread()
_filtered: Set[str] = set()


def quiet_pika() -> None:
    """Keep pika's log lines from the calling thread back. Those of the application's own pika connections stay as they are."""
    _filter.threads.add(threading.get_ident())
    for name in list(logging.Logger.manager.loggerDict):
        if (name == "pika" or name.startswith("pika.")) and name not in _filtered:
            _filtered.add(name)
            logging.getLogger(name).addFilter(_filter)


def forget_quiet() -> None:
    """The calling thread ends: another one may get its number."""
    _filter.threads.discard(threading.get_ident())


def forget_all_quiet() -> None:
    """After a fork: none of the parent's threads is here."""
    _filter.threads.clear()
