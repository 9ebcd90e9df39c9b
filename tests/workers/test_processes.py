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
processes.SILENT_S, processes.START_S, processes.CHECK_S = 0.3, float(sys.argv[3]), 0.05
deaths = 0

def changed():
    global deaths
    deaths += all(worker.state is processes.State.WAITING for worker in parent.workers)
    if deaths == 2:
        print("processes:", *[worker.starts for worker in parent.workers])
        parent.stop().addCallback(lambda _: reactor.stop())
        parent.terminate()

parent = processes.Processes(reactor, ["python", "-c", sys.argv[2]], ".", changed)
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
while os.getppid() == first:
    time.sleep(0.005)
tell(f"MAINPID={os.getpid()}")
raise SystemExit(5)
"""
"""A process that is killed after it has started another one, which takes over and then ends."""


def run(folder: Path, child: str, start_s: str) -> str:
    """Run the parent with this program as its worker. Returns the log."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(folder), TELL + child, start_s],
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
    log = run(tmp_path, ORPHAN, "60")
    assert "processes: 2" in log
    assert log.count("was started") == 1, log
    assert log.index("ended by signal 9 after") < log.index("has taken over") < log.index("ended with status 5 after")
