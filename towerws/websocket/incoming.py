"""Messages of a client, before and after it is authenticated: the queue of those that wait, and the tokens that they bring."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, Unavailable, takes_tokens
from towerws.core.errors import BadRequest
from towerws.core.identity import Identity
from towerws.core.requests import TokenMessage
from towerws.websocket.context import ConnectionContext

INBOX_BYTES = 64 * 1024
"""Bound of the queue of waiting messages. A client that exceeds it is closed with 1008."""

MESSAGE_BYTES = 128
"""Memory of a waiting message in addition to its payload."""

MAX_WRONG_TOKENS = 3
"""Wrong tokens that end a connection. In towerws.v1 a wrong `xrftoken` counts, too. A page whose `csrftoken` changed sends one.
"""

UNCHECKED = "the token can't be checked just now"

_log = Logger()


class Inbox:
    """The messages of a client that wait, each with whether it was binary. Their size is bounded."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self) -> None:
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, payload: bytes, is_binary: bool) -> bool:
        """Queue a message. Returns False, and queues nothing, beyond `INBOX_BYTES`. An empty inbox takes a message of any size."""
        size = self._bytes + len(payload) + MESSAGE_BYTES
        if self._messages and size > INBOX_BYTES:
            return False
        self._bytes = size
        self._messages.append((payload, is_binary))
        return True

    def take(self) -> tuple[bytes, bool]:
        """Remove and return the oldest message."""
        payload, is_binary = self._messages.popleft()
        self._bytes -= len(payload) + MESSAGE_BYTES
        return payload, is_binary

    def take_all(self) -> list[tuple[bytes, bool]]:
        """Remove and return all messages, the oldest first."""
        messages = list(self._messages)
        self._messages.clear()
        self._bytes = 0
        return messages


def identify(context: ConnectionContext, message: TokenMessage, address: str) -> Deferred[Identity]:
    """Fires with the user of this token. `address` is the client's.

    Fails with `BadRequest`: code `token` if the token isn't valid, `unavailable` if that can't be checked now. May be cancelled.
    """
    auth, began = context.auth, context.reactor.seconds()
    if not takes_tokens(auth):
        return fail(BadRequest("token", "no tokens are taken here", message.request_id))

    def not_revoked(identity: Identity) -> Identity:
        if context.credential_monitor.was_revoked(identity, began):
            raise Refused("revoked while it was checked")
        return identity

    def failed(failure: Failure) -> Failure:
        if isinstance(problem := failure.value, NotAdmitted):
            context.refusals.line(address, problem.reason, credential="token in a message", session=problem.session, detail=str(problem))
        if failure.check(Refused):
            return Failure(BadRequest("token", "the token was refused", message.request_id))
        if failure.check(CancelledError):
            return failure
        if not failure.check(Unavailable):
            _log.failure("a token could not be checked", failure)
        return Failure(BadRequest("unavailable", UNCHECKED, message.request_id))

    return maybeDeferred(auth.identify, message.token.reveal(), address).addCallback(not_revoked).addErrback(failed)


def renew(context: ConnectionContext, identity: Identity, message: TokenMessage, address: str) -> Deferred[Identity]:
    """Fires with the identity that replaces `identity`: the same user, by the same method. Fails as `identify` does."""

    def same(renewed: Identity) -> Identity:
        if (renewed.method, renewed.user_id) != (identity.method, identity.user_id):
            raise BadRequest("token", "the token is another user's", message.request_id)
        return renewed

    return identify(context, message, address).addCallback(same)
