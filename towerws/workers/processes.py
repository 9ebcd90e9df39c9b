"""The parent's child processes: starts the workers, reads their state, restarts those that ended, and reaps every process that it inherits.

A worker sends its parent the notifications that a daemon sends to systemd (`towerws.service_manager`): READY, STATUS, STOPPING, RELOADING,
WATCHDOG and MAINPID. Each worker has a socket of its own for this. So the parent needs no protocol of its own, and follows a hand-over as
systemd does. One notification is only for the parent: `MOVING`, while a worker does not read its admin port.

state     | begins with                                  | a process that ends                      | no sign of life
starting  | the spawn                                    | waiting, with a line that names it       | killed after `START_S`
serving   | READY                                        | waiting, with a line that names it       | killed after `SILENT_S`
stopping  | STOPPING: it ends by itself                  | waiting, or ended if the parent stops    | killed after `SILENT_S`
waiting   | the end of its process; a pause that doubles | -                                        | -
ended     | the parent stops, and its process has ended  | -                                        | -

A process that has handed over and has not ended is killed after `leave_s`. Otherwise one that hangs would keep its memory unnoticed.

The successor of a worker's process becomes the parent's child when that process has ended, because the parent is a subreaper (prctl(2),
PR_SET_CHILD_SUBREAPER). Process 1 of a container is a subreaper anyway.

At the end of its own stop the parent kills the processes that have not ended.

Twisted's procmon is not used, for three reasons. It reads the output of a process and writes it again as lines of its own log. It can't
supervise a process that it did not start. Its stop does not say when all processes have ended.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from types import FrameType
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from towerws.service_manager import MOVING, PINGS
from towerws.workers.worker import VARIABLE, Membership

PR_SET_CHILD_SUBREAPER: Final = 36

SILENT_S: Final = 30.0
"""How long a worker may give no sign of life. Its event loop gives three in this time."""

START_S: Final = 120.0
"""How long a process that was just started may give no sign of life. At its start it waits up to 30 s for each of its addresses."""

CHECK_S: Final = 1.0
"""Interval between two checks for processes that hang."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Pause before an ended worker is started again. It doubles with each end within `STEADY_S`."""

STEADY_S: Final = 60.0
"""A worker whose process ran for so long restarts after the first pause."""

KILLED_S: Final = 1.0
"""How long a stop waits for processes that were killed. A process in an uninterruptible system call ends later."""

KEEPS_DYING: Final = 3
"""Ends in a row, each within `STEADY_S` of its start, after which the log says that the worker keeps dying."""

MOVE_S: Final = 60.0
"""How long connections may move to a new process. After this time the parent counts an unanswered question to the worker as a failure."""

MAX_NOTE_BYTES: Final = 8192
"""Longest notification of a worker that is read."""

