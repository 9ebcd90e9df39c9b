"""The contents of the installed wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, because the build leaves folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("towerws", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source, cwd=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new virtual environment with the wheel. Its dependencies are those of the running environment."""
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # Entries that a .pth file adds are not searched for more .pth files, so an editable towerws in there is not found.
    (_site_packages(folder) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_has_what_it_should_and_no_more(wheel: Path) -> None:
    """The package, its data, and one file below `twisted/`, which must never become a package."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert [name for name in names if not name.startswith("towerws/")] == ["twisted/plugins/towerws_plugin.py"]
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "towerws").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {name for name in names if name.startswith("towerws/")} == wanted


def test_the_source_distribution_has_what_an_operator_needs(tmp_path: Path) -> None:
    """It has the package, the documents, the unit, nginx's configuration and each file of the tests."""
    houses = ("deploy", "docs", "producer", "requirements", "script", "stubs", "systemd", "tests")
    source = tmp_path / "source"
    for name in (*houses, "towerws", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
    papers = {"CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "noxfile.py"}
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", *papers):
        shutil.copy(ROOT / name, source)
    _run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('..')", cwd=source)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(source).as_posix() for name in houses for path in (source / name).rglob("*") if path.is_file()}
    assert wanted <= names
    assert {*papers, "towerws/static/live.html", "twisted/plugins/towerws_plugin.py"} <= names


def test_twistd_offers_towerws(installed: Path) -> None:
    """`twistd towerws` is available after the installation of the wheel alone."""
    lines = _run(installed / "python", "-c", TWISTD, "--help", cwd=installed).splitlines()
    assert "towerws Live events from RabbitMQ to browsers" in [" ".join(line.split()) for line in lines]
    assert "--broker" in _run(installed / "python", "-c", TWISTD, "towerws", "--help", cwd=installed)


def test_twistd_offers_towerws_where_it_can_write_nothing(installed: Path) -> None:
    """On a read-only installation twistd works without its cached list of plugins."""
    cache = _site_packages(installed.parent) / "twisted" / "plugins" / "dropin.cache"
    cache.unlink(missing_ok=True)
    cache.mkdir()
    assert "towerws" in _run(installed / "python", "-c", TWISTD, "--help", cwd=installed)


def test_the_command_is_installed(installed: Path) -> None:
    """The package brings the command `towerws`."""
    assert "Usage: towerws" in _run(installed / "towerws", "--help", cwd=installed)


def test_the_producers_wheel(tmp_path: Path) -> None:
    """`towerws-producer` is its own distribution: only its package, for Python 3.6 and later, with pika as its only dependency."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "producer", source, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert built.name.startswith("towerws_producer-")
    assert built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        said = archive.read(metadata).decode().splitlines()
    package = ROOT / "producer" / "towerws_producer"
    assert names == {f"towerws_producer/{path.name}" for path in package.iterdir() if path.is_file()}
    assert "Requires-Python: >=3.6" in said
    assert [line for line in said if line.startswith("Requires-Dist")] == ["Requires-Dist: pika<2,>=1.1"]


def _site_packages(venv: Path) -> Path:
    return venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def _run(*command: str | Path, cwd: Path) -> str:
    """The command's output. A command that fails, fails the test with all of its output."""
    result = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
