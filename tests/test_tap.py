from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TWISTD = str(Path(sys.executable).with_name("twistd"))


@pytest.mark.parametrize(
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
def test_a_misspelt_flag(tmp_path: Path, flag: str, said: str) -> None:
    """One line names the right flag, and the status is 2. No flag is suggested if none is similar."""
    done = subprocess.run([TWISTD, "-n", "towerws", flag], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("towerws: ")
    assert done.stderr.rstrip("\n").endswith(said)
    assert done.stderr.count("\n") == 1
