"""Checks what a daemon exposes: the user that it runs as, the permissions of its secrets, and AWX's groups without AWX's checks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from towerws.auth.tower_objects import AWX_OBJECTS
from towerws.config.addresses import private_key_path
from towerws.config.load import Loaded
from towerws.core.settings import Settings
from towerws.core.topics import AWX_GROUPS

SECRET_FILES = ("broker_password_file", "position_key_file", "jwt.secret_file")
"""The options that name a file with a secret in it."""

TRUSTED_FILES = (*SECRET_FILES, "jwt.public_key_file", "jwt.jwks_ca_file", "tower.tls_ca", "tls_ca")
"""The options that name a file by which the daemon decides whom to trust."""

ENDPOINTS = ("listen", "admin", "monitor")
"""The options that name an endpoint, which may use TLS."""

DEFAULT_PASSWORDS = ("", "guest")
"""Passwords of the broker that are no secret."""


def exposure(loaded: Loaded, uid: int | None = None) -> Iterator[str]:
    """Yield a sentence for each exposure. `uid` is the user id that the daemon runs as; None: the id of this process."""
    if (os.geteuid() if uid is None else uid) == 0:
        yield "it runs as root and doesn't need to: give it its own user (systemd/towerws.service has one)"
    for key in SECRET_FILES:
        path = str(loaded.by_key[key].value)
        if path and _others_may(path, stat.S_IROTH):
            yield f"{key} = {path!r}: every user of this machine can read it: chmod o-rwx"
    for key in TRUSTED_FILES:
        path = str(loaded.by_key[key].value)
        if path and _others_may(path, stat.S_IWOTH):
            yield f"{key} = {path!r}: every user of this machine can change it, and so decide whom the daemon trusts: chmod o-w"
    yield from _open_keys(loaded)
    if loaded.file and _others_may(loaded.file, stat.S_IWOTH):
        yield f"{loaded.file}: every user of this machine can change the configuration: chmod o-w"
    if loaded.file and _others_may(loaded.file, stat.S_IROTH):
        if _holds_password(loaded):
            yield f"{loaded.file}: holds the broker's password, and every user of this machine can read it: chmod o-rwx"
        if _holds_key_of_url(loaded):
            yield f"{loaded.file}: jwt.jwks_url has a query, and every user of this machine can read it: chmod o-rwx"
    if loaded.settings.tower is not None:
        yield from _lost_checks(loaded.settings)


def _lost_checks(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each group that replaces one of AWX's, and lets users hear what AWX's group keeps from them."""
    for name, group in settings.groups.items():
        if name in AWX_OBJECTS and not group.object_url and group.policy != "never":
            yield (
                f"groups.{name} replaces AWX's group and has no object_url, so Tower is not asked what a user may see: "
                f'add object_url = "{AWX_OBJECTS[name]}", or remove the table'
            )
        elif name in AWX_GROUPS and AWX_GROUPS[name].policy == "own" and group.policy == "authenticated":
            yield f"groups.{name} replaces AWX's group, so users may hear each other's topics: remove the table"


def _open_keys(loaded: Loaded) -> Iterator[str]:
    """Yield a sentence for each private key of TLS that others can read or change."""
    for key in ENDPOINTS:
        path = private_key_path(str(loaded.by_key[key].value))
        for file in sorted(map(str, Path(path).glob("*.pem"))) if path and Path(path).is_dir() else [path]:
            if file and _others_may(file, stat.S_IROTH | stat.S_IWOTH):
                yield f"{key}: {file!r} holds a private key, and every user of this machine can read or change it: chmod o-rwx"


def _holds_password(loaded: Loaded) -> bool:
    """Whether the configuration file itself contains a password."""
    broker, setting = loaded.settings.broker, loaded.by_key["broker"]
    if broker is None or loaded.by_key["broker_password_file"].value or not setting.origin.startswith(loaded.file):
        return False
    return any(url.password.reveal() not in DEFAULT_PASSWORDS for url in broker.urls)


def _holds_key_of_url(loaded: Loaded) -> bool:
    """Whether the configuration file itself contains a key set's URL with a query, which may hold a key."""
    setting = loaded.by_key["jwt.jwks_url"]
    return "?" in str(setting.value) and setting.origin.startswith(loaded.file)


def _others_may(path: str, right: int) -> bool:
    try:
        return bool(Path(path).stat().st_mode & right)
    except (OSError, ValueError):  # another check reports a file that can't be read
        return False
