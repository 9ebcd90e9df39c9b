"""Who is at the other end of a connection, as far as the core needs to know.

Who is connected, by user and by credential: what a revocation needs to find. Looking up costs what is found.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from towerws.core.settings import Secret


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user, and what follows from how it was authenticated."""

    user_id: int | str | None = None
    """What the clients are told of themselves; None for an anonymous user."""
    method: str = "open"
    """The name of the method that vouches for it, which is also asked what it may listen to."""
    session: str | None = None
    """Names the credential in logs and revocations: a hash, never the credential."""
    also: tuple[str, ...] = ()
    """More names that it can be revoked by: an AWX page may bring several session cookies, and only AWX knows which one counts."""
    cookie: bool = False
    """Whether the browser sent the credential by itself: then `xrftoken` must vouch for the page."""
    csrftoken: Secret | None = None
    """AWX's `csrftoken` cookie at the opening handshake."""
    expires_at: float | None = None
    """When the credential ends, in seconds since 1970; None when it does not say."""
    checked_at: float | None = None
    """When what vouches for it was asked about (monotonic seconds); None for just now, or for what needs no asking."""
    private: object = field(default=None, repr=False)
    """The method's own: nobody else looks at it."""

    @property
    def user(self) -> str | None:
        """The user as text, by which its connections are found: `7` and `"7"` are one, whatever method vouches for it."""
        return None if self.user_id is None else str(self.user_id)

    @property
    def account(self) -> str | None:
        """The user as text, under which its connections are limited. The same id of two methods is two users."""
        return None if self.user_id is None else f"{self.method}:{self.user_id}"

    @property
    def sessions(self) -> tuple[str, ...]:
        """All names that the credential can be revoked by."""
        return self.also if self.session is None else (self.session, *self.also)

    def vouched_for_by(self, xrftoken: object) -> bool:
        """Whether the page knows what only the site's own pages can read, where the browser sends the cookie by itself."""
        if not self.cookie:
            return True
        if self.csrftoken is None or not isinstance(xrftoken, str):
            return False
        known, told = self.csrftoken.reveal().encode(), xrftoken.encode()
        return known != b"" != told and hmac.compare_digest(known, told)


T = TypeVar("T")


class Registry(Generic[T]):
    """Connections with the names that they can be revoked by. A user is known by the text of its id: `7` and `"7"` are one."""

    def __init__(self) -> None:
        self._names: dict[T, tuple[str | None, tuple[str, ...]]] = {}
        self._users: dict[str, dict[T, None]] = {}
        self._sessions: dict[str, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, connection: T, identity: Identity) -> None:
        """Enter a connection."""
        user = identity.user
        self._names[connection] = (user, sessions := identity.sessions)
        if user is not None:
            self._users.setdefault(user, {})[connection] = None
        for session in sessions:
            self._sessions.setdefault(session, {})[connection] = None

    def remove(self, connection: T) -> tuple[str | None, tuple[str, ...]]:
        """Forget a connection; gives the user and the credentials of which it was the last one. A second call does nothing."""
        if (names := self._names.pop(connection, None)) is None:
            return None, ()
        user, sessions = names
        last_of_user = user is not None and _drop(self._users, user, connection)
        ended = tuple([session for session in sessions if _drop(self._sessions, session, connection)])
        return user if last_of_user else None, ended

    def of_user(self, user: int | str) -> list[T]:
        """The connections of a user."""
        return list(self._users.get(str(user), ()))

    def of_session(self, session: str) -> list[T]:
        """The connections that were opened with a credential, which is named by its hash."""
        return list(self._sessions.get(session, ()))


def _drop(index: dict[str, dict[T, None]], name: str, connection: T) -> bool:
    found = index[name]
    del found[connection]
    if not found:
        del index[name]
    return not found
