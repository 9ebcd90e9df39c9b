"""`script/soak [--hours N | --minutes N] [--broker 3|4] [--seed N]`: one daemon for long, and what grows.

1,000 clients of both dialects come and go, get pings, subscribe again and have their credentials checked again. Events come
steadily. A plan made from the seed replaces the daemon's process, restarts the broker, and disturbs links and clients. The sampler
follows the process that serves. Memory, descriptors, timers and connections are sampled once a second (`tests.faults.growth`).

In the first half of a run the daemon hands over `HANDOVERS` times. Then one process lives to the end. Faults come all the time. A
step that takes long delays the steps after it, so that processes have equal lives. Steps that would come after the end are left out.

Exit status: 0 without growth. 3 if a slope is above its limit with confidence, or a client lost something. 4 if the machine
lacks a part.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from tests.faults.__main__ import EXIT_BROKEN, EXIT_MISSING, Screen
from tests.faults.brokers import VERSIONS, MissingError
from tests.faults.case import Brokers, Case, descriptors, present
from tests.faults.growth import FIGURES, Sample, rows, table
from tests.faults.proxy import Direction, FaultProxy
from tests.faults.soak_plot import draw
from tests.kit.handed import HandedDaemon
from tests.kit.plain_http import plain_http

BUILD: Final = Path(__file__).parents[2] / "build"
REPORT, PLOT, SAMPLES = BUILD / "soak.md", BUILD / "soak.svg", BUILD / "soak.csv"
SAMPLE_S: Final = 1.0
LEAST_MINUTES: Final = 10.0
SETTLE_S: Final = 120.0

CLIENTS: Final = 1000
TOWER: Final = 0.2
"""This share of the clients speaks the Tower dialect."""
PER_S: Final = 10.0
WANDER_PER_S: Final = 4.0
AGAIN_EVERY_S: Final = 15.0
AGAIN: Final = 0.02

HANDOVERS: Final = 10
HANDOVERS_UNTIL: Final = 0.5
"""They all come in this share of a run."""
BROKER_EVERY_S: Final = 600.0
FAULT_EVERY_S: Final = (30.0, 90.0)
OTHER_FAULTS: Final = ("cut", "silence", "delay", "storm")
PATIENCE_S: Final = 30.0
"""How long the publisher waits for a broker on a busy machine, before it connects again."""
BROKER_BACK_S: Final = 300.0
"""A busy machine takes minutes to start a broker, or a daemon's successor."""

Step = tuple[float, str]
"""Seconds after the start, and what is done then."""

FLAGS: Final = (
    *("--tower-valid-s=1", "--revalidate-s=30", "--websocket-ping-s=10"),
    # A busy machine may take minutes to start the broker again. Clients that come meanwhile can still resume.
    "--history-max-age-s=300",
)


