"""One run of `towerws tail`: connects, subscribes, prints events, and resumes after a lost connection.

It speaks `towerws.v1` (docs/protocol.md).

state      | connected            | lost                       | bye                            | refused (401, 403)
new        | welcome -> subscribe | end: no daemon             | as online                      | end
online     | -                    | wait, connect with `since` | wait as announced; end if null | -
lost       | welcome -> subscribe | wait longer, connect again | as online                      | end
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from towerws import __version__
from towerws.core.errors import CloseReason
from towerws.core.wire import SUBPROTOCOL, UNAVAILABLE
from towerws.tail.text import Printer, json_line, shown
from towerws.tail.topics import Following, as_groups

CLEAN, FAILED, REFUSED = 0, 1, 3
"""Exit codes. 2 is click's, for a wrong command line."""

ATTEMPT_S = 10.0
"""Seconds for the TCP connection, and again for the handshake."""

CLOSE_S = 1.0
"""Seconds to wait for the answer to a close frame."""

AGAIN_S = 1.0
"""Seconds until a topic is asked for again that the daemon could not check. The daemon itself takes up to 8 s to say so."""

PING_S = 20.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0
MAX_SHOWN = 80
"""Characters of a frame that a notice repeats."""

MAX_FRAME_BYTES = 64 * 1024**2  # far above the largest payload of a daemon (4 MiB by default)

_wrapped = re.compile(r'connection was closed uncleanly \("(.*)"\)', re.DOTALL).fullmatch  # Autobahn's words around the reason
_upgrade_status = re.compile(r"upgrade failed \[([0-9]{3})\]").search


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """What the command line asks for. `token` goes into the `Authorization` header. `columns` returns the terminal's width."""

    url: str
    topics: tuple[str, ...]
    follow: bool
    raw: bool
    colour: bool
    token: str | None = None
    columns: Callable[[], int] | None = None


