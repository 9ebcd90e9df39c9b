"""`towerws tail`: live events in a terminal or a pipe, over `towerws.v1` (docs/protocol.md), resumed after a loss.

state      | connected            | lost                          | bye                     | refused (401, 403)
new        | welcome -> subscribe | end: nobody there             | (as online)             | end
online     | -                    | wait, connect with `since`    | wait as told; null = end | -
lost       | welcome -> subscribe | wait longer, connect again    | (as online)             | end
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from towerws import __version__
from towerws.commands.tail_text import Printer, json_line, shown
from towerws.commands.tail_topics import Following, as_groups
from towerws.core.errors import CloseReason
from towerws.core.wire import SUBPROTOCOL

CLEAN, FAILED, REFUSED = 0, 1, 3
"""Exit codes. 2 is click's, for a command line that can't be understood."""

ATTEMPT_S = 10.0
CLOSE_S = 1.0
"""How long the end waits for the answer to a close frame."""

PING_S = 20.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0
MAX_FRAME_BYTES = 64 * 1024**2  # far above what a daemon takes from a broker (4 MiB unless configured)

_wrapped = re.compile(r'connection was closed uncleanly \("(.*)"\)', re.DOTALL).fullmatch  # Autobahn's words around the reason
_upgrade_status = re.compile(r"upgrade failed \[([0-9]{3})\]").search


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """What to show. `token` goes into the `Authorization` header. `columns` tells a terminal's width."""

    url: str
    topics: tuple[str, ...]
    follow: bool
    raw: bool
    colour: bool
    token: str | None = None
    columns: Callable[[], int] | None = None


