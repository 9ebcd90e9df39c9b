"""A visitor: who came without a credential, and may send nothing but a token. It is told nothing, and the hub does not know it.

state    | a token  | any other message | found good          | not good, third | can't be checked, third | `token_s` over
waiting  | asking   | out, 1008         | -                   | -               | -                       | out, 1008
asking   | held     | held              | a session takes over| waiting; 1008   | waiting; 1013           | out, 1013
out      | -        | -                 | -                   | -               | -                       | -

What is held is followed, in its order, once the token before it is decided: a client need not wait for the answer.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from towerws.core.errors import BadRequest, CloseReason
from towerws.core.frames import text_frame
from towerws.core.identity import Identity
from towerws.core.requests import TokenMessage, parse_message
from towerws.core.wire import Dialect
from towerws.websocket.context import ConnectionContext
from towerws.websocket.session import INBOX_BYTES, MAX_WRONG_TOKENS, MESSAGE_BYTES
from towerws.websocket.tokens import identify


class UnauthenticatedConnection(Protocol):
    """What a visitor needs of its connection."""

    address: str

    def send(self, data: bytes) -> bool:
        """Take whole frames."""

    def identified(self, identity: Identity, held: list[tuple[bytes, bool]]) -> None:
        """The visitor is known now. `held` are the messages that came meanwhile: payload, and whether it was binary."""

    def reject(self, reason: CloseReason, word: str) -> None:
        """Close the connection, and count that under this word."""


class UnauthenticatedSession:
    """The state of one. `message` and `close` are all that the connection calls."""

    __slots__ = ("_asking", "_closed", "_connection", "_context", "_failed", "_held", "_held_bytes", "_timer", "dialect")

    def __init__(self, context: ConnectionContext, connection: UnauthenticatedConnection, dialect: Dialect) -> None:
        """Begin to wait."""
        self._context = context
        self._connection = connection
        self.dialect = dialect
        self._held: deque[tuple[bytes, bool]] = deque()
        self._held_bytes = 0
        self._asking: Deferred[Identity] | None = None
        self._failed = 0
        self._closed = False
        # None once it went off: a call that was made still refers to this, which would be a cycle.
        self._timer: Any = context.reactor.callLater(context.settings.token_s, self._expire)

    def message(self, payload: bytes, is_binary: bool) -> None:
        """Take in one whole message."""
        if self._closed:
            return
        self._held_bytes += len(payload) + MESSAGE_BYTES
        if self._held and self._held_bytes > INBOX_BYTES:
            self._connection.reject(CloseReason.POLICY, "no_token")
            return
        self._held.append((payload, is_binary))
        self._follow()

    def close(self) -> None:
        """Let go of everything: a token found good from here on opens nothing. A second call does nothing."""
        self._closed = True
        self._held.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _follow(self) -> None:
        if self._asking is not None or not self._held or self._closed:
            return
        payload, is_binary = self._held.popleft()
        self._held_bytes -= len(payload) + MESSAGE_BYTES
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
        self._asking = identify(context, message, self._connection.address)
        self._asking.addCallbacks(self._found_good, self._not_taken)

    def _found_good(self, identity: Identity) -> None:
        if self._closed:
            return
        held = list(self._held)
        self._asking = None
        self.close()
        self._connection.identified(identity, held)

    def _not_taken(self, failure: Failure) -> None:
        self._asking = None
        if self._closed:
            return
        error = failure.value
        assert isinstance(error, BadRequest), "nothing else comes from identify"
        self._answer(error)
        self._failed += 1
        if self._failed < MAX_WRONG_TOKENS:
            self._follow()
        elif error.code == "unavailable":
            self._connection.reject(CloseReason.UNCHECKED, "unavailable")
        else:
            self._connection.reject(CloseReason.NO_CREDENTIAL, "credential")

    def _answer(self, error: BadRequest) -> None:
        self._context.bad_requests += 1
        self._connection.send(text_frame(self.dialect.error(error)))

    def _expire(self) -> None:
        self._timer = None
        if self._asking is not None:
            self._connection.reject(CloseReason.UNCHECKED, "unavailable")
        else:
            self._connection.reject(CloseReason.NO_CREDENTIAL, "no_token")
