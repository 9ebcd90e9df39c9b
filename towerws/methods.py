"""Makes the authentication methods of the settings, for the daemon and for `towerws check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from towerws.auth.base import Method
from towerws.auth.jwt import JwtMethod
from towerws.auth.open import Open
from towerws.auth.tower import AWX_OBJECTS, TowerMethod
from towerws.core.settings import Settings


def make_methods(settings: Settings, reactor: Any) -> Iterator[Method]:
    """Yield the methods in the order of `auth`. Reads their files, and uses no network. Raises `ConfigError` for unusable settings."""
    for name in settings.auth:
        if name == "tower" and settings.tower is not None:
            own = {group: each.object_url for group, each in settings.groups.items() if each.object_url}
            objects = {group: url for group, url in AWX_OBJECTS.items() if group not in settings.groups}
            yield TowerMethod(settings.tower, reactor, {**objects, **own})
        elif name == "jwt" and settings.jwt is not None:
            yield JwtMethod(settings.jwt, reactor)
        else:
            assert name == "open", "config/rules.py knows the methods there are"
            yield Open()
