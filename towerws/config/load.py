"""Loads the configuration: flags override `TOWERWS_*` variables, which override the TOML file, which overrides the defaults.

The TOML file becomes the flat keys of the option table, bounded in size. Any error is a `ConfigError` of one line: where the value was
set, the value (shortened, never a password), and the rule.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from towerws.config.addresses import EMBEDDED, mask_url, parse_address, parse_broker_url, split_urls
from towerws.config.certificates import check_folder, read_certificate
from towerws.config.options import (
    BY_FLAG,
    BY_KEY,
    BY_VARIABLE,
    CONFIG_FLAG,
    CONFIG_HELP,
    CONFIG_VARIABLE,
    ENVIRONMENT_PREFIX,
    OPTIONS,
    Kind,
    Option,
)
from towerws.config.rules import broken_rules, describes_a_service, read_group, suggestion
from towerws.config.units import Value
from towerws.core.errors import ConfigError, one_line
from towerws.core.settings import (
    AccessSettings,
    BrokerSettings,
    BrokerUrl,
    GroupSettings,
    HistorySettings,
    JwtSettings,
    LimitSettings,
    Secret,
    Settings,
    TowerSettings,
    WebSocketSettings,
)
from towerws.outgoing import read_bounded, trust_root

MAX_FILE_BYTES = 1024**2
MAX_PASSWORD_FILE_BYTES = 64 * 1024
SHOWN_CHARACTERS = 80
"""Longest part of a value that an error text repeats."""

LOGGED_CHARACTERS = 1000
"""Longest part of a value that a log line shows next to an older one. Two addresses with the same files may differ at their ends."""

_GROUPS = "groups"
_CERTIFICATES: Mapping[str, Callable[[str], object]] = {"ssl": read_certificate, "tls": check_folder}
"""What reads the certificates of an endpoint of this kind."""
_SECTIONS = sorted({option.key.partition(".")[0] for option in OPTIONS if "." in option.key} | {_GROUPS})


def read_file(path: str, named_by: str) -> tuple[dict[str, object], dict[str, GroupSettings]]:
    """Return the file's values by flat key (`history.max_bytes`), and its groups. `named_by` is the setting that named the file."""
    text = read_text(named_by, path, MAX_FILE_BYTES)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{shown_path(path)}: not TOML that can be read: nested too deeply") from None
    except ValueError as error:
        said = one_line(str(error))
        hint = "; a text needs quotes" if said.startswith("Invalid value") else ""
        raise ConfigError(f"{shown_path(path)}: not valid TOML: {said}{hint}") from None
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


def shown(value: object, most: int = SHOWN_CHARACTERS) -> str:
    """Return the value for an error text: its `repr`, shortened to `most` characters."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= most else f"{text[:most]}…"


def shown_path(path: str) -> str:
    """Return the path for an error text."""
    return path if path.isprintable() else shown(path)


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


@dataclass(frozen=True, slots=True)
class Setting:
    """An option's value and where it was set: `--listen`, `TOWERWS_LISTEN`, `/etc/towerws.toml: listen` or `default`."""

    value: Value
    origin: str

    @property
    def is_default(self) -> bool:
        """Whether the option wasn't set."""
        return self.origin == "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and each option's value with its origin. `file` is the path that was read, or empty."""

    settings: Settings
    by_key: Mapping[str, Setting]
    file: str