NOT_PASSED_ON: Final = ("WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""Variables of the service manager that are only for the parent."""


_CREDENTIALS: Final = struct.Struct("3i")
"""The process, user and group that the kernel names as the sender of a notification (unix(7), `SCM_CREDENTIALS`)."""


class State(enum.Enum):
    """The state of a worker. The table above says what each state means."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    WAITING = "waiting"
    ENDED = "ended"


class ReplacedProcess(NamedTuple):
    """A process that has handed over, and is about to end. `ended` fires when it has ended. `since`: when it was replaced or killed."""

    ended: Deferred[None]
    since: float


class Worker:
    """One worker. Its process changes: by a new start, and by a hand-over."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.pid = 0
        """The id of the worker's process. 0: it has none now."""
        self.replaced: dict[int, ReplacedProcess] = {}
        """Processes that have handed over and have not ended, by their ids."""
        self.state = State.WAITING
        self.starts = 0
        """How many processes the worker has had: by starts, and by hand-overs."""
        self.quick_ends = 0
        """Ends in a row, each within `STEADY_S` of its start."""
        self.last_end: str | None = None
        self.started_at = self.seen_at = 0.0
        self.reloading = self.reload_due = False
        """Whether it reloads, and whether it is to reload once it serves: it may have read the old configuration."""
        self.stop_sent = False
        """Whether it was told to stop."""
        self.moves_until = -inf
        """When the move of the connections to a new process ended. While they move: when it has to end.

        Meanwhile the worker does not read its admin port. It still serves its clients, because a hand-over needs two processes that get
        events.
        """
        self.notes: _Notes | None = None
        self.restart: Any = None
        """The timer of the next start."""

    @property
    def number(self) -> int:
        """The worker's number, from 1."""
        return self.membership.number

    def figures(self) -> dict[str, object]:
        """Return the state for `/status`."""
        return {
            "worker": self.number,
            "pid": self.pid or None,
            "state": self.state.value,
            "starts": self.starts,
            "last_end": self.last_end,
        }


class Processes:
    """The workers' processes. They get the command line (`command`) of this process, and start in its folder.

    `changed` is called when a worker starts or stops serving, and when one has reloaded. `leave_s` tells how many seconds a process that
    has handed over may take to end.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, command: Sequence[str], folder: str, changed: Callable[[], None], leave_s: Callable[[], float]
    ) -> None:
        self._reactor = reactor
        self._command = list(command)
        self._folder = folder
        self._changed = changed
        self._leave_s = leave_s
        self.workers: list[Worker] = []
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor
        self._checked_at = 0.0
        self._stopping = False
        self._all_ended: Deferred[None] = Deferred()
        self.on_begun: Callable[[Worker], None] = lambda _: None
        """Called when a worker has another process than before, which reads the configuration at about the same time."""

    @property
    def serving(self) -> list[Worker]:
        """The workers that accept clients."""
        return [worker for worker in self.workers if worker.state is State.SERVING]

    def prepare(self, sockets: str, count: int, page_port: int) -> None:
        """Make the workers' sockets in the folder `sockets`. Raises `OSError`. `page_port`: see `Membership`."""
        _become_subreaper()
        for number in range(1, count + 1):
            worker = Worker(Membership(number, count, sockets, os.getpid(), page_port))
            worker.notes = _Notes(self._reactor, worker, self.noted)
            self.workers.append(worker)

    def start(self) -> None:
        """Start the workers. Call it when the reactor runs: it has installed its handler of SIGCHLD, which this method replaces."""
        signal.signal(signal.SIGCHLD, self._child_signal)  # Twisted's handler reaps only processes that Twisted started
        for worker in self.workers:
            self._spawn(worker)
        self._checked_at = self._reactor.seconds()
        self._checks.start(CHECK_S, now=False)

    def stop(self) -> Deferred[None]:
        """Start no process any more. Fires once all processes have ended. `terminate` tells them to end."""
        self._stopping = True
        for worker in self.workers:
            if worker.restart is not None:
                worker.restart.cancel()
                worker.restart = None
            if not worker.pid:
                worker.state = State.ENDED
        self._check_all_ended()
        return self._all_ended

    def kill(self) -> None:
        """Kill the processes that have not ended. The Deferred of `stop` fires at most `KILLED_S` later."""
        self._reactor.callLater(KILLED_S, self._give_up)
        for worker in self.workers:
            for pid in (worker.pid, *worker.replaced):
                if pid:
                    self._log.warn("worker {number}: process {pid} has not ended in time; it is killed", number=worker.number, pid=pid)
                    _send(pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop watching, and close the sockets."""
        if self._checks.running:
            self._checks.stop()
        for worker in self.workers:
            if worker.notes is not None:
                worker.notes.close()
                worker.notes = None

    def terminate(self, *, again: bool = False) -> None:
        """Tell each worker to stop, unless it stops already. `again`: tell it a second time, so that it ends at once."""
        for worker in self.workers:
            self._read_notes(worker)
            if worker.pid and (again or (not worker.stop_sent and worker.state is not State.STOPPING)):
                worker.stop_sent = True
                _send(worker.pid, signal.SIGINT if again else signal.SIGTERM)  # two pending signals of one number arrive as one

    def reload(self) -> None:
        """Tell each worker to reload."""
        for worker in self.workers:
            if worker.state is State.SERVING:
                worker.reloading = True
                _send(worker.pid, signal.SIGHUP)
            elif worker.state is State.STARTING:
                worker.reload_due = True  # without a handler of SIGHUP, which it may not have yet, the process would end

    def move_to(self, worker: Worker, pid: int) -> None:
        """Make this process the worker's, because the old one has handed over. A second call for the same process does nothing."""
        if pid == worker.pid:
            return
        if worker.state is State.ENDED:
            _send(pid, signal.SIGTERM)
            return
        if worker.restart is not None:  # the old process was killed in the middle of the hand-over
            worker.restart.cancel()
            worker.restart = None
        now = self._reactor.seconds()
        if worker.pid:
            worker.replaced[worker.pid] = ReplacedProcess(Deferred(), now)
            if worker.state is State.STARTING:  # the parent started it before the successor reported that it has taken over
                _send(worker.pid, signal.SIGTERM)
        worker.pid, worker.state, worker.started_at, worker.seen_at = pid, State.SERVING, now, now
        worker.starts += 1
        worker.stop_sent = worker.reloading = False
        worker.moves_until = min(worker.moves_until, now)
        self._log.info("worker {number}: process {pid} has taken over", number=worker.number, pid=pid)
        self.on_begun(worker)
        if self._stopping:
            worker.stop_sent = True
            _send(pid, signal.SIGTERM)
        self._changed()

    def when_left(self, worker: Worker, pid: int) -> Deferred[None]:
        """Return a Deferred that fires once a process that has handed over has ended. The caller may cancel it."""
        waits: Deferred[None] = Deferred()

        def left(result: None) -> None:
            if not waits.called:
                waits.callback(None)
            return result

        leaving = worker.replaced.get(pid)
        (succeed(None) if leaving is None else leaving.ended).addCallback(left)
        return waits

    def noted(self, worker: Worker, note: Mapping[str, str]) -> None:
        """Handle a notification of a worker, as names and values."""
        worker.seen_at = self._reactor.seconds()
        if (pid := note.get("MAINPID", "")).isdecimal():
            self.move_to(worker, int(pid))
        elif "STOPPING" in note and worker.pid:
            worker.state = State.STOPPING
            self._changed()
        elif "RELOADING" in note:
            worker.reloading = True
        elif MOVING in note:
            now = self._reactor.seconds()
            worker.moves_until = now + MOVE_S if note[MOVING] == "1" else min(worker.moves_until, now)
        elif "READY" in note and worker.pid:
            worker.reloading = False
            if worker.state is State.STARTING:
                worker.state = State.SERVING
                self._log.info("worker {number}: process {pid} accepts clients", number=worker.number, pid=worker.pid)
                if worker.reload_due:
                    worker.reload_due = False
                    worker.reloading = _send(worker.pid, signal.SIGHUP)
            self._changed()

    # helpers

    def _spawn(self, worker: Worker) -> None:
        worker.restart = None
        membership = worker.membership
        environ = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        environ |= {VARIABLE: membership.to_text(), "NOTIFY_SOCKET": membership.notify_path, "WATCHDOG_USEC": str(int(SILENT_S * 1e6))}
        worker.started_at = worker.seen_at = self._reactor.seconds()
        worker.state = State.STARTING
        worker.stop_sent = worker.reloading = worker.reload_due = False
        worker.starts += 1
        try:
            # A process group of its own: otherwise the workers would get Ctrl-C twice, from the terminal and from the parent.
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command, executable=sys.executable, cwd=self._folder, env=environ, process_group=0
            )
        except OSError as error:
            self._ended(worker, f"could not be started: {error.strerror}")
            return
        process.returncode = 0  # `_reap` takes the status. Without a code here, subprocess would take it, too
        worker.pid = process.pid
        self._log.info("worker {number}: process {pid} was started", number=worker.number, pid=worker.pid)
        if worker.starts > 1:
            self.on_begun(worker)

    def _child_signal(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reap)

    def _reap(self) -> None:
        """Reap each child process that has ended, also those that this process inherited, and handle the end of workers."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if not pid:
                break
            for worker in self.workers:
                self._read_notes(worker)
                if pid in worker.replaced:
                    left = worker.replaced.pop(pid)
                    self._find_successor(worker)
                    left.ended.callback(None)
                elif pid == worker.pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._ended(worker, f"ended by signal {-code}" if code < 0 else f"ended with status {code}")
        self._check_all_ended()

    def _find_successor(self, worker: Worker) -> None:
        """Handle the end of a successor that ended before its parent did. This process can't reap such a successor."""
        self._forget_ended(worker)
        if worker.pid and not _send(worker.pid, 0):
            self._ended(worker, "ended during the hand-over")

    def _forget_ended(self, worker: Worker) -> None:
        """Remove replaced processes that another process has reaped. The kernel may give their ids to other programs."""
        for pid in [pid for pid in worker.replaced if not _send(pid, 0)]:
            worker.replaced.pop(pid).ended.callback(None)

    def _ended(self, worker: Worker, how: str) -> None:
        """Note the end of a worker's process, and start another one after a pause, unless the parent stops."""
        now = self._reactor.seconds()
        pid, ran_s = worker.pid, now - worker.started_at
        worker.pid, worker.last_end = 0, f"{how} after {ran_s:.1f} s"
        worker.reloading = False
        worker.moves_until = min(worker.moves_until, now)
        if self._stopping:
            worker.state = State.ENDED
            self._changed()
            return
        worker.state = State.WAITING
        worker.quick_ends = worker.quick_ends + 1 if ran_s < STEADY_S else 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(worker.quick_ends - 1, 10))
        worker.restart = self._reactor.callLater(pause_s, self._spawn, worker)
        text = "worker {number}: process {pid} {how}; it starts again in {pause_s:g} s; {serving} of {count} workers serve"
        if worker.quick_ends >= KEEPS_DYING:
            text = f"worker {{number}} keeps dying, {{ends}} times in a row; its log lines say why. {text[0].upper()}{text[1:]}"
        serving, count = len(self.serving), len(self.workers)
        self._log.error(
            text, number=worker.number, pid=pid, how=worker.last_end, pause_s=pause_s, ends=worker.quick_ends, serving=serving, count=count
        )
        self._changed()

    def _check(self) -> None:
        """Kill each worker whose event loop hangs, and each process that does not end after its hand-over."""
        now = self._reactor.seconds()
        # `docker pause` and SIGSTOP stop this process, and perhaps the workers. Their notifications of that time may still be unread.
        was_stopped = now - self._checked_at > SILENT_S / PINGS
        self._checked_at = now
        for worker in self.workers:
            if was_stopped:
                worker.seen_at = now
            limit = {State.STARTING: START_S, State.SERVING: SILENT_S, State.STOPPING: SILENT_S}.get(worker.state)
            if worker.pid and limit is not None and now - worker.seen_at > limit:
                self._log.error(
                    "worker {number}: process {pid} has given no sign of life for {silent_s:.0f} s; it is killed",
                    number=worker.number,
                    pid=worker.pid,
                    silent_s=now - worker.seen_at,
                )
                worker.seen_at = now
                _send(worker.pid, signal.SIGKILL)
            self._forget_ended(worker)
            for pid, leaving in worker.replaced.items():
                if was_stopped:
                    worker.replaced[pid] = leaving._replace(since=now)
                elif (left_s := now - leaving.since) > self._leave_s():
                    self._log.error(
                        "worker {number}: process {pid} was replaced, and has not ended for {left_s:.0f} s; it is killed",
                        number=worker.number,
                        pid=pid,
                        left_s=left_s,
                    )
                    worker.replaced[pid] = leaving._replace(since=now)
                    _send(pid, signal.SIGKILL)

    def _read_notes(self, worker: Worker) -> None:
        """Read the worker's notifications now: those that a process sent before its end must be handled before its end."""
        if worker.notes is not None:
            worker.notes.doRead()

    def _give_up(self) -> None:
        if not self._all_ended.called:
            self._all_ended.callback(None)

    def _check_all_ended(self) -> None:
        if self._stopping and not self._all_ended.called and not any(worker.pid or worker.replaced for worker in self.workers):
            self._all_ended.callback(None)