class Weather:
    """Does what the plan says, one step after another, on a thread of its own. `failed` has what should not have happened."""

    def __init__(self, case: Case, daemon: HandedDaemon, proxy: FaultProxy, say: Callable[[str], None]) -> None:
        self._case = case
        self._daemon = daemon
        self._proxy = proxy
        self._say = say
        self._begin = time.monotonic()
        self.replacing = threading.Lock()
        """Held while the process is being replaced: then nothing can be sampled."""
        self.generation = 0
        self.done: list[Step] = []
        self.failed: list[str] = []
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._may_end = threading.Event()

    @staticmethod
    def plan(seconds: float, seed: int) -> list[Step]:
        """What happens in a run of this length."""
        choice = random.Random(seed)
        half = seconds * HANDOVERS_UNTIL
        steps = [(half * (number + 1) / HANDOVERS, "hand-over") for number in range(HANDOVERS)]
        restarts = max(1, int(seconds / BROKER_EVERY_S))
        # Not in the last part of its share: the last one needs time to come back before the run ends.
        steps += [(seconds / restarts * (number + choice.uniform(0.1, 0.7)), "broker") for number in range(restarts)]
        at_s = choice.uniform(*FAULT_EVERY_S)
        while at_s < seconds - FAULT_EVERY_S[0]:
            steps.append((at_s, choice.choice(OTHER_FAULTS)))
            at_s += choice.uniform(*FAULT_EVERY_S)
        return sorted(steps)

    @property
    def over(self) -> bool:
        """Whether the last step has been done."""
        return self._over.is_set()

    def start(self, plan: Sequence[Step], until_s: float) -> None:
        """Start. No step begins after `until_s`."""
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(plan, until_s), name="weather", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and with it a broker that it has restarted: a process ends with the thread that started it (setpriv(1))."""
        self._may_end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, plan: Sequence[Step], until_s: float) -> None:
        try:
            self._do(plan, until_s)
        finally:
            self._over.set()
            self._may_end.wait()

    def _do(self, plan: Sequence[Step], until_s: float) -> None:
        begin = self._begin
        for at_s, kind in plan:
            now = time.monotonic()
            early_s = begin + at_s - now
            if max(0.0, early_s) > self._begin + until_s - now:
                return
            if early_s < 0:
                begin -= early_s  # the step before took longer
            elif self._may_end.wait(early_s):
                return
            self.done.append((time.monotonic() - self._begin, kind))
            self._say(kind)
            try:
                self.KINDS[kind](self)
            except (AssertionError, OSError) as error:
                self.failed.append(f"{kind} at {self.done[-1][0]:.0f} s: {error}")

    def _hand_over(self) -> None:
        self._case.wait_ready(self._daemon, within_s=BROKER_BACK_S)
        with self.replacing:
            status, answer = self._daemon.restart(BROKER_BACK_S)
            if status == 200:
                self.generation += 1
        assert (status, answer.get("closed")) == (200, {}), f"{status} {answer}"

    def _restart_broker(self) -> None:
        node = self._case.rabbit
        node.stop()
        self._case.wait_ready(self._daemon, ready=False)
        node.launch()
        self._case.wait_ready(self._daemon, within_s=BROKER_BACK_S)

    def _cut(self) -> None:
        self._proxy.reset()

    def _silence(self) -> None:
        self._proxy.black_hole(Direction.UP, Direction.DOWN)
        self._case.sleep(3)
        self._proxy.heal()

    def _delay(self) -> None:
        self._proxy.delay(Direction.DOWN, 0.3)
        self._case.sleep(5)
        self._proxy.heal()

    def _storm(self) -> None:
        self._case.swarm.drop(share=0.2)

    KINDS: ClassVar[Mapping[str, Callable[[Weather], None]]] = {
        "hand-over": _hand_over,
        "broker": _restart_broker,
        "cut": _cut,
        "silence": _silence,
        "delay": _delay,
        "storm": _storm,
    }


def sample(daemon: HandedDaemon, at_s: float, generation: int) -> Sample:
    """One sample of the process that serves."""
    _, status = daemon.get("/status")
    process = status["process"]
    values = (
        *(daemon.rss_kib() / 1024, descriptors(daemon), process["delayed_calls"]),
        *(present(status), status["hub"]["subscribers"], process["full_collections"]),
    )
    return Sample(at_s, generation, tuple(map(float, values)))


def soak(
    case: Case, seconds: float, api: int, screen: Screen, *, seed: int, clients: int = CLIENTS, plan: Sequence[Step] | None = None
) -> tuple[list[Sample], list[Step], list[str]]:
    """Run. Returns the samples, what was done, and the broken promises. `plan` replaces the one from the seed."""
    proxy = case.proxy(case.rabbit.port)
    flags = ("--auth=tower", f"--tower-url=http://127.0.0.1:{api}", *FLAGS)
    daemon = case.daemon(proxy.port, flags=flags, kind=HandedDaemon)
    assert isinstance(daemon, HandedDaemon)
    publisher = case.publisher(case.rabbit.port, per_s=PER_S, silence_s=PATIENCE_S)
    specs = case.specs(clients, daemon, tower=int(clients * TOWER), each=3)
    live = case.swarm.open([replace(spec, headers=f"Authorization: Bearer t{number}\r\n") for number, spec in enumerate(specs)], SETTLE_S)
    assert live == clients, f"only {live} of {clients} clients got in"
    case.swarm.wander(WANDER_PER_S)
    weather = Weather(case, daemon, proxy, screen.progress)
    case.at_end(weather.stop)
    if plan is None:
        weather.start(Weather.plan(seconds, seed), seconds)
    else:
        weather.start(plan, math.inf)
    samples: list[Sample] = []
    missed = 0
    begin = time.monotonic()
    again_at, say_at, turn = begin + AGAIN_EVERY_S, begin, 0
    while (now := time.monotonic()) < begin + seconds or not weather.over:
        if weather.replacing.acquire(blocking=False):
            try:
                samples.append(sample(daemon, now - begin, weather.generation))
            except OSError:  # a busy machine: `Daemon.get` gives up after 30 s
                missed += 1
            finally:
                weather.replacing.release()
        if now >= say_at:
            say_at += SAMPLE_S if sys.stdout.isatty() else 60 * SAMPLE_S
            screen.progress(f"{(now - begin) / 60:5.1f} of {seconds / 60:g} minutes  " + say(samples[-1]))
        if now >= again_at:
            again_at += AGAIN_EVERY_S
            case.swarm.ask_again(AGAIN)
        turn += 1
        time.sleep(max(0.0, begin + turn * SAMPLE_S - time.monotonic()))  # a sampler's interval
    samples.append(sample(daemon, time.monotonic() - begin, weather.generation))
    case.swarm.wander(0)
    status = daemon.get("/status")[1]
    try:
        outcome = case.finish(f"{seconds / 60:g} minutes", settle_s=SETTLE_S)
    except AssertionError as error:  # what was measured is worth its report
        return samples, weather.done, [*weather.failed, str(error)]
    tally = outcome.tally
    kinds = [kind for _, kind in weather.done]
    faults = len(kinds) - kinds.count("hand-over") - kinds.count("broker")
    connections = sum(each.connections for each in case.reports.values())
    calls = status["auth"]["tower"]["calls"]["made"]
    screen.line(
        f"{publisher.journal.count:,} events, {tally.events:,} received; {connections:,} connections; "
        f"{weather.generation} hand-overs, {kinds.count('broker')} broker restarts, {faults} other faults",
        f"of the last process: {status['requests']['taken']:,} subscriptions, {calls:,} calls to the API, "
        f"{status['source']['failures']} links lost; {len(samples):,} samples, {missed} times no answer",
    )
    return samples, weather.done, weather.failed + outcome.broken


def say(newest: Sample) -> str:
    """The newest sample as text."""
    figures = "  ".join(f"{figure.name} {value:.0f}" for figure, value in zip(FIGURES, newest.values, strict=True))
    return f"process {newest.generation}  {figures}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and write the report, the samples and the plot."""
    parser = argparse.ArgumentParser(prog="script/soak", description="One daemon for long, with faults: what grows?")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=1, help="how long (default 1)")
    length.add_argument("--minutes", type=float, help="how long instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--broker", type=int, choices=VERSIONS, default=3, help="the major version of RabbitMQ")
    args = parser.parse_args(arguments)
    minutes: float = args.hours * 60 if args.minutes is None else args.minutes
    if not LEAST_MINUTES <= minutes <= 7 * 24 * 60:
        parser.error(f"{minutes:g} minutes: a slope needs {LEAST_MINUTES:g} at the least, and a week is the most")
    command = f"make soak {f'HOURS={args.hours:g}' if args.minutes is None else f'MINUTES={minutes:g}'} SEED={args.seed}"
    screen = Screen()
    screen.line(command)
    with ExitStack() as leave:
        folder = Path(leave.enter_context(tempfile.TemporaryDirectory(prefix="towerws-soak-")))
        brokers = Brokers(args.broker, folder / "brokers")
        leave.callback(brokers.spoil)
        (folder / "case").mkdir()
        case = Case("soak", str(args.seed), folder / "case", brokers, screen.progress, leave)
        try:
            samples, done, broken = soak(case, minutes * 60, leave.enter_context(plain_http()), screen, seed=args.seed)
        except MissingError as missing:
            screen.line(str(missing))
            return EXIT_MISSING
    judged = rows(samples)
    lines = table(judged)
    screen.line(*lines, *(f"broken: {text}" for text in broken))
    BUILD.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([f"`{command}`", "", *lines, "", *broken]) + "\n")
    lines = [",".join(["seconds", "process", *(figure.name for figure in FIGURES)])]
    lines += [f"{each.at_s:.1f},{each.generation},{','.join(map(str, each.values))}" for each in samples]
    SAMPLES.write_text("\n".join(lines) + "\n")
    PLOT.write_text(draw(samples, judged, done, f"{command}. RabbitMQ {args.broker}, {time.strftime('%Y-%m-%d')}."))
    screen.line(f"{REPORT}, {SAMPLES}, {PLOT}")
    return EXIT_BROKEN if broken or any(row.grows for row in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
