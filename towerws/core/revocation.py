"""Revocations: the messages, and the memory of recent ones.

A revocation names the connections that are to be closed. The body of `POST /disconnect` and a message on the control exchange are
the same small object. A credential that was checked before its revocation must be checked again. `RecentRevocations` remembers
each revocation for as long as an earlier check may still be under way, or cached.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from typing import Final

from towerws.core.strict_json import decode

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
    """The result of a revocation: how many connections were closed here, and whether all other daemons followed it.

    `told` is None if there are no other daemons.
    """

    closed: int
    told: bool | None = None
    reason: str | None = None
    """Why `told` is false."""
    no_answer: tuple[tuple[str, str], ...] = ()
    """The id and the name of each daemon that did not answer."""


def parse_revocation(body: bytes) -> Revocation:
    """Read `{"user": 7}` or `{"session": "…"}`. Raise `ValueError` that says what is wrong, and repeats nothing of the body."""
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
