"""Limits on connections, and on rates. All times are monotonic seconds of the caller's clock.

Connections are limited all together, by address, by user, and by address during the opening handshake. A connection has one slot from
its acceptance to its end. It counts under its address once that is known: behind a trusted proxy only after the request's head. It
counts under its user once it is authenticated.

Rates are limited by a token bucket, or by a leaky bucket for each of many names.
"""

from __future__ import annotations

from collections import Counter
from typing import Self

from towerws.core.client_address import address_key
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

LIMIT_OPTIONS = {
    "connections": "limits.connections",
    "address": "limits.per_address",
    "half_open": "limits.half_open",
    "user": "limits.per_user",
}
"""The option that sets each of these limits."""

_ROUNDING = 1e-9
"""Rounding tolerance: after the promised wait the bucket may hold 0.999… tokens. Count that as one."""


class ConnectionSlot:
    """One connection, and where it is counted. `number` counts the accepted connections, from 1."""

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
        self.reserved = 0
        """Places for connections that another process hands over."""

    @property
    def full(self) -> bool:
        """Whether there are more connections than allowed, so that the newest one must be refused."""
        return self.present + self.reserved > self.limits.connections

    @property
    def overflowing(self) -> bool:
        """Whether the newest connection must be aborted without an answer."""
        return self.present + self.reserved > self.limits.connections + MAX_SURPLUS

    def arrive(self) -> ConnectionSlot:
        """Count a connection that was just accepted."""
        self.arrived += 1
        self.present += 1
        return ConnectionSlot(self.arrived)

    def locate(self, slot: ConnectionSlot, address: str) -> str | None:
        """Count the connection under this address, and no longer under an earlier one. Return the reason to refuse it, or None."""
        key = address_key(address)
        self._move(slot, key)
        if self._half_open[key] > self.limits.half_open:
            return "half_open"
        return "address" if self._addresses[key] > self.limits.per_address else None

    def admit(self, slot: ConnectionSlot, user: str | None) -> str | None:
        """Count the connection under its user, once it is authenticated (None: anonymous). Return the reason to refuse it, or None."""
        self._end_handshake(slot)
        if user is None:
            return None
        slot.user = user
        self._users[user] += 1
        return "user" if self._users[user] > self.limits.per_user else None

    def answered(self, slot: ConnectionSlot) -> None:
        """Count the connection as past its handshake: its whole answer was written.

        It counts under its address and user until it is closed, because its client may read slowly.
        """
        self._end_handshake(slot)

    def dismiss(self, slot: ConnectionSlot) -> None:
        """Count the connection only as present: it is being refused, and takes no other client's place."""
        self._move(slot, None)
        if slot.user is not None:
            _less(self._users, slot.user)
            slot.user = None

    def leave(self, slot: ConnectionSlot) -> None:
        """Stop counting the connection: it is closed."""
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


class TokenBucket:
    """Allows `burst` events at once, and `rate` per second in the long run."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._since = now

    @classmethod
    def from_level(cls, rate: float, burst: float, level: tuple[float, float]) -> Self:
        """Return a bucket that continues with the `level` of another one. Its tokens count up to `burst`."""
        tokens, since = level
        bucket = cls(rate, burst, since)
        bucket._tokens = min(tokens, burst)
        return bucket

    @property
    def level(self) -> tuple[float, float]:
        """The tokens in the bucket, and when they were counted."""
        return self._tokens, self._since

    def take(self, now: float) -> float:
        """Take one token and return 0. If there is none, return the seconds until there will be one."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens > 1 - _ROUNDING:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Throttle:
    """A leaky bucket for each name: it allows `burst` units at once, and `rate` units per second in the long run.

    A unit is a failed try, or a replayed byte. A try may be counted before it is made, and given back if it did not fail. Beyond
    `names` the name that was counted least recently is forgotten.
    """

    def __init__(self, rate: float, burst: int, names: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._names = names
        self._levels: dict[str, tuple[float, float]] = {}  # name -> the units in its bucket, and when that was; oldest first

    def __len__(self) -> int:
        return len(self._levels)

    def set_rate(self, rate: float) -> None:
        """Change the rate of all names."""
        self._rate = rate

    def delay(self, name: str, now: float) -> float:
        """Return the seconds until this name may use one more unit."""
        return max(0.0, (self._level(name, now) + 1 - self._burst) / self._rate)

    def count(self, name: str, now: float, amount: float = 1) -> None:
        """Count units of this name, for example a try that failed or may fail."""
        self._set(name, self._level(name, now) + amount, now)
        if len(self._levels) > self._names:
            del self._levels[next(iter(self._levels))]

    def give_back(self, name: str, now: float) -> None:
        """Take back one unit: the try did not fail, or was not made."""
        if name in self._levels:
            self._set(name, self._level(name, now) - 1, now)

    def _level(self, name: str, now: float) -> float:
        level, at = self._levels.get(name, (0.0, now))
        return max(0.0, level - (now - at) * self._rate)

    def _set(self, name: str, level: float, now: float) -> None:
        self._levels.pop(name, None)
        if level > 0:
            self._levels[name] = (level, now)
