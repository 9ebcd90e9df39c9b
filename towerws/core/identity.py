"""Users and credentials: whose connection it is, whose connections are to be closed, and when a credential ends.

A revocation names the connections that are to be closed. The body of `POST /disconnect` and a message on the control exchange are
the same small object. A credential that was checked before its revocation must be checked again. `RecentRevocations` remembers
each revocation for as long as an earlier check may still be under way, or cached.

The module reads no clock: all times are seconds of the caller's clock.
"""

from __future__ import annotations

import heapq
import hmac
import json
from dataclasses import dataclass, field
from math import inf
from typing import Final, Generic, TypeVar

from towerws.core.settings import Secret
from towerws.core.strict_json import decode

SLACK = 64
"""The heap may have this many entries more than twice the names. Then it is rebuilt. So a rebuild costs no more than the discards
since the last one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user, and the properties of its credential."""

    user_id: int | str | None = None
    """The user's id, which clients get in `welcome`. None for an anonymous user."""
    method: str = "open"
    """The name of the method that authenticated the user. The same method decides to what the user may subscribe."""
    session: str | None = None
    """The credential's name in logs and revocations: a hash, never the credential."""
    also: tuple[str, ...] = ()
    """More names by which the credential can be revoked. An AWX page may send several session cookies, and only AWX knows which one
    counts."""
    cookie: bool = False
    """Whether the credential is a cookie, which a browser sends for any page. Then the page must prove itself by `xrftoken`."""
    csrftoken: Secret | None = None
    """AWX's `csrftoken` cookie from the opening handshake."""
    expires_at: float | None = None
    """When the credential expires, in seconds since 1970. None if it does not say."""
    checked_at: float | None = None
    """When the credential was last checked, or last could not be checked, in monotonic seconds. The time to the next check begins here.

    None means: it was checked just now, or needs no check.
    """
    private: object = field(default=None, repr=False)
    """Data of the method. No other code reads it."""

    @property
    def user(self) -> str | None:
        """The user's id as text, to find its connections. `7` and `"7"` are one user, also of two methods."""
        return None if self.user_id is None else str(self.user_id)

    @property
    def account(self) -> str | None:
        """The user's id as text, to limit its connections. The same id of two methods is two users."""
        return None if self.user_id is None else f"{self.method}:{self.user_id}"

    @property
    def sessions(self) -> tuple[str, ...]:
        """All names by which the credential can be revoked."""
        return self.also if self.session is None else (self.session, *self.also)

    def accepts_xrftoken(self, xrftoken: object) -> bool:
        """Return whether the page knows the `csrftoken`, which only the site's own pages can read. True if there is no cookie."""
        if not self.cookie:
            return True
        if self.csrftoken is None or not isinstance(xrftoken, str):
            return False
        known, given = self.csrftoken.reveal().encode(), xrftoken.encode()
        return known != b"" != given and hmac.compare_digest(known, given)


T = TypeVar("T")


class Registry(Generic[T]):
    """The open connections, by user and by credential, to find those that a revocation ends.

    A user is known by its id as text: `7` and `"7"` are one user. A look-up costs what it finds.
    """

    def __init__(self) -> None:
        self._names: dict[T, tuple[str | None, tuple[str, ...]]] = {}
        self._users: dict[str, dict[T, None]] = {}
        self._sessions: dict[str, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, connection: T, identity: Identity) -> None:
        """Add a connection."""
        user = identity.user
        self._names[connection] = (user, sessions := identity.sessions)
        if user is not None:
            self._users.setdefault(user, {})[connection] = None
        for session in sessions:
            self._sessions.setdefault(session, {})[connection] = None

    def remove(self, connection: T) -> tuple[str | None, tuple[str, ...]]:
        """Remove a connection. Return the user and the credentials that now have none. A second call does nothing."""
        if (names := self._names.pop(connection, None)) is None:
            return None, ()
        user, sessions = names
        last_of_user = user is not None and _drop(self._users, user, connection)
        ended = tuple([session for session in sessions if _drop(self._sessions, session, connection)])
        return user if last_of_user else None, ended

    def all(self) -> list[T]:
        """Return all connections."""
        return list(self._names)

    def of_user(self, user: int | str) -> list[T]:
        """Return the connections of a user."""
        return list(self._users.get(str(user), ()))

    def of_session(self, session: str) -> list[T]:
        """Return the connections of a credential, which is named by its hash."""
        return list(self._sessions.get(session, ()))


def _drop(index: dict[str, dict[T, None]], name: str, connection: T) -> bool:
    found = index[name]
    del found[connection]
    if not found:
        del index[name]
    return not found


MAX_NAME_CHARACTERS: Final = 512

MAX_REVOCATION_BYTES: Final = 8 * 1024
"""A name of that length takes 6 KiB if all of it is written as escapes."""

_SHAPE: Final = '{"user": 7} or {"session": "…"}'


