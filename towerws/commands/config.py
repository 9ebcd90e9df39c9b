"""`towerws config` prints the effective configuration. `towerws check` says what the daemon would do with it.

Neither command connects to a server. `config` also prints a configuration whose files or ports can't be used, because an operator needs to
see it then. `check` says what is wrong with it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click
from twisted.internet.task import Clock

from towerws.auth.chain import make_methods
from towerws.commands.terminal import Command, complain, print_out
from towerws.config.addresses import Address, parse_address, url_for_file
from towerws.config.exposure import exposure
from towerws.config.load import Loaded, given, load_all
from towerws.config.options import CONFIG_FLAG, CONFIG_HELP, OPTIONS, Kind, Option, example
from towerws.config.rules import advice
from towerws.config.units import Value
from towerws.core.errors import ConfigError
from towerws.core.settings import GroupSettings, Settings
from towerws.core.topics import AWX_GROUPS
from towerws.process import too_few_descriptors

EXIT_BAD_CONFIG = 2
"""Exit code for a configuration that can't be used. click uses the same code for a wrong command line."""

_find_credential = re.compile(
    r"(?P<folder>/run/credentials/(?P<unit>[^/:]+)|%d|\$CREDENTIALS_DIRECTORY|\$\{CREDENTIALS_DIRECTORY\})/(?P<name>[^/:]+)"
).search
"""Finds the path of a systemd credential (`LoadCredential=`) in the value of an option."""


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add every flag of `twistd towerws` to a click command, the common ones first. `config.load.given` reads their values."""
    for option in reversed(OPTIONS):
        shape: dict[str, Any] = {"is_flag": True} if option.switch else {"metavar": option.kind.noun.upper()}
        command = click.option(f"--{option.flag}", default=None, help=option.help, **shape)(command)
    return click.option(f"--{CONFIG_FLAG}", default=None, metavar="FILE", help=CONFIG_HELP)(command)


@click.command("config", cls=Command, short_help="Print the effective configuration.")
@click.option(
    "--example", "wants_example", is_flag=True, help="Print a commented example file with every option instead, and read nothing."
)
@config_options
def config_command(*, wants_example: bool, **values: object) -> None:
    """Print the effective configuration as a TOML file, with the source of each value. Passwords are masked.

    Flags win over TOWERWS_* variables, and variables win over the file. With --example, print a file to begin with: it explains each
    option, with its unit and its default.

    \b
    Examples:
      towerws config --config /etc/towerws/towerws.toml
      towerws config --auth open > towerws.toml
      towerws config --example > towerws.toml

    \b
    Exit codes:
      0  printed
      1  standard output can't be written
      2  a flag, a variable or the file can't be read
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    print_out("\n".join(example() if wants_example else as_toml(load_or_exit(values))))


