from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit.daemon import DEADLINE_S
from tests.kit.rows import each_row

PARENT = """
import os, sys
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from towerws.workers import processes

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
processes.SILENT_S, processes.START_S, processes.CHECK_S = float(sys.argv[5]), float(sys.argv[3]), 0.05
processes.FIRST_PAUSE_S = float(sys.argv[4])
deaths = 0

def changed():
    global deaths
    deaths += all(worker.state is processes.State.WAITING for worker in parent.workers)
    if deaths == 2:
        print("processes:", *[worker.starts for worker in parent.workers])
        parent.stop().addCallback(lambda _: reactor.stop())
        parent.terminate()

parent = processes.Processes(reactor, ["python", "-c", sys.argv[2]], ".", changed, lambda: 0.3)
parent.prepare(sys.argv[1], 1, 0)
reactor.callWhenRunning(parent.start)
reactor.run()
parent.close()
"""
"""A parent that ends after its worker has ended twice. Its deadlines are short."""

TELL = """
import os, signal, socket
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""


ORPHAN = """
import time
tell("READY=1")
first = os.getpid()
if os.fork():
    os.kill(first, signal.SIGKILL)
while os.path.exists(f"/proc/{first}"):  # the parent has not noticed its end yet
    time.sleep(0.005)
tell(f"MAINPID={os.getpid()}")
raise SystemExit(5)
"""
"""A process that is killed after it has started another one, which takes over and then ends."""


LATE_ORPHAN = """
import pathlib, time
folder = pathlib.Path(os.environ["NOTIFY_SOCKET"]).parent
if (folder / "first").exists():
    (folder / "second").touch()
    signal.pause()
(folder / "first").touch()
tell("READY=1")
first = os.getpid()
if os.fork():
    os.kill(first, signal.SIGKILL)
while not (folder / "second").exists():
    time.sleep(0.005)
tell(f"MAINPID={os.getpid()}")
raise SystemExit(5)
"""
"""The same, but the parent has started another process before the one that takes over says so."""

NEVER_LEAVES = """
import time
tell("READY=1")
first = os.getpid()
if not os.fork():
    tell(f"MAINPID={os.getpid()}")
    while os.path.exists(f"/proc/{first}"):
        tell("WATCHDOG=1")
        time.sleep(0.05)
    raise SystemExit(5)
signal.pause()
"""
"""A process that hands over, and does not end."""

FROZEN = """
import time
tell("READY=1")
os.kill(os.getppid(), signal.SIGSTOP)
time.sleep(0.6)
os.kill(os.getppid(), signal.SIGCONT)
for _ in range(4):
    time.sleep(0.05)
    tell("WATCHDOG=1")
raise SystemExit(4)
"""
"""A worker that is silent for longer than it may be, while its parent is stopped. `docker pause` stops both."""


def run(folder: Path, child: str, start_s: str = "60", pause_s: str = "0.5", silent_s: str = "0.3") -> str:
    """Run the parent with this program as its worker. `pause_s` is the first pause before a new start. Returns the log."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(folder), TELL + child, start_s, pause_s, silent_s],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    for path in folder.iterdir():
        path.unlink()
    return done.stdout


@each_row(
    ("child", "start_s", "said"),
    [
        ("signal.pause()", "0.6", "has given no sign of life for"),
        ("tell('READY=1\\nSTATUS=ready'); signal.pause()", "60", "has given no sign of life for"),
        ("tell('READY=1'); tell('STOPPING=1'); signal.pause()", "60", "has given no sign of life for"),
        ("tell('READY=1'); os.kill(os.getpid(), signal.SIGSEGV)", "60", "ended by signal 11 after"),
        ("tell('READY=1'); raise SystemExit(3)", "60", "ended with status 3 after"),
        ("tell('nonsense\\n=\\nMAINPID=x\\n'); raise SystemExit(0)", "60", "ended with status 0 after"),
    ],
)
def test_a_worker_that_ends_or_hangs_is_started_again(tmp_path: Path, child: str, start_s: str, said: str) -> None:
    """The log says how it ended. A process that hangs is killed, whether it has accepted clients before or not."""
    log = run(tmp_path, child, start_s)
    assert log.count(said) == 2, log
    assert "processes: 2" in log
    assert log.count("it starts again in 0.5 s; 0 of 1 workers serve") == 1
    assert log.count("it starts again in 1 s; 0 of 1 workers serve") == 1


def test_a_process_that_a_killed_worker_leaves_takes_over(tmp_path: Path) -> None:
    """So no second process is started for the worker. The parent has inherited it, and notices its end."""
    log = run(tmp_path, ORPHAN, pause_s="5")
    assert "processes: 2" in log
    assert log.count("was started") == 1, log
    assert log.index("ended by signal 9 after") < log.index("has taken over") < log.index("ended with status 5 after")


def test_a_process_that_does_not_end_after_its_hand_over(tmp_path: Path) -> None:
    """It is killed, and the one that took over goes on."""
    log = run(tmp_path, NEVER_LEAVES, silent_s="10")
    assert log.count("was replaced, and has not ended for") >= 2, log
    assert log.count("ended with status 5 after") == 2
    assert "processes: 4" in log


def test_a_process_that_takes_over_late_ends_the_one_that_was_started_instead(tmp_path: Path) -> None:
    """Otherwise nobody would supervise that one."""
    log = run(tmp_path, LATE_ORPHAN)
    assert "processes: 3" in log
    assert log.count("was started") == 2, log


def test_no_worker_is_killed_after_a_pause_of_the_whole_daemon(tmp_path: Path) -> None:
    """The parent could not hear them, and they may have been stopped, too."""
    log = run(tmp_path, FROZEN)
    assert "no sign of life" not in log
    assert log.count("ended with status 4 after") == 2, log
