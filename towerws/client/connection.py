"""The client: one connection at a time, with its reconnects and its deadlines.

state      | connected        | ended                | stopped          | close()
connecting | welcome -> open  | waiting              | closed           | closed
open       | -                | waiting              | closed           | closed
waiting    | -                | -                    | -                | closed
closed     | -                | -                    | -                | -

A client that is `waiting` is `connecting` again after `retry_s` seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from towerws import __version__
from towerws.client.frames import BadFrame, Unreadable, read
from towerws.client.items import ClientError, Groups, Item, Queue, caused, topics_of
from towerws.client.options import Options, StateChange, checked_url
from towerws.client.store import StoredPosition
from towerws.client.subscription import Handler, Owner, Subscription
from towerws.client.tokens import NoToken, Tokens
from towerws.client.topics import Topics
from towerws.core.errors import CloseReason
from towerws.core.wire import SUBPROTOCOL, UNAVAILABLE

STABLE_S = 2.0
"""After a connection that lasted this long, the backoff begins at its shortest time again."""

CLOSE_S = 1.0
"""Seconds to wait for the answer to a close frame."""

MAX_FRAME_BYTES = 64 * 1024**2
"""Longest frame that is read. The largest payload of a daemon is far below it (4 MiB by default)."""

ASK_AGAIN_S = (1.0, 3.0)
"""The client asks again for topics that the daemon could not check, after a random time between these two.

The daemon itself takes up to 8 s to answer that it could not check a topic.
"""

TOLD_AT = 3
"""`onerror` gets an error when the handshake has failed so many times in a row."""

MAX_SAID = 200
"""Most bytes of a refusal's text that `ClientError.said` has."""

LATER = {408, 425, 429}
"""HTTP statuses below 500 that mean: try again later."""

_logger = logging.getLogger("towerws.client")


@dataclass(frozen=True, slots=True)
class _End:
    """How a connection ended, and what follows.

    `after_s` is the time until the next attempt, if the server named one. `tell`: whether `onerror` gets the reason, too. `stop`: whether
    the client ends.
    """

    reason: ClientError
    after_s: float | None = None
    tell: bool = False
    stop: bool = False


class _Ended(Exception):
    """Carries an `_End` out of the opening of a connection."""

    def __init__(self, end: _End) -> None:
        super().__init__(str(end.reason))
        self.end = end


class _Connect(websocket):
    """Follows no redirect, because the URL is wrong then, and the credential must not be sent to another server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the error of a failed handshake, so that it is raised. The library calls this method."""
        return exc


