"""How fast credentials that nobody has seen before may be tried: each one that fails slows down the next from there.

A credential that was tried before is no guess, whether it was good or not. So neither is a session that works slowed down by what
others of the same address try, nor does a page count whose session has ended and that comes back each second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from towerws.auth.base import Throttled
from towerws.auth.cache import TtlCache
from towerws.auth.tower_credentials import Credential
from towerws.core.addresses import address_key
from towerws.core.rate_limits import Throttle

SEEN_S: Final = 3600.0
"""For how long it is remembered that a credential was tried."""

ADDRESS_RATE, ADDRESS_BURST = 10.0, 100
"""New sessions and tokens that may fail from one address, each second and at once. Nobody guesses one, but each costs the API a
query. An office may lose a hundred sessions at the same moment."""

GUESS_RATE, GUESS_BURST = 1.0, 20
"""The same for passwords from one address."""

ACCOUNT_RATE, ACCOUNT_BURST = 0.2, 10
"""The same for the passwords of one user, from wherever they come: 17,290 a day."""

HANDSHAKE_WAIT_S: Final = 0.5
"""How long a handshake may wait in all before its question is sent: 2.5 s (contract 1.4.2) less `deadline_s`."""

PASSWORD_WAIT_S: Final = 4.0
"""The same with a password, which no page waits for: with `password_deadline_s` less than `websocket.handshake_s`."""


def patience(credential: Credential) -> float:
    """How long a handshake with this credential may wait before its question is sent, in seconds."""
    return PASSWORD_WAIT_S if credential.account else HANDSHAKE_WAIT_S


class SignIns:
    """What was tried, and what has to wait. Remembers `entries` credentials of each kind, by the keys that it is given."""

    def __init__(self, entries: int) -> None:
        # Apart, so that bad ones can't push out good ones.
        self._good: TtlCache[bool] = TtlCache(SEEN_S, entries)
        self._bad: TtlCache[bool] = TtlCache(SEEN_S, entries)
        self._addresses = Throttle(ADDRESS_RATE, ADDRESS_BURST)
        self._guesses = Throttle(GUESS_RATE, GUESS_BURST)
        self._accounts = Throttle(ACCOUNT_RATE, ACCOUNT_BURST)
        self.counts = {"delayed": 0, "refused": 0}
        """Sign-ins that had to wait, and that were not tried at all."""

    def begin(self, credential: Credential, key: bytes, address: str, now: float) -> tuple[float, Callable[[bool, float], None]]:
        """How many seconds to wait before this credential may be tried; and what to call then: whether it was bad, and the time.

        `Throttled` when that would be too long. A password counts from here on, so that many guesses at once are as slow as one after
        the other. A session or token counts once it is bad: an office whose daemon was restarted comes back all at once, and is good.
        """
        if self._good.get(key, now) or self._bad.get(key, now):
            return 0.0, lambda bad, later: None
        guess, home = bool(credential.account), address_key(address)
        throttles = [(self._guesses, home), (self._accounts, credential.account)] if guess else [(self._addresses, home)]
        delay_s = max(throttle.delay(name, now) for throttle, name in throttles)
        if delay_s > patience(credential):
            self.counts["refused"] += 1
            raise Throttled("too many sign-ins failed from this address, or for this user")
        if delay_s:
            self.counts["delayed"] += 1
        if guess:
            for throttle, name in throttles:
                throttle.count(name, now)

        def ended(bad: bool, later: float) -> None:
            for throttle, name in throttles:
                if guess and not bad:
                    throttle.give_back(name, later)
                elif bad and not guess:
                    throttle.count(name, later)

        return delay_s, ended

    def note(self, key: bytes, now: float, *, good: bool) -> None:
        """What a try came to."""
        kept, other = (self._good, self._bad) if good else (self._bad, self._good)
        other.discard(key)
        kept.put(key, answer=True, now=now)
