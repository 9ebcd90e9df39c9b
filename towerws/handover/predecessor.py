"""The running process's part in a hand-over: it starts its successor, and gives it everything once it is ready.

state    | begins with        | goes on to                         | on a failure or a deadline
idle     | -                  | starting: `restart` was called      | -
starting | the spawn          | asking: the successor is `ready`    | idle: the successor is killed, nothing has changed
asking   | history, or `begin`| moving: the successor has `begun`   | idle: the successor is killed, clients are accepted again
moving   | the first batch    | done: all batches are `adopted`     | idle: as above. The connections that the successor got are lost
done     | `done`             | the process stops                   | -

A connection that was sent belongs to the successor, even if the hand-over fails afterwards. A batch that can't be sent stays here. So do
the connections that the successor has no descriptor for.
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

MAX_UNANSWERED: Final = 2
"""Batches that may wait for the successor's answer: it adopts one while this process writes the next one. Their clients wait."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""A batch gets no more connections once the states in it have this many bytes, as JSON."""

ANSWER_S: Final = 15.0
"""Deadline of the successor's answer to `begin`, to a batch and to `done`."""

REQUEST_WAIT_S: Final = 2.0
"""How long a connection may wait for the answer to its request before it moves. The successor then handles the request again."""

MOVE_PAUSE_S: Final = 0.05
"""Pause before the next attempt to move the connections that could not move yet."""

PROGRESS_S: Final = 5.0
"""Shortest interval between two log lines about a successor that is not ready."""

STOP_AFTER_S: Final = 0.2
"""After the hand-over the process stops this much later, so that the admin port's answer leaves first."""

FIRST_DESCRIPTOR: Final = 3
"""The successor's descriptor of the channel. 0, 1 and 2 are the standard streams. The listening sockets follow."""

TOO_MUCH_STATE: Final = "too much state"
"""Why a connection can't move whose state is longer than `MAX_STATE_BYTES`."""

NOT_NEEDED: Final = "is not needed: this process stops"


class HandOverFailed(TowerwsError):
    """The hand-over ended without a successor. The text is the reason, for the operator."""


@dataclass(slots=True)
class HandOverCounters:
    """Hand-overs of this daemon, over all its processes."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    """How long the last hand-over that succeeded took, from the successor's `ready`."""
    moved: int = 0
    """Connections that the last hand-over moved."""
    closed: Counter[str] = field(default_factory=Counter)
    """Connections that the last hand-over could not move, by reason."""

    def figures(self) -> dict[str, Any]:
        """Return the numbers for `/status`."""
        results = {"done": self.done, "failed": self.failed}
        return {"results": results, "seconds": round(self.seconds, 3), "moved": self.moved, "closed": dict(self.closed)}


class Daemon(Protocol):
    """The part of the daemon that a hand-over uses."""

    hub: Hub

    def why_no_handover(self) -> str | None:
        """Return why this daemon can't hand over. None if it can."""

    def ports(self) -> Mapping[str, tuple[IListeningPort, str]]:
        """Return the listening ports by the key of their setting, each with its endpoint string."""

    def connections(self) -> Sequence[MovableConnection]:
        """Return the connections now."""

    def history(self) -> Iterable[Mapping[str, object]]:
        """Yield history in pieces, if only this process has it. Yields nothing if the successor reads it from the broker."""

    def accept(self, accepting: bool) -> None:
        """Stop accepting clients, or begin again."""

    def readopt(self, state: ConnectionState, descriptor: int, frozen_at: float) -> bool:
        """Continue a connection that could not be sent. Return whether that succeeded. Never fails.

        `frozen_at`: since when this process did not serve it, in monotonic seconds.
        """

    def handed_over(self, pid: int) -> None:
        """Stop this process, because the process with this id is now the daemon."""


class _Frozen(NamedTuple):
    """A connection that this process no longer serves, as it is sent to the successor."""

    state: ConnectionState
    encoded: str
    descriptor: int
    frozen_at: float


