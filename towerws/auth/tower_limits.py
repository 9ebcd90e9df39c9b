"""Bounds on what the API is asked: a throttle for new credentials, a fair queue of calls, a circuit breaker, and a cache.

They have no clock and do no I/O. All times are monotonic seconds of the caller's clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from math import ceil, inf
from typing import Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from towerws.auth.base import Throttled
from towerws.auth.tower_credentials import ApiCredential
from towerws.core.client_address import address_key
from towerws.core.limits import Throttle

T = TypeVar("T")

SEEN_S: Final = 3600.0
"""How long we remember that a credential was tried."""

ADDRESS_RATE, ADDRESS_BURST = 10.0, 100
"""New sessions and tokens that may fail from one address, each second and at once. They can't be guessed, but each costs the API a
query. An office may lose a hundred sessions at the same moment."""

GUESS_RATE, GUESS_BURST = 1.0, 20
"""The same for passwords from one address."""

ACCOUNT_RATE, ACCOUNT_BURST = 0.2, 10
"""The same for the passwords of one user, from all addresses together: 17,290 a day."""

HANDSHAKE_WAIT_S: Final = 0.5
"""How long a handshake may wait in total before its call is sent: 2.5 s (contract 1.4.2) less `deadline_s`."""

PASSWORD_WAIT_S: Final = 4.0
"""The same with a password, which no page waits for. With `password_deadline_s` it is less than `websocket.handshake_s`."""


def handshake_wait_s(credential: ApiCredential) -> float:
    """Return how many seconds a handshake with this credential may wait before its call is sent."""
    return PASSWORD_WAIT_S if credential.account else HANDSHAKE_WAIT_S


class SignInThrottle:
    """Slows down credentials that were never tried before. Each one that fails delays the next from the same address.

    A credential that was tried before is no guess, whether it was valid or not, and is never delayed. So a working session does not
    wait because of other clients at its address. A page that retries each second with an ended session does not count again.

    It remembers `entries` valid and `entries` invalid credentials, by the caller's keys. `sharers` is the number of processes that accept
    clients on one port. A client can choose among them, so each process allows only its share of the passwords.
    """

    def __init__(self, entries: int, sharers: int = 1) -> None:
        # Two caches, so that invalid credentials can't evict valid ones.
        self._good: TtlCache[bool] = TtlCache(SEEN_S, entries)
        self._bad: TtlCache[bool] = TtlCache(SEEN_S, entries)
        self._sessions_by_address = Throttle(ADDRESS_RATE, ADDRESS_BURST)
        # Sessions and tokens can't be guessed, and an ended one counts in each process. So their bound isn't divided.
        self._passwords_by_address = Throttle(GUESS_RATE / sharers, ceil(GUESS_BURST / sharers))
        self._passwords_by_account = Throttle(ACCOUNT_RATE / sharers, ceil(ACCOUNT_BURST / sharers))
        self.counts = {"delayed": 0, "refused": 0}
        """Sign-ins that had to wait, and sign-ins that were not tried."""

    def begin(self, credential: ApiCredential, key: bytes, address: str, now: float) -> tuple[float, Callable[[bool, float], None]]:
        """Return how many seconds to wait before this credential may be tried, and a function to call after the try.

        The function takes whether the credential was bad, and the time. `Throttled` if the wait would be too long.

        A password counts when this is called, so that many guesses at the same time are as slow as one after the other. The count is taken
        back unless the API refuses the password. A session or token counts only if the API refuses it. After a restart all sessions of an
        office reconnect at the same time, and they are valid.
        """
        if self._good.get(key, now) or self._bad.get(key, now):
            return 0.0, lambda bad, later: None
        is_password, network = bool(credential.account), address_key(address)
        throttles = (
            [(self._passwords_by_address, network), (self._passwords_by_account, credential.account)]
            if is_password
            else [(self._sessions_by_address, network)]
        )
        delay_s = max(throttle.delay(name, now) for throttle, name in throttles)
        if delay_s > handshake_wait_s(credential):
            self.counts["refused"] += 1
            raise Throttled("too many sign-ins failed from this address, or for this user")
        if delay_s:
            self.counts["delayed"] += 1
        if is_password:
            for throttle, name in throttles:
                throttle.count(name, now)

        def ended(bad: bool, later: float) -> None:
            for throttle, name in throttles:
                if is_password and not bad:
                    throttle.give_back(name, later)
                elif bad and not is_password:
                    throttle.count(name, later)

        return delay_s, ended

    def was_good(self, key: bytes, now: float) -> bool:
        """Return whether this credential was valid when it was last tried, within `SEEN_S`."""
        return bool(self._good.get(key, now))

    def note(self, key: bytes, now: float, *, good: bool) -> None:
        """Remember the result of a try."""
        kept, other = (self._good, self._bad) if good else (self._bad, self._good)
        other.discard(key)
        kept.put(key, answer=True, now=now)


class FairQueue(Generic[T]):
    """A bounded queue that is shared fairly between owners.

    The owner with the fewest entries in flight goes first. The entries of one owner are first in, first out.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._waiting: dict[str, deque[T]] = {}  # ordered by how long the owner has waited
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, owner: str, entry: T) -> T | None:
        """Add an entry. If the queue is full, remove and return the newest entry of the owner with the most. It may be this entry."""
        self._waiting.setdefault(owner, deque()).append(entry)
        self._count += 1
        if self._count <= self._max_entries:
            return None
        # Among equals this owner loses, so it takes no room from an owner that has no more entries than itself.
        longest = max(self._waiting, key=lambda each: (len(self._waiting[each]), each == owner))
        dropped = self._waiting[longest].pop()
        self._entry_removed(longest)
        return dropped

    def pop(self, under_way: Mapping[str, int]) -> T:
        """Remove and return the next entry. `under_way` has the number of entries in flight by owner. The queue must not be empty."""
        owner = min(self._waiting, key=lambda each: under_way.get(each, 0))
        entries = self._waiting.pop(owner)
        entry = entries.popleft()
        self._waiting[owner] = entries  # behind the others
        self._entry_removed(owner)
        return entry

    def remove(self, owner: str, entry: T) -> None:
        """Remove an entry. It is no error if the entry is not in the queue."""
        entries = self._waiting.get(owner)
        if entries is not None and entry in entries:
            entries.remove(entry)
            self._entry_removed(owner)

    def _entry_removed(self, owner: str) -> None:
        self._count -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]


