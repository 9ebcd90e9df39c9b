"""Identities of every method survive the way to another process."""

from __future__ import annotations

import json

import pytest

from tests.kit.rows import each_row
from towerws.auth.jwt_token import Grants
from towerws.auth.tower_api import Me
from towerws.auth.tower_credentials import ApiCredential, Caller, cache_key
from towerws.auth.tower_objects import CheckedUser
from towerws.auth.transfer import pack_identity, unpack_identity
from towerws.core.identity import Identity
from towerws.core.settings import Secret

CREDENTIAL = ApiCredential("session cookie", (("Cookie", "sessionid=s3cret"),), "ab" * 16, ("cd" * 16,), by_browser=True, bound=True)
CALLER = Caller("192.0.2.1", "Firefox")

IDENTITIES = {
    "open": Identity(),
    "jwt": Identity("ann", "jwt", "ab", expires_at=1.8e9, private=Grants(frozenset({"jobs.summary"}), frozenset({"job_events"}))),
    "tower": Identity(
        7,
        "tower",
        CREDENTIAL.session,
        CREDENTIAL.also,
        cookie=True,
        csrftoken=Secret("x"),
        checked_at=5.0,
        private=CheckedUser(CREDENTIAL, CALLER, cache_key(CREDENTIAL, CALLER), Me(7, reads_all=True), since=5.0),
    ),
}


@each_row("method", list(IDENTITIES))
def test_an_identity_survives_the_way(method: str) -> None:
    """The other process has the same user, credential, grants and times."""
    identity = IDENTITIES[method]
    assert unpack_identity(json.loads(json.dumps(pack_identity(identity)))) == identity


def test_an_unknown_method_is_refused() -> None:
    """Data that nobody can read there isn't sent."""
    with pytest.raises(ValueError, match="can't be handed over"):
        pack_identity(Identity(private=object()))


def test_errors_show_nothing_of_a_credential() -> None:
    """A broken identity is refused with a fixed text."""
    packed = pack_identity(IDENTITIES["tower"])
    packed["private"]["credential"]["surplus"] = "s3cret"
    with pytest.raises(ValueError, match=r"^not an identity$"):
        unpack_identity(packed)
