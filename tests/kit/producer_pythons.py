"""Other Pythons with the producer's libraries: real interpreters, and folders of wheels under build/.

`python -m tests.kit.producer_pythons` prepares all of them (script/test does so before the tests), and lists missing interpreters.
A folder is named after its contents, so that a list is installed once, and again after a change.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCER = ROOT / "producer"
LISTS = PRODUCER / "tests" / "environments"
BUILD = ROOT / "build" / "producer"
INSTALL_S = 300

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")

_GLIBCS = ("manylinux1", "manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_28", "linux")


class InstallError(Exception):
    """The wheels of an environment are not available. The text is pip's."""


@dataclass(frozen=True)
class Environment:
    """A Python and a list of wheels."""

    name: str
    python: str
    """`3.6`, or "" for the Python that runs the tests."""

    @property
    def wheels(self) -> Path:
        """The list of wheels: exact, complete, and installed as it is."""
        return LISTS / f"{self.name.partition('-')[0]}.txt"

    @property
    def folder(self) -> Path:
        """The folder of its wheels."""
        version = self.python or "{}.{}".format(*sys.version_info[:2])
        content = hashlib.blake2b(self.wheels.read_bytes() + version.encode() + platform.machine().encode(), digest_size=6).hexdigest()
        return BUILD / f"{self.name}-{version}-{content}"

    @property
    def interpreter(self) -> Path | None:
        """The Python to run, None if it is missing."""
        return find_python(self.python) if self.python else Path(sys.executable)

    def environ(self, **more: str) -> dict[str, str]:
        """Environment variables for a process with these wheels and the producer."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOWERWS_", "PYTHON", "DJANGO_"))}
        return {**kept, "PYTHONPATH": f"{PRODUCER}{os.pathsep}{self.folder}", **more}

    def prepare(self) -> None:
        """Install its wheels, unless they are installed. Raises `InstallError` with pip's output."""
        BUILD.mkdir(parents=True, exist_ok=True)
        with (BUILD / f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.folder.exists():
                self._install()

    def _install(self) -> None:
        fresh = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        # pip never runs in the other Python: today's pip can't run in 3.6, and 3.6's own is slow.
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        command += ["--target", str(fresh), "--requirement", str(self.wheels)]
        if self.python:
            major, minor = self.python.split(".")
            abi = f"cp{major}{minor}{'m' if int(minor) < 8 else ''}"
            command += ["--implementation", "cp", "--python-version", self.python, "--abi", abi, "--abi", "abi3", "--abi", "none"]
            for glibc in _GLIBCS:
                command += ["--platform", f"{glibc}_{platform.machine()}"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=INSTALL_S
        )
        if done.returncode != 0:
            raise InstallError(f"{self.name}: pip could not install {self.wheels}\n{done.stdout[-2000:]}")
        fresh.rename(self.folder)


CHANNELS_1 = Environment("channels1", "3.6")
CHANNELS_2 = Environment("channels2", "3.8")
CHANNELS_3 = Environment("channels3", "3.9")
CHANNELS_3_NOW = Environment("channels3now", "3.13")
CHANNELS_4 = Environment("channels4", "3.13")
CELERY = Environment("celery", "")
PIKA = [Environment("pika", version) for version in ("3.7", "3.10", "3.11", "3.12")]
"""The Pythons without another environment."""

ALL = [CHANNELS_1, CHANNELS_2, CHANNELS_3, CHANNELS_3_NOW, CHANNELS_4, CELERY, *PIKA]


def find_python(version: str) -> Path | None:
    """The newest `3.6` of pyenv, or `python3.6` on the path. None if there is neither."""
    found = sorted(PYENV.glob(f"versions/{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))
    if found:
        return found[-1]
    on_path = shutil.which(f"python{version}")
    return Path(on_path) if on_path else None


def missing() -> list[str]:
    """The versions that an environment needs and this machine lacks."""
    return sorted({environment.python for environment in ALL if environment.interpreter is None}, key=lambda text: int(text[2:]))


def main() -> int:
    """Prepare all environments whose Python is installed, in parallel."""
    here = [environment for environment in ALL if environment.interpreter is not None]
    status = 0
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(environment.prepare) for environment in here]:
            try:
                result.result()
            except InstallError as error:
                print(error, file=sys.stderr)  # noqa: T201 - a command of script/test
                status = 1
    if absent := missing():
        print(f"Python {', '.join(absent)} is MISSING: the producer is not tested there (pyenv install {' '.join(absent)})")  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
