"""The user of a connection, and the registry of connections by user and credential."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from towerws.core.settings import Secret


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
    """More names by which it can be revoked. An AWX page may send several session cookies, and only AWX knows which one counts."""
    cookie: bool = False
    """Whether the credential is a cookie, which a browser sends for any page. Then the page must prove itself by `xrftoken`."""
    csrftoken: Secret | None = None
    """AWX's `csrftoken` cookie from the opening handshake."""
    expires_at: float | None = None
    """When the credential expires, in seconds since 1970. None if it does not say."""
    checked_at: float | None = None
    """When the credential was checked, in monotonic seconds. None means: just now, or it needs no check."""
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
