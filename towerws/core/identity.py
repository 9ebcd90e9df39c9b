"""Who is at the other end of a connection, as far as the core needs to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user. `user_id` is what the clients are told of themselves; None for an anonymous one."""

    user_id: int | str | None = None
