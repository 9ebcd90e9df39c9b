from __future__ import annotations

import subprocess
import sys

import prose


def test_what_is_listed_as_clean_is_clean() -> None:
    """The command, as script/lint runs it. Its exit status is 1 with a finding, 2 with a path or option that is none."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(prose.ROOT / "script" / "prose.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("nowhere").returncode == 2
    assert run("--nothing").returncode == 2
    assert run("--help").stdout.startswith("Checks the wording")
