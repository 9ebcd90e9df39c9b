"""One line in the log for each client that is refused, in a form that programs read too (deploy/fail2ban).

    refused address=203.0.113.7 credential="session cookie" session=5e55… reason=credential status=403 detail="…" folded=0

`address` is the client's, as far as it is known. `credential` is its kind in a few words, `none` without one, and `session` the
hash that names it, `-` where that says nothing. `reason` is a word of a fixed set (docs/security.md), `status` the answer's
HTTP status, the code of a close, or `-` where an open connection goes on. `detail` is a fixed text. Nothing of what the client
sent is repeated.

Equal refusals of one address are folded: the first is written at once, and `folded` of the next line says how many came since.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from towerws.core.addresses import address_key
from towerws.core.rate_limits import TokenBucket

FOLD_S: Final = 10.0

KINDS: Final = 4096
"""How many addresses, kinds of credential and reasons are told apart. Beyond it the oldest is forgotten, and written again."""

LINES_PER_S: Final = 20
LINES_BURST: Final = 50
"""In all: so that refusals from many addresses don't bury what else is in the log. The next line says how many have none."""

FOR_THE_OPERATOR: Final = frozenset({"origin", "host", "connections", "address", "half_open", "user", "unavailable", "throttled", "error"})
"""Reasons that are warnings: users may be locked out by a setting, or by what the daemon depends on."""

_log = Logger("websocket")
"""Not the class's own, which would take its name: the filter in deploy/fail2ban knows this one."""


class RefusalLog:
    """All connections of a daemon write with this one."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._bucket = TokenBucket(LINES_PER_S, LINES_BURST, clock.seconds())
        self._said: dict[tuple[str, str, str, str], list[float]] = {}  # from the oldest line to the newest: when, and how many since
        self._unwritten = 0

    def line(
        self, address: str, reason: str, *, status: int | None = None, credential: str = "", session: str | None = "", detail: str = ""
    ) -> None:
        """Write a line, or count the refusal for the next one of its kind."""
        now = self._clock.seconds()
        # A request that is not understood is told apart by its problem too: whoever is locked out by it needs to know which it is.
        kind = (address_key(address), credential, reason, detail if reason == "request" else "")
        folded = 0
        if (said := self._said.get(kind)) is not None:
            if now - said[0] < FOLD_S:
                said[1] += 1
                return
            folded = int(said[1])
            del self._said[kind]
        if self._bucket.take(now) > 0:
            self._unwritten += 1
            return
        self._said[kind] = [now, 0]
        if len(self._said) > KINDS:
            del self._said[next(iter(self._said))]
        text = 'refused address={address} credential="{credential}" session={session} reason={reason} status={status} detail="{detail}" '
        text += "folded={folded}"
        if self._unwritten:
            text += " ({unwritten} more refusals of other kinds have no line)"
        unwritten, self._unwritten = self._unwritten, 0
        _log.emit(
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
