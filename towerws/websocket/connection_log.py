"""The log's lines about connections: one when each opens and one when it ends, but in a storm no more than somebody could read.

When a proxy in front is started anew ten thousand connections end and come back within seconds: twenty thousand lines would
bury what went wrong. What has no line of its own is counted, and the next line says how many.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from towerws.core.errors import HandshakeError
from towerws.core.handshake import TLS
from towerws.core.limits import TokenBucket
from towerws.core.printable import printable

LINES_PER_S = 40
LINES_BURST = 50
"""So no second has more than 90 lines."""

REFUSAL_EVERY_S = 60.0
"""How often a refusal is logged for the same reason. The line counts those in between."""

LOGGED_REASONS = frozenset({"request", TLS})
"""Refusals that have a line here. The others are about a credential or a limit."""


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


class RefusalLog:
    """Lines about handshakes that were not understood, at most one a minute for each reason.

    Such a refusal can lock a user out for good, for example when a proxy or a cookie sends what a handshake may not hold.
    The texts are fixed, so the number of reasons is, too.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._folded: dict[str, int] = {}

    def line(self, error: HandshakeError, address: str) -> None:
        """Log that a client at this address was refused, unless the reason has another log."""
        if error.reason in LOGGED_REASONS:
            text = "handshake refused with {status}: {problem}; from {address}"
            self._fold(str(error), text, status=error.status, problem=str(error), address=printable(address))

    def unread_address(self, proxy: str) -> None:
        """Log that a trusted proxy named a client in a way that can't be read, so that its clients share one limit."""
        text = "the proxy {proxy} names no client address that can be read: its clients count as one address"
        self._fold("address", text, proxy=printable(proxy))

    def _fold(self, kind: str, text: str, **fields: object) -> None:
        now = self._clock.seconds()
        last = self._last.get(kind)
        if last is not None and now - last < REFUSAL_EVERY_S:
            self._folded[kind] = self._folded.get(kind, 0) + 1
            return
        self._last[kind] = now
        if folded := self._folded.pop(kind, 0):
            text += " ({folded} more like it since the last line)"
        self._log.warn(text, folded=folded, **fields)
