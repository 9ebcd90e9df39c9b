"""The table of options. Flags, environment variables, the file's keys, their help and docs/configuration.md all come from it.

Each field of the settings' classes that is an `option` gives one. A key `history.max_bytes` is `max_bytes` in the file's table `[history]`,
the flag `--history-max-bytes` and the environment variable `TOWERWS_HISTORY_MAX_BYTES`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from towerws.config.units import (
    Value,
    format_number,
    format_size,
    read_bool,
    read_count,
    read_count_or_auto,
    read_duration,
    read_list,
    read_rate,
    read_size,
    read_text,
    read_whole_seconds,
    read_words,
)
from towerws.core.settings import (
    AccessSettings,
    BrokerSettings,
    HistorySettings,
    JwtSettings,
    LimitSettings,
    Settings,
    TowerSettings,
    WebSocketSettings,
)

ENVIRONMENT_PREFIX = "TOWERWS_"
CONFIG_FLAG = "config"
CONFIG_VARIABLE = "TOWERWS_CONFIG"
CONFIG_HELP = "TOML file to read. Flags and TOWERWS_* variables override it. Without this flag or TOWERWS_CONFIG no file is read."


class Kind(enum.Enum):
    """The kinds of value: the noun and unit in the documentation, and the function that reads one."""

    SIZE = ("size", "bytes", read_size)
    DURATION = ("duration", "seconds", read_duration)
    WHOLE_SECONDS = ("duration", "whole seconds", read_whole_seconds)
    COUNT = ("integer", "", read_count)
    COUNT_OR_AUTO = ("integer", "or auto", read_count_or_auto)
    RATE = ("number", "per second", read_rate)
    BOOL = ("boolean", "", read_bool)
    TEXT = ("text", "", read_text)
    WORDS = ("list", "words", read_words)
    LIST = ("list", "may be empty", read_list)
    URLS = ("list", "URLs", read_text)  # load.py splits and parses them: only it knows the password file

    def __init__(self, noun: str, unit: str, read: Callable[[object], Value]) -> None:
        self.noun = noun
        self.unit = unit
        self.read = read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting. Its value is between `low` and `high`, both included. `default` None: the setting is required."""

    key: str
    kind: Kind
    default: Value | None
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    common: bool = False
    reload: bool
    """Whether SIGHUP puts a new value in force. Otherwise it needs a restart."""

    @property
    def flag(self) -> str:
        """The flag's name without its dashes."""
        return self.key.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")

    @property
    def secret(self) -> bool:
        """Whether a value may hold a password."""
        return self.kind is Kind.URLS

    @property
    def switch(self) -> bool:
        """Whether the flag takes no value. An option that is on by default takes one, to switch it off: `--check-origin false`."""
        return self.kind is Kind.BOOL and self.default is False

    def read(self, value: object) -> Value:
        """Return the typed value. Raises `ValueError` with the broken rule."""
        typed = self.kind.read(value)
        if self.choices and typed not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        if isinstance(typed, (int, float)) and self.kind is not Kind.BOOL:
            if self.low is not None and typed < self.low:
                raise ValueError(f"must be at least {self.format(self.low)}")
            if self.high is not None and typed > self.high:
                raise ValueError(f"must be at most {self.format(self.high)}")
        return typed

    def format(self, value: Value) -> str:
        """Return the text that `read` reads as this value."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return format_size(int(value)) if self.kind is Kind.SIZE else format_number(value)
        return value if isinstance(value, str) else ",".join(value)


BROKER = Option(
    key="broker",
    kind=Kind.URLS,
    default="embedded:",
    help="Where events come from: amqp://user:password@host:port/vhost or amqps://…, several of one cluster separated by commas. "
    "embedded: means no broker: events come from POST /publish on the admin port.",
    common=True,
    reload=False,
)
"""The one option that is not a field. `load` makes `BrokerSettings.urls` from it, or no `BrokerSettings`."""

_SECTIONS: Mapping[str, tuple[str, type]] = {
    "broker": ("", BrokerSettings),
    "access": ("", AccessSettings),
    "tower": ("tower.", TowerSettings),
    "jwt": ("jwt.", JwtSettings),
    "limits": ("limits.", LimitSettings),
    "history": ("history.", HistorySettings),
    "websocket": ("websocket.", WebSocketSettings),
}
"""For each field of `Settings` that holds a section: the prefix of its keys, and its class."""


def _options(settings: Any, prefix: str = "", *, reload: bool | None = None) -> Iterator[Option]:
    """Yield the options of a class of settings and its sections, in the order of the fields. `reload` is the answer of the section."""
    for each in dataclasses.fields(settings):
        if "help" in each.metadata:
            default = None if each.default is dataclasses.MISSING else each.default
            metadata = dict(each.metadata)
            if metadata["reload"] is None:
                metadata["reload"] = reload
            yield Option(key=prefix + each.name, kind=kind_of(each.name, each.type, required=default is None), default=default, **metadata)
        elif settings is Settings and each.name in _SECTIONS:
            section_prefix, section = _SECTIONS[each.name]
            yield from _options(section, section_prefix, reload=each.metadata["reload"])


def kind_of(name: str, annotation: object, *, required: bool = False) -> Kind:
    """Return the kind of a field: its annotation says the type, the end of its name the unit. Raises `TypeError` if there is none."""
    words = name.split("_")
    match annotation:
        case "bool":
            return Kind.BOOL
        case "str":
            return Kind.TEXT
        case "tuple[str, ...]":
            return Kind.WORDS if required else Kind.LIST
        case "int | str":
            return Kind.COUNT_OR_AUTO
        case "int" if "bytes" in words:
            return Kind.SIZE
        case "int":
            return Kind.WHOLE_SECONDS if words[-1] == "s" else Kind.COUNT
        case "float" if words[-1] == "s":
            return Kind.RATE if "per" in words else Kind.DURATION
    raise TypeError(
        f"{name}: an option is a bool, a str, a tuple of them, an int, an int | str, or a float whose name ends in _s or _per_s"
    )


OPTIONS: tuple[Option, ...] = tuple(sorted((BROKER, *_options(Settings)), key=lambda option: not option.common))
BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}
BY_VARIABLE: Mapping[str, Option] = {option.variable: option for option in OPTIONS}
BY_FLAG: Mapping[str, Option] = {option.flag: option for option in OPTIONS}
