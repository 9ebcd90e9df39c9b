"""Writes identities for another process of this daemon, and reads them there.

The text holds the credential itself (such as AWX's session cookie), because the other process has to check it again. The text travels
on a private socket pair, and is never logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from towerws.auth.jwt_token import Grants
from towerws.auth.tower_api import Me
from towerws.auth.tower_credentials import ApiCredential, Caller, cache_key
from towerws.auth.tower_objects import CheckedUser
from towerws.core.identity import Identity
from towerws.core.settings import Secret


def pack_identity(identity: Identity) -> dict[str, Any]:
    """Return the identity as a JSON-compatible dictionary. Raises `ValueError` for data of an unknown method."""
    return {
        "user_id": identity.user_id,
        "method": identity.method,
        "session": identity.session,
        "also": list(identity.also),
        "cookie": identity.cookie,
        "csrftoken": None if identity.csrftoken is None else identity.csrftoken.reveal(),
        "expires_at": identity.expires_at,
        "checked_at": identity.checked_at,
        "private": _pack_private(identity.private),
    }


def unpack_identity(packed: Mapping[str, Any]) -> Identity:
    """Return the identity that `pack_identity` wrote. Raises `ValueError` for anything else."""
    try:
        csrftoken = packed["csrftoken"]
        return Identity(
            user_id=packed["user_id"],
            method=packed["method"],
            session=packed["session"],
            also=tuple(packed["also"]),
            cookie=packed["cookie"],
            csrftoken=None if csrftoken is None else Secret(csrftoken),
            expires_at=packed["expires_at"],
            checked_at=packed["checked_at"],
            private=_unpack_private(packed["private"]),
        )
    except (KeyError, TypeError):
        raise ValueError("not an identity") from None  # the text of the error could hold the credential


def _pack_private(private: object) -> dict[str, Any] | None:
    if private is None:
        return None
    if isinstance(private, Grants):
        return {"topics": sorted(private.topics), "groups": sorted(private.groups)}
    if isinstance(private, CheckedUser):
        return {
            "credential": {**private.credential._asdict(), "headers": [list(header) for header in private.credential.headers]},
            "caller": list(private.caller),
            "me": [private.me.user_id, private.me.reads_all],
            "since": private.since,
        }
    raise ValueError("the data of this method can't be handed over")


def _unpack_private(packed: Mapping[str, Any] | None) -> object:
    if packed is None:
        return None
    if "topics" in packed:
        return Grants(frozenset(packed["topics"]), frozenset(packed["groups"]))
    found = dict(packed["credential"])
    headers = tuple((name, value) for name, value in found.pop("headers"))
    credential = ApiCredential(headers=headers, also=tuple(found.pop("also")), **found)
    caller = Caller(*packed["caller"])
    # The cache key is a hash with a secret of the process, so this process makes its own.
    return CheckedUser(credential, caller, cache_key(credential, caller), Me(*packed["me"]), packed["since"])
