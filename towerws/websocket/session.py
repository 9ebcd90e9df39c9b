"""The session of one open, authenticated connection, from its first frame to its last.

A session handles its client's messages strictly in order, one at a time. A request replaces the one before it. If the earlier
request still waits for a decision about access, the session answers it with what is known by then (waits.py). Messages over the
rate are delayed, not refused. The queue of waiting messages is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred  # noqa: A004 - Twisted's own
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, result_if_ready, tell_refusals
from towerws.core.client_address import address_key
from towerws.core.deliveries import Delivery
from towerws.core.errors import BadRequest, CloseReason
from towerws.core.handover_state import ConnectionState
from towerws.core.identity import Identity
from towerws.core.limits import TokenBucket
from towerws.core.positions import Pending
from towerws.core.requests import PingMessage, Request, TokenMessage, denied_topics, parse_message
from towerws.core.subscribers import Subscriber
from towerws.core.topics import GroupTable
from towerws.core.wire import UNAVAILABLE, Dialect
from towerws.websocket.context import ConnectionContext
from towerws.websocket.replay import Replay
from towerws.websocket.tokens import MAX_WRONG_TOKENS, UNCHECKED, Inbox, renew
from towerws.websocket.waits import ANSWER_S, PendingRequest, PositionWait

MAX_UNCHECKED_S = 300.0
"""How long beyond `revalidate_s` a credential counts without a successful check. After that its client can't subscribe to more topics."""

WRONG_XRFTOKEN_DELAY_S = 1.0
"""In the Tower dialect, a wrong `xrftoken` after the first `MAX_WRONG_TOKENS` is answered after this delay. Later messages wait."""


class Connection(Protocol):
    """What a session uses of its connection. The connection is the hub's `Peer`, too."""

    address: str

    def send(self, data: bytes) -> bool:
        """Write complete frames. Return False, and write nothing, if the send buffer is full."""

    def await_drain(self) -> None:
        """Call the session's `feed` once the send buffer is empty."""

    def note_hole(self) -> None:
        """Take note that deliveries may be lost. The hub calls this if the client's dialect has no gap notice."""

    def end(self, reason: CloseReason, limit: str = "") -> None:
        """Close the connection. `limit` names the limit that was exceeded, for the log and a counter."""


