"""The file that keeps a client's position."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from towerws.client import FileStore


def kept(path: Path) -> str | None:
    """What a client would read."""
    return asyncio.run(FileStore(path).get())


def keep(path: Path, position: str) -> None:
    """Write a position as a client does."""
    asyncio.run(FileStore(path).set(position))


def test_a_position(tmp_path: Path) -> None:
    """It is there again, for this user only, also after another one replaced it. Nothing else is in the folder."""
    path = tmp_path / "position"
    assert kept(path) is None
    for position in ("41-log", "7-log"):
        keep(path, position)
        assert kept(path) == position
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_others_made(tmp_path: Path) -> None:
    """In a folder such as /tmp another user may have made the file, or a link. It is not read, and no other file is written."""
    victim, path = tmp_path / "victim", tmp_path / "position"
    victim.write_text("99-log")
    for name in ("position", "position.new"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        kept(path)
    keep(path, "3-log")
    assert (kept(path), path.is_symlink(), victim.read_text()) == ("3-log", False, "99-log")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        kept(path)


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "position"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OSError, match="position holds no position: it is not ASCII"):
        kept(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_file_of_another_user(tmp_path: Path) -> None:
    """Its position would make this client skip events, so it is not read."""
    path = tmp_path / "position"
    path.write_text("99-log")
    os.chown(path, 65534, 65534)
    with pytest.raises(PermissionError, match="another user"):
        kept(path)


def test_a_full_disk(tmp_path: Path) -> None:
    """The old position stays, the error is raised, and no half-written file is left."""
    path = tmp_path / "position"
    keep(path, "1-log")
    script = (
        "import asyncio, resource, sys; from towerws.client import FileStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "asyncio.run(FileStore(sys.argv[1]).set('2-log'))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert "OSError: [Errno 27]" in done.stderr, done.stderr  # EFBIG, as a disk that is full says ENOSPC
    assert kept(path) == "1-log"
    assert list(tmp_path.iterdir()) == [path]