@dataclass(frozen=True, slots=True)
class Revocation:
    """Either a user's id, or the hash that names a credential (as in the log, and in `Identity.session`)."""

    user: int | str | None = None
    session: str | None = None

    @property
    def body(self) -> bytes:
        """The message's body, as `parse_revocation` reads it: one object in ASCII."""
        named: dict[str, int | str | None] = {"session": self.session} if self.user is None else {"user": self.user}
        return json.dumps(named).encode("ascii")

    def __str__(self) -> str:
        return f"session {self.session}" if self.user is None else f"user {self.user}"


@dataclass(frozen=True, slots=True)
class Disconnection:
    """The result of a revocation: how many connections were closed here, and whether all other daemons followed it (`told`).

    `told` is None if there are no other daemons.
    """

    closed: int
    told: bool | None = None
    reason: str | None = None
    """Why `told` is false."""
    no_answer: tuple[tuple[str, str], ...] = ()
    """The id and the name of each daemon that did not answer."""


def parse_revocation(body: bytes) -> Revocation:
    """Read `{"user": 7}` or `{"session": "…"}`. Raises `ValueError` that says what is wrong and repeats nothing of the body."""
    if len(body) > MAX_REVOCATION_BYTES:
        raise ValueError(f"a revocation has at most {MAX_REVOCATION_BYTES} bytes")
    try:
        found = decode(body.decode())
    except (ValueError, RecursionError):
        raise ValueError(f"it is not {_SHAPE}") from None
    match found:
        case {"user": int() | str() as user, **rest} if not rest and not isinstance(user, bool) and _is_name(str(user)):
            return Revocation(user=user)
        case {"session": str() as session, **rest} if not rest and _is_name(session):
            return Revocation(session=session)
    raise ValueError(
        f'give either "user" (a number or text) or "session" (text), with at most {MAX_NAME_CHARACTERS} characters, and nothing else'
    )


class RecentRevocations:
    """Remembers when users and credentials were last revoked, in monotonic seconds. A user is known by its id as text.

    A revocation is forgotten after `kept_s`. Beyond `names` revocations the oldest is forgotten earlier. Then every user counts as
    revoked at that time. So a flood of revocations costs more checks, but no revoked user gets in.
    """

    def __init__(self, kept_s: float, names: int = 4096) -> None:
        self._kept_s = kept_s
        self._names = names
        self._at: dict[tuple[str, str], float] = {}  # from the oldest to the newest
        self._all_at = -inf
        self.count = 0
        """The number of revocations so far. A check that began at another count may be older than one of them."""

    def add(self, revocation: Revocation | None, now: float) -> None:
        """Remember a revocation. None revokes every user."""
        self.count += 1
        if revocation is None:
            self._at.clear()
            self._all_at = now
            return
        named = ("session", revocation.session or "") if revocation.user is None else ("user", str(revocation.user))
        self._at.pop(named, None)
        self._at[named] = now
        while (oldest := next(iter(self._at.items()), None)) is not None:
            if now - oldest[1] <= self._kept_s:
                if len(self._at) <= self._names:
                    return
                self._all_at = oldest[1]
            del self._at[oldest[0]]

    def latest(self, user: int | str | None, *sessions: str) -> float:
        """Return when this user or one of these credentials was last revoked: minus infinity if that was long ago, or never.

        A client that has neither (auth open) has no name, and is never revoked.
        """
        if user is None and not sessions:
            return -inf
        if not self._at:  # nearly always, and this is asked twice for each handshake
            return self._all_at
        by_user = -inf if user is None else self._at.get(("user", str(user)), -inf)
        return max(self._all_at, by_user, *[self._at.get(("session", session), -inf) for session in sessions])


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME_CHARACTERS


class DeadlineQueue:
    """Names, each with its earliest deadline. `pop_due` costs only as much as the names that it pops."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may also hold later deadlines of a name, which no longer count

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: str, at: float) -> None:
        """Set a name's deadline, unless it has an earlier one."""
        if at < self._times.get(name, inf):
            self._times[name] = at
            heapq.heappush(self._heap, (at, name))

    def discard(self, name: str) -> None:
        """Remove a name. A second call does nothing."""
        self._times.pop(name, None)
        if len(self._heap) > 2 * len(self._times) + SLACK:
            self._heap = [(time, kept) for kept, time in self._times.items()]
            heapq.heapify(self._heap)

    def bring_forward(self, at: float) -> None:
        """Set every deadline that is later than `at` to `at`."""
        self._heap = [(min(time, at), name) for name, time in self._times.items()]
        heapq.heapify(self._heap)
        self._times = {name: time for time, name in self._heap}

    def late(self, now: float) -> float:
        """Return the seconds since the earliest deadline passed, or 0 if none has."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, now - self._heap[0][0]) if self._heap else 0.0

    def pop_due(self, now: float, limit: int) -> list[str]:
        """Remove and return the names whose deadline has passed, earliest first, at most `limit` of them."""
        popped: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(popped) < limit:
            at, name = heapq.heappop(self._heap)
            if self._times.get(name) == at:
                del self._times[name]
                popped.append(name)
        return popped
