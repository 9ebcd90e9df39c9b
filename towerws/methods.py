"""The ways of authenticating that the settings ask for: made by the daemon, and by `towerws check` to see whether they can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from towerws.auth.base import Method
from towerws.auth.jwt_method import JwtMethod
from towerws.auth.open import Open
from towerws.auth.tower import AWX_OBJECTS, TowerMethod
from towerws.core.settings import Settings


def make_methods(settings: Settings, reactor: Any) -> Iterator[Method]:
    """In their order; `ConfigError` for one whose settings can't be used. Reads their files, and touches no network."""
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
