"""The suite under other Pythons and with other versions of what towerws depends on: `nox --list`, `nox -s lowest`, `nox -s tests-3.13`.

Arguments after `--` go to pytest: `nox -s lowest -- tests/core`. A Python that is missing is skipped, and said.
`script/test` is what a change has to pass; this here is for changes of setup.cfg, and for releases.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
"""From `python_requires` in setup.cfg to the newest."""

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")

nox.options.sessions = ["tests", "lowest"]
nox.options.error_on_missing_interpreters = False
nox.options.envdir = "build/nox"

# pyenv's interpreters are on the path only if the user chose them.
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *(str(folder) for folder in sorted(PYENV.glob("versions/3.*/bin")))])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, with the newest versions that setup.cfg allows."""
    session.install("--editable", ".[test,lint]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The suite, with the lowest versions that setup.cfg allows. It shows whether the lower bounds are true."""
    session.install("uv")
    constraints = Path(session.create_tmp()) / "lowest.txt"
    session.run_install(
        "uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python-version", PYTHONS[0], "--no-header",
        "--output-file", str(constraints), "setup.cfg", "--extra", "test", "--extra", "lint",
    )  # fmt: skip
    session.install("--requirement", str(constraints))
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """What script/lint does."""
    session.run("script/lint", external=True)


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """What `make docs` does."""
    session.run("script/docs", external=True)