class Tail:
    """One run of the command, over all its connections.

    `write` gets lines for standard output. If it raises `BrokenPipeError`, the run ends. `say` gets notices for a person.
    `finish` is called once, with the exit code.
    """

    def __init__(
        self,
        reactor: Any,
        options: TailOptions,
        *,
        write: Callable[[str], None],
        say: Callable[[str], None],
        finish: Callable[[int], None],
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._write = write
        self._say = say
        self._finish = finish
        self._following = Following(options.topics, follow=options.follow)
        self._printer = Printer(colour=options.colour, columns=options.columns)
        self._connection: _Connection | None = None
        self._position: str | None = None
        self._asked: tuple[str, ...] | None = None
        """Topics of the newest request on this connection."""
        self._awaiting_reply = False
        self._held: tuple[str, ...] = ()
        """Topics of the newest request that was answered."""
        self._new_since: str | None = None
        """Position of the first event that may have changed the topics. The added topics are replayed from it."""
        self._asked_since: str | None = None
        """The same position, of the newest request, until that is answered."""
        self._again_since: str | None = None
        """The same position, of the topics that the daemon could not check."""
        self._resuming = False
        self._denied: set[str] = set()
        self._was_online = False
        self._lost = False
        self._bound_s = BACKOFF_MIN_S
        self._reconnect_after_s: float | None = None
        self._ended = False
        self._closed: Deferred[None] | None = None

    def connect(self) -> None:
        """Try to connect. `lost` is called however the attempt ends."""
        if self._ended:
            return
        self._asked, self._awaiting_reply = None, False
        self._new_since = self._asked_since or self._new_since  # a request without an answer is sent again
        headers = {"Authorization": f"Bearer {self._options.token}"} if self._options.token else {}
        agent = f"towerws-tail/{__version__}"
        factory = _Factory(self._options.url, protocols=[SUBPROTOCOL], useragent=agent, headers=headers, reactor=self._reactor)
        factory.protocol = _Connection
        factory.noisy = False
        factory.tail = self
        factory.setProtocolOptions(
            openHandshakeTimeout=ATTEMPT_S,
            autoPingInterval=PING_S,
            autoPingTimeout=PING_S,
            maxFramePayloadSize=MAX_FRAME_BYTES,
            maxMessagePayloadSize=MAX_FRAME_BYTES,
        )
        endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, factory.host, factory.port, timeout=ATTEMPT_S)
        if factory.isSecure:
            endpoint = wrapClientTLS(optionsForClientTLS(factory.host), endpoint)
        endpoint.connect(factory).addErrback(self._not_connected)

    def stop(self) -> Deferred[None] | None:
        """End the run, with a close frame if there is a connection. Fires when that is closed, after `CLOSE_S` at the latest."""
        self._ended = True
        if self._connection is None:
            return None
        if self._closed is None:
            self._closed = Deferred()
            self._connection.sendClose(1000)
            self._reactor.callLater(CLOSE_S, self._let_end)
        return self._closed

    def _let_end(self) -> None:
        if self._closed is not None and not self._closed.called:
            self._closed.callback(None)

    def _end(self, code: int, text: str = "") -> None:
        if not self._ended:
            if text:
                self._say(text)
            self.stop()
            self._finish(code)

    # the connection comes and goes

    def _not_connected(self, failure: Failure) -> None:
        self.lost(failure.getErrorMessage() or repr(failure.value))

    def lost(self, reason: str) -> None:
        """The connection ended, or could not be made. Reconnect, or end the run."""
        self._connection = None
        if self._ended:
            self._let_end()
            return
        url = self._options.url
        status = int(match[1]) if (match := _upgrade_status(reason)) else 0
        if status in {401, 403}:
            self._refused(str(status))
        elif not self._was_online:
            self._end(FAILED, f"towerws: can't connect to {url}: {shown(reason)}\n{_next_step(status)}")
        else:
            if not self._lost:
                self._say(f"connection lost ({shown(reason)}); reconnecting")
            self._lost = True
            delay_s, self._reconnect_after_s = self._reconnect_after_s, None
            if delay_s is None:
                delay_s = self._bound_s
                self._bound_s = min(2 * self._bound_s, BACKOFF_MAX_S)
            self._reactor.callLater(random.uniform(0.5, 1) * delay_s, self.connect)  # noqa: S311 - only spreads the attempts

    def _refused(self, why: str) -> None:
        advice = "check the token, and whether it has expired" if self._options.token else "give a token with --token"
        self._end(REFUSED, f"towerws: {self._options.url} refuses access ({why}): {advice}")

    def online(self, connection: _Connection) -> None:
        """The websocket is open."""
        self._connection = connection
        if connection.websocket_protocol_in_use != SUBPROTOCOL:
            self._end(
                FAILED,
                f"towerws: {self._options.url} doesn't speak {SUBPROTOCOL}: is it a towerws daemon? --url names another",
            )
        elif self._options.token is None:
            # A daemon that waits for a token refuses any other message at once. Without this one it would wait for 10 s.
            connection.sendMessage(b'{"ping": null}')

    # frames from the daemon

    def received(self, text: str) -> None:
        """Handle one frame."""
        if self._ended:
            return
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            # The daemon doesn't change payloads, and json.loads refuses some, such as an integer of 5,000 digits.
            self._say("skipped an event that is not JSON")
            return
        kind = frame.get("type") if isinstance(frame, dict) else None
        if not isinstance(kind, str):
            self._say(f"skipped a frame that is no object with a type: {shown(text[:MAX_SHOWN])}")
            return
        handler = _HANDLERS.get(kind)
        if handler is not None:  # a later daemon may send types that are unknown here
            try:
                handler(self, frame, text)
            except (LookupError, TypeError) as error:
                self._say(f"skipped a frame that docs/protocol.md doesn't describe ({error!r}): {shown(text[:MAX_SHOWN])}")

    def _welcome(self, frame: dict[str, Any], text: str) -> None:
        self._resuming = self._position is not None
        if self._position is None:
            self._position = frame["position"]
        self._subscribe()

    def _subscribe(self) -> None:
        """Subscribe to the current topics, unless that was asked for. One request at a time: later changes go into the next one.

        A job's first lines may come before the daemon has asked AWX about the job. So added topics are replayed from the event that
        added them.
        """
        if self._connection is None or self._awaiting_reply:
            return
        topics = self._following.topics
        if self._asked is None and self._resuming and self._new_since is not None:
            # First the topics of the lost connection, from its newest event. The added topics begin at an earlier position.
            topics = tuple(topic for topic in topics if topic in self._held)
        if topics == self._asked:
            self._new_since = None
            return
        request: dict[str, object] = {"groups": as_groups(topics)}
        self._asked_since = None
        if self._asked is None:
            if self._resuming:
                request["since"] = self._position
        else:
            since = self._again_since or self._new_since
            if since is not None and not set(topics).issubset(self._held):
                self._asked_since = request["since"] = since
            self._new_since = None
        self._asked, self._awaiting_reply = topics, True
        self._connection.sendMessage(json.dumps(request).encode("ascii"))

    def _ask_again(self, connection: _Connection | None) -> None:
        """Ask again for the topics that the daemon could not check, unless a newer request has done so."""
        if self._ended or connection is not self._connection or self._awaiting_reply or self._again_since is None:
            return
        self._asked = self._held
        self._subscribe()

    def _subscribed(self, frame: dict[str, Any], text: str) -> None:
        unchecked = {item["topic"] for item in frame["denied"] if item["reason"] == UNAVAILABLE}
        self._awaiting_reply = self._resuming = False
        self._held = tuple(topic for topic in self._asked or () if topic not in unchecked)
        self._again_since = (self._asked_since or self._position) if unchecked else None
        self._asked_since = None
        if unchecked:
            self._reactor.callLater(AGAIN_S, self._ask_again, self._connection)
        self._keep(frame["position"])
        self._say_denied(frame)
        if frame["recovered"] is False:  # null if the request had no `since`
            self._say("events were missed: the daemon no longer holds them (recovered: false)")
        if self._lost:
            self._lost = False
            self._say("connected again")
        if not frame["groups_current"] and not unchecked and not self._options.follow:
            self._end(REFUSED, "towerws: the daemon denies every topic: nothing is left to show")
            return
        self._was_online = True
        self._bound_s = BACKOFF_MIN_S
        self._subscribe()

    def _revoked(self, frame: dict[str, Any], text: str) -> None:
        self._keep(frame["position"])
        self._say_denied(frame)
        if not frame["groups_current"] and not self._options.follow:
            self._end(REFUSED, "towerws: the daemon denies every topic: nothing is left to show")

    def _say_denied(self, frame: dict[str, Any]) -> None:
        for item in frame["denied"]:
            if item["topic"] not in self._denied:
                self._denied.add(item["topic"])
                self._say(f"{shown(str(item['topic']))} denied: {shown(str(item['reason']))}")

    def _keep(self, position: str | None) -> None:
        """Keep the position to resume from. With null, the position before it is still the best."""
        self._position = position or self._position

    def _event(self, frame: dict[str, Any], text: str) -> None:
        topic = f"{frame['group']}.{frame['event']}"
        payload = frame["payload"]
        self._position = frame["position"]
        lines = [json_line(text)] if self._options.raw else self._printer.lines(time.strftime("%H:%M:%S"), topic, payload)
        try:
            self._write("\n".join(lines) + "\n")
        except BrokenPipeError:
            self._end(CLEAN)
            return
        self._following.saw(topic, payload)
        self._new_since = self._new_since or frame["position"]
        self._subscribe()

    def _gap(self, frame: dict[str, Any], text: str) -> None:
        topics = ", ".join(frame["topics"][:5]) + (" …" if len(frame["topics"]) > 5 else "")
        self._say(f"gap ({shown(str(frame['reason']))}): events were lost on {shown(topics)}")
        self._keep(frame["to"])

    def _error(self, frame: dict[str, Any], text: str) -> None:
        self._awaiting_reply = False
        if frame["code"] == "no_token":
            self._refused(CloseReason.NO_CREDENTIAL.value.reason)
            return
        self._say(f"the daemon answers {shown(str(frame['code']))}: {shown(str(frame['message']))}")
        if not self._was_online:
            self._end(FAILED)

    def _bye(self, frame: dict[str, Any], text: str) -> None:
        after_ms = frame["reconnect_after_ms"]
        if frame["reason"] == CloseReason.NO_CREDENTIAL.value.reason:
            self._refused(CloseReason.NO_CREDENTIAL.value.reason)
        elif after_ms is None:
            self._end(
                FAILED,
                f"towerws: the daemon ended the connection for ever: {shown(str(frame['reason']))}. Its log says more.",
            )
        else:
            self._reconnect_after_s = after_ms / 1000


