"""No authentication: every client may subscribe to everything. Used only by explicit choice (`--auth open`)."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, succeed

from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.revocation import Revocation

ANONYMOUS = Identity()


class Open:
    """A `Method` that admits every client, as an anonymous user."""

    name = "open"

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(ANONYMOUS)

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once with no refusals."""
        return succeed({})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Fires at once. An anonymous user has no credential that could end."""
        return succeed(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Do nothing, since nothing is cached."""

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        return succeed(None)
