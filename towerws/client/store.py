"""Reads a client's position from its store and writes it there at the right times. Has a store of its own: a file."""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from towerws.client.items import ClientError, caused
from towerws.client.options import Options

MAX_CHARACTERS = 256
"""The longest position."""

UNREADABLE = "unreadable"
"""Used instead of a kept position that can't be read. No server knows it, so each topic is `stale`."""


class StoredPosition:
    """A client's position in the store of its options. Without a store nothing happens.

    `handled` returns the position up to which all events have been handled. If the store fails several times in a row, `report` gets the
    first error only.
    """

    def __init__(self, options: Options, handled: Callable[[], str | None], report: Callable[[ClientError], None]) -> None:
        self._store = options.store
        self._save_s = options.save_s
        self._answer_s = options.connect_s
        self._handled = handled
        self._report = report
        self._saved: str | None = None
        self._not_kept: str | None = None
        """The position that the store failed to keep. `end` tries it again, unless a newer position replaces it before."""
        self._final: str | None = None
        """The position that `ended` has to store."""
        self._failed = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None

    async def load(self) -> str | None:
        """Return the kept position, or None. Reports an error of the store, or another value than a position, and returns `UNREADABLE`."""
        if self._store is None:
            return None
        try:
            async with asyncio.timeout(self._answer_s):
                found = self._store.get()
                if inspect.isawaitable(found):
                    found = await found
            _check(found)
        except Exception as error:  # noqa: BLE001 - whatever the store raises, the client goes on
            self._store_failed(error)
            found = UNREADABLE
        self._saved = found or None
        return self._saved

    def keep(self) -> None:
        """Store the position after `save_s` seconds, if it is a new one."""
        if self._closed or self._timer is not None or self._saving is not None:
            return
        if self._to_save() not in (None, self._not_kept):
            self._timer = asyncio.get_running_loop().call_later(self._save_s, self._save)

    def end(self) -> None:
        """Note the last position, which `ended` stores, and store no other one."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._final = self._to_save()

    async def ended(self) -> None:
        """Wait until the last position is stored. A slow store takes `connect_s` for a running call, and as long for the last one."""
        if self._saving is not None:
            await asyncio.wait({self._saving})
        if self._final is not None:
            await self._set(self._final)

    def _to_save(self) -> str | None:
        """Return the position to store. None if it is stored already, or if there is none."""
        position = None if self._store is None else self._handled()
        return None if position == self._saved else position

    def _save(self) -> None:
        self._timer = None
        if (position := self._to_save()) is not None:
            self._saving = asyncio.get_running_loop().create_task(self._set(position))
            self._saving.add_done_callback(self._was_saved)

    def _was_saved(self, task: asyncio.Task[None]) -> None:
        self._saving = None
        self.keep()

    async def _set(self, position: str) -> None:
        assert self._store is not None
        before, self._saved = self._saved, position
        try:
            async with asyncio.timeout(self._answer_s):
                result = self._store.set(position)
                if inspect.isawaitable(result):
                    await result
        except Exception as error:  # noqa: BLE001 - whatever the store raises, the client goes on
            self._saved, self._not_kept = before, position
            self._store_failed(error)
        else:
            self._failed = False

    def _store_failed(self, error: Exception) -> None:
        if not self._failed:
            self._report(caused("store", f"the store failed: {error!r}", error))
        self._failed = True


def _check(found: object) -> None:
    """Raise `TypeError` or `ValueError` if a store returned neither a position nor nothing."""
    if found is not None and not isinstance(found, str):
        raise TypeError(f"store.get() returned {type(found).__name__}: it must return the text that set() got, or None")
    if found is not None and len(found) > MAX_CHARACTERS:
        raise ValueError(f"store.get() returned {len(found)} characters: a position has at most {MAX_CHARACTERS}")


class FileStore:
    """Keeps the position in a file of its own, which only this user may read. Each client needs its own file.

    A new file replaces the old one in one step, so a crash or a full disk leaves the old position. A symbolic link, or a file of another
    user, is not read, because its position could make the client skip events. A new position replaces such a file if the folder permits
    that. The methods raise the errors of the file system.
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
