"""How many may be in: all together, from one address, of one user, and at the door at once. Counting only; pure Python.

A guest is one TCP connection, from its first moment to its last. It is counted by address once its address is known (behind
a trusted proxy that takes the request's head), and by user once it is authenticated.
"""

from __future__ import annotations

from collections import Counter

from towerws.core.addresses import household
from towerws.core.settings import LimitSettings

SURPLUS = 32
"""How many beyond all may wait to be told so; from there on they are cut off without a word, to keep descriptors free."""

CROWDED = {
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


class Guest:
    """One connection's place in the counts."""

    __slots__ = ("address", "opening", "user")

    def __init__(self) -> None:
        self.address: str | None = None
        self.user: str | None = None
        self.opening = False


class Admission:
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

    def arrive(self) -> Guest:
        """A guest is at the door."""
        self.arrived += 1
        self.present += 1
        return Guest()

    def locate(self, guest: Guest, address: str) -> str | None:
        """Count it where it comes from, in place of where it was counted before; gives why it can't stay, or None."""
        self._move(guest, household(address))
        if self._half_open[guest.address or ""] > self._limits.half_open:
            return "half_open"
        return "address" if self._addresses[guest.address or ""] > self._limits.per_address else None

    def admit(self, guest: Guest, user: str | None) -> str | None:
        """It is authenticated, as nobody in particular if `user` is None; gives why it can't stay, or None."""
        self._close_door(guest)
        if user is None:
            return None
        guest.user = user
        self._users[user] += 1
        return "user" if self._users[user] > self._limits.per_user else None

    def dismiss(self, guest: Guest) -> None:
        """It is being turned away: it takes nobody's place any more but that of one descriptor."""
        self._move(guest, None)
        if guest.user is not None:
            _less(self._users, guest.user)
            guest.user = None

    def leave(self, guest: Guest) -> None:
        """It is gone."""
        self.dismiss(guest)
        self.present -= 1

    def _move(self, guest: Guest, address: str | None) -> None:
        self._close_door(guest)
        if guest.address is not None:
            _less(self._addresses, guest.address)
        guest.address = address
        if address is not None:
            self._addresses[address] += 1
            self._half_open[address] += 1
            guest.opening = True

    def _close_door(self, guest: Guest) -> None:
        if guest.opening and guest.address is not None:
            guest.opening = False
            _less(self._half_open, guest.address)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