class Session:
    """The session of one connection, which calls `message`, `feed` and `close`."""

    __slots__ = (
        "_before",
        "_bucket",
        "_cancel",
        "_check_topics_again",
        "_checking_topics",
        "_closed",
        "_connection",
        "_context",
        "_handling",
        "_inbox",
        "_malformed",
        "_pending",
        "_recheck_again",
        "_rechecking",
        "_replay",
        "_valid_at",
        "_withdrawn",
        "_wrong_tokens",
        "dialect",
        "identity",
        "requests",
        "subscriber",
    )

    _log = Logger()

    def __init__(
        self, context: ConnectionContext, connection: Connection, identity: Identity, dialect: Dialect, response: bytes | None = b""
    ) -> None:
        """Join the hub, and send the handshake's `response` together with the welcome. None: another process has sent both."""
        self._context = context
        self._connection = connection
        self.identity = identity
        self.dialect = dialect
        self._bucket: TokenBucket | None = None
        self._inbox: Inbox | None = None
        self._handling: tuple[bytes, bool] | None = None
        """The message that is being handled. None between two messages."""
        self._malformed = 0
        self._wrong_tokens = 0
        self.requests = 0
        """Requests that this client sent."""
        self._cancel: Callable[[], object] | None = None
        """Cancels what the session waits for. While it is set, new messages are queued."""
        self._pending: PendingRequest | None = None
        self._before: tuple[str, ...] | None = None
        """The subscriptions when the request under way came. The answer lists what changed since. None: they have not changed."""
        self._replay: Replay | None = None
        self._withdrawn: dict[str, str] | None = None
        """Topics that `_withdraw` unsubscribed while a request waits, each with the reason. The request must not bring them back."""
        self._closed = False
        self._rechecking: Deferred[None] | None = None
        """The check of the credential that is under way."""
        self._checking_topics: Deferred[None] | None = None
        """The check of the topics that is under way. It may take longer than the time between two checks of the credential."""
        self._recheck_again = self._check_topics_again = False
        """Whether another check follows the one that is under way."""
        self._valid_at = context.reactor.seconds()  # the last successful check of the credential
        self.subscriber: Subscriber = context.hub.join(connection, dialect)
        context.credential_monitor.enter(self)
        if response is None:
            return
        welcome = dialect.welcome(identity, context.hub.position, context.settings.ping_s)
        self.subscriber.send(response + dialect.wrap(welcome))

    def close(self) -> None:
        """End the session and everything that it waits for. A second call does nothing."""
        self._closed = True
        if self._inbox is not None:
            self._inbox.take_all()
        if self._replay is not None:
            self._replay.close()
        self._context.hub.leave(self.subscriber)
        self._context.credential_monitor.leave(self)
        self._stop_checks()
        cancel, self._cancel, self._pending = self._cancel, None, None
        if cancel is not None:
            cancel()

    def feed(self) -> None:
        """Send the next piece of history, if the subscriber is behind. Called when the send buffer is empty."""
        if self._replay is None:
            self._context.hub.feed(self.subscriber)
        else:
            self._replay.feed()

    def message(self, payload: bytes, is_binary: bool) -> None:
        """Handle a complete message, or queue it behind the one that is being handled."""
        if self._closed:
            return
        if self._cancel is None and not self._inbox and not self._exceeds_rate():
            self._handle(payload, is_binary)
            return
        if self._inbox is None:
            self._inbox = Inbox()  # few clients ever need one
        if not self._inbox.put(payload, is_binary):
            self._connection.end(CloseReason.POLICY, "inbox")
        elif self._pending is not None and self._replaces_all(payload, is_binary):
            self._pending.supersede()

    def request(self, request: Request) -> None:
        """Handle the only request of an event stream. It needs no `xrftoken`: pages of other sites can't read its answer."""
        self._context.requests += 1
        self.requests += 1
        self._authorize(request)

    def _handle_next(self) -> None:
        """Handle queued messages, until one of them has to wait."""
        self._handling = None
        while self._inbox and self._cancel is None and not self._closed and not self._exceeds_rate():
            self._handle(*self._inbox.take())

    def _exceeds_rate(self) -> bool:
        """Count the next message. Return whether it exceeds the rate. If so, it must be queued, and `_resume` is scheduled."""
        context = self._context
        now = context.reactor.seconds()
        if self._bucket is None:
            self._bucket = TokenBucket(context.settings.messages_per_s, context.settings.messages_burst, now)
        delay = self._bucket.take(now)
        if delay == 0:
            return False
        context.limit_counts["messages_per_s"] += 1
        self._cancel = context.reactor.callLater(delay, self._resume).cancel
        return True

    def _resume(self) -> None:
        self._cancel = None
        self._handle_next()

    def _handle(self, payload: bytes, is_binary: bool) -> None:
        self._handling = payload, is_binary
        self._dispatch(payload, is_binary)
        if self._cancel is None:
            self._handling = None

    def _dispatch(self, payload: bytes, is_binary: bool) -> None:
        context = self._context
        context.requests += 1
        self.requests += 1
        try:
            message = parse_message(payload, context.groups, context.settings.topics, is_binary=is_binary)
        except BadRequest as error:
            self._malformed += 1
            if error.code == "too_many_topics":
                context.limit_counts["topics"] += 1
            self._refuse(error)
            if self._malformed >= context.settings.malformed:
                self._connection.end(CloseReason.POLICY, "malformed")
            return
        self._malformed = 0
        if isinstance(message, PingMessage):
            self._reply(self.dialect.pong(message.ping, context.hub.flush_to_position(self.subscriber)))
        elif isinstance(message, TokenMessage):
            self._renew(message)
        elif context.check_xrftoken and not self.identity.accepts_xrftoken(message.xrftoken):
            self._refuse_xrftoken(BadRequest("xrftoken", "access denied to channel", message.request_id))
        else:
            self._authorize(message)

    def _refuse(self, error: BadRequest) -> None:
        self._context.bad_requests += 1
        self._reply(self.dialect.error(error))

    def _refuse_xrftoken(self, error: BadRequest) -> None:
        """Answer a wrong `xrftoken`.

        In the Tower dialect guesses are slowed down. The connection stays open, since AWX never closes for a wrong `xrftoken`, and
        its React pages don't reconnect.
        """
        identity = self.identity
        self._context.refusals.line(
            self._connection.address, error.code, credential=identity.method, session=identity.session, detail="wrong xrftoken"
        )
        if self.dialect.subprotocol is not None:
            self._refuse(error)
            self._count_wrong_token()
            return
        self._wrong_tokens += 1
        if self._wrong_tokens <= MAX_WRONG_TOKENS:
            self._refuse(error)
            return

        def answer() -> None:
            self._cancel = None
            self._refuse(error)
            self._handle_next()

        self._context.limit_counts["distrust"] += 1
        self._cancel = self._context.reactor.callLater(WRONG_XRFTOKEN_DELAY_S, answer).cancel

    def _count_wrong_token(self) -> None:
        self._wrong_tokens += 1
        if self._wrong_tokens >= MAX_WRONG_TOKENS:
            self._connection.end(CloseReason.POLICY, "distrust")

    def _renew(self, message: TokenMessage) -> None:
        """Replace the credential by another one of the same user. A refused token changes nothing.

        No `xrftoken` is needed: a page that knows a token doesn't act by a cookie.

        The client's topics are checked with the new credential for `ANSWER_S` at most, because no other message is handled
        meanwhile. Topics that are undecided then are checked after the answer.
        """
        began = self._context.reactor.seconds()

        def renewed(identity: Identity) -> Deferred[None]:
            refused: dict[str, str] = {}
            asked: Deferred[None] = maybeDeferred(
                tell_refusals, self._context.auth, identity, tuple(self.subscriber.topics), refused.update
            )
            asked.addTimeout(ANSWER_S, self._context.reactor)
            return asked.addCallbacks(lambda _: self._replace(identity, message, began, refused), partial(late, identity, refused))

        def late(identity: Identity, refused: dict[str, str], failure: Failure) -> None:
            failure.trap(TimeoutError)
            self._replace(identity, message, began, refused)
            self._check_topics()

        def failed(failure: Failure) -> None:
            if self._closed:
                return
            error = failure.value
            if not isinstance(error, BadRequest):
                self._log.failure("a new token could not replace the one in use", failure)
                error = BadRequest("unavailable", UNCHECKED, message.request_id)
            self._refuse(error)
            if error.code == "token":
                self._count_wrong_token()

        self._wait_for(renew(self._context, self.identity, message, self._connection.address).addCallback(renewed).addErrback(failed))

    def _replace(self, identity: Identity, message: TokenMessage, began: float, refusals: dict[str, str]) -> None:
        """Put the new credential into force, with its grants and its expiry, and answer then.

        Raises `BadRequest` if it was revoked after `began`, for example while its topics were checked.
        """
        if self._context.credential_monitor.was_revoked(identity, began):
            raise BadRequest("token", "the token was refused", message.request_id)
        checking = self._stop_checks()  # they check the old credential
        self.identity = identity
        self._valid_at = self._context.reactor.seconds()
        self._wrong_tokens = 0
        self._context.renewed += 1
        self._context.credential_monitor.renew(self)
        self._withdraw(refusals)
        self._reply(self.dialect.renewed(identity, message.request_id))
        if checking:
            self.recheck()  # the answers about the new credential may be older than the reason for the cancelled checks

    def _authorize(self, request: Request) -> None:
        if request.since is not None and self.dialect.subprotocol is None:
            request = request._replace(since=None)  # the Tower dialect has no positions
        others = self._context.groups.refusals(self.identity, request.topics)
        if self._is_stale():
            others |= {topic: UNAVAILABLE for topic in request.topics if topic not in self.subscriber.topics and topic not in others}
        topics = [topic for topic in request.topics if topic not in others] if others else request.topics
        asked: Deferred[dict[str, str]] = maybeDeferred(self._context.auth.refusals, self.identity, topics)
        groups = self._context.groups
        self._withdrawn = None
        if (refusals := result_if_ready(asked)) is not None:
            self._apply(request, {**others, **refusals} if others else refusals)
            return
        decided = False

        def done(refusals: dict[str, str]) -> None:
            nonlocal decided
            decided = True
            self._cancel = self._pending = None
            self._apply(request, {**others, **refusals, **self._withdrawn_while_waiting(groups, request)})
            self._handle_next()

        if self._before is None:
            self._before = tuple(self.subscriber.topics)
        pending = PendingRequest(self._context, self.subscriber, self.identity, request, others, asked, done)
        if not decided:
            self._pending, self._cancel = pending, pending.cancel

    def _replaces_all(self, payload: bytes, is_binary: bool) -> bool:
        """Return whether the message is a valid request. It replaces a pending request, which must be answered first."""
        context = self._context
        try:
            message = parse_message(payload, context.groups, context.settings.topics, is_binary=is_binary)
        except BadRequest:
            return False
        return isinstance(message, Request) and (not context.check_xrftoken or self.identity.accepts_xrftoken(message.xrftoken))

    def _wait_for(self, asked: Deferred[None]) -> None:
        """Handle no other message before `asked` has fired. `asked` must not fail."""
        done = False

        def go_on(_: None) -> None:
            nonlocal done
            if done and self._cancel == asked.cancel:  # its callback may have begun the next wait
                self._cancel = None
                self._handle_next()
            done = True

        asked.addCallback(go_on)
        if not done:
            done = True
            self._cancel = asked.cancel

    # the connection calls these, to hand the session over to another process

    @property
    def is_waiting(self) -> bool:
        """Whether a message is being handled and is not answered yet, because the session waits for something."""
        return self._handling is not None and self._cancel is not None

    def state(self) -> dict[str, Any]:
        """Return the fields of `ConnectionState` that are the session's. The session must be closed next: its inbox is empty now."""
        inbox = [] if self._inbox is None else self._inbox.take_all()
        if self._handling is not None and self._cancel is not None:
            inbox.insert(0, self._handling)
        return {
            "before": self._before,
            "inbox": tuple(inbox),
            "valid_at": self._valid_at,
            "requests": self.requests,
            "malformed": self._malformed,
            "wrong_tokens": self._wrong_tokens,
            "messages": None if self._bucket is None else self._bucket.level,
        }

    def restore(self, state: ConnectionState) -> None:
        """Take over the state of the session in another process. `go_on` then handles its messages."""
        settings = self._context.settings
        self._before = state.before
        self._valid_at = state.valid_at
        self.requests = state.requests
        self._malformed = state.malformed
        self._wrong_tokens = state.wrong_tokens
        if state.messages is not None:
            self._bucket = TokenBucket.from_level(settings.messages_per_s, settings.messages_burst, state.messages)
        if state.inbox:
            self._inbox = Inbox(state.inbox)

    def go_on(self) -> None:
        """Feed the subscriber, and handle the messages that `restore` queued."""
        self.feed()
        if self._inbox:
            self._handle_next()

    # the credential monitor calls these

    def recheck(self) -> None:
        """Check again whether the credential is valid, and which topics it may get. If that can't be checked, nothing changes.

        A call during a check plans another check: the answer that is under way may be older than the reason for the call.
        """
        if self._closed:
            return
        if self._rechecking is not None:
            self._recheck_again = True
            return
        asked: Deferred[Identity] = maybeDeferred(self._context.auth.revalidate, self.identity)
        self._rechecking = rechecking = asked.addCallback(self._revalidated).addErrback(self._recheck_failed)

        def done(_: None) -> None:
            self._rechecking = None
            if self._recheck_again:
                self._recheck_again = False
                self.recheck()

        rechecking.addCallback(done)

    def apply_groups(self) -> None:
        """Unsubscribe the topics that the groups in force don't allow: a reload changed them."""
        self._withdraw(self._context.groups.withdrawn(self.identity, self.subscriber.topics))

    def revoke(self) -> None:
        """Close the connection: its credential is no longer valid."""
        self._connection.end(CloseReason.CREDENTIAL)

    def _revalidated(self, identity: Identity) -> None:
        """The credential is valid: check the subscribed topics."""
        self.identity = identity
        self._valid_at = self._context.reactor.seconds()
        self._check_topics()

    def _check_topics(self) -> None:
        if self._closed:
            return
        if self._checking_topics is not None:
            self._check_topics_again = True
            return
        asked: Deferred[None] = maybeDeferred(
            tell_refusals, self._context.auth, self.identity, tuple(self.subscriber.topics), self._withdraw
        )
        self._checking_topics = checking = asked.addErrback(self._recheck_failed)

        def done(_: None) -> None:
            self._checking_topics = None
            if self._check_topics_again:
                self._check_topics_again = False
                self._check_topics()

        checking.addCallback(done)

    def _stop_checks(self) -> bool:
        """Cancel the checks that are under way. Return whether there were any."""
        rechecking, checking = self._rechecking, self._checking_topics
        self._rechecking = self._checking_topics = None
        self._recheck_again = self._check_topics_again = False
        for check in (rechecking, checking):
            if check is not None:
                check.cancel()
        return rechecking is not None or checking is not None

    def _withdraw(self, refusals: dict[str, str]) -> None:
        """Unsubscribe topics that the user may no longer get, and tell the client. Topics that could not be checked stay."""
        held = self.subscriber.topics
        refused = {topic: reason for topic, reason in refusals.items() if reason != UNAVAILABLE and topic in held}
        if self._closed or not refused:
            return
        if self._cancel is not None:
            self._withdrawn = {**(self._withdrawn or {}), **refused}
        denied = denied_topics(refused)
        self._context.denied += len(denied)
        change = self._context.hub.subscribe(self.subscriber, Request(tuple(topic for topic in held if topic not in refused)))
        self._reply(*self.dialect.revoked(change, denied))

    def _recheck_failed(self, failure: Failure) -> None:
        if self._closed or failure.check(CancelledError):
            return
        if failure.check(Refused):
            self._context.credential_monitor.revoked += 1
            self.revoke()
            return
        if self.identity.checked_at is not None:  # a successor goes on from here, and does not check all such credentials at once
            self.identity = replace(self.identity, checked_at=self._context.reactor.seconds())
        if not failure.check(Unavailable):
            self._log.failure("a credential could not be re-checked; the connection stays as it is", failure)

    def _is_stale(self) -> bool:
        """Return whether the last successful check is too long ago to grant more topics."""
        every = self._context.credential_monitor.revalidate_s
        if not every or self.identity.session is None:
            return False
        return self._context.reactor.seconds() - self._valid_at > every + MAX_UNCHECKED_S

    def _apply(self, request: Request, refusals: dict[str, str]) -> None:
        """Subscribe, once the position that the client sent can be judged. `refusals`: topics that the user may not get, with reasons."""
        if self._closed:
            return
        if refusals:
            request = _without(request, refusals)
        if request.since is None:
            self._subscribe(request, None)
        elif isinstance(found := self._context.ingest.judge_position(request.since), Pending):
            self._await_position(request, request.since)
        else:
            self._subscribe(request, found)

    def _await_position(self, request: Request, since: str) -> None:
        """Wait until the position can be judged. After `resume_wait_s`, close with 1013: the client reconnects with the same position."""
        groups = self._context.groups

        def judged(found: Delivery | None) -> None:
            self._cancel = None
            self._subscribe(_without(request, self._withdrawn_while_waiting(groups, request)), found)
            self._handle_next()

        def late() -> None:
            self._cancel = None
            self._connection.end(CloseReason.NOT_YET, "resume_wait_s")

        self._cancel = PositionWait(self._context, since, judged, late).cancel

    def _withdrawn_while_waiting(self, groups: GroupTable, request: Request) -> dict[str, str]:
        """Return the topics of a request that were withdrawn while it waited, each with the reason.

        A re-check withdraws topics, and so does a reload. `groups` are the groups that were in force when the request came.
        """
        by_recheck, self._withdrawn = self._withdrawn or {}, None
        current = self._context.groups
        by_reload = {} if groups is current else current.withdrawn(self.identity, request.topics)
        return {topic: reason for topic, reason in {**by_recheck, **by_reload}.items() if topic in request.topics}

    def _subscribe(self, request: Request, since: Delivery | None) -> None:
        """Put the new subscriptions into force, and answer then."""
        if self._closed:
            return
        denied = list(request.denied)
        self._context.denied += len(denied)
        change = self._context.hub.subscribe(self.subscriber, request, since)
        before, self._before = self._before, None
        if before is not None:
            current = set(change.current)
            joined = sorted(current.difference(before))
            change = change._replace(joined=tuple(joined), left=tuple(sorted(set(before) - current)))
        dialect = self.dialect
        self._reply(*map(dialect.denied, denied), dialect.subscribed(change, denied, request.request_id))
        if change.recovered:
            if self._replay is None:
                account = self.identity.account or address_key(self._connection.address)
                self._replay = Replay(self._context.replays, self._context.hub, self.subscriber, self._context.reactor, account)
            self._replay.begin()

    def _reply(self, *payloads: bytes | None) -> None:
        """Send messages in one write: a thousand denials take one system call, and either all of them are sent or none."""
        wrap = self.dialect.wrap
        if not self.subscriber.send(b"".join([wrap(payload) for payload in payloads if payload is not None])):
            # The client keeps sending requests and doesn't read the answers.
            self._connection.end(CloseReason.OVERLOAD, "backlog_bytes")


def _without(request: Request, refusals: dict[str, str]) -> Request:
    """Return the request with the refused topics moved from its `topics` to its `denied`."""
    if not refusals:
        return request
    kept = tuple(topic for topic in request.topics if topic not in refusals)
    return Request(kept, (*request.denied, *denied_topics(refusals)), request.since, request.request_id)
