"""The languages beside Python that docs/publish.md has samples for: where they are, and what their samples import.

`python -m tests.languages` prepares those that are here (script/test does it before the tests), under build/languages: Node's packages,
and Go's modules in compiled form. For Java and PHP the libraries are Debian's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "languages"
INSTALL_S = 300


class InstallError(Exception):
    """The libraries of a language can't be had; the text says what the tool said."""


class Language(ABC):
    """One language, with one library for AMQP."""

    name: str
    packages: str
    """What `apt-get install` needs."""
    file: str
    """What the sample is saved as."""

    @abstractmethod
    def here(self) -> bool:
        """Whether it and its library are on this machine, or can be fetched by its own tools."""

    def prepare(self) -> None:  # noqa: B027 - a library of Debian's is there with its package
        """Fetch the library, unless that is done. `InstallError` when it can't be had."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """The command that runs the sample, which is saved in this folder. It may put there what the sample needs, and is run there."""

    def environ(self) -> dict[str, str]:
        """The environment of that command."""
        return dict(os.environ)


class Node(Language):
    """Node with amqplib, as the lock file has it."""

    name, packages, file = "Node", "nodejs npm", "publish.mjs"
    source = HERE / "node"

    @property
    def folder(self) -> Path:
        """Where the packages are: named after the lock file, so that a changed one is installed."""
        return BUILD / f"node-{_digest(self.source / 'package-lock.json')}"

    def here(self) -> bool:
        """Node, and npm to fetch amqplib."""
        return shutil.which("node") is not None and shutil.which("npm") is not None

    def prepare(self) -> None:
        """`npm ci`: what the lock file lists, by its hashes, and none of its scripts."""
        with _lock("node"):
            if not self.folder.exists():
                fresh = self.folder.with_name(f"{self.folder.name}.new")
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.copytree(self.source, fresh)
                _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], fresh, self.environ())
                fresh.rename(self.folder)

    def command(self, folder: Path) -> list[str]:
        """Node looks for packages beside the file."""
        (folder / "node_modules").symlink_to(self.folder / "node_modules")
        return ["node", str(folder / self.file)]


class Go(Language):
    """Go with amqp091-go, as go.mod and go.sum have it."""

    name, packages, file = "Go", "golang-go", "main.go"
    source = HERE / "go"

    def here(self) -> bool:
        """Go's command."""
        return shutil.which("go") is not None

    def prepare(self) -> None:
        """Compile the modules and what they need of Go's own library: 20 s of CPU the first time."""
        with _lock("go"):
            modules = ["github.com/rabbitmq/amqp091-go", "github.com/google/uuid"]
            _run(["go", "build", *modules], self.source, self.environ())

    def command(self, folder: Path) -> list[str]:
        """A module with the sample as its only file."""
        for name in ("go.mod", "go.sum"):
            shutil.copy(self.source / name, folder)
        return ["go", "run", "."]

    def environ(self) -> dict[str, str]:
        """Everything that Go keeps stays under build/, where it can be deleted."""
        return {
            **os.environ,
            "GOPATH": str(BUILD / "gopath"),
            "GOCACHE": str(BUILD / "gocache"),
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOTOOLCHAIN": "local",
        }


class Java(Language):
    """Java with RabbitMQ's client; the JDK runs a source file as it is."""

    name, packages, file = "Java", "default-jdk-headless librabbitmq-client-java", "Publish.java"
    jars = (Path("/usr/share/java/amqp-client.jar"), Path("/usr/share/java/slf4j-api.jar"))

    def here(self) -> bool:
        """A JDK, and Debian's jars."""
        return shutil.which("javac") is not None and all(jar.exists() for jar in self.jars)

    def command(self, folder: Path) -> list[str]:
        """Compiled in memory and run."""
        return ["java", "-cp", os.pathsep.join(map(str, self.jars)), str(folder / self.file)]


class Php(Language):
    """PHP with php-amqplib."""

    name, packages, file = "PHP", "php-cli php-amqplib", "publish.php"
    autoload = Path("/usr/share/php/PhpAmqpLib/autoload.php")

    def here(self) -> bool:
        """PHP, and Debian's library."""
        return shutil.which("php") is not None and self.autoload.exists()

    def command(self, folder: Path) -> list[str]:
        """Debian's library in the place where Composer puts it."""
        (folder / "vendor").mkdir()
        (folder / "vendor" / "autoload.php").write_text(f"<?php require '{self.autoload}';\n")
        return ["php", str(folder / self.file)]


ALL: list[Language] = [Node(), Go(), Java(), Php()]


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=6).hexdigest()


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time prepares a language."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=INSTALL_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise InstallError(f"'{' '.join(command)}' failed\n{done.stdout[-2000:]}")
