"""Decides what of newly loaded settings is put in force by a reload, and what needs a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import NamedTuple

from towerws.config.load import Loaded, check_rules, shown_setting
from towerws.config.options import OPTIONS
from towerws.core.settings import Settings

METHODS = ("tower", "jwt")
"""The sections that exist only if `auth` names them. `auth` itself needs a restart."""


class Merged(NamedTuple):
    """The result of `merge`.

    `loaded` is to be in force. `changed` names what is another value in it than before. `restart` has one sentence for each option that
    changed and needs a restart.
    """

    loaded: Loaded
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def merge(before: Loaded, after: Loaded) -> Merged:
    """Take the options that can be reloaded from `after`, and all others from `before`, which is in force.

    Raises `ConfigError` if the two break a rule together, though each of them is valid.
    """
    old, new = before.settings, after.settings
    taken = {each.name: getattr(new, each.name) for each in fields(Settings) if each.metadata["reload"]}
    kept = {name for name in METHODS if getattr(old, name) is None or taken[name] is None}
    taken |= {name: getattr(old, name) for name in kept}
    settings = replace(old, **taken)
    by_key = {
        option.key: (after if option.reload and option.key.partition(".")[0] not in kept else before).by_key[option.key]
        for option in OPTIONS
    }
    check_rules(settings, by_key)
    changed = [option.key for option in OPTIONS if by_key[option.key].value != before.by_key[option.key].value]
    if old.groups != new.groups:
        changed.append("groups")
    return Merged(Loaded(settings, by_key, after.file), tuple(changed), tuple(_restart(before, after)))


def _restart(before: Loaded, after: Loaded) -> Iterator[str]:
    for option in OPTIONS:
        old, new = before.by_key[option.key], after.by_key[option.key]
        if not option.reload and old.value != new.value:
            place = option.key if new.is_default else new.origin
            kept = shown_setting(option, old.value)
            yield f"{place} = {shown_setting(option, new.value)}: needs a restart; {kept} stays in force until then"
    for key in _secrets_changed(before, after):
        yield f"{after.by_key[key].origin}: the file's content has changed and needs a restart; the old content stays in force until then"


def _secrets_changed(before: Loaded, after: Loaded) -> Iterator[str]:
    """Yield the options whose files have another content, though no option that names them has changed."""
    old, new = before.settings.broker, after.settings.broker
    if old is None or new is None:
        return
    same = {key for key in ("broker", "broker_password_file", "position_key_file") if before.by_key[key].value == after.by_key[key].value}
    if {"broker", "broker_password_file"} <= same and old.urls != new.urls:
        yield "broker_password_file"
    if "position_key_file" in same and old.position_key != new.position_key:
        yield "position_key_file"
