from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit.rows import each_row

ROOT = Path(__file__).parents[1]
LOCKS = ("run.txt", "tools.txt")


def locked(name: str) -> dict[str, str]:
    """The packages of a lock file, each with the rest of its entry."""
    entries = re.split(r"^(?=[a-z])", (ROOT / "requirements" / name).read_text(), flags=re.MULTILINE)[1:]
    return {canonicalize_name(entry.partition("==")[0]): entry.partition("==")[2] for entry in entries}


def version(entry: str) -> str:
    """The version of a locked package."""
    return re.split(r"[\s;]", entry, maxsplit=1)[0]


@each_row("name", LOCKS)
def test_each_has_hashes(name: str) -> None:
    """pip refuses a file without one of these hashes."""
    packages = locked(name)
    assert packages
    assert [package for package, entry in packages.items() if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@each_row("name", LOCKS)
def test_no_registry_is_named(name: str) -> None:
    """The machine that installs the packages chooses where they come from."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text


def test_every_dependency_is_locked_in_a_version_that_it_may_have() -> None:
    """After a change in setup.cfg: `make lock`."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    packages = locked("run.txt")
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(version(packages[canonicalize_name(requirement.name)])), requirement


def test_what_pip_builds_in_a_clone_is_ignored_and_removed() -> None:
    """pip builds a folder in its `build`, and takes along what is in there. So a wheel had the removed files of an older version."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/build/", "/producer/build/"} <= set(ignored)
    guide, deploy = ((ROOT / "docs" / name).read_text() for name in ("migrate-awx.md", "deploy.md"))
    assert re.search(r"^rm -rf producer/build build/wheels .*\npip wheel ", guide, re.MULTILINE)
    assert "`rm -rf build`" in deploy


def test_no_document_installs_a_name_that_is_not_ours() -> None:
    """towerws and towerws-producer are not on PyPI yet, so anybody could register the names. Documents install a clone or a wheel."""
    documents = [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *(path for name in ("clients", "examples", "producer") for path in ROOT.glob(f"{name}/**/*.md")),
    ]
    commands = [
        (path.relative_to(ROOT), words)
        for path in documents
        if "node_modules" not in path.parts
        for words in re.findall(r"pip3? (?:install|wheel) ([^\n`#|]*)", path.read_text())
    ]
    assert len(commands) > 10
    by_name = [
        (path, words)
        for path, words in commands
        if re.search(r"(?<![\w./-])towerws(?:[-_]producer)?(?:\[[^]]*\])?(?:[=<>~!].*)?(?:\s|$)", words)
    ]
    assert by_name == []
