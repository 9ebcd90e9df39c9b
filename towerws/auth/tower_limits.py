"""How fast credentials that nobody has seen before may be tried: each one that fails slows down the next from there.

A credential that was tried before is no guess, whether it was good or not. So neither is a session that works slowed down by what
others of the same address try, nor does a page count whose session has ended and that comes back each second.

A bounded queue in which everyone gets a share, however many entries somebody puts in.

A circuit breaker: a service that fails again and again is left alone, but for a probe now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from towerws.auth.base import Throttled
from towerws.auth.cache import TtlCache
from towerws.auth.tower_credentials import ApiCredential
from towerws.core.addresses import address_key
from towerws.core.rate_limits import Throttle

T = TypeVar("T")

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


def handshake_wait_s(credential: ApiCredential) -> float:
    """How long a handshake with this credential may wait before its question is sent, in seconds."""
    return PASSWORD_WAIT_S if credential.account else HANDSHAKE_WAIT_S


class SignInThrottle:
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

    def begin(self, credential: ApiCredential, key: bytes, address: str, now: float) -> tuple[float, Callable[[bool, float], None]]:
        """How many seconds to wait before this credential may be tried; and what to call then: whether it was bad, and the time.

        `Throttled` when that would be too long. A password counts from here on, so that many guesses at once are as slow as one after
        the other. A session or token counts once it is bad: an office whose daemon was restarted comes back all at once, and is good.
        """
        if self._good.get(key, now) or self._bad.get(key, now):
            return 0.0, lambda bad, later: None
        guess, home = bool(credential.account), address_key(address)
        throttles = [(self._guesses, home), (self._accounts, credential.account)] if guess else [(self._addresses, home)]
        delay_s = max(throttle.delay(name, now) for throttle, name in throttles)
        if delay_s > handshake_wait_s(credential):
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


class FairQueue(Generic[T]):
    """Entries that wait, by owner. The owner with the fewest entries under way goes first; each owner's own are first in, first out."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._waiting: dict[str, deque[T]] = {}  # from the owner that waits longest for its turn
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, owner: str, entry: T) -> T | None:
        """Put an entry in. Gives one that has no room: the newest of the owner with the most, which may be this entry."""
        self._waiting.setdefault(owner, deque()).append(entry)
        self._count += 1
        if self._count <= self._max_entries:
            return None
        # This owner loses among equals: so it takes nothing away from one that has no more than itself.
        longest = max(self._waiting, key=lambda each: (len(self._waiting[each]), each == owner))
        dropped = self._waiting[longest].pop()
        self._entry_removed(longest)
        return dropped

    def pop(self, under_way: Mapping[str, int]) -> T:
        """Take out the entry whose turn it is. `under_way` says how many each owner has under way. Needs an entry."""
        owner = min(self._waiting, key=lambda each: under_way.get(each, 0))
        entries = self._waiting.pop(owner)
        entry = entries.popleft()
        self._waiting[owner] = entries  # behind the others
        self._entry_removed(owner)
        return entry

    def remove(self, owner: str, entry: T) -> None:
        """Take out an entry, wherever it stands; one that is not there is no error."""
        entries = self._waiting.get(owner)
        if entries is not None and entry in entries:
            entries.remove(entry)
            self._entry_removed(owner)

    def _entry_removed(self, owner: str) -> None:
        self._count -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]


class CircuitBreaker:
    """Closed, all calls are admitted. After `failures` in a row it is open: one call per `probe_s` is admitted, until one succeeds.

    No clock of its own: times are monotonic seconds.
    """

    def __init__(self, failures: int, probe_s: float) -> None:
        self._limit = failures
        self._probe_s = probe_s
        self._failed = 0
        self._probe_at = 0.0

    @property
    def state(self) -> str:
        """`closed`, or `open` until a probe has succeeded."""
        return "closed" if self._failed < self._limit else "open"

    def is_open(self, now: float) -> bool:
        """Whether a call made now would fail at once."""
        return self._failed >= self._limit and now < self._probe_at

    def admit(self, now: float) -> bool:
        """Whether this call may be made. While open, the call admitted is the probe."""
        if self._failed < self._limit:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + self._probe_s
        return True

    def succeeded(self) -> bool:
        """A call got an answer. Whether that closed an open breaker."""
        closed = self._failed >= self._limit
        self._failed = 0
        return closed

    def failed(self, now: float) -> bool:
        """A call got none. Whether that opened the breaker; the failures of calls made before that change nothing more."""
        self._failed += 1
        if self._failed != self._limit:
            return False
        self._probe_at = now + self._probe_s
        return True
