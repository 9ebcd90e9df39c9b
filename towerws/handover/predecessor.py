"""The running process's part in a hand-over: it starts its successor, and gives it everything once it is ready.

state    | begins with        | goes on to                         | on a failure or a deadline
idle     | -                  | starting: `restart` was called      | -
starting | the spawn          | asking: the successor is `ready`    | idle: the successor is killed, nothing has changed
asking   | history, or `begin`| moving: the successor has `begun`   | idle: the successor is killed, clients are accepted again
moving   | the first batch    | done: all batches are `adopted`     | idle: as above. Connections that were sent are lost with it
done     | `done`             | the process stops                   | -

A connection is sent once, and then belongs to the successor, whatever happens. A batch that can't be sent stays here.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.core.errors import TowerwsError
from towerws.core.handover_state import MAX_STATE_BYTES, VERSION, ConnectionState, encode_state
from towerws.core.hub import Hub
from towerws.handover.channel import Channel, open_channel
from towerws.handover.ports import VARIABLE, Inheritance, InheritedPort
from towerws.websocket.movable import AT_HANDSHAKE, MovableConnection

BATCH: Final = 50
"""Connections in one message. The successor adopts them in some 5 ms."""

SENT: Final = 2
"""Batches that may wait for the successor's answer: one is adopted while the next one is written. Their clients wait."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""A batch ends after this many bytes of its connections' states, as JSON."""

ANSWER_S: Final = 15.0
"""Deadline of the successor's answer to `begin`, to a batch and to `done`."""

SETTLE_S: Final = 2.0
"""How long a connection may wait for the answer to its request before it moves. The successor then handles the request again."""

SETTLE_PAUSE_S: Final = 0.05

PROGRESS_S: Final = 5.0
"""Interval between two log lines about a successor that is not ready."""

STOP_AFTER_S: Final = 0.2
"""After the hand-over the process stops this much later, so that the admin port's answer leaves first."""

FIRST_DESCRIPTOR: Final = 3

TOO_MUCH_STATE: Final = "too much state"
"""The reason of a connection whose state is longer than `MAX_STATE_BYTES`."""

STOPS: Final = "is not needed: this process stops"


class HandOverFailed(TowerwsError):
    """The hand-over ended without a successor. The text is the reason, for the operator."""


@dataclass(slots=True)
class HandOverCounters:
    """Hand-overs of this daemon, over all its processes."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    """From the first connection to the last, in the last hand-over that succeeded."""
    moved: int = 0
    """Connections that this hand-over moved."""
    closed: Counter[str] = field(default_factory=Counter)
    """Connections that could not be moved in it, by reason."""

    def figures(self) -> dict[str, Any]:
        """Return the numbers for `/status`."""
        results = {"done": self.done, "failed": self.failed}
        return {"results": results, "seconds": round(self.seconds, 3), "moved": self.moved, "closed": dict(self.closed)}


class Daemon(Protocol):
    """What a hand-over uses of the daemon."""

    hub: Hub

    def why_no_handover(self) -> str | None:
        """Return why this daemon can't hand over. None if it can."""

    def ports(self) -> Mapping[str, tuple[IListeningPort, str]]:
        """Return the listening ports by the key of their setting, each with its endpoint string."""

    def connections(self) -> Sequence[MovableConnection]:
        """Return the connections now."""

    def history(self) -> Iterable[Mapping[str, object]]:
        """Return history in pieces, if it exists in this process only."""

    def accept(self, accepting: bool) -> None:
        """Stop accepting clients, or begin again."""

    def readopt(self, state: ConnectionState, descriptor: int) -> bool:
        """Continue a connection that could not be sent. Return whether that succeeded. Never fails."""

    def handed_over(self, pid: int) -> None:
        """The process with this id is the daemon from now on. Stop this one."""


class _Taken(NamedTuple):
    """A connection that this process has given up."""

    state: ConnectionState
    encoded: str
    descriptor: int


class _Child(ProcessProtocol):
    def __init__(self, hand_over: HandOver) -> None:
        self._hand_over = hand_over

    def processEnded(self, reason: Failure) -> None:
        """Report how the successor ended."""
        status = getattr(reason.value, "exitCode", None)
        number = getattr(reason.value, "signal", None)
        self._hand_over.ended(self, f"ended by signal {number}" if number else f"ended with status {status}")


