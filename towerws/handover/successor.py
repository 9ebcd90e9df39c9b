"""The successor's part in a hand-over: it starts like any daemon, on the sockets of its predecessor, and then adopts its connections.

The successor accepts no client before the predecessor says `begin`. If the predecessor ends before `begin`, the hand-over has failed, and
the successor ends, too. If the predecessor ends after `begin`, the successor serves the connections that it has got.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from towerws.auth.transfer import unpack_identity
from towerws.core.deliveries import Delivery, parse_position
from towerws.core.handover_state import VERSION, ConnectionState, state_from_json
from towerws.core.positions import Pending
from towerws.core.sources import SourceStatus
from towerws.handover.channel import Channel, open_channel
from towerws.handover.ports import Inheritance, InheritedPort, report
from towerws.handover.predecessor import HandOverCounters
from towerws.protocol import WebSocketFactory
from towerws.websocket.movable import Adoption, adopt

READY_CHECK_S: Final = 0.05
"""Interval between two checks whether this process is ready."""

REPORT_S: Final = 2.0
"""Interval between two messages to the predecessor about why this process is not ready."""

REACH_S: Final = 10.0
"""How long a connection waits until this process has read the log up to the connection's position. After this time its client gets a gap.

After such a timeout, for example without a broker, later batches do not wait, until a position can be judged again. Otherwise each batch
would stop its connections for `REACH_S`.
"""

NO_DESCRIPTOR: Final = "too many open files"
"""The only reason of `Adopter.adopt` after which the predecessor goes on with the connection."""


class Adopter:
    """Continues connections of another process. `methods` are the names of the methods of authentication."""

    _log = Logger()

    def __init__(self, reactor: Any, websockets: WebSocketFactory, methods: Iterable[str]) -> None:
        self._reactor = reactor
        self._websockets = websockets
        self._methods = frozenset(methods)
        self._wait_timed_out = False

    def reserve(self, connections: int) -> None:
        """Keep places for the connections that will move. Otherwise new clients would take their descriptors."""
        self._websockets.connection_limits.reserved = connections

    def when_reached(self, states: Iterable[ConnectionState], call: Callable[[], None]) -> None:
        """Call `call` once all positions of these connections can be judged, at the latest after `REACH_S`."""
        positions = {position for state in states for position in (state.position, *state.joined_later.values())}
        self.when_judged(max(positions, key=_offset, default=""), call)

    def why_unknown(self, position: str) -> str | None:
        """Return why clients can't go on from the predecessor's position in this process. None if they can. Call it after `when_judged`."""
        if self._find(position) is not None:
            return None
        if self._wait_timed_out:
            return f"it could not read the log up to the place that this process has reached, within {REACH_S:g} s"
        return "its log does not hold the place that this process has reached"

    def when_judged(self, position: str, call: Callable[[], None]) -> None:
        """Call `call` once the position can be judged, at the latest after `REACH_S`. After a timeout, call it at once."""
        ingest = self._websockets.context.ingest
        pending = isinstance(ingest.judge_position(position), Pending)
        self._wait_timed_out &= pending
        if not pending or self._wait_timed_out:
            call()
            return

        def reached(_: Delivery | None) -> None:
            self._wait_timed_out = False
            timer.cancel()
            call()

        def give_up() -> None:
            self._log.warn("hand-over: the log was not read up to {position} within {s:g} s", position=position, s=REACH_S)
            self._wait_timed_out = True
            cancel()
            call()

        cancel = ingest.wait_for_position(position, reached)
        timer = self._reactor.callLater(REACH_S, give_up)

    def adopt(self, state: ConnectionState, descriptor: int, since: float) -> str | None:
        """Continue a connection on a duplicate of the descriptor. Return why that failed, in a few words, or None.

        A credential that was revoked at `since` (monotonic seconds) or later ends the connection: it was on its way.
        """
        context = self._websockets.context
        hub = context.hub
        try:
            identity = unpack_identity(state.identity)
            if identity.method not in self._methods:
                return "its method of authentication is no longer configured"
            place = self._find(state.position)
            start = hub.flushed if place is None else place
            topics = dict.fromkeys(state.topics, start.seq)
            for topic, position in state.joined_later.items():
                if (later := self._find(position)) is None:
                    place, start = None, hub.flushed  # from any other place, the client would get events twice, or miss some unnoticed
                else:
                    topics[topic] = max(start.seq, later.seq)
            connection = adopt(self._reactor, self._websockets, descriptor, Adoption(state, identity, start, topics))
        except OSError as error:
            return NO_DESCRIPTOR if error.errno in (errno.EMFILE, errno.ENFILE) else "the client left"
        except ValueError:
            self._log.failure("a connection's state can't be read")
            return "error"
        limits = self._websockets.connection_limits
        limits.reserved = max(0, limits.reserved - 1)
        if place is None and state.topics:
            connection.lost_place(state.position)
        if context.credential_monitor.was_revoked(identity, since):
            connection.revoke()
        elif identity.user_id is not None and f"control.limit_reached_{identity.user_id}" in hub.history.topics:
            context.credential_monitor.recheck_user(str(identity.user_id))  # AWX's event may have arrived before this connection
        return None

    def _find(self, position: str) -> Delivery | None:
        found = self._websockets.context.ingest.judge_position(position, final=True)
        return None if isinstance(found, Pending) else found


class Successor:
    """Follows the hand-over in the process that takes over. `start` says what it calls, and when."""

    _log = Logger()

    def __init__(self, inheritance: Inheritance, reactor: Any, counters: HandOverCounters) -> None:
        self._inheritance = inheritance
        self._reactor = reactor
        self._counters = counters
        self._ports = dict(inheritance.ports)
        self._channel: Channel | None = None
        self._adopter: Adopter | None = None
        self._status: Callable[[], SourceStatus] | None = None
        self._keep: Callable[[Mapping[str, Any]], None] = lambda _: None
        self._begin: Callable[[], None] = lambda: None
        self._serve: Callable[[], None] = lambda: None
        self._alone: Callable[[], None] = lambda: None
        self._ready_checks = LoopingCall(self._check)
        self._ready_checks.clock = reactor
        self._reported_at = 0.0
        self._began_at = 0.0
        self._batches: deque[tuple[list[ConnectionState], list[int | None]]] = deque()
        self.began = False
        """Whether this process accepts clients: after the predecessor's `begin`."""
        self.serving = False
        """Whether this process has all connections that it can get, and the listening sockets belong to it alone."""

    def why_not(self) -> str | None:
        """Return why this process can't be the successor of its predecessor. None if it can."""
        if self._inheritance.version == VERSION:
            return None
        return (
            f"the running process hands over in version {self._inheritance.version}, and this release in version {VERSION}; restart towerws"
        )

    def tell_why(self, reason: str) -> None:
        """Tell the predecessor, before the reactor runs, why this process can't start. Never fails."""
        with suppress(OSError):  # the predecessor has ended
            report(self._inheritance.channel, reason)

    def port(self, key: str, description: str) -> InheritedPort | None:
        """Return the predecessor's socket for this setting. None if the predecessor had none, or another address."""
        port = self._ports.get(key)
        return None if port is None or port.description != description else port

    def start(
        self,
        adopter: Adopter,
        status: Callable[[], SourceStatus],
        *,
        keep: Callable[[Mapping[str, Any]], None],
        begin: Callable[[], None],
        serve: Callable[[], None],
        alone: Callable[[], None],
    ) -> None:
        """Open the channel to the predecessor, and report when `status` is ready.

        `keep` gets each piece of history. `begin` is called when this process may accept clients, `serve` when it has all connections, and
        `alone` when the predecessor has closed the channel after `begin`.
        """
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        self._adopter, self._status, self._keep, self._begin, self._serve = adopter, status, keep, begin, serve
        self._alone = alone
        self._channel = open_channel(self._reactor, self._inheritance.channel, self._received, self._lost)
        self._ready_checks.start(READY_CHECK_S)

    def stop(self) -> None:
        """Close the channel. A second call does nothing."""
        if self._ready_checks.running:
            self._ready_checks.stop()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _check(self) -> None:
        assert self._status is not None
        assert self._channel is not None
        status = self._status()
        if status.ready:
            self._ready_checks.stop()
            self._channel.tell("ready", version=VERSION, pid=os.getpid())
        elif (now := self._reactor.seconds()) - self._reported_at >= REPORT_S:
            self._reported_at = now
            self._channel.tell("starting", reason=status.reason or status.state.value)

    def _received(self, message: dict[str, Any], descriptors: list[int | None]) -> None:
        kind = message["kind"]
        if kind == "batch":
            self._adopt_batch(message, descriptors)
        elif kind == "history":
            self._keep(message)
            if self._channel is not None:
                self._channel.tell("kept")
        elif kind == "begin":
            self._answer_begin(message)
        elif kind == "done":
            self._done(message)

    def _answer_begin(self, message: Mapping[str, Any]) -> None:
        """Accept clients, if the predecessor's place in the log is in this process's log."""
        assert self._adopter is not None
        adopter, position = self._adopter, str(message["position"])

        def answer() -> None:
            if self._channel is None:
                return
            if (why := adopter.why_unknown(position)) is not None:
                self._channel.tell("failed", reason=why)
                return
            self._began_at = float(message["now"])
            self._counters.done, self._counters.failed = int(message["counters"]["done"]), int(message["counters"]["failed"])
            self.began = True
            adopter.reserve(int(message["connections"]))
            self._begin()
            self._channel.tell("begun")

        adopter.when_judged(position, answer)

    def _adopt_batch(self, message: Mapping[str, Any], descriptors: list[int | None]) -> None:
        """Adopt the connections of a batch after those of the batch before, as the predecessor matches answers by their order."""
        self._batches.append(([state_from_json(each) for each in message["states"]], descriptors))
        if len(self._batches) == 1:
            self._adopt_next()

    def _adopt_next(self) -> None:
        assert self._adopter is not None
        states, descriptors = self._batches[0]

        def reached() -> None:
            self._adopt(states, descriptors)
            self._batches.popleft()
            if self._batches:
                self._adopt_next()

        self._adopter.when_reached(states, reached)

    def _adopt(self, states: list[ConnectionState], descriptors: list[int | None]) -> None:
        """Adopt these connections, and answer `adopted`. The predecessor keeps those for which there is no descriptor."""
        assert self._adopter is not None
        failed: Counter[str] = Counter()
        missing: list[int] = []
        for number, (state, descriptor) in enumerate(zip(states, descriptors, strict=True)):
            why = NO_DESCRIPTOR if descriptor is None else self._adopter.adopt(state, descriptor, self._began_at)
            if why == NO_DESCRIPTOR:
                missing.append(number)
            elif why is not None:
                failed[why] += 1
            if descriptor is not None:
                os.close(descriptor)
        if missing:
            self._log.warn("hand-over: {count} connections can't be taken: {why}", count=len(missing), why=NO_DESCRIPTOR)
        if self._channel is not None:
            self._channel.tell("adopted", failed=failed, missing=missing)

    def _done(self, message: Mapping[str, Any]) -> None:
        assert self._channel is not None
        self._counters.seconds, self._counters.moved = float(message["seconds"]), int(message["moved"])
        self._counters.closed = Counter(message["closed"])
        self._release_places()
        self._log.info("hand-over: this process has taken over {moved} connections", moved=self._counters.moved)
        self._channel.tell("serving")
        self.serving = True
        self._serve()

    def _release_places(self) -> None:
        """Give the reserved places to new clients, because no connection will be adopted any more."""
        assert self._adopter is not None
        self._adopter.reserve(0)

    def _lost(self) -> None:
        if self._ready_checks.running:
            self._ready_checks.stop()
        self._channel = None
        if not self.began:
            self._log.error("hand-over: the running process gave it up, or ended; this process ends")
            with suppress(ReactorNotRunning):  # the reactor stops already
                self._reactor.stop()
            return
        self._release_places()
        if not self.serving:
            self.serving = True
            self._log.warn("hand-over: the running process ended before all connections had moved; this process serves those that it got")
            self._serve()
        self._alone()


def _offset(position: str) -> int:
    match = parse_position(position)
    return int(match[1]) if match else -1
