"""The body of `POST /disconnect`: whose connections are to be closed."""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_NAME_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Revocation:
    """Either a user's id, or the hash that names a credential (the log and `Identity.session` have it)."""

    user: int | str | None = None
    session: str | None = None


def parse_revocation(body: bytes) -> Revocation:
    """Read `{"user": 7}` or `{"session": "…"}`. `ValueError` says what is wrong with anything else; it repeats nothing."""
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise ValueError('the body is not {"user": 7} or {"session": "…"}') from None
    match found:
        case {"user": int() | str() as user, **rest} if not rest and not isinstance(user, bool) and _is_name(str(user)):
            return Revocation(user=user)
        case {"session": str() as session, **rest} if not rest and _is_name(session):
            return Revocation(session=session)
    raise ValueError(
        f'give either "user", a number or text, or "session", text; of at most {MAX_NAME_CHARACTERS} characters, and nothing else'
    )


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME_CHARACTERS
