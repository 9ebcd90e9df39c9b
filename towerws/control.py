"""What this daemon has to do with the control exchange: it follows the revocations that come, and tells the others of its own.

A revocation that was asked for here is carried out at once, and then published for the other daemons. Its message comes back
to this daemon as to all; it is known by its id, and not followed again: whoever has logged in anew meanwhile stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.core.errors import BrokerError
from towerws.core.printable import printable
from towerws.core.revocation import Disconnection, Revocation, parse_revocation

REPORT_EVERY_S: Final = 60.0
"""Of messages that can't be followed one is logged in this time; all are counted."""

Announce = Callable[[bytes, str], Deferred[None]]
"""Publish a body under a message id; fires when all daemons have it, fails with `BrokerError`."""


class Control:
    """A `ControlSink`, and what the admin port asks. `disconnect` closes the connections here, and gives how many they were.

    `doubt` is called when revocations may have been missed. `announce` is None where there are no other daemons.
    """

    _log = Logger()

    def __init__(
        self, disconnect: Callable[[Revocation], int], doubt: Callable[[], None], announce: Announce | None, clock: IReactorTime
    ) -> None:
        self._disconnect = disconnect
        self._doubt = doubt
        self._announce = announce
        self._clock = clock
        self._id = secrets.token_hex(8)
        self._announced = 0
        self._reported_at = -inf
        self._counts = {"received": 0, "own": 0, "bad": 0, "announced": 0, "not_announced": 0}

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages received: all, this daemon's own, those that can't be followed; and revocations that were told the others, or not."""
        return self._counts

    def revoke(self, revocation: Revocation) -> Deferred[Disconnection]:
        """End the connections here, now, and have the other daemons end theirs. Fires when they are told, or can't be; never fails."""
        closed = self._disconnect(revocation)
        if self._announce is None:
            self._log.info("disconnect {whom}: {closed} connections ended", closed=closed, whom=printable(revocation))
            return succeed(Disconnection(closed))
        self._announced += 1

        def told(_: None) -> Disconnection:
            self._counts["announced"] += 1
            self._log.info(
                "disconnect {whom}: {closed} connections ended here; the other daemons were told",
                closed=closed,
                whom=printable(revocation),
            )
            return Disconnection(closed, told=True)

        def not_told(failure: Failure) -> Disconnection:
            self._counts["not_announced"] += 1
            if failure.check(BrokerError) is None:
                self._log.failure("a revocation could not be published", failure)
            reason = failure.getErrorMessage()
            self._log.warn(
                "disconnect {whom}: {closed} connections ended here; the other daemons were not told: {reason}",
                closed=closed,
                whom=printable(revocation),
                reason=reason,
            )
            return Disconnection(closed, told=False, reason=reason)

        return self._announce(revocation.body, f"{self._id}-{self._announced}").addCallbacks(told, not_told)

    # ControlSink

    def listening(self) -> None:
        """Messages will come; what was published before is lost to this daemon."""
        self._doubt()

    def control(self, body: bytes, message_id: str | None) -> None:
        """Follow a message, unless it is one of ours, or not a revocation."""
        self._counts["received"] += 1
        if message_id is not None and message_id.startswith(f"{self._id}-"):
            self._counts["own"] += 1
            return
        try:
            revocation = parse_revocation(body)
        except ValueError as error:
            self._skip(len(body), str(error))
            return
        if closed := self._disconnect(revocation):
            self._log.info(
                "disconnect {whom}, by a control message: {closed} connections ended here", closed=closed, whom=printable(revocation)
            )

    def _skip(self, octets: int, rule: str) -> None:
        self._counts["bad"] += 1
        now = self._clock.seconds()
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            self._log.warn("control message of {octets} octets skipped: {rule}", octets=octets, rule=rule)
