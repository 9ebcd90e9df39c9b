from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.kit.daemon import TWISTD
from tests.kit.rows import each_row
from towerws.handover import ports
from towerws.tap import Options


@each_row(
    ("flag", "said"),
    [
        ("--brokr=x", "option --brokr not recognized; did you mean --broker?"),
        ("--lisen=x", "option --lisen not recognized; did you mean --listen?"),
        ("--adminn=x", "option --adminn not recognized; did you mean --admin?"),
        ("--history-max-byte-s=1", "option --history-max-byte-s not recognized; did you mean --history-max-bytes?"),
        ("--max-bytes=1", "did you mean --stream-max-bytes or --queue-max-bytes or --history-max-bytes?"),
        ("--histroy=1", "did you mean --history-max-bytes or --history-max-age-s?"),
        ("--confg=x", "option --confg not recognized; did you mean --config?"),
        ("--history=1", "option --history not a unique prefix: there is --history-max-bytes, --history-max-age-s"),
        ("--zzz", "option --zzz not recognized"),
        ("--redis-url=x", "option --redis-url not recognized"),
    ],
)
def test_a_misspelt_flag(capfd: pytest.CaptureFixture[str], flag: str, said: str) -> None:
    """One line names the right flag, and the status is 2. No flag is suggested if none is similar."""
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions([flag])
    assert ended.value.code == 2
    check(capfd.readouterr().err, said)


def test_a_misspelt_flag_of_twistd(tmp_path: Path) -> None:
    """The same as a process."""
    done = subprocess.run([TWISTD, "-n", "towerws", "--brokr=x"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    check(done.stderr, "option --brokr not recognized; did you mean --broker?")


def test_one_process_can_not_hand_over_to_several(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The running process is told why at once. Its ports would be in use for the parent of the workers."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv(ports.VARIABLE, ports.Inheritance(1, theirs.fileno(), {}).to_text())
        with pytest.raises(SystemExit) as ended:
            Options().parseOptions(["--auth=open", "--broker=amqp://localhost", "--workers=2"])
        assert ended.value.code == 2
        told = json.loads(ours.recv(4096)[4:])
    check(capfd.readouterr().err, "--workers = 2: the running process can't hand over to several workers; restart towerws")
    assert (told["kind"], told["reason"]) == (
        "failed",
        "--workers = 2: the running process can't hand over to several workers; restart towerws",
    )


def check(stderr: str, said: str) -> None:
    """Check that stderr is one line with this end."""
    assert stderr.startswith("towerws: ")
    assert stderr.rstrip("\n").endswith(said)
    assert stderr.count("\n") == 1
