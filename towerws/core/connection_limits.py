"""Limits on the number of connections: all together, by address, by user, and by address during the opening handshake.

A connection has one slot from its acceptance to its end. It counts under its address once that is known: behind a trusted proxy only
after the request's head. It counts under its user once it is authenticated.
"""

from __future__ import annotations

from collections import Counter

from towerws.core.addresses import address_key
from towerws.core.settings import LimitSettings

MAX_SURPLUS = 32
"""This many connections beyond the limit may wait for their refusal. Further ones are aborted, to keep descriptors free."""

LIMIT_TEXTS = {
    "connections": "there are too many connections",
    "address": "there are too many connections from this address",
    "half_open": "too many connections from this address are at their opening handshake",
    "user": "this user has too many connections",
}
"""The reasons for which a connection is refused, each with the text that the client gets."""

OPTIONS = {
    "connections": "limits.connections",
    "address": "limits.per_address",
    "half_open": "limits.half_open",
    "user": "limits.per_user",
}
"""The option that sets each of these limits."""


class ConnectionSlot:
    """One connection, and where it is counted. `number` is that of its acceptance, from 1."""

    __slots__ = ("address", "number", "opening", "user")

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.address: str | None = None
        self.user: str | None = None
        self.opening = False


class ConnectionLimits:
    """Counts connections. Each `arrive` needs one `leave`.

    `arrive`, `locate` and `admit` count the connection in any case. A caller that gets a reason must refuse the connection.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        """The limits in force. Lower ones end no connection that is open."""
        self._addresses: Counter[str] = Counter()
        self._half_open: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self.arrived = 0
        """Connections accepted since the start."""
        self.present = 0
        """Connections now, including those that are being refused."""

    @property
    def full(self) -> bool:
        """Whether there are more connections than allowed, so that the newest one must be refused."""
        return self.present > self.limits.connections

    @property
    def overflowing(self) -> bool:
        """Whether the newest connection must be aborted without an answer."""
        return self.present > self.limits.connections + MAX_SURPLUS

    def arrive(self) -> ConnectionSlot:
        """Count a connection that was just accepted."""
        self.arrived += 1
        self.present += 1
        return ConnectionSlot(self.arrived)

    def locate(self, slot: ConnectionSlot, address: str) -> str | None:
        """Count it under this address, and no longer under an earlier one. Return the reason to refuse it, or None."""
        self._move(slot, address_key(address))
        if self._half_open[slot.address or ""] > self.limits.half_open:
            return "half_open"
        return "address" if self._addresses[slot.address or ""] > self.limits.per_address else None

    def admit(self, slot: ConnectionSlot, user: str | None) -> str | None:
        """Count it under its user, once it is authenticated (None: anonymous). Return the reason to refuse it, or None."""
        self._end_handshake(slot)
        if user is None:
            return None
        slot.user = user
        self._users[user] += 1
        return "user" if self._users[user] > self.limits.per_user else None

    def answered(self, slot: ConnectionSlot) -> None:
        """It got its whole answer. It counts under its address and user until it is closed, because its client may read slowly."""
        self._end_handshake(slot)

    def dismiss(self, slot: ConnectionSlot) -> None:
        """Count it only as present: it is being refused, and takes no client's place any more."""
        self._move(slot, None)
        if slot.user is not None:
            _less(self._users, slot.user)
            slot.user = None

    def leave(self, slot: ConnectionSlot) -> None:
        """Count it no longer: it is closed."""
        self.dismiss(slot)
        self.present -= 1

    def _move(self, slot: ConnectionSlot, address: str | None) -> None:
        if slot.opening:
            self._end_handshake(slot)
        if slot.address is not None:
            _less(self._addresses, slot.address)
        slot.address = address
        if address is not None:
            self._addresses[address] += 1
            self._half_open[address] += 1
            slot.opening = True

    def _end_handshake(self, slot: ConnectionSlot) -> None:
        if slot.opening and slot.address is not None:
            slot.opening = False
            _less(self._half_open, slot.address)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