def load(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Return the settings in force. Raises `ConfigError` if they can't be used.

    `flags`: the command line's values by flag name without dashes; None for a flag that wasn't given, `"true"` for a switch.
    `environ`: only names that begin with `TOWERWS_` are read. An empty value counts as not set.
    """
    return load_all(flags, environ).settings


def load_all(flags: Mapping[str, str | None], environ: Mapping[str, str], *, named_files: bool = True) -> Loaded:
    """Return the settings in force, and each option's value with its origin. Parameters and errors are those of `load`.

    `named_files=False` reads none of the files that options name: passwords, keys, certificates, authorities. The settings then lack their
    contents. A command that only asks the admin port uses this, because it may run as a user who can't read these files.
    """
    variables = {name: value for name, value in environ.items() if name.startswith(ENVIRONMENT_PREFIX) and value}
    for name, value in variables.items():
        if name != CONFIG_VARIABLE and name not in BY_VARIABLE and not describes_a_service(name, value):
            raise ConfigError(f"{shown(name)}: unknown environment variable{suggestion(name, BY_VARIABLE, ENVIRONMENT_PREFIX)}")
    for name in flags:
        if name != CONFIG_FLAG and name not in BY_FLAG:
            raise ConfigError(f"--{name}: unknown flag{suggest_flag(name)}")
    file, named_by = flags.get(CONFIG_FLAG), f"--{CONFIG_FLAG}"
    if file is None:
        file, named_by = variables.get(CONFIG_VARIABLE, ""), CONFIG_VARIABLE
    keys, groups = read_file(file, named_by) if file or named_by != CONFIG_VARIABLE else ({}, {})
    by_key = {option.key: _setting(option, flags, variables, keys, file) for option in OPTIONS}
    settings = _build(by_key, groups, named_files=named_files)
    check_rules(settings, by_key)
    for key in ("listen", "admin", "monitor") if named_files else ():
        if (text := str(by_key[key].value)) and (check := _CERTIFICATES.get(parse_address(text).kind)) is not None:
            _check_file(by_key[key], check)
    return Loaded(settings, by_key, file)


def check_rules(settings: Settings, by_key: Mapping[str, Setting]) -> None:
    """Raise `ConfigError` for the first rule between settings that they break."""
    for broken in broken_rules(settings):
        key = next((key for key in broken.keys if not by_key[key].is_default), broken.keys[0])
        others = ", ".join(f"{other} is {shown(by_key[other].value)}" for other in broken.keys if other != key)
        raise ConfigError(f"{by_key[key].origin} = {shown(by_key[key].value)}: {broken.rule}{others and f' ({others})'}")


def suggest_flag(name: str) -> str:
    """Return `; did you mean --…?` for an unknown flag (without its dashes), or an empty text if no flag is similar."""
    return suggestion(f"--{name}", [f"--{flag}" for flag in (*BY_FLAG, CONFIG_FLAG)], "--")


def usage_parameters() -> list[list[str | None]]:
    """Return `optParameters` for `twisted.python.usage.Options`: all options that take a value. Their value is None if not given."""
    return [[CONFIG_FLAG, None, None, CONFIG_HELP], *([o.flag, None, None, o.help] for o in OPTIONS if not o.switch)]


def usage_flags() -> list[list[str | None]]:
    """Return `optFlags` for `twisted.python.usage.Options`: the switches."""
    return [[option.flag, None, option.help] for option in OPTIONS if option.switch]


def given(values: Mapping[str, object]) -> dict[str, str | None]:
    """Convert the values that usage or click collected to the `flags` of `load`. Leave out names that aren't in the option table."""
    flags: dict[str, str | None] = {}
    for name, value in values.items():
        flag = name.replace("_", "-")
        if flag == CONFIG_FLAG or (flag in BY_FLAG and not BY_FLAG[flag].switch):
            flags[flag] = None if value is None else str(value)
        elif flag in BY_FLAG:
            flags[flag] = "true" if value else None
    return flags


def _setting(
    option: Option, flags: Mapping[str, str | None], variables: Mapping[str, str], keys: Mapping[str, object], file: str
) -> Setting:
    raw: object
    if (raw := flags.get(option.flag)) is not None:
        raw, origin = _as_bool(option, raw), f"--{option.flag}"
    elif (raw := variables.get(option.variable)) is not None:
        raw, origin = _as_bool(option, raw), option.variable
    elif option.key in keys:
        raw, origin = keys[option.key], f"{shown_path(file)}: {option.key}"
    elif option.default is None:
        raise ConfigError(
            f'{option.key} is not set: write {option.key} = ["tower"] or ["jwt"] in the file, or give --{option.flag} open '
            "to let every client hear everything (on loopback only, unless insecure is set)"
        )
    else:
        raw, origin = option.default, "default"
    try:
        if option.secret:
            return Setting(_url_texts(raw), origin)
        return Setting(raw if origin == "default" else option.read(raw), origin)  # type: ignore[arg-type]  # the default is a Value
    except ValueError as error:
        raise ConfigError(f"{origin} = {_masked(raw) if option.secret else shown(raw)}: {error}") from None


def _url_texts(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(split_urls(raw))
    if isinstance(raw, list) and raw and all(isinstance(each, str) for each in raw):
        return tuple(each.strip() for each in raw)
    raise ValueError("must be a URL, or several (a list in the file, comma-separated elsewhere)")


def _as_bool(option: Option, text: object) -> object:
    return {"true": True, "false": False}.get(str(text), text) if option.kind is Kind.BOOL else text


def _build(by_key: Mapping[str, Setting], groups: dict[str, GroupSettings], *, named_files: bool) -> Settings:
    def part(settings: type, prefix: str = "") -> dict[str, Any]:
        return {each.name: by_key[prefix + each.name].value for each in fields(settings) if prefix + each.name in by_key}

    urls = _urls(by_key, named_files=named_files)
    history = HistorySettings(**part(HistorySettings, "history."))
    top = part(Settings)
    key_file = by_key["position_key_file"]
    key = _secret_line(key_file, "key") if key_file.value and named_files else None
    top["broker"] = BrokerSettings(**part(BrokerSettings), urls=urls, refill_s=history.max_age_s, position_key=key) if urls else None
    if named_files and by_key["tls_ca"].value:
        _check_file(by_key["tls_ca"], lambda path: trust_root(read_bounded(path)))
    return Settings(
        **top,
        access=AccessSettings(**part(AccessSettings)),
        tower=TowerSettings(**part(TowerSettings, "tower.")) if "tower" in top["auth"] else None,
        jwt=JwtSettings(**part(JwtSettings, "jwt.")) if "jwt" in top["auth"] else None,
        limits=LimitSettings(**part(LimitSettings, "limits.")),
        history=history,
        websocket=WebSocketSettings(**part(WebSocketSettings, "websocket.")),
        groups=groups,
    )


def _urls(by_key: Mapping[str, Setting], *, named_files: bool) -> tuple[BrokerUrl, ...]:
    broker, file = by_key["broker"], by_key["broker_password_file"]
    texts = broker.value if isinstance(broker.value, tuple) else ()
    if texts == (EMBEDDED,):
        return ()
    password = _secret_line(file, "password") if file.value and named_files else None
    urls = []
    for text in texts:
        if text == EMBEDDED:
            raise ConfigError(f"{broker.origin} = {_masked(list(texts))}: embedded: stands alone, it can't be mixed with brokers")
        try:
            urls.append(parse_broker_url(text, password))
        except ValueError as error:
            raise ConfigError(f"{broker.origin} = {mask_url(text)}: {error}") from None
    return tuple(urls)


def _secret_line(setting: Setting, what: str) -> Secret:
    text = read_text(setting.origin, str(setting.value), MAX_PASSWORD_FILE_BYTES)
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret or "\n" in secret:
        raise ConfigError(f"{setting.origin} = {shown(setting.value)}: must hold the {what} on a single line")
    return Secret(secret)


def _check_file(setting: Setting, read: Callable[[str], object]) -> None:
    """Read the file that a setting names, to find out whether it can be used. `read` raises `ValueError` with the reason."""
    try:
        read(str(setting.value))
    except ValueError as error:
        raise ConfigError(f"{setting.origin} = {shown(setting.value)}: {error}") from None


def shown_setting(option: Option, value: Value) -> str:
    """Return an option's value for a log line, without a password."""
    return _masked(list(value) if isinstance(value, tuple) else value) if option.secret else shown(value, LOGGED_CHARACTERS)


def _masked(raw: object) -> str:
    if isinstance(raw, str):
        return ", ".join(mask_url(text) for text in split_urls(raw))
    if isinstance(raw, list):
        return f"[{', '.join(_masked(each) for each in raw)}]"
    return f"({type(raw).__name__})"
