"""What the API's answers mean. Whatever is not one of the known answers means that the question could not be put."""

from __future__ import annotations

import json
from dataclasses import dataclass

from towerws.auth.base import Refused, Unavailable


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, and its body, or None when that was longer than is read."""

    status: int
    body: bytes | None

    @property
    def is_fault(self) -> bool:
        """Whether the API itself is at fault. Not so a redirect: AWX sends one while it migrates its database, but a gateway in front
        of it does so for whoever it does not know.
        """
        return self.status >= 500


@dataclass(frozen=True, slots=True)
class Me:
    """What `/api/v2/me/` says of a user: the id, and whether it may read everything (superusers and auditors)."""

    user_id: int
    reads_all: bool


def read_me(answer: Answer) -> Me:
    """Who it is. `Refused` when the credential is not good, `Unavailable` when the answer says neither."""
    if answer.status in (401, 403):
        raise Refused("the API rejected the credential")
    if answer.status != 200:
        raise Unavailable(_unexpected(answer))
    try:
        content = json.loads(answer.body or b"")
        count, results = content["count"], content["results"]
        if type(count) is int and count == 0:
            raise Refused("the API knows no user for the credential")
        user = results[0]
        user_id = user["id"]
        if type(user_id) is not int or count != 1:
            raise ValueError("not one user with a number")
        return Me(user_id, user.get("is_superuser") is True or user.get("is_system_auditor") is True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # Without the error that says where: it holds what was read.
        raise Unavailable("the API's answer to /api/v2/me/ is not understood: is tower.url the API's own address?") from None


def read_visible(answer: Answer) -> bool:
    """Whether the object is visible to the user. `Refused` when the credential has ended, `Unavailable` when the answer says nothing."""
    if answer.status == 200:
        return True
    if answer.status in (403, 404):
        return False
    if answer.status == 401:
        raise Refused("the API rejects the credential now")
    raise Unavailable(_unexpected(answer))


def _unexpected(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return f"the API answered {answer.status}, a redirect: AWX is migrating its database, or tower.url is not the API's own address"
    return f"the API answered {answer.status}"