class HandOver:
    """Hands this daemon over to a successor. `ready_s`: how long the successor may take until it is ready.

    `command` is the command line of this process, `folder` the folder in which it was started.
    """

    _log = Logger()

    def __init__(
        self, daemon: Daemon, reactor: Any, counters: HandOverCounters, *, ready_s: float, command: Sequence[str], folder: str
    ) -> None:
        self._daemon = daemon
        self._reactor = reactor
        self._command = list(command)
        self._folder = folder
        self._ready_s = ready_s
        self.counters = counters
        self._channel: Channel | None = None
        self._process: Any = None
        self._child: _Child | None = None
        self._expected: deque[tuple[str, Deferred[dict[str, Any]]]] = deque()
        """The answers that the successor owes, in their order."""
        self._reason = ""
        """What the successor last said about itself."""
        self._said_at = 0.0
        self._cancelled = False
        self._too_large: set[MovableConnection] = set()
        """Connections with too much state, in the hand-over under way."""
        self.under_way = False
        self.moving = False
        """True from the successor's `ready` to the end of the hand-over. Meanwhile nothing may be published here."""
        self.complete = False
        """Whether a successor serves the clients now."""

    def restart(self) -> Deferred[dict[str, object]]:
        """Hand over. Fires with the figures of the hand-over. Fails with `HandOverFailed`: then this process goes on."""
        return Deferred.fromCoroutine(self._restart())

    def cancel(self) -> None:
        """End a hand-over that is under way, and begin no other: this process stops. The successor ends, too."""
        self._cancelled = True
        if self.under_way:
            self._give_up(STOPS)

    async def _restart(self) -> dict[str, object]:
        if self.under_way or self.complete:
            self._log.warn("hand-over: one is under way already; this request is ignored")
            raise HandOverFailed("a hand-over is under way already")
        if self._cancelled:
            self._log.warn("hand-over: this process stops; this request is ignored")
            raise HandOverFailed(f"a successor {STOPS}")
        self.under_way = True
        began = False
        self._reason = ""
        try:
            if (why := self._daemon.why_no_handover()) is not None:
                raise HandOverFailed(why)
            self._spawn()
            ready = await self._expect("ready", self._ready_s)
            self._reason = ""
            if ready.get("version") != VERSION:
                raise HandOverFailed(f"the successor's hand-over has version {ready.get('version')}, this one {VERSION}; restart towerws")
            began = self.moving = True
            self.counters.moved, self.counters.closed = 0, Counter()
            self._daemon.accept(False)
            return await self._hand_over(int(ready["pid"]))
        except Exception as error:
            reason = str(error) if isinstance(error, HandOverFailed) else f"an internal error: {error!r}"
            moved = self.counters.moved if began else 0
            lost = f"; {moved} connections had moved already and are lost with the successor" if moved else ""
            self._fail(reason, lost, began)
            raise HandOverFailed(reason + lost) from error
        finally:
            self.under_way = False
            self._too_large.clear()

    async def _hand_over(self, pid: int) -> dict[str, object]:
        now = self._reactor.seconds()
        counters = {"done": self.counters.done + 1, "failed": self.counters.failed}
        for piece in self._daemon.history():
            await self._ask("history", "kept", **piece)
        connections = len(self._daemon.connections())
        await self._ask("begin", "begun", position=self._daemon.hub.position, now=now, counters=counters, connections=connections)
        self._log.info("hand-over: the successor, process {pid}, is ready; moving {count} connections", pid=pid, count=self._count())
        await self._move(now + SETTLE_S)
        left = Counter(why for each in self._daemon.connections() if (why := self._why_not_movable(each) or "not moved"))
        self.counters.closed += left
        self.counters.done += 1
        self.counters.seconds = self._reactor.seconds() - now
        figures = self.counters.figures()
        await self._ask("done", "serving", seconds=self.counters.seconds, moved=self.counters.moved, closed=dict(self.counters.closed))
        self.complete = True
        self._log.info(
            "hand-over: {moved} connections moved to process {pid} in {seconds:.3f} s; {left} can't be moved and are closed with 1012{why}",
            moved=self.counters.moved,
            pid=pid,
            seconds=self.counters.seconds,
            left=left.total(),
            why="".join(f"; {count} {reason}" for reason, count in left.items()),
        )
        self._daemon.handed_over(pid)
        if self._channel is not None:
            self._channel.close()
        return {"pid": pid, **figures}

    async def _move(self, settled_by: float) -> None:
        """Send all connections that can be moved.

        A client whose handshake or request is under way moves after that, at the latest at `settled_by`.
        """
        sent: deque[Deferred[dict[str, Any]]] = deque()
        last = False
        try:
            while not last:
                last = self._reactor.seconds() >= settled_by
                await self._move_once(sent, last)
                if not any(self._why_not_movable(each) in (None, AT_HANDSHAKE) for each in self._daemon.connections()):
                    break
                await self._pause(SETTLE_PAUSE_S)
        finally:
            for each in sent:  # they fail, too, and nobody waits for them
                each.addErrback(lambda failure: None)

    async def _move_once(self, sent: deque[Deferred[dict[str, Any]]], last: bool) -> None:
        """Send the connections that can be moved now, and wait until the successor has adopted them."""
        waiting = deque(self._daemon.connections())
        while waiting:
            if len(sent) >= SENT:
                self._adopted(await sent.popleft())
            if not (taken := self._take(waiting, last)):
                continue
            try:
                sent.append(self._send(taken))
            except HandOverFailed:
                for each in taken:
                    self._daemon.readopt(each.state, each.descriptor)
                    os.close(each.descriptor)
                raise
        while sent:
            self._adopted(await sent.popleft())

    def _take(self, waiting: deque[MovableConnection], last: bool) -> list[_Taken]:
        """Freeze the next connections. Those with an unanswered request are skipped, except the `last` time."""
        taken: list[_Taken] = []
        size = 0
        while waiting and len(taken) < BATCH and size < BATCH_BYTES:
            connection = waiting.popleft()
            if self._why_not_movable(connection) is not None or (connection.is_waiting and not last):
                continue
            try:
                state = connection.freeze()
                encoded = encode_state(state)
                if len(encoded) > MAX_STATE_BYTES:
                    connection.thaw(state)
                    self._too_large.add(connection)
                    continue
                taken.append(_Taken(state, encoded, connection.release()))
            except Exception:  # noqa: BLE001 - one connection must not keep the others
                self._log.failure("a connection could not be handed over")
                connection.transport.abortConnection()
                self.counters.closed["error"] += 1
                continue
            size += len(encoded)
        return taken

    def _why_not_movable(self, connection: MovableConnection) -> str | None:
        return TOO_MUCH_STATE if connection in self._too_large else connection.why_not_movable()

    def _send(self, taken: Sequence[_Taken]) -> Deferred[dict[str, Any]]:
        """Send a batch. Fires with the answer. Raises `HandOverFailed`, and sends nothing, without a successor.

        What the successor has no descriptor for goes on here, and is sent again as long as connections move.
        """
        answer = self._ask("batch", "adopted", descriptors=[each.descriptor for each in taken], states=[each.encoded for each in taken])

        def take_back(message: dict[str, Any]) -> dict[str, Any]:
            for number in message.get("missing", ()):
                self.counters.moved -= 1
                if not self._daemon.readopt(taken[number].state, taken[number].descriptor):
                    self.counters.closed["error"] += 1
            return message

        def close(result: Any) -> Any:
            for each in taken:
                os.close(each.descriptor)
            return result

        self.counters.moved += len(taken)
        return answer.addCallback(take_back).addBoth(close)

    def _adopted(self, answer: Mapping[str, Any]) -> None:
        failed: dict[str, int] = answer.get("failed", {})
        self.counters.moved -= sum(failed.values())
        self.counters.closed.update(failed)

    def _count(self) -> int:
        return sum(each.why_not_movable() is None for each in self._daemon.connections())

    def _fail(self, reason: str, lost: str, began: bool) -> None:
        """Go on as before. `lost`: what is lost, or empty."""
        self.counters.failed += 1
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._kill()
        self.moving = False
        if began:
            self._daemon.accept(True)
        self._log.error(
            "hand-over failed: {reason}{goes_on}{lost}",
            reason=reason,
            goes_on="" if self._cancelled else "; this process goes on",
            lost=lost or ", and no connection is lost",
        )

    # the successor

    def _spawn(self) -> None:
        for path in (sys.executable, self._folder):  # after the fork nobody could say it in one line
            if not Path(path).exists():
                raise HandOverFailed(f"the successor can't be started: {path} does not exist any more")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptors = {0: 0, 1: 1, 2: 2, FIRST_DESCRIPTOR: theirs.fileno()}
        inherited: dict[str, InheritedPort] = {}
        for number, (key, (port, description)) in enumerate(self._daemon.ports().items(), FIRST_DESCRIPTOR + 1):
            fileno: int = port.fileno()  # type: ignore[attr-defined] # every port of the reactor has one
            descriptors[number] = fileno
            inherited[key] = InheritedPort(number, port.addressFamily, description)  # type: ignore[attr-defined]
        environ = {name: value for name, value in os.environ.items() if name not in ("WATCHDOG_PID", "LISTEN_PID")}
        environ[VARIABLE] = Inheritance(VERSION, FIRST_DESCRIPTOR, inherited).to_text()
        self._channel = open_channel(self._reactor, ours.detach(), self._received, self._lost)
        self._child = _Child(self)
        try:
            self._process = self._reactor.spawnProcess(
                self._child, sys.executable, self._command, environ, self._folder, childFDs=descriptors
            )
        except OSError as error:
            raise HandOverFailed(f"the successor can't be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._log.info("hand-over: process {pid} was started; waiting until it is ready", pid=self._process.pid)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.pid is not None:
            process.signalProcess(signal.SIGKILL)

    def _received(self, message: dict[str, Any], descriptors: Sequence[int | None]) -> None:
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)
        kind = message["kind"]
        if kind == "starting":
            self._reason = f"is not ready: {message.get('reason')}"
            now = self._reactor.seconds()
            if now - self._said_at >= PROGRESS_S:
                self._said_at = now
                self._log.info("hand-over: the successor {reason}", reason=self._reason)
        elif kind == "failed":
            self._reason = f"failed: {message.get('reason')}"
            self._give_up(self._reason)
        elif self._expected and kind == self._expected[0][0]:
            self._expected.popleft()[1].callback(message)

    def _lost(self) -> None:
        self._channel = None
        # The process's own end, with its status, says more. It comes at once if that is why the channel ended.
        self._reactor.callLater(1.0, self._give_up_on, self._process)

    def ended(self, child: object, how: str) -> None:
        """A successor's process has ended. The one of an earlier hand-over may end during the next one."""
        if child is self._child and self._process is not None:
            self._process = None
            reason = self._reason if self._reason.startswith("failed") else ""
            self._give_up(f"{how}: {reason.removeprefix('failed: ')}" if reason else f"{how}; its log lines say why")

    def _give_up_on(self, process: Any) -> None:
        if process is not None and process is self._process:
            self._give_up("closed the channel")

    def _give_up(self, reason: str) -> None:
        expected, self._expected = self._expected, deque()
        for _, answer in expected:
            answer.errback(HandOverFailed(f"the successor {reason}"))

    def _ask(self, question: str, answer: str, **content: Any) -> Deferred[dict[str, Any]]:
        if self._channel is None:
            raise HandOverFailed(f"the successor {self._reason or 'ended'}")
        expected = self._expect(answer, ANSWER_S)
        self._channel.tell(question, **content)
        return expected

    def _expect(self, kind: str, deadline_s: float) -> Deferred[dict[str, Any]]:
        """Fires with the message of this kind, once the answers before it have come.

        Fails with `HandOverFailed` after the deadline, or if the successor ends.
        """

        def late() -> None:
            said = f"; it {self._reason}" if self._reason else ""
            self._give_up(f"did not say {kind!r} within {deadline_s:g} s{said}")

        return self._wait(kind, deadline_s, late)

    def _pause(self, seconds: float) -> Deferred[dict[str, Any]]:
        """Fires after so many seconds. Fails with `HandOverFailed` before that if the successor ends, or this process stops."""
        return self._wait("", seconds, lambda: self._expected.popleft()[1].callback({}))

    def _wait(self, kind: str, seconds: float, expire: Callable[[], None]) -> Deferred[dict[str, Any]]:
        """Expect a message of this kind ("": none). If nothing ends the wait before, `expire` is called after so many seconds."""
        answer: Deferred[dict[str, Any]] = Deferred()
        self._expected.append((kind, answer))
        timer = self._reactor.callLater(seconds, expire)

        def stop(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return answer.addBoth(stop)
