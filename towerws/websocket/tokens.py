"""Tokens that clients send as messages, and the queue of the messages that wait meanwhile.

A connection without a credential has an `UnauthenticatedSession`. The client may send nothing but a token. It gets no events, and the
hub doesn't know it.

state    | a token  | other message | token valid        | invalid, third     | can't be checked, third | `token_s` over
waiting  | checking | closed, 1008  | -                  | -                  | -                       | closed, 1008
checking | queued   | queued        | becomes a session  | waiting; 1008      | waiting; 1013           | closed, 1013
closed   | -        | -             | -                  | -                  | -                       | -

Queued messages are handled in their order once the token before them is checked. So a client need not wait for the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import NotAdmitted, Refused, Unavailable, takes_tokens
from towerws.core.errors import BadRequest, CloseReason
from towerws.core.frames import text_frame
from towerws.core.identity import Identity
from towerws.core.requests import TokenMessage, parse_message
from towerws.core.wire import Dialect
from towerws.websocket.context import ConnectionContext

INBOX_BYTES = 64 * 1024
"""Bound of the queue of waiting messages. A client that exceeds it is closed with 1008."""

MESSAGE_BYTES = 128
"""Memory of a waiting message in addition to its payload."""

MAX_WRONG_TOKENS = 3
"""The number of wrong tokens that ends a connection. In `towerws.v1` a wrong `xrftoken` counts, too. One is no attack: a page
sends it after its `csrftoken` changed."""

UNCHECKED = "the token can't be checked just now"

_log = Logger()


class Inbox:
    """A queue of a client's messages, each with whether it was binary. Its size is bounded."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self, messages: Iterable[tuple[bytes, bool]] = ()) -> None:
        """Begin with these messages. They were accepted already, so their size does not matter."""
        self._messages: deque[tuple[bytes, bool]] = deque(messages)
        self._bytes = sum(len(payload) + MESSAGE_BYTES for payload, _ in self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, payload: bytes, is_binary: bool) -> bool:
        """Queue a message. Return False, and queue nothing, beyond `INBOX_BYTES`. An empty inbox takes a message of any size."""
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
    """Authenticate the user of this token. Fires with its identity. `address` is the client's.

    Fails with `BadRequest`: code `token` if the token isn't valid, `unavailable` if that can't be checked now. May be cancelled:
    then it fails with `CancelledError`.
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
    """Authenticate a token that replaces a session's credential. Fires with the identity that takes the place of `identity`.

    Fails as `identify` does, and with code `token` if the token is another user's or another method's.
    """

    def same(renewed: Identity) -> Identity:
        if (renewed.method, renewed.user_id) != (identity.method, identity.user_id):
            raise BadRequest("token", "the token is another user's", message.request_id)
        return renewed

    return identify(context, message, address).addCallback(same)


class UnauthenticatedConnection(Protocol):
    """What the session uses of its connection."""

    address: str

    def send(self, data: bytes) -> bool:
        """Write complete frames."""

    def identified(self, identity: Identity, queued: list[tuple[bytes, bool]]) -> None:
        """Open the session of this user: the token is valid. `queued` has the messages that came meanwhile, as `Inbox.take_all`."""

    def reject(self, reason: CloseReason, word: str) -> None:
        """Close the connection, and count the refusal under this word."""


class UnauthenticatedSession:
    """Waits for a valid token on one connection, which calls `message` and `close`."""

    __slots__ = ("_checking", "_closed", "_connection", "_context", "_failed", "_queued", "_timer", "dialect")

    def __init__(self, context: ConnectionContext, connection: UnauthenticatedConnection, dialect: Dialect) -> None:
        """Start the timer: the client has `token_s` to send a valid token."""
        self._context = context
        self._connection = connection
        self.dialect = dialect
        self._queued = Inbox()
        self._checking: Deferred[Identity] | None = None
        self._failed = 0
        self._closed = False
        # Set to None once it fired: the reactor's call still refers to this object, which would be a cycle.
        self._timer: Any = context.reactor.callLater(context.settings.token_s, self._expire)

    def message(self, payload: bytes, is_binary: bool) -> None:
        """Queue a message. It is handled once no token before it is being checked."""
        if self._closed:
            return
        if self._queued.put(payload, is_binary):
            self._handle_next()
        else:
            self._connection.reject(CloseReason.POLICY, "no_token")

    def close(self) -> None:
        """End the session: a token that is found valid later opens nothing. A second call does nothing."""
        self._closed = True
        self._queued.take_all()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.cancel()

    def _handle_next(self) -> None:
        if self._checking is not None or not self._queued or self._closed:
            return
        payload, is_binary = self._queued.take()
        context = self._context
        context.requests += 1
        try:
            message = parse_message(payload, context.groups, context.settings.topics, is_binary=is_binary)
            if not isinstance(message, TokenMessage):
                raise BadRequest("no_token", "no credential was brought: a token must be sent first", getattr(message, "request_id", None))
        except BadRequest as error:
            self._answer(error)
            self._connection.reject(CloseReason.NO_CREDENTIAL, "no_token")
            return
        self._checking = identify(context, message, self._connection.address)
        self._checking.addCallbacks(self._token_valid, self._token_refused)

    def _token_valid(self, identity: Identity) -> None:
        if self._closed:
            return
        queued = self._queued.take_all()
        self._checking = None
        self.close()
        self._connection.identified(identity, queued)

    def _token_refused(self, failure: Failure) -> None:
        self._checking = None
        if self._closed:
            return
        error = failure.value
        assert isinstance(error, BadRequest), "nothing else comes from identify"
        self._answer(error)
        self._failed += 1
        if self._failed < MAX_WRONG_TOKENS:
            self._handle_next()
        elif error.code == "unavailable":
            self._connection.reject(CloseReason.UNCHECKED, "unavailable")
        else:
            self._connection.reject(CloseReason.NO_CREDENTIAL, "credential")

    def _answer(self, error: BadRequest) -> None:
        self._context.bad_requests += 1
        self._connection.send(text_frame(self.dialect.error(error)))

    def _expire(self) -> None:
        self._timer = None
        if self._checking is not None:
            self._connection.reject(CloseReason.UNCHECKED, "unavailable")
        else:
            self._connection.reject(CloseReason.NO_CREDENTIAL, "no_token")
