"""What of a daemon lies open on its own machine: who it runs as, and who can read its secrets."""

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
    """What is seldom meant, a sentence each. `uid` is whom the daemon runs as, if not as who asks."""
    if (os.geteuid() if uid is None else uid) == 0:
        yield "it runs as root, which it needs for nothing: give it a user of its own (systemd/towerws.service has one)"
    for key in SECRET_FILES:
        path = str(loaded.by_key[key].value)
        if path and _read_by_others(path):
            yield f"{key} = {path!r}: every user of this machine can read it: chmod o-rwx"
    if loaded.file and _holds_password(loaded) and _read_by_others(loaded.file):
        yield f"{loaded.file}: holds the broker's password, and every user of this machine can read it: chmod o-rwx"


def _holds_password(loaded: Loaded) -> bool:
    """Whether a password stands in the configuration's own file."""
    broker, setting = loaded.settings.broker, loaded.by_key["broker"]
    if broker is None or loaded.by_key["broker_password_file"].value or not setting.origin.startswith(loaded.file):
        return False
    return any(url.password.reveal() not in DEFAULT_PASSWORDS for url in broker.urls)


def _read_by_others(path: str) -> bool:
    try:
        return bool(Path(path).stat().st_mode & stat.S_IROTH)
    except (OSError, ValueError):  # what can't be read at all is said elsewhere
        return False