_HANDLERS: dict[object, Callable[[Tail, dict[str, Any], str], None]] = {
    "welcome": Tail._welcome,  # noqa: SLF001 - our own
    "subscribed": Tail._subscribed,  # noqa: SLF001
    "revoked": Tail._revoked,  # noqa: SLF001
    "event": Tail._event,  # noqa: SLF001
    "gap": Tail._gap,  # noqa: SLF001
    "error": Tail._error,  # noqa: SLF001
    "bye": Tail._bye,  # noqa: SLF001
}


class _Factory(WebSocketClientFactory):
    """Makes the connections of one run."""

    tail: Tail


class _Connection(WebSocketClientProtocol):
    """One connection. It passes everything to its `Tail`."""

    factory: _Factory

    # Autobahn calls these

    def onOpen(self) -> None:
        self.factory.tail.online(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.tail.received(payload.decode(errors="replace"))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        text = reason or "closed"
        if wasClean:
            text = f"{code} {reason or ''}".rstrip()
        elif match := _wrapped(text):
            text = match[1]
        self.factory.tail.lost(text)


def _next_step(status: int) -> str:
    if status == 0:
        return (
            "Is the daemon up, and is that its address? `twistd -n towerws --broker embedded: --auth open` starts one, --url names another."
        )
    if status == 503:
        return "The daemon can't accept a client now: try again shortly, or look at its log."
    return "No daemon answers there: the URL's path must end in /websocket/, and a proxy must pass upgrades on."