class Tail:
    """One run of the command, over all its connections.

    `write` takes lines for standard output and may raise `BrokenPipeError`, which ends the run; `say` takes notices for a
    person; `finish` is called once, with the exit code.
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
        """The topics of the newest request on this connection."""
        self._awaiting_reply = False
        self._resuming = False
        self._denied: set[str] = set()
        self._ever_online = False
        self._lost = False
        self._bound_s = BACKOFF_MIN_S
        self._come_back_s: float | None = None
        self._ended = False
        self._closed: Deferred[None] | None = None

    def connect(self) -> None:
        """Make an attempt; every way it can end comes back as `lost`."""
        if self._ended:
            return
        self._asked, self._awaiting_reply = None, False
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
        """End the run from outside, with a close frame where there is a connection; fires once that has ended, or after `CLOSE_S`."""
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

    # Losing and finding the daemon

    def _not_connected(self, failure: Failure) -> None:
        self.lost(failure.getErrorMessage() or repr(failure.value))

    def lost(self, reason: str) -> None:
        """There is no connection, or none any more."""
        self._connection = None
        if self._ended:
            self._let_end()
            return
        url = self._options.url
        status = int(match[1]) if (match := _upgrade_status(reason)) else 0
        if status in {401, 403}:
            self._refused(str(status))
        elif not self._ever_online:
            self._end(FAILED, f"towerws: can't listen at {url}: {shown(reason)}\n{_next_step(status)}")
        else:
            if not self._lost:
                self._say(f"connection lost ({shown(reason)}); coming back")
            self._lost = True
            delay_s, self._come_back_s = self._come_back_s, None
            if delay_s is None:
                delay_s = self._bound_s
                self._bound_s = min(2 * self._bound_s, BACKOFF_MAX_S)
            self._reactor.callLater(random.uniform(0.5, 1) * delay_s, self.connect)  # noqa: S311 - only spreads the attempts

    def _refused(self, why: str) -> None:
        advice = "is the token right?" if self._options.token else "give a token with --token"
        self._end(REFUSED, f"towerws: {self._options.url} refuses us ({why}): {advice}")

    def online(self, connection: _Connection) -> None:
        """The websocket is open."""
        self._connection = connection
        if connection.websocket_protocol_in_use != SUBPROTOCOL:
            self._end(FAILED, f"towerws: {self._options.url} does not speak {SUBPROTOCOL}: is it a towerws daemon?")
        elif self._options.token is None:
            # A daemon that waits for a token would say so in 10 s only; any other message it refuses at once.
            connection.sendMessage(b'{"ping": null}')

    # What the daemon says

    def received(self, text: str) -> None:
        """One frame."""
        if self._ended:
            return
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            # The daemon passes payloads on as they are; json.loads refuses, for one, an integer of 5,000 digits.
            self._say("an event came that is not JSON; left out")
            return
        handler = _HANDLERS.get(frame.get("type"))
        if handler is not None:  # a kind that a later daemon adds is none of ours
            handler(self, frame, text)

    def _welcome(self, frame: dict[str, Any], text: str) -> None:
        self._resuming = self._position is not None
        if self._position is None:
            self._position = frame["position"]
        self._subscribe()

    def _subscribe(self) -> None:
        """Ask for what is wanted now, unless it was asked for. One request at a time: what changes meanwhile goes into the next."""
        topics = self._following.topics
        if self._connection is None or self._awaiting_reply or topics == self._asked:
            return
        request: dict[str, object] = {"groups": as_groups(topics)}
        if self._asked is None and self._resuming:
            request["since"] = self._position
        self._asked, self._awaiting_reply = topics, True
        self._connection.sendMessage(json.dumps(request).encode("ascii"))

    def _subscribed(self, frame: dict[str, Any], text: str) -> None:
        self._awaiting_reply = False
        self._keep(frame["position"])
        self._say_denied(frame)
        if self._resuming:
            self._resuming = False
            if frame["recovered"] is False:
                self._say("some events were missed: they are no longer held (recovered: false)")
        if self._lost:
            self._lost = False
            self._say("connected again")
        if not frame["groups_current"] and not self._options.follow:
            self._end(REFUSED, "towerws: nothing is left to listen to")
            return
        self._ever_online = True
        self._bound_s = BACKOFF_MIN_S
        self._subscribe()

    def _revoked(self, frame: dict[str, Any], text: str) -> None:
        self._keep(frame["position"])
        self._say_denied(frame)
        if not frame["groups_current"] and not self._options.follow:
            self._end(REFUSED, "towerws: nothing is left to listen to")

    def _say_denied(self, frame: dict[str, Any]) -> None:
        for item in frame["denied"]:
            if item["topic"] not in self._denied:
                self._denied.add(item["topic"])
                self._say(f"{shown(str(item['topic']))} denied: {shown(str(item['reason']))}")

    def _keep(self, position: str | None) -> None:
        """The place to resume from. null: there is none that is worth more than the one before."""
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
        if not self._ever_online:
            self._end(FAILED)

    def _bye(self, frame: dict[str, Any], text: str) -> None:
        after_ms = frame["reconnect_after_ms"]
        if frame["reason"] == CloseReason.NO_CREDENTIAL.value.reason:
            self._refused(CloseReason.NO_CREDENTIAL.value.reason)
        elif after_ms is None:
            self._end(FAILED, f"towerws: the daemon closes: {shown(str(frame['reason']))}; coming back is no use, it says")
        else:
            self._come_back_s = after_ms / 1000


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
    """Makes the connections of one `Tail`."""

    tail: Tail


class _Connection(WebSocketClientProtocol):
    """One connection; everything goes to the `Tail`."""

    factory: _Factory

    # Autobahn calls these

    def onOpen(self) -> None:
        self.factory.tail.online(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.tail.received(payload.decode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        text = reason or "closed"
        if wasClean:
            text = f"{code} {reason or ''}".rstrip()
        elif match := _wrapped(text):
            text = match[1]
        self.factory.tail.lost(text)


def check_url(url: str) -> None:
    """`ValueError` states the rule that a websocket URL breaks."""
    parts = urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname or parts.fragment or parts.username is not None:
        raise ValueError("a websocket's URL is ws://host:port/websocket/ or wss://…, without a user or a fragment")
    _ = parts.port  # raises for one that is no port


def _next_step(status: int) -> str:
    if status == 0:
        return "Is the daemon up, and listening there? `twistd -n towerws --broker embedded: --auth open` starts one; --url names another."
    if status == 503:
        return "The daemon is there but can't take us now: try again shortly, or look at its log."
    return "Something else listens there: the URL's path should end in /websocket/, and a proxy must pass upgrades on."
