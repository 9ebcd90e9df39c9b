"""Log lines about connections: opened, ended and refused ones, and proxies that name no client. Equal lines are folded.

A restarted proxy makes ten thousand connections end and come back within seconds. Twenty thousand lines would bury what went
wrong. A line that is left out is counted, and the next line gives the count.

A refused client gets one line that programs read, too (deploy/fail2ban):

    refused address=203.0.113.7 credential="session cookie" session=5e55… reason=credential status=403 detail="…" folded=0

- `address`: the client's address, as far as the daemon knows it.
- `credential`: its kind, or `none`. `session`: the hash that names it, or `-`.
- `reason`: a word of a fixed set (docs/security.md).
- `status`: the HTTP status or the close code of the answer, or `-` where the connection stays open.
- `detail`: a fixed text. Nothing that the client sent is repeated.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from towerws.core.client_address import address_key
from towerws.core.errors import printable
from towerws.core.limits import TokenBucket
from towerws.logs import LineSpacing

CONNECTIONS_PER_S: Final = 40
CONNECTIONS_BURST: Final = 50
"""Lines about opened and ended connections. No second has more than 90 of them."""

PROXY_EVERY_S: Final = 60.0
"""Seconds between two lines about a proxy that names no address. The line counts the handshakes in between."""

FOLD_S: Final = 10.0
"""For this long, equal refusals of one address are counted instead of written."""

MAX_KINDS: Final = 4096
"""Kinds of refusal that are told apart, by address, credential and reason. Beyond it the oldest kind is forgotten."""

REFUSALS_PER_S: Final = 20
REFUSALS_BURST: Final = 50
"""Lines about refusals in all: refusals from many addresses must not bury the rest of the log."""

FOR_THE_OPERATOR: Final = frozenset({"origin", "host", "connections", "address", "half_open", "user", "unavailable", "throttled", "error"})
"""Reasons that are logged as warnings: a setting, or a service that the daemon needs, may lock users out."""

_refusals = Logger("websocket")
"""A fixed name, and not the class's: the filter in deploy/fail2ban looks for it."""


class ConnectionLog:
    """Writes the lines about opened and ended connections of a daemon."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._bucket = TokenBucket(CONNECTIONS_PER_S, CONNECTIONS_BURST, clock.seconds())
        self._folded = 0

    def line(self, text: str, **fields: object) -> None:
        """Write a line, or count it for the next one. Text fields are made printable, because clients choose them."""
        if self._bucket.take(self._clock.seconds()) > 0:
            self._folded += 1
            return
        if self._folded:
            text += " ({folded} more connections opened or ended without a line)"
        folded, self._folded = self._folded, 0
        shown = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._log.info(text, folded=folded, **shown)


class ProxyLog:
    """Writes lines about trusted proxies that don't name their clients, at most one per `PROXY_EVERY_S`."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._spacing = LineSpacing(PROXY_EVERY_S)

    def unread_address(self, proxy: str) -> None:
        """Log that the client address from a trusted proxy can't be read, so that its clients share one limit."""
        if (due := self._spacing.due("proxy", self._clock.seconds())) is None:
            return
        text = "the proxy {proxy} names no client address that can be read: its clients count as one address"
        if due.folded:
            text += " ({folded} more like it since the last line)"
        self._log.warn(text, folded=due.folded, proxy=printable(proxy))


class RefusalLog:
    """Writes the lines about refused clients of a daemon."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._bucket = TokenBucket(REFUSALS_PER_S, REFUSALS_BURST, clock.seconds())
        # By kind: when its last line was written, and how many refusals came since. The oldest line is first.
        self._written: dict[tuple[str, str, str, str], list[float]] = {}
        self._unwritten = 0

    def line(
        self, address: str, reason: str, *, status: int | None = None, credential: str = "", session: str | None = "", detail: str = ""
    ) -> None:
        """Write a line, or count the refusal for the next line of its kind."""
        now = self._clock.seconds()
        # A malformed request is told apart by its detail, too: the client that it locks out needs to know what was wrong.
        kind = (address_key(address), credential, reason, detail if reason == "request" else "")
        folded = 0
        if (written := self._written.get(kind)) is not None:
            if now - written[0] < FOLD_S:
                written[1] += 1
                return
            folded = int(written[1])
            del self._written[kind]
        if self._bucket.take(now) > 0:
            self._unwritten += 1 + folded
            return
        self._written[kind] = [now, 0]
        if len(self._written) > MAX_KINDS:
            _, forgotten = self._written.pop(next(iter(self._written)))
            self._unwritten += int(forgotten)
        text = 'refused address={address} credential="{credential}" session={session} reason={reason} status={status} detail="{detail}" '
        text += "folded={folded}"
        if self._unwritten:
            text += " ({unwritten} more refusals of other kinds have no line)"
        unwritten, self._unwritten = self._unwritten, 0
        _refusals.emit(
            LogLevel.warn if reason in FOR_THE_OPERATOR else LogLevel.info,
            text,
            address=address,
            credential=credential or "none",
            session=session or "-",
            reason=reason,
            status=status or "-",
            detail=detail.replace('"', "'"),
            folded=folded,
            unwritten=unwritten,
        )
