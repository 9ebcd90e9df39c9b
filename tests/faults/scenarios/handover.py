"""Restarts by hand-over, under load: they succeed, or the successor fails at some stage."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.faults.case import Case
from tests.faults.publisher import Publisher
from tests.faults.scenario import Outcome, scenario
from tests.kit.handed import HandedDaemon
from towerws.core.handover_state import VERSION

TOPICS: Final = [f"job_events.{number}" for number in range(1, 501)]
PER_S: Final = 500
"""Events per second. A client with one of the topics hears one per second, so that two cores carry 5,000 of them and the daemon."""

FLAGS: Final = (
    "--websocket-compression",
    "--websocket-backlog-bytes=8KiB",
    # Clients that stall answer no ping, and the message of a hand-over that a busy machine delays takes long.
    "--websocket-pong-s=300",
    "--websocket-assembly-s=300",
)
BEHIND: Final = 24
BEHIND_TOPICS: Final = 250
"""Topics of a client that stalls: it gets 80 KB per second, so that its buffers fill within seconds."""

SLOW: Final[dict[str, Any]] = {"small_buffer": True, "segment_bytes": 536, "timed": False}
STALL_S: Final = (15.0, 40.0)
NOTICED_S: Final = STALL_S[1] + 30
"""A client that stalls notices only afterwards that its connection has ended."""

FRAGMENTS: Final = 100
BYSTANDERS: Final = 100
SETTLE_S: Final = 90.0
MEMORY_S: Final = 0.02
ANONYMOUS: Final = re.compile(r"RssAnon:\s+(\d+)").search
FROM_FILES: Final = re.compile(r"RssFile:\s+(\d+)").search
LOST: Final = re.compile(r"; (\d+) connections had moved already and are lost with the successor").search


@dataclass
class Crowd:
    """A daemon with clients of every kind, and events for them."""

    case: Case
    daemon: HandedDaemon
    publisher: Publisher
    count: int
    rounds: int = 0

    def begin(self) -> int:
        """Let clients stall, and others begin a message. Returns how many are behind. The halves of the slow ones take turns."""
        swarm = self.case.swarm
        self.rounds += 1
        swarm.misbehave(f"behind-{self.rounds % 2}", "stall", *STALL_S)
        swarm.begin_messages("fragments")
        self.case.wait_until(lambda: self.behind() > 0, "a client is behind", 60)
        for each in (swarm, self.case.bystanders):
            each.worst()
            each.late()
        return self.behind()

    def behind(self) -> int:
        """How many clients are behind now."""
        return int(self.daemon.get("/status")[1]["hub"]["behind"])

    def end(self) -> list[str]:
        """Let the others finish their message. Returns what is broken."""
        left = self.case.swarm.finish_messages("fragments")
        return [f"{left} messages that were begun before a hand-over got no answer"] if left else []

    def closed(self) -> int:
        """How many connections have ended so far."""
        return sum(sum(each.codes().values()) for each in (self.case.swarm, self.case.bystanders))


def gather(case: Case, count: int, *flags: str, folder: str = "") -> Crowd:
    """So many clients of every kind. Some of them have a process of their own. `folder` is for the daemon's Python, before its own code."""
    case.topics = list(TOPICS)
    environment = {"PYTHONPATH": f"{folder}:{Path(__file__).parents[3]}"} if folder else None
    daemon = case.daemon(case.rabbit.port, flags=(*FLAGS, *flags), kind=HandedDaemon, environment=environment)
    assert isinstance(daemon, HandedDaemon)
    publisher = case.publisher(case.rabbit.port, per_s=PER_S, size=200)
    rest = count - BEHIND - FRAGMENTS - BYSTANDERS
    specs = [
        *case.specs(BEHIND // 2, daemon, tower=BEHIND // 6, each=BEHIND_TOPICS, group_name="behind-0", **SLOW),
        *case.specs(BEHIND // 2, daemon, tower=BEHIND // 6, each=BEHIND_TOPICS, group_name="behind-1", **SLOW),
        *case.specs(FRAGMENTS // 2, daemon, tower=FRAGMENTS // 4, each=1, group_name="fragments"),
        *case.specs(FRAGMENTS // 2, daemon, tower=FRAGMENTS // 4, each=1, group_name="fragments", compressed=True),
        *case.specs(rest // 5, daemon, tower=rest // 10, each=1, compressed=True),
        *case.specs(rest - rest // 5, daemon, tower=rest // 5, each=1),
    ]
    beside = [
        *case.specs(BYSTANDERS // 2, daemon, tower=BYSTANDERS // 4, each=1, group_name="bystanders"),
        *case.specs(BYSTANDERS // 2, daemon, tower=BYSTANDERS // 4, each=1, group_name="bystanders", compressed=True),
    ]
    case.say(f"{count:,} clients connect")
    live = case.swarm.open(specs, 240) + case.bystanders.open(beside, 60)
    assert live == count, f"only {live} of {count} clients got in"
    publisher.wait_for(PER_S)
    return Crowd(case, daemon, publisher, count)


class Memory(threading.Thread):
    """Measures the memory of a daemon and its successor: `one` is the daemon's at the beginning, in KiB.

    `ratio` is the most of both together, divided by the most of the daemon's own until then: history grows meanwhile, and its part shrinks
    while connections leave it. The pages of program files count once, because the processes share them.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.one = resident_kib(pid)
        self.ratio = 0.0

    def run(self) -> None:
        """Measure until the end."""
        own = self.one
        while not self._done.wait(MEMORY_S):
            with suppress(OSError):
                children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
                if one := resident_kib(self._pid):  # 0: it has ended
                    own = max(own, one)
                    self.ratio = max(self.ratio, resident_kib(self._pid, *map(int, children)) / own)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self.join()


def resident_kib(*pids: int) -> int:
    """The resident memory of processes with the same program."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    own, shared = ([int(found[1]) for text in status if (found := search(text))] for search in (ANONYMOUS, FROM_FILES))
    return sum(own) + max(shared, default=0)


@scenario("daemon-handover", alone=True)
def daemon_handover(case: Case) -> Outcome:
    """Promise: a restart by hand-over closes no connection. Every client, of both dialects, gets every event once and in order.

    Injected: ten hand-overs in a row, with 5,000 clients and 500 events per second. A client hears one event per second, 24 hear 250.
    1,500 speak the Tower dialect, 1,000 are compressed, 100 are in the middle of a fragmented message, and 24 stall in turns, so that they
    are behind. Counted: events of every client, closes, the memory of both processes. The worst latency is reported, and by how much the
    clients' own process was late: it is in that latency, too. 100 clients have a process of their own.
    """
    crowd = gather(case, 5000)
    broken: list[str] = []
    seconds: list[float] = []
    worst: list[tuple[float, float, float]] = []
    behind: list[int] = []
    ratios: list[float] = []
    for number in range(10):
        behind.append(crowd.begin())
        with Memory(crowd.daemon.pid) as memory:
            status, answer = crowd.daemon.restart()
        assert (status, answer.get("moved"), answer.get("closed")) == (200, crowd.count, {}), answer
        broken += crowd.end()
        crowd.publisher.wait_for(PER_S // 2)
        seconds.append(answer["seconds"])
        ratios.append(memory.ratio)
        worst.append((case.bystanders.worst(), case.swarm.worst(), case.swarm.late()))
        case.say(
            f"hand-over {number + 1} of 10 in {seconds[-1]:.2f} s, memory {ratios[-1]:.2f} times one's ({memory.one >> 10} MiB), "
            f"latency {worst[-1][0]:.2f} s apart, {worst[-1][1]:.2f} s of all, whose process was late by {worst[-1][2]:.2f} s"
        )
    if closed := crowd.closed():
        broken.append(f"{closed} connections closed")
    outcome = case.finish("hand-over x10, 5,000 clients, 500 events/s", broken=broken, settle_s=SETTLE_S)
    apart, everybody, late = (max(column) for column in zip(*worst, strict=True))
    outcome.worst_ms = apart * 1000
    outcome.notes += [
        f"slowest {max(seconds):.2f} s, median {sorted(seconds)[5]:.2f} s; at least {min(behind)} clients behind",
        f"worst latency {apart:.2f} s of 100 clients with a process of their own",
        f"worst latency {everybody:.2f} s of the others, whose process was late by {late:.2f} s",
        f"memory of both processes: {max(ratios):.2f} times that of one",
    ]
    return outcome


FAULTS: Final = """
import os, time
fault = open("fault").read() if os.path.exists("fault") else ""
batches = 0
def end(*args):
    os._exit(3)
def hang(*args):
    time.sleep(3600)
def later(call):
    import towerws.handover.successor as successor
    take = successor.Successor._adopt_batch
    def take_some(self, message, descriptors):
        global batches
        batches += 1
        if batches > 4:
            call()
        take(self, message, descriptors)
    successor.Successor._adopt_batch = take_some
if fault == "another version":
    import towerws.core.handover_state
    towerws.core.handover_state.VERSION = 99
elif fault in ("ends", "hangs"):
    import towerws.handover.successor
    towerws.handover.successor.Successor._check = end if fault == "ends" else hang
elif fault in ("ends in the middle", "hangs in the middle"):
    later(end if fault.startswith("ends") else hang)
"""
"""Read by each new process of the daemon, before its own code."""

READY_S: Final = 30
STAGES: Final[dict[str, str]] = {
    "does not start": "the successor can't be started: .+ does not exist any more",
    "ends": "ended with status 3",
    "another version": f"the running process hands over in version {VERSION}, and this release in version 99",
    "hangs": rf"did not say 'ready' within {READY_S} s",
    "ends in the middle": "ended with status 3",
    "hangs in the middle": "did not say 'adopted' within 15 s",
}
"""By fault of the successor: what the answer says."""


@contextmanager
def fault(folder: Path, name: str) -> Iterator[None]:
    """Let the next processes of the daemon have it. One that does not start lacks its folder."""
    file = folder / "fault"
    away = folder.with_name(folder.name + "-away")
    file.write_text(name)
    if name == "does not start":
        folder.rename(away)
    try:
        yield
    finally:
        if name == "does not start":
            away.rename(folder)
        file.unlink()


@scenario("daemon-handover-fails", alone=True)
def daemon_handover_fails(case: Case) -> Outcome:
    """Promise: a successor that fails leaves the old process serving. Only connections that it had got already are closed, and counted.

    Injected: a successor that does not start, ends before it is ready, has another version, hangs, or ends or hangs while it adopts. Twice
    each, with 2,000 clients and 500 events per second, then a hand-over that succeeds. Counted: events of every client, and closes: as
    many as the answer says.
    """
    site = case.folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(FAULTS)
    crowd = gather(case, 2000, f"--restart-s={READY_S}", folder=str(site))
    daemon, broken, notes = crowd.daemon, [], []
    uptime_s = 0.0
    for name, reason in [*STAGES.items(), *STAGES.items()]:
        closed = crowd.closed()
        crowd.begin()
        with fault(daemon.log.parent, name):
            status, answer = daemon.restart()
        said = str(answer.get("error"))
        found = LOST(said)
        lost = int(found[1]) if found else 0
        if status != 503 or not re.search(reason, said) or bool(lost) != name.endswith("in the middle"):
            broken.append(f"{name}: the answer is {status}, {answer}")
        before, uptime_s = uptime_s, daemon.get("/status")[1]["uptime_s"]
        if uptime_s < before:
            broken.append(f"{name}: another process serves")
        with suppress(AssertionError):  # the count below says it
            case.wait_until(lambda: crowd.closed() - closed >= lost, "clients notice that their connections have ended", NOTICED_S)  # noqa: B023
        if left := case.swarm.wait_live(within_s=SETTLE_S) + case.bystanders.wait_live(within_s=SETTLE_S):
            broken.append(f"{name}: {left} clients did not come back")
        crowd.end()  # the message of a client whose connection was lost has no answer
        crowd.publisher.wait_for(PER_S // 2)
        ended = crowd.closed() - closed
        if ended != lost:
            broken.append(f"{name}: {ended} connections ended, and the answer says {lost}")
        notes.append(f"{name}: {lost} closed, latency {max(case.swarm.worst(), case.bystanders.worst()):.2f} s")
        case.say(notes[-1])
    closed = crowd.closed()
    crowd.begin()
    status, answer = daemon.restart()
    if (status, answer.get("moved"), answer.get("closed")) != (200, crowd.count, {}):
        broken.append(f"the hand-over without a fault: {status}, {answer}")
    broken += crowd.end()
    if ended := crowd.closed() - closed:
        broken.append(f"{ended} connections closed by the hand-over without a fault")
    return case.finish("a successor that fails at each stage, x2, 2,000 clients", broken=broken, notes=notes, settle_s=SETTLE_S)