@click.command("check", cls=Command, short_help="Say whether the configuration can be used.")
@config_options
def check_command(**values: object) -> None:
    """Say what the daemon would do with this configuration, and whether its files and ports can be used.

    It connects to no broker and no API. Run it as the daemon's user.

    \b
    Examples:
      towerws check --config /etc/towerws/towerws.toml
      TOWERWS_BROKER=amqp://USER:PASSWORD@HOST/VHOST towerws check --auth open

    \b
    Exit codes:
      0  the configuration is good
      1  standard output can't be written
      2  the configuration can't be used: each reason is a line on standard error
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    loaded = load_or_exit(values)
    print_out("\n".join(summary(loaded)))
    bad = False
    if (reason := why_no_credential(loaded) or why_no_methods(loaded.settings)) is not None:
        bad = True
        complain(reason)
    for key in ("listen", "admin", *(["monitor"] if loaded.settings.monitor else [])):
        if (reason := why_not_free(parse_address(str(loaded.by_key[key].value)))) is not None:
            bad = True
            setting = loaded.by_key[key]
            complain(f"{setting.origin} = {setting.value!r}: can't be listened on: {reason}; choose another address with --{key}")
    if bad:
        raise SystemExit(EXIT_BAD_CONFIG)
    print_out("The configuration is good.")


def as_toml(loaded: Loaded) -> Iterator[str]:
    """Yield the lines of a TOML file with every option. Loading it gives the same settings, except for masked passwords."""
    section = ""
    for option in OPTIONS:
        table, _, name = option.key.rpartition(".")
        if table != section:
            section = table
            yield f"\n[{table}]"
        setting = loaded.by_key[option.key]
        yield f"{name} = {_toml_value(option, setting.value, loaded)}  # {_printable(setting.origin)}"
    for group, settings in loaded.settings.groups.items():
        yield f"\n[groups.{group}]"
        yield f"events = {_toml_events(settings)}  # {_printable(loaded.file)}"
        yield f"policy = {_toml_text(settings.policy)}"
        if settings.object_url:
            yield f"object_url = {_toml_text(settings.object_url)}"


def summary(loaded: Loaded) -> Iterator[str]:
    """Yield lines that say what the daemon would do with this configuration."""
    settings = loaded.settings
    yield f"Configuration: {f'{loaded.file}; flags and TOWERWS_* variables win over it' if loaded.file else 'no file (--config)'}."
    if settings.broker is None:
        yield "Events come from POST /publish on the admin port, and from no broker (embedded:)."
    else:
        log = {"stream": f"the stream {settings.broker.stream}", "queue": "a private queue"}
        consumed = log.get(settings.broker.consume, f"the stream {settings.broker.stream} (a private queue if RabbitMQ is older than 3.9)")
        yield f"Events come from the exchange {settings.broker.exchange}, through {consumed}. The first broker that answers is used:"
        yield from (f"  {url}" for url in settings.broker.urls)
    yield f"Browsers connect to {parse_address(settings.listen)}. Methods of authentication: {', '.join(settings.auth)}."
    yield f"The admin port is {parse_address(settings.admin)}."
    if settings.monitor:
        yield f"Probes and Prometheus connect to {parse_address(settings.monitor)}, for /healthz, /readyz and /metrics only."
    history = {option.key: option.format(loaded.by_key[option.key].value) for option in OPTIONS if option.key.startswith("history.")}
    yield f"History holds {history['history.max_bytes']} or {history['history.max_age_s']} s of events, whichever is less."
    for relation, names in (
        ("in addition to AWX's", [name for name in settings.groups if name not in AWX_GROUPS]),
        ("that replace AWX's", [name for name in settings.groups if name in AWX_GROUPS]),
    ):
        if names:
            yield f"Groups {relation}: {', '.join(names)}."
    few = too_few_descriptors(loaded, "a daemon of this shell")
    yield from (f"Advice: {sentence}." for sentence in (*advice(settings), *_password_advice(loaded), *exposure(loaded), *few))


def why_no_methods(settings: Settings) -> str | None:
    """Return why a method of authentication can't be used, or None. Makes the methods, as the daemon does when it starts."""
    try:
        for _ in make_methods(settings, Clock()):  # a method asks no server before its first credential, so no reactor has to run
            pass
    except ConfigError as error:
        return str(error)
    return None


def why_not_free(address: Address) -> str | None:
    """Return why an address can't be listened on, or None. Binds it for a moment. Sockets of systemd are not tried."""
    if address.kind == "systemd":
        return None
    if address.kind == "unix":
        return _why_no_unix_socket(Path(address.path))
    family = socket.AF_INET6 if ":" in address.interface else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
            # Twisted sets this option, too. With it, an earlier process's connections in TIME_WAIT don't block the address.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address.interface, address.port))
            trial.listen(1)
    except OSError as error:
        running = ", perhaps by a running daemon" if error.errno == errno.EADDRINUSE else ""
        return f"{error.strerror or error}{running}"
    return None


