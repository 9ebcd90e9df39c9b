"""An example of a store: a file that has the position."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from pathlib import Path

MAX_CHARACTERS = 256
"""No position is longer."""


class FileStore:
    """Keeps the position in a file of its own, which only this user may read. Each client needs its own file.

    A new position replaces the file at once, so that a crash or a full disk leaves the old one. A link, or a file of another user, is not
    read: its position could make the client skip events. A new position replaces it where the folder permits that. Errors are those of
    the file system.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def get(self) -> str | None:
        """Return the position, or None if there is no file yet."""
        return await asyncio.to_thread(self._read)

    async def set(self, position: str, /) -> None:
        """Keep a position."""
        await asyncio.to_thread(self._write, position)

    def _read(self) -> str | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, encoding="ascii") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{self._path} is no regular file")
            if found.st_uid != os.geteuid():
                raise PermissionError(f"{self._path} is of another user")
            try:
                return file.read(MAX_CHARACTERS + 1).strip() or None
            except UnicodeDecodeError:
                raise OSError(f"{self._path} holds no position: it is not ASCII") from None

    def _write(self, position: str) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)  # a new file, with the mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(position)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
