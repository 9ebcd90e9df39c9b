"""Answers to plain HTTP requests: events and history, once their user is known, and the files of the JavaScript client.

A request for events becomes a `Session` like that of a websocket: with the same subscriptions, limits, history and checks of its
credential. Only its frames (core/plain_http.py) and its sign of life differ. It gets a comment as often as a websocket gets a ping.
The client doesn't answer a comment, but its kernel acknowledges it.

state      | begins with           | topics checked               | position judged | too late or failed | client gone
checking   | the request           | stream opens; or -> judging  | -               | refused            | ended
judging    | a `since` of history  | -                            | page is sent    | refused            | ended
ended      | the answer            | -                            | -               | -                  | -
"""

from __future__ import annotations

import gzip
import math
import socket
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from itertools import product
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import result_if_ready
from towerws.core.client_address import address_key
from towerws.core.deliveries import Delivery
from towerws.core.errors import HandshakeError
from towerws.core.http_head import CREDENTIAL_REFUSED
from towerws.core.identity import Identity
from towerws.core.plain_http import HEARTBEAT, MAX_PAGE_BYTES, ClientFile, PlainRequest, Route, all_refused, page_json
from towerws.core.positions import Pending
from towerws.core.requests import Request, denied_topics
from towerws.websocket.autobahn_parts import Timers
from towerws.websocket.context import ConnectionContext
from towerws.websocket.waits import PositionWait

HASH_DIGITS = 12

_NAMES = ("client", "client-shared")
_TYPES = {"js": "text/javascript; charset=utf-8", "d.ts": "text/plain; charset=utf-8"}


class PlainConnection(Protocol):
    """What an answer uses of its connection."""

    address: str

    def open_stream(self, request: Request) -> None:
        """Begin the event stream."""

    def send_json(self, body: bytes) -> None:
        """Answer 200 with this body, and close."""

    def refuse(self, error: HandshakeError) -> None:
        """Answer with the error, and close."""

    def stop_handshake_timeout(self) -> None:
        """Stop the handshake's timer: the answer has a deadline of its own."""


