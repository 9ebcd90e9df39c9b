"""Who is connected, by user and by credential: what a revocation needs to find. Looking up costs what is found."""

from __future__ import annotations

from typing import Generic, TypeVar

from towerws.core.identity import Identity

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
