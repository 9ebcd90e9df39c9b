"""Checks how a daemon is exposed on its own machine: the user that it runs as, and the permissions of its secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from towerws.config.load import Loaded

SECRET_FILES = ("broker_password_file", "jwt.secret_file")
"""The options that name a file with a secret in it."""

DEFAULT_PASSWORDS = ("", "guest")


def exposure(loaded: Loaded, uid: int | None = None) -> Iterator[str]:
    """Yield a sentence for each exposure. `uid` is the user id that the daemon runs as; None: the id of this process."""
    if (os.geteuid() if uid is None else uid) == 0:
        yield "it runs as root and doesn't need to: give it its own user (systemd/towerws.service has one)"
    for key in SECRET_FILES:
        path = str(loaded.by_key[key].value)
        if path and _read_by_others(path):
            yield f"{key} = {path!r}: every user of this machine can read it: chmod o-rwx"
    if loaded.file and _holds_password(loaded) and _read_by_others(loaded.file):
        yield f"{loaded.file}: holds the broker's password, and every user of this machine can read it: chmod o-rwx"


def _holds_password(loaded: Loaded) -> bool:
    """Whether the configuration file itself contains a password."""
    broker, setting = loaded.settings.broker, loaded.by_key["broker"]
    if broker is None or loaded.by_key["broker_password_file"].value or not setting.origin.startswith(loaded.file):
        return False
    return any(url.password.reveal() not in DEFAULT_PASSWORDS for url in broker.urls)


def _read_by_others(path: str) -> bool:
    try:
        return bool(Path(path).stat().st_mode & stat.S_IROTH)
    except (OSError, ValueError):  # another check reports a file that can't be read
        return False