class _Notes:
    """Reads the notifications of one worker (sd_notify(3)). `noted` gets each of them, as names and values.

    Only those of the worker's process count, and `MAINPID` of any process. A process that the worker has started or replaced has the same
    socket: its `STOPPING` must not count as that of the worker.
    """

    def __init__(self, reactor: Any, worker: Worker, noted: Callable[[Worker, Mapping[str, str]], None]) -> None:
        self._reactor = reactor
        self._worker = worker
        self._noted = noted
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(worker.membership.notify_path)
        reactor.addReader(self)

    def close(self) -> None:
        """Read nothing more."""
        self._reactor.removeReader(self)
        self._socket.close()

    # Twisted calls these

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name in Twisted's own log lines."""
        return "workers"

    def connectionLost(self, reason: object) -> None:
        """Close the socket: the reactor ends."""
        self._socket.close()

    def doRead(self) -> None:
        """Read all notifications that have arrived."""
        while True:
            try:
                message, ((_, _, credentials),), _, _ = self._socket.recvmsg(MAX_NOTE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            note = dict(line.partition("=")[::2] for line in message.decode("utf-8", "replace").split("\n"))
            sender, *_ = _CREDENTIALS.unpack(credentials)
            if sender == self._worker.pid or "MAINPID" in note:
                self._noted(self._worker, note)


def _become_subreaper() -> None:
    """Make this process the parent of processes whose own parent ends. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")


def _send(pid: int, number: int) -> bool:
    """Send a signal. 0 sends none. Return whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
