"""How many may be in: all together, from one address, of one user, and at the door at once. Counting only; pure Python.

A guest is one TCP connection, from its first moment to its last. It is counted by address once its address is known (behind
a trusted proxy that takes the request's head), and by user once it is authenticated.
"""

from __future__ import annotations

from collections import Counter

from towerws.core.addresses import address_key
from towerws.core.settings import LimitSettings

SURPLUS = 32
"""How many beyond all may wait to be told so; from there on they are cut off without a word, to keep descriptors free."""

LIMIT_TEXTS = {
    "connections": "there are too many connections",
    "address": "there are too many connections from this address",
    "half_open": "too many connections from this address are at their opening handshake",
    "user": "this user has too many connections",
}
"""The reasons for which a guest is turned away, each with the text that it is told."""

OPTIONS = {
    "connections": "limits.connections",
    "address": "limits.per_address",
    "half_open": "limits.half_open",
    "user": "limits.per_user",
}
"""The options that set these limits."""


class ConnectionSlot:
    """One connection's place in the counts."""

    __slots__ = ("address", "opening", "user")

    def __init__(self) -> None:
        self.address: str | None = None
        self.user: str | None = None
        self.opening = False


class ConnectionLimits:
    """The counts. Every guest that arrives must leave once."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._addresses: Counter[str] = Counter()
        self._half_open: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self.arrived = 0
        """Connections since the start."""
        self.present = 0
        """Connections now, those that are being turned away included."""

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.present > self._limits.connections

    @property
    def overflowing(self) -> bool:
        """Whether there is not even room to say so."""
        return self.present > self._limits.connections + SURPLUS

    def arrive(self) -> ConnectionSlot:
        """A guest is at the door."""
        self.arrived += 1
        self.present += 1
        return ConnectionSlot()

    def locate(self, slot: ConnectionSlot, address: str) -> str | None:
        """Count it where it comes from, in place of where it was counted before; gives why it can't stay, or None."""
        self._move(slot, address_key(address))
        if self._half_open[slot.address or ""] > self._limits.half_open:
            return "half_open"
        return "address" if self._addresses[slot.address or ""] > self._limits.per_address else None

    def admit(self, slot: ConnectionSlot, user: str | None) -> str | None:
        """It is authenticated, as nobody in particular if `user` is None; gives why it can't stay, or None."""
        self._end_handshake(slot)
        if user is None:
            return None
        slot.user = user
        self._users[user] += 1
        return "user" if self._users[user] > self._limits.per_user else None

    def dismiss(self, slot: ConnectionSlot) -> None:
        """It is being turned away: it takes nobody's place any more but that of one descriptor."""
        self._move(slot, None)
        if slot.user is not None:
            _less(self._users, slot.user)
            slot.user = None

    def leave(self, slot: ConnectionSlot) -> None:
        """It is gone."""
        self.dismiss(slot)
        self.present -= 1

    def _move(self, slot: ConnectionSlot, address: str | None) -> None:
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
