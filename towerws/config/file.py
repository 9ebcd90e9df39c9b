"""Reads the TOML file into the flat keys of the option table, bounded in size. Any error is a `ConfigError` of one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from towerws.config.options import BY_KEY, OPTIONS
from towerws.config.rules import read_group, suggestion
from towerws.core.errors import ConfigError
from towerws.core.settings import GroupSettings

MAX_FILE_BYTES = 1024**2
SHOWN_CHARACTERS = 80

_GROUPS = "groups"
_SECTIONS = sorted({option.key.partition(".")[0] for option in OPTIONS if "." in option.key} | {_GROUPS})


def read_file(path: str, named_by: str) -> tuple[dict[str, object], dict[str, GroupSettings]]:
    """Return the file's values by flat key (`history.max_bytes`), and its groups. `named_by` is the setting that named the file."""
    text = read_text(named_by, path, MAX_FILE_BYTES)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{shown_path(path)}: not TOML that can be read: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{shown_path(path)}: not valid TOML: {one_line(str(error))}") from None
    keys: dict[str, object] = {}
    groups: dict[str, GroupSettings] = {}
    for section, name, value in _flat(document, path):
        key = f"{section}.{name}" if section else name
        if section == _GROUPS:
            groups[name] = _group(name, value, path)
        elif key in BY_KEY and (section or "." not in name):
            keys[key] = value
        else:
            hint = "; write it without quotes" if key in BY_KEY else suggestion(key, (*BY_KEY, *_SECTIONS))
            raise ConfigError(f"{shown_path(path)}: unknown key {shown(key)}{hint}")
    return keys, groups


def read_text(named_by: str, path: str, limit: int) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes. `named_by` is the setting that names `path`."""
    place = f"{named_by} = {shown(path)}"
    try:
        with Path(path).open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ConfigError(f"{place}: must be at most {limit} bytes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: must be UTF-8, but byte {error.start} isn't") from None
    except OSError as error:
        raise ConfigError(f"{place}: can't be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"{place}: must be the path of a file") from None


def shown(value: object) -> str:
    """Return the value for an error text: its `repr`, shortened."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def shown_path(path: str) -> str:
    """Return the path for an error text."""
    return path if path.isprintable() else shown(path)


def one_line(text: str) -> str:
    """Return another library's error text on one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= 2 * SHOWN_CHARACTERS else f"{line[: 2 * SHOWN_CHARACTERS]}…"


def _group(name: str, table: object, path: str) -> GroupSettings:
    try:
        return read_group(name, table)
    except ValueError as error:
        raise ConfigError(f"{shown_path(path)}: [groups.{name if name.isprintable() else shown(name)}] = {shown(table)}: {error}") from None


def _flat(document: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, object]]:
    """Yield the table's name (empty at the top), the key and the value of each entry."""
    for key, value in document.items():
        if key not in _SECTIONS:
            yield "", key, value
        elif not isinstance(value, dict):
            raise ConfigError(f"{shown_path(path)}: {key} = {shown(value)}: must be a table: [{key}]")
        else:
            for inner, inner_value in value.items():
                yield key, inner, inner_value
