"""The table of options. Flags, environment variables, the file's keys, their help and docs/configuration.md all come from it.

Each field of the settings' classes that is made with `option` becomes one option. An option with the key `history.max_bytes` is `max_bytes`
in the file's table `[history]`, the flag `--history-max-bytes` and the environment variable `TOWERWS_HISTORY_MAX_BYTES`. `example` writes
the table as a commented configuration file.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import textwrap
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
WIDTH = 100


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
    URLS = ("list", "URLs", read_text)  # load.py splits and parses the URLs, because it has read the password file

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
        """Whether the flag takes no value. A boolean that is true by default takes one, so that it can be false: `--check-origin false`."""
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
    """Yield the options of a class of settings and its sections, in the order of the fields.

    `reload` is for fields that don't say themselves whether SIGHUP puts a new value in force.
    """
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
    """Return the kind of a field, from its type (`annotation`) and the unit in its name. Raises `TypeError` if no kind fits."""
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


_HEAD = """\
towerws: an example of its configuration file, with every option.

A line that begins with #, without a space after it, is an option with its default. Remove the # and change the value.
`towerws check --config FILE` checks the file alone. `towerws doctor --config FILE` also asks the broker, the API and the proxy.
A flag and an environment variable win over the file. docs/configuration.md explains the forms of sizes and durations."""

_GROUPS = """\
Groups of your own, one table each.
`events`: "id" for numbers, "any" for any word, or a list of words.
`policy`: "authenticated" (every user), "own" (the user whose id the event is), "object" (users who may read `object_url`), or "never".
`object_url`: a path of Tower's API, with {id} for the event: "/api/v2/jobs/{id}/"."""

_GROUP_LINES = ("#[groups.orders]", '#events = ["created", "paid"]', '#policy = "authenticated"')


def example() -> Iterator[str]:
    """Yield the lines of a TOML file with each option: its help, type, unit, bounds and default.

    `auth` has no default, and is set to `open`. All other options are comments, so the unchanged file gives the defaults.
    """
    yield from _comment(_HEAD)
    section = ""
    for option in OPTIONS:
        table, _, name = option.key.rpartition(".")
        if table != section:
            section = table
            yield from ("", "", f"[{table}]")
        yield ""
        yield from _comment(option.help)
        yield f"# {_form(option)}"
        yield f'{name} = ["open"]' if option.default is None else f"#{name} = {_default(option)}"
    yield from ("", "")
    yield from _comment(_GROUPS)
    yield from _GROUP_LINES


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n"):
        yield from (f"# {line}".rstrip() for line in textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False) or [""])


def _form(option: Option) -> str:
    """Return the type and the unit of an option, its choices or bounds, and its default."""
    parts = [f"{option.kind.noun}{option.kind.unit and f' ({option.kind.unit})'}"]
    if option.choices:
        parts = [" or ".join(option.choices)]
    if option.low is not None:
        parts.append(f"at least {option.format(option.low)}")
    if option.high is not None:
        parts.append(f"at most {option.format(option.high)}")
    default = "no default: it must be set" if option.default is None else f"default: {option.format(option.default) or 'empty'}"
    return f"{', '.join(parts)}; {default}"


def _default(option: Option) -> str:
    value = option.default
    if option.kind is Kind.URLS or isinstance(value, tuple):
        return json.dumps([value] if isinstance(value, str) else value)
    assert value is not None
    quoted = isinstance(value, str) or option.kind is Kind.SIZE
    return json.dumps(option.format(value)) if quoted else option.format(value)
