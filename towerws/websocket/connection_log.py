"""The log's lines about connections: one when each opens and one when it ends, but in a storm no more than somebody could read.

When a proxy in front is started anew ten thousand connections end and come back within seconds: twenty thousand lines would
bury what went wrong. What has no line of its own is counted, and the next line says how many.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from towerws.core.limits import TokenBucket
from towerws.core.printable import printable

LINES_PER_S = 40
LINES_BURST = 50
"""So no second has more than 90 lines."""


class ConnectionLog:
    """All connections of a daemon write with this one."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._bucket = TokenBucket(LINES_PER_S, LINES_BURST, clock.seconds())
        self._folded = 0

    def line(self, text: str, **fields: object) -> None:
        """Write a line, or count it for the next one. What of the fields is text is made printable: clients chose it."""
        if self._bucket.take(self._clock.seconds()) > 0:
            self._folded += 1
            return
        if self._folded:
            text += " ({folded} more connections opened or ended without a line)"
        folded, self._folded = self._folded, 0
        shown = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._log.info(text, folded=folded, **shown)