def load_or_exit(values: Mapping[str, object], *, named_files: bool = True) -> Loaded:
    """Return the configuration in force. If it can't be used, write a line and end the process with `EXIT_BAD_CONFIG`.

    `named_files` is the parameter of `load_all`.
    """
    try:
        return load_all(given(values), os.environ, named_files=named_files)
    except ConfigError as error:
        said = str(error)
        if named_files:
            with suppress(ConfigError):  # the error is not about a named file, so there is no better text
                said = why_no_credential(load_all(given(values), os.environ, named_files=False)) or said
        complain(said)
        raise SystemExit(EXIT_BAD_CONFIG) from None


def why_no_credential(loaded: Loaded) -> str | None:
    """Return which systemd credential can't be read here, and what to do. None if all that the configuration names can be read.

    systemd gives a unit's credentials to its service only. A command in a shell has to read the file that systemd copies.
    """
    ours = os.environ.get("CREDENTIALS_DIRECTORY")
    for option in OPTIONS:
        setting = loaded.by_key[option.key]
        if not isinstance(setting.value, str) or (found := _find_credential(setting.value)) is None:
            continue
        if found["folder"] != ours and not os.access(found[0], os.R_OK):
            unit, name = found["unit"], found["name"]
            source = setting.value.replace(found[0], f"/etc/towerws/{name}")
            return (
                f"{setting.origin} = {setting.value!r}: can't be read here, because systemd gives {name} to {unit or 'its service'} only: "
                f"run this with sudo and --{option.flag} {source} (the file that LoadCredential={name} of the unit names)"
            )
    return None


def _why_no_unix_socket(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"{path.parent} is not a folder"
    return None if os.access(path.parent, os.W_OK) else f"{path.parent} is not writable"


def _password_advice(loaded: Loaded) -> Iterator[str]:
    in_url = loaded.settings.broker is not None and not _password_elsewhere(loaded)
    if in_url and loaded.by_key["broker"].origin.startswith("--") and any("***" in text for text in _urls(loaded)):
        yield "a password in --broker is shown by ps to every user: use broker_password_file or TOWERWS_BROKER"


def _password_elsewhere(loaded: Loaded) -> bool:
    return bool(loaded.by_key["broker_password_file"].value)


def _urls(loaded: Loaded) -> list[str]:
    if loaded.settings.broker is None:
        return ["embedded:"]
    return [url_for_file(url, password_elsewhere=_password_elsewhere(loaded)) for url in loaded.settings.broker.urls]


def _toml_value(option: Option, value: Value, loaded: Loaded) -> str:
    if option.kind is Kind.URLS:
        return _toml_list(_urls(loaded))
    if option.key in {"jwt.jwks_url", "tower.url"}:
        return _toml_text(_masked_url(str(value)))
    if isinstance(value, tuple):
        return _toml_list(value)
    if isinstance(value, str) or option.kind is Kind.SIZE:
        return _toml_text(option.format(value))
    return option.format(value)


def _masked_url(url: str) -> str:
    """Mask the parts of a URL that may be secret: a user and a password, and everything after `?` or `#`."""
    whole = re.sub(r"//[^/?#]*@", "//***@", url, count=1)
    shown = re.split(r"[?#]", whole, maxsplit=1)[0]
    return whole if shown == whole else f"{whole[: len(shown) + 1]}***"


def _toml_events(settings: GroupSettings) -> str:
    return _toml_text(settings.events) if isinstance(settings.events, str) else _toml_list(settings.events)


def _toml_list(texts: tuple[str, ...] | list[str]) -> str:
    return f"[{', '.join(_toml_text(text) for text in texts)}]"


def _toml_text(text: str) -> str:
    # JSON's escapes are valid in TOML. Only DEL differs: JSON does not escape it, and TOML forbids it. No setting can hold a DEL.
    return json.dumps(text, ensure_ascii=False)


def _printable(origin: str) -> str:
    return origin if origin.isprintable() else repr(origin)
