"""An example of a store: a file that has the position."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

MAX_CHARACTERS = 256
"""No position is longer."""


class FileStore:
    """Keeps the position in a file of its own, which only this user may read. Each client needs its own file.

    A new position replaces the file at once, so that a crash leaves the old or the new one. Errors are those of the file system.
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
            with self._path.open(encoding="ascii") as file:
                return file.read(MAX_CHARACTERS + 1).strip() or None
        except FileNotFoundError:
            return None

    def _write(self, position: str) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(position)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