class _Child(ProcessProtocol):
    """Tells the hand-over when the successor's process ends."""

    def __init__(self, hand_over: HandOver) -> None:
        self._hand_over = hand_over

    def processEnded(self, reason: Failure) -> None:
        """Report how the successor ended."""
        status = getattr(reason.value, "exitCode", None)
        number = getattr(reason.value, "signal", None)
        self._hand_over.ended(self, f"ended by signal {number}" if number else f"ended with status {status}")


class HandOver:
    """Hands this daemon over to a successor, which has `ready_s` seconds to become ready.

    `command` is the command line of this process without the interpreter. `folder` is the folder in which this process was started.
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
        """The kind and the Deferred of each answer that the successor has to give, in their order. The kind of a pause is empty."""
        self._reason = ""
        """The state that the successor last reported, as the end of a sentence about the successor."""
        self._logged_at = 0.0
        self._cancelled = False
        self._too_large: set[MovableConnection] = set()
        """Connections with too much state, in the hand-over under way."""
        self.under_way = False
        self.moving = False
        """Whether the hand-over is between the successor's `ready` and its end. Meanwhile nothing may be published in this process."""
        self.complete = False
        """Whether a successor serves the clients now."""

    def restart(self) -> Deferred[dict[str, object]]:
        """Hand over. Fires with the figures of the hand-over. Fails with `HandOverFailed`, and then this process goes on."""
        return Deferred.fromCoroutine(self._restart())

    def cancel(self) -> None:
        """Fail a hand-over that is under way, and refuse further ones, because this process stops. The successor is killed."""
        self._cancelled = True
        if self.under_way:
            self._give_up(NOT_NEEDED)

    async def _restart(self) -> dict[str, object]:
        if self.under_way or self.complete:
            self._log.warn("hand-over: one is under way already; this request is ignored")
            raise HandOverFailed("a hand-over is under way already")
        if self._cancelled:
            self._log.warn("hand-over: this process stops; this request is ignored")
            raise HandOverFailed(f"a successor {NOT_NEEDED}")
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
        await self._move(now + REQUEST_WAIT_S)
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

    async def _move(self, request_deadline: float) -> None:
        """Send all connections that can be moved.

        A connection whose handshake or request is under way moves when that is complete. At `request_deadline`, in monotonic seconds, all
        that can be moved move, and the others stay.
        """
        unanswered: deque[Deferred[dict[str, Any]]] = deque()
        last = False
        try:
            while not last:
                last = self._reactor.seconds() >= request_deadline
                await self._move_once(unanswered, last)
                if not any(self._why_not_movable(each) in (None, AT_HANDSHAKE) for each in self._daemon.connections()):
                    break
                await self._pause(MOVE_PAUSE_S)
        finally:
            for each in unanswered:  # after a failure these fail, too, and no code waits for them
                each.addErrback(lambda failure: None)

    async def _move_once(self, unanswered: deque[Deferred[dict[str, Any]]], last: bool) -> None:
        """Send the connections that can be moved now, and wait until the successor has adopted them."""
        waiting = deque(self._daemon.connections())
        while waiting:
            if len(unanswered) >= MAX_UNANSWERED:
                self._adopted(await unanswered.popleft())
            if not (batch := self._freeze_batch(waiting, last)):
                continue
            try:
                unanswered.append(self._send(batch))
            except HandOverFailed:
                for each in batch:
                    self._daemon.readopt(each.state, each.descriptor, each.frozen_at)
                    os.close(each.descriptor)
                raise
        while unanswered:
            self._adopted(await unanswered.popleft())

    def _freeze_batch(self, waiting: deque[MovableConnection], last: bool) -> list[_Frozen]:
        """Remove connections from `waiting`, and freeze a batch of them. Unless `last`, skip connections with an unanswered request."""
        batch: list[_Frozen] = []
        size = 0
        while waiting and len(batch) < BATCH and size < BATCH_BYTES:
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
                batch.append(_Frozen(state, encoded, connection.release(), self._reactor.seconds()))
            except Exception:  # noqa: BLE001 - one connection must not stop the others
                self._log.failure("a connection could not be handed over")
                connection.transport.abortConnection()
                self.counters.closed["error"] += 1
                continue
            size += len(encoded)
        return batch

    def _why_not_movable(self, connection: MovableConnection) -> str | None:
        return TOO_MUCH_STATE if connection in self._too_large else connection.why_not_movable()

    def _send(self, batch: Sequence[_Frozen]) -> Deferred[dict[str, Any]]:
        """Send a batch. Fires with the answer. Without a successor it sends nothing, and raises `HandOverFailed`.

        This process goes on with the connections that the successor has no descriptor for. The next call of `_move_once` sends them again.
        """
        answer = self._ask("batch", "adopted", descriptors=[each.descriptor for each in batch], states=[each.encoded for each in batch])

        def take_back(message: dict[str, Any]) -> dict[str, Any]:
            for number in message.get("missing", ()):
                self.counters.moved -= 1
                taken = batch[number]
                if not self._daemon.readopt(taken.state, taken.descriptor, taken.frozen_at):
                    self.counters.closed["error"] += 1
            return message

        def close(result: Any) -> Any:
            for each in batch:
                os.close(each.descriptor)
            return result

        self.counters.moved += len(batch)
        return answer.addCallback(take_back).addBoth(close)

    def _adopted(self, answer: Mapping[str, Any]) -> None:
        failed: dict[str, int] = answer.get("failed", {})
        self.counters.moved -= sum(failed.values())
        self.counters.closed.update(failed)

    def _count(self) -> int:
        return sum(each.why_not_movable() is None for each in self._daemon.connections())

    def _fail(self, reason: str, lost: str, began: bool) -> None:
        """Kill the successor, accept clients again if `began`, and log the reason. `lost`: the text about lost connections, or empty."""
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
        for path in (sys.executable, self._folder):  # after the fork, an error would be a traceback in the child
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
            if now - self._logged_at >= PROGRESS_S:
                self._logged_at = now
                self._log.info("hand-over: the successor {reason}", reason=self._reason)
        elif kind == "failed":
            self._reason = f"failed: {message.get('reason')}"
            self._give_up(self._reason)
        elif self._expected and kind == self._expected[0][0]:
            self._expected.popleft()[1].callback(message)

    def _lost(self) -> None:
        self._channel = None
        # If the channel closed because the process ended, `ended` follows at once, and its reason has the exit status.
        self._reactor.callLater(1.0, self._give_up_on, self._process)

    def ended(self, child: object, how: str) -> None:
        """Fail the hand-over if its successor has ended. The successor of an earlier hand-over may end during this one: it is ignored."""
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
        """Return a Deferred that fires with the successor's next message of this kind, once the answers expected before it have come.

        It fails with `HandOverFailed` after the deadline, or if the successor ends.
        """

        def late() -> None:
            said = f"; it {self._reason}" if self._reason else ""
            self._give_up(f"did not say {kind!r} within {deadline_s:g} s{said}")

        return self._wait(kind, deadline_s, late)

    def _pause(self, seconds: float) -> Deferred[dict[str, Any]]:
        """Return a Deferred that fires after `seconds`. It fails with `HandOverFailed` if the hand-over fails before that."""
        return self._wait("", seconds, lambda: self._expected.popleft()[1].callback({}))

    def _wait(self, kind: str, seconds: float, expire: Callable[[], None]) -> Deferred[dict[str, Any]]:
        """Expect a message of this kind, or none if it is empty. Call `expire` if the wait has not ended after `seconds`."""
        answer: Deferred[dict[str, Any]] = Deferred()
        self._expected.append((kind, answer))
        timer = self._reactor.callLater(seconds, expire)

        def stop(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return answer.addBoth(stop)