class PlainAnswer:
    """The answer to one request of an authenticated client."""

    __slots__ = ("_account", "_began", "_connection", "_context", "_identity", "_request", "_waiting")

    _log = Logger()

    def __init__(self, context: ConnectionContext, connection: PlainConnection, identity: Identity, request: PlainRequest) -> None:
        self._context = context
        self._connection: PlainConnection | None = connection
        self._identity = identity
        self._request = request
        self._began = context.reactor.seconds()
        self._account = identity.account or address_key(connection.address)
        self._waiting: Any = None
        """What to cancel if the client leaves."""

    def begin(self) -> None:
        """Check the topics. A stream subscribes to the allowed ones, and lists the others. If none is allowed, the request is refused."""
        others = self._withdrawn()
        known = [topic for topic in self._request.topics if topic not in others]
        others |= self._context.groups.refusals(self._identity, known)
        topics = [topic for topic in known if topic not in others]
        asked: Deferred[dict[str, str]] = maybeDeferred(self._context.auth.refusals, self._identity, topics)
        if (refusals := result_if_ready(asked)) is not None:
            self._checked({**others, **refusals})
            return
        self._waiting = asked
        asked.addCallbacks(lambda refusals: self._checked({**others, **refusals}), self._failed).addErrback(self._failed)

    def cancel(self) -> None:
        """End without an answer: the client has left. A second call does nothing."""
        self._connection = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def _failed(self, failure: Failure) -> None:
        if self._connection is not None:
            self._log.failure("a plain request could not be answered", failure)
            self._refuse(HandshakeError(500, "internal error", "error"))

    def _refuse(self, error: HandshakeError) -> None:
        connection, self._connection, self._waiting = self._connection, None, None
        if connection is not None:
            connection.refuse(error)

    def _checked(self, refusals: dict[str, str]) -> None:
        self._waiting = None
        withdrawn = self._withdrawn()
        refusals = {**refusals, **withdrawn}
        if (connection := self._connection) is None or self._is_refused(refusals):
            return
        request = self._request
        if request.route is Route.EVENTS:
            self._connection = None
            topics = tuple(topic for topic in request.topics if topic not in withdrawn)
            connection.open_stream(Request(topics, tuple(denied_topics(withdrawn)), request.since))
        else:
            self._judge_position(refusals)

    def _withdrawn(self) -> dict[str, str]:
        """Return the topics that a reload withdrew since the request was read, each with the reason."""
        groups = self._context.groups
        return {} if groups is self._request.groups else groups.withdrawn(self._identity, self._request.topics)

    def _is_refused(self, refusals: dict[str, str]) -> bool:
        """Refuse a user who was revoked while the answer waited, or whose topics are all refused. Return whether that happened."""
        if self._context.credential_monitor.was_revoked(self._identity, self._began):
            self._refuse(HandshakeError(403, CREDENTIAL_REFUSED, "revoked"))
        elif len(refusals) == len(self._request.topics):
            self._refuse(all_refused(denied_topics(refusals)))
        return self._connection is None

    # history

    def _judge_position(self, refusals: dict[str, str]) -> None:
        """Send the page, once the position can be judged. Wait for that as long as a websocket's request does."""
        if self._is_over_rate():
            return
        if (since := self._request.since) is None:
            self._send_page(refusals, None)
        elif isinstance(found := self._context.ingest.judge_position(since), Pending):
            assert self._connection is not None
            self._connection.stop_handshake_timeout()
            late = HandshakeError(503, "the position can't be judged yet: ask again with it", "not_yet")
            self._waiting = PositionWait(self._context, since, lambda found: self._judged(refusals, found), lambda: self._refuse(late))
        else:
            self._send_page(refusals, found)

    def _is_over_rate(self) -> bool:
        """Refuse a user who replays too much. Return whether that happened."""
        context = self._context
        if (delay_s := context.replays.accounts.delay(self._account, context.reactor.seconds())) > 0:
            context.replays.delays += 1
            wait_s = math.ceil(delay_s)
            text = f"this user replays too much of history: ask again in {wait_s} s"
            self._refuse(HandshakeError(429, text, "replay", retry_s=wait_s))
        return delay_s > 0

    def _judged(self, refusals: dict[str, str], since: Delivery | None) -> None:
        self._waiting = None
        refusals = {**refusals, **self._withdrawn()}
        # Other requests of the user may have waited for the same moment, and have used up the rate.
        if not self._is_refused(refusals) and not self._is_over_rate():
            self._send_page(refusals, since)

    def _send_page(self, refusals: dict[str, str], since: Delivery | None) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        request = self._request
        topics = [topic for topic in request.topics if topic not in refusals]
        page = self._context.hub.read(topics, since, request.limit, MAX_PAGE_BYTES)
        body = page_json(page, denied_topics(refusals), recovered=None if request.since is None else since is not None)
        self._context.requests += 1
        self._context.replays.accounts.count(self._account, self._context.reactor.seconds(), len(body))
        connection.send_json(body)


class Heartbeat:
    """Writes a comment to a stream every `every_s` seconds, until `stop`."""

    __slots__ = ("_every_s", "_send", "_timer", "_timers")

    def __init__(self, timers: Timers, every_s: float, send: Callable[[bytes], bool]) -> None:
        self._timers = timers
        self._every_s = every_s
        self._send: Callable[[bytes], bool] | None = send
        self._timer: Any = timers.call_later(every_s, self._beat)

    def stop(self) -> None:
        """Write no more. A second call does nothing."""
        self._send = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _beat(self) -> None:
        if self._send is not None:
            self._timer = self._timers.call_later(self._every_s, self._beat)
            self._send(HEARTBEAT)  # a full buffer takes no comment, and needs none


def bound_silence(transport: Any, seconds: float) -> None:
    """End a TCP connection whose other end acknowledges nothing for this long (RFC 5482), as a missing pong ends a websocket.

    Otherwise the kernel gives up after 15 minutes. A UNIX socket needs no bound: the kernel reports at once when its other end closes.
    """
    found = getattr(transport, "socket", None)  # a TLS transport has it from the one below
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def load_client_files() -> dict[str, ClientFile]:
    """Return `client.js`, `client-shared.js` and their types by name, and each also under a name with its hash.

    `client-HASH.js` may be cached for ever, `client.js` for some minutes.
    """
    found = {}
    for name, (end, content_type) in product(_NAMES, _TYPES.items()):
        body = files("towerws").joinpath("static", f"{name}.{end}").read_bytes()
        digest = sha256(body).hexdigest()[:HASH_DIGITS]
        packed = gzip.compress(body, mtime=0)
        found[f"{name}.{end}"] = ClientFile(content_type, body, packed, digest, forever=False)
        found[f"{name}-{digest}.{end}"] = ClientFile(content_type, body, packed, digest, forever=True)
    return found
