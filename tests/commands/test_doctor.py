from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from tests.kit.rows import each_row
from towerws.cli import main
from towerws.commands.doctor import line, summary
from towerws.doctor.examination import Area


@each_row(
    ("arguments", "said"),
    [
        ([], "auth is not set"),
        (["--auth", "open", "--prefetch", "x"], "--prefetch"),
        (["--auth", "open", "--url", "ftp://h"], "must be https://host/websocket/"),
        (["--auth", "open", "--url", "https://h/?token=canary"], "must be https://host/websocket/"),
        (["--auth", "open", "--topic", "x"], "--topic"),
        (["--auth", "open", "--topic", "job_events.42"], "--topic: needs --token, and auth = tower"),
        (["--auth", "open", "--url", "https://h/", "--url-ca", "/nowhere"], "--url-ca: can't be read: No such file or directory"),
        (["--auth", "open", "--idle", "-1"], "--idle"),
        (["--auth", "open", "--token", "canary"], "neither auth = tower nor --url needs a token"),
        (["--auth", "open", "--token", "@/nowhere"], "can't be read"),
    ],
)
def test_what_can_not_be_used(arguments: list[str], said: str) -> None:
    """Status 2, before anything is asked, and no secret in the text."""
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "canary" not in result.stderr


def test_a_finding_is_one_line() -> None:
    """Level, area, check, text, and what to change. Colour only where it is asked for."""
    area = Area("broker")
    problem = area.problem("login", "refused", "check the password")
    assert line(problem, colour=False) == "problem  broker login: refused -> check the password"
    assert line(area.ok("login", "works"), colour=False) == "ok       broker login: works"
    assert line(problem, colour=True) == "\x1b[31;1mproblem \x1b[0m broker login: refused -> check the password"
    assert summary([problem, problem, area.ok("a", "b")]) == "1 ok, 2 problem"


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    """No colour and no status line."""
    arguments = ["--auth", "open", "--admin", f"unix:{tmp_path}/none.sock", "--limits-connections", "10"]
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exit_code == 3
    assert "\x1b" not in result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert any(each.startswith("warning  daemon running: no daemon answers on the admin port") for each in lines)
    result = CliRunner().invoke(main, ["doctor", "--auth", "open", "--insecure", "--admin", "systemd:domain=INET:index=0"])
    assert "unknown  daemon running: the doctor can't connect to systemd:domain=INET:index=0" in result.stdout
    assert lines[-2] == "skipped  public url: the way through proxies is only checked with --url https://…/websocket/"