class Client:
    """A client that stays connected. `connect` makes it, in a running event loop."""

    def __init__(self, url: str, options: Options) -> None:
        self._url = checked_url(url)
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._state: Literal["connecting", "open", "waiting", "closed"] = "connecting"
        self._stopped_by: ClientError | None = None
        self._user: int | str | None = None
        self._topics = Topics(send=self._send, report=self._report, xrftoken=options.xrftoken or (lambda: None))
        self._subscriptions: dict[Queue, Subscription] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._settling = False
        # of the current connection
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._ended: asyncio.Future[_End] | None = None
        self._heard = False
        self._welcomed_at = 0.0
        # over all connections
        self._was_welcomed = False
        self._attempts = 0
        self._refusals = 0
        self._tokens = Tokens(options, renew_after=self._renew_after, send=self._send, report=self._report)
        self._stored = StoredPosition(options, self._topics.handled, self._report)
        self._renewing: asyncio.Task[None] | None = None
        self._task = self._loop.create_task(self._run(), name="towerws.client")

    # what users call

    def subscribe(
        self,
        groups: Groups,
        handler: Handler | None = None,
        *,
        subscribed: Handler | None = None,
        recovered: Handler | None = None,
        stale: Handler | None = None,
        gap: Handler | None = None,
        denied: Handler | None = None,
        since: str | None = None,
    ) -> Subscription:
        """Subscribe to topics, any number of times. All subscriptions share the connection.

        `handler` gets each `Event`. The other handlers get the items of their name. A `gap`, `stale` or `denied` without a handler goes to
        `onerror`. Without any handler, read the subscription with `async for`. `since` is a position, for topics that no other subscription
        has: the subscription gets their events after this position, or `stale`.

        Raises `ValueError` or `TypeError` if the groups are malformed. Raises the `ClientError` with which the client stopped. After
        `close`, it raises one with the code `closed`.
        """
        if self._state == "closed":
            reason = self._stopped_by or ClientError("closed", "the client is closed")
            raise reason.with_traceback(None)  # otherwise each call would add to the traceback of the one error
        handlers = {
            name: call
            for name, call in (
                ("event", handler),
                ("subscribed", subscribed),
                ("recovered", recovered),
                ("stale", stale),
                ("gap", gap),
                ("denied", denied),
            )
            if call is not None
        }
        for name, call in handlers.items():
            if not callable(call):
                raise TypeError(f"the handler for {name} is {type(call).__name__}: it must be a function")
        if since is not None and not isinstance(since, str):
            raise TypeError(f"since is {type(since).__name__}: it must be the text of a position")
        queue = Queue(topics_of(groups), self._options.queue_bytes, since=since)
        subscription = Subscription(Owner(self._left, self._stored.keep, self._handler_failed, self._report), queue, handlers or None)
        self._subscriptions[queue] = subscription
        self._topics.join(queue)
        self._settle()
        return subscription

    def close(self) -> None:
        """End the connection and all subscriptions. `wait_closed` waits for the end."""
        if self._state != "closed":
            self._finish(None)
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed and the position is stored: at most two seconds, and twice `connect_s` for the store."""
        await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        await self.wait_closed()

    @property
    def state(self) -> Literal["connecting", "open", "waiting", "closed"]:
        """The state of the connection."""
        return self._state

    @property
    def user(self) -> int | str | None:
        """The user whom the server recognised, None for an anonymous client."""
        return self._user

    @property
    def position(self) -> str | None:
        """The newest position that the server has sent."""
        return self._topics.position

    # the life of the client

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # `connect` returns first, because handlers may use the client.
            if (position := await self._stored.load()) is not None:
                self._topics.resume_from(position)
            while not (end := await self._connection()).stop:
                await self._wait(end)
            self._finish(end.reason)
        except asyncio.CancelledError:
            if self._state != "closed":
                self._finish(None)
                raise
        except Exception as error:
            _logger.exception("towerws.client: a fault of the client itself")
            self._finish(ClientError("fault", f"a fault of the client itself: {error!r}"))
        finally:
            await self._stored.ended()

    def _finish(self, reason: ClientError | None) -> None:
        """Change the state to `closed`, with the error that stopped the client or None after `close`. Ends all subscriptions."""
        if self._state == "closed":
            return
        for timer in self._timers.values():
            timer.cancel()
        self._stored.end()
        self._stopped_by = reason
        self._change("closed", reason=reason)
        if reason is not None:
            self._report(reason)
        for subscription in list(self._subscriptions.values()):
            subscription.end(reason)

    async def _wait(self, end: _End) -> None:
        """Wait until the next attempt to connect."""
        if self._welcomed_at and self._loop.time() - self._welcomed_at >= STABLE_S:
            self._attempts = 0
        if end.tell:
            self._report(end.reason)
        retry_s = end.after_s
        if retry_s is None:
            bound_s = min(self._options.retry_max_s, self._options.retry_min_s * 2 ** min(self._attempts, 30))
            retry_s = random.uniform(0, bound_s)  # noqa: S311 - only spreads the attempts
            self._attempts += 1
        self._change("waiting", reason=end.reason, retry_s=retry_s)
        await asyncio.sleep(retry_s)  # If `onstate` or `onerror` has closed the client, this task is cancelled here.

    async def _connection(self) -> _End:
        """Connect, and serve the connection until it ends."""
        self._outbox = asyncio.Queue()
        self._heard = False
        self._welcomed_at = 0.0
        self._change("connecting")
        deadline = self._loop.time() + self._options.connect_s
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._open()
        except TimeoutError:
            return _End(self._too_late())
        except _Ended as ended:
            return ended.end
        try:
            return await self._converse(connection, deadline)
        finally:
            self._topics.offline()
            await _close(connection)

    def _too_late(self) -> ClientError:
        return ClientError("timeout", f"no connection within {self._options.connect_s:g} s")

    async def _open(self) -> ClientConnection:
        """Open a websocket. Raises `_Ended`."""
        headers = dict(self._options.headers)
        try:
            token = await self._tokens.first()
        except NoToken as missing:
            raise _Ended(_End(missing.reason, tell=not missing.final, stop=missing.final)) from None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        tls = {"ssl": self._options.ssl} if self._options.ssl is not None and self._url.startswith("wss:") else {}
        try:
            connection = await _Connect(
                self._url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                additional_headers=headers,
                user_agent_header=self._options.user_agent or f"towerws-client/{__version__}",
                proxy=self._options.proxy,
                open_timeout=None,  # `connect_s` bounds the time from fetching the token to the welcome
                ping_interval=None,  # `_ping` sends the protocol's own pings
                close_timeout=CLOSE_S,
                max_size=MAX_FRAME_BYTES,
                **tls,
            )
        except InvalidStatus as error:
            raise _Ended(self._handshake_refused(error)) from None
        except (OSError, InvalidHandshake, EOFError, ValueError) as error:
            raise _Ended(self._not_connected(error)) from None
        if connection.subprotocol != SUBPROTOCOL:
            await _close(connection)
            text = f"the server did not choose the subprotocol {SUBPROTOCOL}: another server, or a proxy that drops the header"
            raise _Ended(_End(ClientError("protocol", text), stop=True))
        return connection

    def _not_connected(self, error: Exception) -> _End:
        if isinstance(error, ConnectionRefusedError):
            text = "the connection was refused"
        else:
            text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        self._refusals += 1
        return _End(caused("handshake", f"no connection: {text}", error), tell=self._refusals == TOLD_AT)

    def _handshake_refused(self, error: InvalidStatus) -> _End:
        status = error.response.status_code
        said = bytes((error.response.body or b"")[:MAX_SAID]).decode("ascii", "replace").strip()
        reason = ClientError("handshake", f"the server refuses the handshake (HTTP {status})", status=status, said=said)
        self._refusals += 1
        if status in {401, 403}:
            if self._options.token is None:
                return _End(reason, stop=True)
            reason = ClientError("token", f"the server refuses the token (HTTP {status})", status=status, said=said)
            return _End(reason, stop=not self._tokens.refused())
        if 200 <= status < 500 and status not in LATER and not self._was_welcomed:
            return _End(reason, stop=True)  # A URL that has worked before is right: a proxy may answer 404 while the daemon restarts.
        after = error.response.headers.get("Retry-After", "")
        after_s = min(float(after), self._options.retry_max_s) if after.isascii() and after.isdigit() else None
        if after_s is not None:
            after_s *= random.uniform(1, 1.5)  # noqa: S311 - spreads the clients, which all got the same number
        return _End(reason, after_s=after_s, tell=self._refusals == TOLD_AT)

    async def _converse(self, connection: ClientConnection, deadline: float) -> _End:
        """Read and write on an open websocket until `_end` is called. Return how the connection ended."""
        ended: asyncio.Future[_End] = self._loop.create_future()
        self._ended = ended
        self._arm("connect", deadline - self._loop.time(), lambda: self._end(self._too_late()))
        if self._options.token is None:
            # If the daemon waits for a token, it refuses this ping at once. Without a message it would wait for 10 s.
            self._send({"ping": None})
        tasks = [self._loop.create_task(work) for work in (self._read(connection), self._write(connection))]
        for task in tasks:
            task.add_done_callback(self._check_task)
        try:
            return await ended
        finally:
            self._ended = None
            for name in ("connect", "answer", "ask", "token", "ping", "pong"):
                self._arm(name)
            if self._renewing is not None:
                tasks.append(self._renewing)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """End the connection with the exception of one of its tasks, if there is one. Otherwise the client would wait for ever."""
        if not task.cancelled() and (error := task.exception()) is not None and self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    async def _read(self, connection: ClientConnection) -> None:
        try:
            while True:
                self._receive(await connection.recv())
                if self._ended is None or self._ended.done():
                    return
        except ConnectionClosed as closed:
            self._lost(closed)

    def _lost(self, closed: ConnectionClosed) -> None:
        code, said = (1006, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)
        reason = ClientError("lost", f"the connection was lost ({f'{code} {said}'.strip()})", said=said)
        if (
            closed.rcvd is not None and closed.rcvd_then_sent
        ):  # The server closed first. Its `bye` may be missing (docs/protocol.md, Closing).
            if said in {CloseReason.NO_CREDENTIAL.value.reason, CloseReason.CREDENTIAL.value.reason}:
                return self._bye("authenticate", None, said)
            if code in {1002, 1007, 1008, 1009}:
                return self._bye("stop", None, said or f"close code {code}")
        return self._end(reason)

    async def _write(self, connection: ClientConnection) -> None:
        try:
            while True:
                await connection.send(await self._outbox.get())
        except ConnectionClosed:
            return  # `_read` reports the end

    def _renew_after(self, after_s: float) -> None:
        """Schedule one renewal of the token, in place of the one that was scheduled before."""

        def renew() -> None:
            self._renewing = self._loop.create_task(self._tokens.send_new())
            self._renewing.add_done_callback(self._check_task)

        self._arm("token", after_s, renew)

    def _watch(self) -> None:
        """Send a ping after each `ping_s` seconds without a message. Any message counts as the answer: a pong may wait behind many."""

        def passed() -> None:
            if not self._heard:
                self._ping()
            self._heard = False
            self._watch()

        self._arm("ping", self._options.ping_s, passed)

    def _ping(self) -> None:
        """Send the protocol's own ping. It is not a websocket ping, because only its answer has a position."""
        if self._topics.asked is not None or "pong" in self._timers:
            return  # A request or a ping waits for its answer, and has its own deadline. A pong would come after that answer.
        self._send({"ping": 1})
        dead = ClientError("dead", f"no answer to a ping within {self._options.pong_s:g} s")
        self._arm("pong", self._options.pong_s, lambda: self._end(dead))

    def _send(self, message: dict[str, Any]) -> None:
        if "groups" in message:
            late = ClientError("timeout", f"no answer to a request within {self._options.answer_s:g} s")
            self._arm("answer", self._options.answer_s, lambda: self._end(late))
        self._outbox.put_nowait(json.dumps(message))

    def _end(self, reason: ClientError, after_s: float | None = None, *, tell: bool = False, stop: bool = False) -> None:
        """End this connection, and connect again later. With `stop`, end the client as well."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(_End(reason, after_s, tell, stop))

    # frames

    def _receive(self, data: str | bytes) -> None:
        self._heard = True
        self._arm("pong")
        try:
            frame = read(data)
        except Unreadable as error:
            self._end(ClientError("frame", f"the server sent a frame that can't be read: {error}"), tell=True)
            return
        except BadFrame as error:
            self._report(ClientError("frame", f"skipped a frame that docs/protocol.md doesn't describe: {error}"))
            return
        kind = frame.get("type")
        if kind == "event":
            assert isinstance(data, str)
            self._topics.event(frame, data)
        elif kind == "welcome":
            self._welcome(frame)
        elif kind == "subscribed":
            self._topics.answered(frame)
            self._answered()
        elif kind == "gap":
            self._topics.gap(frame)
        elif kind == "revoked":
            self._topics.revoked(frame)
            self._answered()
        elif kind == "pong":
            self._topics.pong(frame)
        elif kind == "renewed":
            self._user = frame.get("user")
            self._tokens.accepted()
            self._topics.ask_again()
        elif kind == "error":
            self._error(frame)
        elif kind == "bye":
            after_ms = frame["reconnect_after_ms"]
            action = frame.get("action") or ("stop" if after_ms is None else "reconnect")
            self._bye(action, None if after_ms is None else after_ms / 1000, frame["reason"])
        self._stored.keep()

    def _welcome(self, frame: dict[str, Any]) -> None:
        self._user = frame.get("user")
        self._arm("connect")
        self._was_welcomed = True
        self._welcomed_at = self._loop.time()
        self._refusals = 0
        self._tokens.accepted()
        self._change("open")
        if self._state == "open":
            self._watch()
            self._topics.online()

    def _answered(self) -> None:
        if self._topics.asked is None:
            self._arm("answer")
        if self._topics.waits_for_unavailable() and "ask" not in self._timers:
            again_s = random.uniform(*ASK_AGAIN_S)  # noqa: S311 - only spreads the questions
            self._arm("ask", again_s, lambda: self._topics.ask_again(UNAVAILABLE))

    def _error(self, frame: dict[str, Any]) -> None:
        code, text = frame["code"], frame["message"]
        if code == "no_token":
            self._bye("authenticate", None, "no credential")
        elif frame.get("id") == "token":
            self._report(ClientError(code, f"the token: {text}"))
            self._tokens.not_accepted(code)
        elif self._topics.asked is not None and frame.get("id") == self._topics.asked.number:
            self._topics.request_failed(code, text)
            self._answered()
        else:
            self._report(ClientError(code, text))

    def _bye(self, action: str, after_s: float | None, said: str) -> None:
        code = "bye" if action == "reconnect" else action
        reason = ClientError(code, f"the daemon ended the connection: {said}", said=said)
        self._end(reason, after_s, stop=action == "stop" or (action == "authenticate" and not self._tokens.may_change))

    # subscriptions

    def _settle(self) -> None:
        if not self._settling:
            self._settling = True
            self._loop.call_soon(self._settle_now)

    def _settle_now(self) -> None:
        self._settling = False
        if self._state == "open":
            self._topics.settle()

    def _left(self, queue: Queue) -> None:
        self._subscriptions.pop(queue, None)
        self._topics.leave(queue)
        self._settle()

    # timers and callbacks

    def _arm(self, name: str, after_s: float = 0, call: Callable[[], None] | None = None) -> None:
        """Start the timer of this name again, or stop it if `call` is None."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if call is not None:

            def fire() -> None:
                self._timers.pop(name, None)
                call()

            self._timers[name] = self._loop.call_later(after_s, fire)

    def _change(
        self, state: Literal["connecting", "open", "waiting", "closed"], reason: ClientError | None = None, retry_s: float | None = None
    ) -> None:
        if self._state == "closed":
            return
        self._state = state
        if self._options.onstate is not None:
            try:
                self._options.onstate(StateChange(state, self._user, reason, retry_s))
            except Exception as error:  # noqa: BLE001 - whatever it raises, the client goes on
                self._report(caused("onstate", f"onstate failed: {error!r}", error))

    def _report(self, error: ClientError) -> None:
        if self._options.onerror is None:
            _logger.error("%s: %s", error.code, error, exc_info=error.__cause__)
            return
        try:
            self._options.onerror(error)
        except Exception:
            _logger.exception("onerror failed at %s: %s", error.code, error)

    def _handler_failed(self, error: BaseException, item: Item) -> None:
        self._report(caused("handler", f"a handler failed at {item.type}: {error!r}", error, item))


def connect(url: str, **options: Any) -> Client:
    """Connect, and stay connected. Needs a running event loop.

    `url` begins with `wss:`, `ws:`, `https:` or `http:`. `options` are the fields of `Options`. Raises `ValueError` or `TypeError` for a
    wrong URL or option. `onstate` and `onerror` get all later errors.
    """
    return Client(url, Options(**options))


async def _close(connection: ClientConnection) -> None:
    """Close a connection. Abort it if that takes too long."""
    try:
        async with asyncio.timeout(2 * CLOSE_S):
            await connection.close()
    except TimeoutError:
        connection.transport.abort()