class CircuitBreaker:
    """Admits all calls while it is closed. After `failures` in a row it opens, and admits one call per `probe_s` until one succeeds.

    Failures that one client alone may have caused don't open it. The API may be unable or slow to show one object, and that must not stop
    the questions of other clients.
    """

    def __init__(self, failures: int, probe_s: float) -> None:
        self._limit = failures
        self._probe_s = probe_s
        self._failed = 0
        self._clients: set[int | None] = set()  # the clients of the failures in a row; two are enough to know
        self._opened = False
        self._probe_at = 0.0

    @property
    def state(self) -> str:
        """`closed`, or `open` until a probe has succeeded."""
        return "open" if self._opened else "closed"

    def is_open(self, now: float) -> bool:
        """Whether a call made now would fail at once."""
        return self._opened and now < self._probe_at

    def admit(self, now: float) -> bool:
        """Whether this call may be made. While the breaker is open, the admitted call is the probe."""
        if not self._opened:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + self._probe_s
        return True

    def succeeded(self) -> bool:
        """Count an answer. Return whether it closed an open breaker."""
        closed, self._opened = self._opened, False
        self._failed = 0
        self._clients.clear()
        return closed

    def failed(self, now: float, client: int | None = None) -> bool:
        """Count a failure. Return whether it opened the breaker. Later failures of earlier calls change nothing.

        `client` names the client whose question failed. None: no client can have caused it, because the API can't be reached.
        """
        self._failed += 1
        if len(self._clients) < 2:
            self._clients.add(client)
        by_one_client = len(self._clients) == 1 and None not in self._clients
        if self._opened or self._failed < self._limit or by_one_client:
            return False
        self._opened = True
        self._probe_at = now + self._probe_s
        return True


class TtlCache(Generic[T]):
    """Keeps each answer for `lifetime_s`. Beyond `entries` answers it evicts the oldest."""

    def __init__(self, lifetime_s: float, entries: int) -> None:
        self._lifetime_s = lifetime_s
        self._entries = entries
        self._kept: dict[Hashable, tuple[float, T]] = {}  # from the oldest to the newest

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, now: float, since: float = -inf) -> T | None:
        """Return the answer under this key. Return None if there is none, if it is too old, or if it is from before `since`."""
        if (kept := self._kept.get(key)) is None:
            return None
        at, answer = kept
        if now - at >= self._lifetime_s:
            del self._kept[key]
            return None
        return answer if at >= since else None

    def has_newer(self, key: Hashable, at: float) -> bool:
        """Return whether the answer under this key is from after `at`."""
        kept = self._kept.get(key)
        return kept is not None and kept[0] > at

    def put(self, key: Hashable, answer: T, now: float) -> None:
        """Store an answer. It replaces the one under the same key."""
        self._kept.pop(key, None)
        self._kept[key] = (now, answer)
        if len(self._kept) > self._entries:
            del self._kept[next(iter(self._kept))]

    def discard(self, key: Hashable) -> None:
        """Remove the answer under this key, if there is one."""
        self._kept.pop(key, None)


class SingleFlight(Generic[T]):
    """Callers that ask the same question at the same time share one call.

    A caller may cancel its own Deferred. The call goes on, for the other callers and for the cache.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, list[Deferred[T]]] = {}

    def ask(self, key: Hashable, call: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with the result of `call`. If a call for this key is in flight already, fires with the result of that one."""
        first = key not in self._flights
        waiting = self._flights.setdefault(key, [])
        waiter: Deferred[T] = Deferred(waiting.remove)
        waiting.append(waiter)
        if first:
            call().addBoth(self._finish, key)
        return waiter

    def _finish(self, result: T | Failure, key: Hashable) -> None:
        waiting = self._flights.pop(key)
        while waiting:  # a caller's callback may cancel another caller
            waiter = waiting.pop(0)
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
