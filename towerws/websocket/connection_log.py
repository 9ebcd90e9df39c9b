"""The log's lines about connections: one when each opens and one when it ends, but in a storm no more than somebody could read.

When a proxy in front is started anew ten thousand connections end and come back within seconds: twenty thousand lines would
bury what went wrong. What has no line of its own is counted, and the next line says how many.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from towerws.core.errors import printable
from towerws.core.rate_limits import TokenBucket

LINES_PER_S = 40
LINES_BURST = 50
"""So no second has more than 90 lines."""

PROXY_EVERY_S = 60.0
"""How often a proxy that names no address is logged. The line counts the handshakes in between."""


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


class ProxyLog:
    """Lines about trusted proxies that don't say for whom they speak, at most one a minute."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._last: float | None = None
        self._folded = 0

    def unread_address(self, proxy: str) -> None:
        """Log that a trusted proxy named a client in a way that can't be read, so that its clients share one limit."""
        now = self._clock.seconds()
        if self._last is not None and now - self._last < PROXY_EVERY_S:
            self._folded += 1
            return
        self._last = now
        text = "the proxy {proxy} names no client address that can be read: its clients count as one address"
        if self._folded:
            text += " ({folded} more like it since the last line)"
        folded, self._folded = self._folded, 0
        self._log.warn(text, folded=folded, proxy=printable(proxy))
