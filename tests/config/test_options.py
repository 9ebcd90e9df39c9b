from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.kit.configuration_table import split_document, table
from tests.kit.rows import each_row
from towerws.commands.config import check_command, config_command
from towerws.config.load import load_all
from towerws.config.options import BY_FLAG, BY_KEY, BY_VARIABLE, CONFIG_FLAG, CONFIG_VARIABLE, OPTIONS, Kind, Option, kind_of
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


def test_every_field_has_an_option() -> None:
    """Every field of the settings can be set, except those that follow from others and the tables of groups."""
    fields = {each.name for each in dataclasses.fields(BrokerSettings)} - {"urls", "refill_s", "position_key"}
    fields |= {each.name for each in dataclasses.fields(Settings)} - {"access", "tower", "jwt", "limits", "history", "websocket", "groups"}
    fields |= {each.name for each in dataclasses.fields(AccessSettings)}
    fields |= {f"tower.{each.name}" for each in dataclasses.fields(TowerSettings)} - {"tower.sharers"}
    fields |= {f"jwt.{each.name}" for each in dataclasses.fields(JwtSettings)}
    fields |= {f"limits.{each.name}" for each in dataclasses.fields(LimitSettings)}
    fields |= {f"history.{each.name}" for each in dataclasses.fields(HistorySettings)}
    fields |= {f"websocket.{each.name}" for each in dataclasses.fields(WebSocketSettings)}
    assert {option.key for option in OPTIONS} == fields | {"broker_password_file"}


def test_names_are_unique() -> None:
    """No two options share a key, a flag or a variable. None uses those of the configuration file itself."""
    assert len(BY_KEY) == len(BY_FLAG) == len(BY_VARIABLE) == len(OPTIONS)
    assert CONFIG_FLAG not in BY_FLAG
    assert CONFIG_VARIABLE not in BY_VARIABLE


def test_names_derive_from_the_key() -> None:
    """The flag is the key in kebab case, the variable the key in capitals."""
    option = BY_KEY["history.max_bytes"]
    assert (option.flag, option.variable) == ("history-max-bytes", "TOWERWS_HISTORY_MAX_BYTES")


@each_row("option", OPTIONS, ids=lambda option: option.key)
def test_defaults_are_allowed(option: Option) -> None:
    """Every default is a value that could be written, and reads back as itself."""
    if option.default is not None:
        assert option.read(option.default) == option.default
        assert option.kind is Kind.BOOL or option.read(option.format(option.default)) == option.default


@each_row("option", [option for option in OPTIONS if option.low is not None], ids=lambda option: option.key)
def test_ranges_hold_at_their_edges(option: Option) -> None:
    """The ends of a range are allowed, the next values beyond it are not."""
    assert option.low is not None
    assert option.high is not None
    step = 1 if option.kind in (Kind.SIZE, Kind.COUNT, Kind.COUNT_OR_AUTO, Kind.WHOLE_SECONDS) else 0.001
    assert option.read(option.low) == option.low
    assert option.read(option.high) == option.high
    with pytest.raises(ValueError, match="at most"):
        option.read(option.high + step)
    if option.low > 0:
        with pytest.raises(ValueError, match="at least"):
            option.read(option.low - step)


@pytest.mark.parametrize(
    ("name", "annotation", "kind"),
    [
        ("max_bytes", int, Kind.SIZE),
        ("replay_bytes_per_s", int, Kind.SIZE),
        ("max_age_s", float, Kind.DURATION),
        ("heartbeat_s", int, Kind.WHOLE_SECONDS),
        ("accepts_per_s", float, Kind.RATE),
        ("per_user", int, Kind.COUNT),
    ],
)
def test_the_name_of_a_number_says_its_unit(name: str, annotation: type, kind: Kind) -> None:
    """The kind of an option follows from its field: the type from the annotation, the unit from the end of the name."""
    assert kind_of(name, annotation.__name__) is kind


def test_a_number_without_a_unit_is_no_option() -> None:
    """A field with a fraction needs a unit in its name. The error says so when the table is made."""
    with pytest.raises(TypeError, match="share: an option is a bool"):
        kind_of("share", "float")


def test_choices() -> None:
    """A choice is one of its words."""
    assert BY_KEY["consume"].read("queue") == "queue"
    with pytest.raises(ValueError, match="one of auto, stream, queue"):
        BY_KEY["consume"].read("topic")


def test_the_document_has_this_table() -> None:
    """docs/configuration.md shows exactly these options. `python -m tests.kit.configuration_table` updates it."""
    _, present, _ = split_document()
    assert present == table()


FREE = ("--listen", "tcp:0:interface=127.0.0.1", "--admin", "tcp:0:interface=127.0.0.1")


def _example(folder: Path) -> Path:
    """What `towerws config --example` prints, in a file."""
    printed = CliRunner().invoke(config_command, ["--example"])
    assert (printed.exit_code, printed.stderr) == (0, "")
    file = folder / "towerws.toml"
    file.write_text(printed.stdout)
    return file


def test_the_example_is_accepted_as_it_is(tmp_path: Path) -> None:
    """`towerws check` takes it, and it gives the defaults."""
    file = _example(tmp_path)
    assert load_all({"config": str(file)}, {}).settings == load_all({"auth": "open"}, {}).settings
    result = CliRunner().invoke(check_command, ["--config", str(file), *FREE])
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_example_has_each_option_with_its_default(tmp_path: Path) -> None:
    """Without the marks of the comments, the file sets each option once, to its default, under its help and its unit."""
    file = _example(tmp_path)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line for line in lines))
    by_key = load_all({"config": str(file)}, {}).by_key
    for option in OPTIONS:
        assert by_key[option.key].origin == f"{file}: {option.key}", option.key
    defaults = load_all({"auth": "open"}, {}).by_key
    assert {key: setting.value for key, setting in by_key.items()} == {key: setting.value for key, setting in defaults.items()}
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    for option in OPTIONS:
        assert option.help in text, option.key
        assert option.kind.unit in text
    assert "orders" in tomllib.loads(file.read_text())["groups"]


def test_no_line_of_the_example_is_too_long(tmp_path: Path) -> None:
    """Comments fit into a terminal."""
    assert max(len(line) for line in _example(tmp_path).read_text().splitlines() if line.startswith("# ")) <= 102
