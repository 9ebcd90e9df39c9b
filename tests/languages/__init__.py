"""The languages other than Python with samples in docs/publish.md: their tools, and the libraries of the samples.

`python -m tests.languages` prepares the installed ones under build/languages (script/test does so before the tests): Node's packages,
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
    """The libraries of a language are not available. The text has the tool's output."""


class Language(ABC):
    """One language, with one library for AMQP."""

    name: str
    packages: str
    """The packages for `apt-get install`."""
    file: str
    """The file name for the sample."""

    @abstractmethod
    def here(self) -> bool:
        """Whether it and its library are on this machine, or can be fetched by its own tools."""

    def prepare(self) -> None:  # noqa: B027 - a library of Debian's is there with its package
        """Fetch the library, unless it is there. Raises `InstallError` if it is not available."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """The command that runs the sample, which is in this folder. It may put other files there, and is run there."""

    def environ(self) -> dict[str, str]:
        """The environment of that command."""
        return dict(os.environ)


class Node(Language):
    """Node with amqplib, and with the tools for the tests of clients/js, as in the lock file."""

    name, packages, file = "Node", "nodejs npm", "publish.mjs"
    source = HERE / "node"

    @property
    def folder(self) -> Path:
        """The folder of the packages. It is named after the lock file, so that a changed one is installed."""
        return BUILD / f"node-{_digest(self.source / 'package-lock.json')}"

    def here(self) -> bool:
        """Whether there are Node, and npm to fetch amqplib."""
        return shutil.which("node") is not None and shutil.which("npm") is not None

    def prepare(self) -> None:
        """`npm ci`: installs the packages of the lock file, by their hashes, without their scripts."""
        with _lock("node"):
            if not self.folder.exists():
                fresh = self.folder.with_name(f"{self.folder.name}.new")
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.copytree(self.source, fresh)
                _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], fresh, self.environ())
                fresh.rename(self.folder)

    def command(self, folder: Path) -> list[str]:
        """Node looks for packages in the folder of the file."""
        (folder / "node_modules").symlink_to(self.folder / "node_modules")
        return ["node", str(folder / self.file)]


class Go(Language):
    """Go with amqp091-go, as in go.mod and go.sum."""

    name, packages, file = "Go", "golang-go", "main.go"
    source = HERE / "go"

    def here(self) -> bool:
        """Whether Go's command is installed."""
        return shutil.which("go") is not None

    def prepare(self) -> None:
        """Compile the modules and the parts of Go's library that they need: 20 s of CPU the first time."""
        with _lock("go"):
            modules = ["github.com/rabbitmq/amqp091-go", "github.com/google/uuid"]
            _run(["go", "build", *modules], self.source, self.environ())

    def command(self, folder: Path) -> list[str]:
        """Make a module with the sample as its only file."""
        for name in ("go.mod", "go.sum"):
            shutil.copy(self.source / name, folder)
        return ["go", "run", "."]

    def environ(self) -> dict[str, str]:
        """Go keeps all its files under build/, where they can be deleted."""
        return {
            **os.environ,
            "GOPATH": str(BUILD / "gopath"),
            "GOCACHE": str(BUILD / "gocache"),
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOTOOLCHAIN": "local",
        }


class Java(Language):
    """Java with RabbitMQ's client. The JDK runs a source file directly."""

    name, packages, file = "Java", "default-jdk-headless librabbitmq-client-java", "Publish.java"
    jars = (Path("/usr/share/java/amqp-client.jar"), Path("/usr/share/java/slf4j-api.jar"))

    def here(self) -> bool:
        """Whether there are a JDK, and Debian's jars."""
        return shutil.which("javac") is not None and all(jar.exists() for jar in self.jars)

    def command(self, folder: Path) -> list[str]:
        """The file is compiled in memory and run."""
        return ["java", "-cp", os.pathsep.join(map(str, self.jars)), str(folder / self.file)]


class Php(Language):
    """PHP with php-amqplib."""

    name, packages, file = "PHP", "php-cli php-amqplib", "publish.php"
    autoload = Path("/usr/share/php/PhpAmqpLib/autoload.php")

    def here(self) -> bool:
        """Whether there are PHP, and Debian's library."""
        return shutil.which("php") is not None and self.autoload.exists()

    def command(self, folder: Path) -> list[str]:
        """Debian's library is linked to the place where Composer puts it."""
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
