from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner

from towerws.commands.config import check_command, config_command
from towerws.config.load import load_all
from towerws.config.options import OPTIONS

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
