"""What every way of authenticating offers, and the two ways in which it can say no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from towerws.core.errors import TowerwsError
from towerws.core.handshake import Head
from towerws.core.identity import Identity


class Refused(TowerwsError):
    """The credential is not good: the handshake is answered with 403."""


class Unavailable(TowerwsError):
    """Whether the credential is good can't be found out just now: the handshake is answered with 503, never with 403."""


class Method(Protocol):
    """One way to authenticate. Both calls may be cancelled, when the client is gone before they are done."""

    name: str

    def authenticate(self, head: Head, address: str) -> Deferred[Identity]:
        """Fires with who sent this opening handshake; fails with `Refused` or `Unavailable`."""

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires with those of the topics (routing keys) that this user may not listen to, each with a reason in a few words."""
