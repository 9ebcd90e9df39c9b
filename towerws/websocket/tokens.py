"""Tokens that a client sends in a message: validation, and the error that the client gets."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, Unavailable, takes_tokens
from towerws.core.errors import BadRequest
from towerws.core.identity import Identity
from towerws.core.requests import TokenMessage
from towerws.websocket.context import ConnectionContext

UNCHECKED = "the token can't be checked just now"

_log = Logger()


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
