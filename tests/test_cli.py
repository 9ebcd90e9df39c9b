from __future__ import annotations

from click.testing import CliRunner

from tests.kit.rows import each_row
from towerws import __version__
from towerws.cli import main

COMMANDS = ["check", "config", "demo", "doctor", "explain", "publish", "restart", "tail"]


@each_row(
    "arguments", [["--help"], ["-h"], ["demo", "--help"], ["tail", "-h"], ["config", "--help"], ["check", "--help"], ["publish", "-h"]]
)
def test_help(arguments: list[str]) -> None:
    """Every command explains itself."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


@each_row("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    """Each command's help has examples and exit codes, and fits a terminal of 80 columns."""
    shown = CliRunner().invoke(main, [command, "--help"], env={"COLUMNS": "80"}).output
    assert f"\n    towerws {command}" in shown.partition("Examples:")[2]
    assert "\n    0  " in shown.partition("Exit codes:")[2]
    assert max(map(len, shown.splitlines())) <= 80


@each_row("columns", ["80", "100"])
def test_summaries_are_whole(columns: str) -> None:
    """The list of commands has a whole sentence for each (findings O14)."""
    shown = CliRunner().invoke(main, ["--help"], env={"COLUMNS": columns}).output
    commands = shown.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("..") for line in commands), shown


def test_version() -> None:
    """`--version` prints the version."""
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


@each_row(
    ("arguments", "text"),
    [
        (["demo", "--rate", "0"], "--rate"),
        (["demo", "--count", "0"], "--count"),
        (["demo", "--broker", "amqp://h", "--admin", "http://h:1"], "one of them"),
        (["demo", "--admin", "https://h:1"], "--admin"),
        (["demo", "--broker", "redis://h"], "--broker"),
        (["tail", "jobs"], "jobs"),
        (["tail", "jobs.*"], "'*'"),
        (["tail", "--url", "http://h/websocket/"], "--url"),
        (["tail", "--url", "ws://h:99999/websocket/"], "--url"),
        (["tail", "--token", "@/nowhere/at/all"], "--token"),
        (["tail", "--token", "two\nlines"], "--token"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors(arguments: list[str], text: str) -> None:
    """A wrong argument is named, with exit code 2."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert text in result.output
