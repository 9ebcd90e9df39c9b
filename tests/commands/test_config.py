from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner, Result

from towerws.commands.config import check_command, config_command, why_not_free
from towerws.config.addresses import parse_address
from towerws.config.load import load
from towerws.config.options import OPTIONS

FREE = ("--auth", "open", "--listen", "tcp:0:interface=127.0.0.1", "--admin", "tcp:0:interface=127.0.0.1")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback interface that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run_config(*arguments: str, **environ: str) -> Result:
    """`towerws config` with these arguments."""
    return CliRunner().invoke(config_command, arguments, env=environ)


def run_check(*arguments: str, **environ: str) -> Result:
    """`towerws check` with these arguments."""
    return CliRunner().invoke(check_command, arguments, env=environ)


def test_config_prints_what_is_in_force() -> None:
    """Every option stands there once, with where it came from."""
    result = run_config("--auth", "open", TOWERWS_HISTORY_MAX_OCTETS="8MiB")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert 'auth = ["open"]  # --auth' in lines
    assert 'max_octets = "8MiB"  # TOWERWS_HISTORY_MAX_OCTETS' in lines
    assert "backoff_min_s = 0.5  # default" in lines
    assert len([line for line in lines if " = " in line]) == len(OPTIONS)


def test_config_can_be_used_as_a_file(tmp_path: Path) -> None:
    """The file that it prints gives the same settings, and prints as itself but for the origins."""
    (tmp_path / "password").write_text("p@ss")
    first = tmp_path / "first.toml"
    first.write_text(
        f'broker = "amqp://u@[::1]/a%2Fb"\nbroker_password_file = "{tmp_path}/password"\nauth = ["open"]\ninsecure = true\n'
        'listen = \'tcp6:8051:interface=\\:\\:1\'\nexchange = "quote\\" and \\\\"\n'
        'heartbeat_s = "5s"\nbackoff_min_s = "250ms"\n[history]\nmax_octets = 8388609\n'
        '[groups.orders]\nevents = ["created", "paid"]\n[groups.stock]\nevents = "id"\nobject_url = "/stock/{id}/"\n'
    )
    printed = run_config("--config", str(first))
    assert printed.exit_code == 0
    second = tmp_path / "second.toml"
    second.write_text(printed.stdout)
    assert load({"config": str(second)}, {}) == load({"config": str(first)}, {})
    again = run_config("--config", str(second))
    assert [line.partition("  #")[0] for line in again.stdout.splitlines()] == [
        line.partition("  #")[0] for line in printed.stdout.splitlines()
    ]


def test_config_masks_passwords(tmp_path: Path) -> None:
    """A password is masked; used as a file, the mask is refused as such and not tried on the broker."""
    result = run_config("--auth", "open", "--broker", "amqp://u:hunter2!@h/v,amqp://h")
    assert 'broker = ["amqp://u:***@h:5672/v", "amqp://h:5672/%2F"]  # --broker' in result.stdout
    assert "hunter2!" not in result.output
    file = tmp_path / "towerws.toml"
    file.write_text(result.stdout)
    again = run_config("--config", str(file))
    assert again.exit_code == 2
    assert "is the mask ***" in again.stderr


@pytest.mark.parametrize("command", [config_command, check_command])
@pytest.mark.parametrize("arguments", [(), ("--auth", "open", "--prefetch", "x"), ("--auth=open", "--config", "/nowhere")])
def test_a_bad_configuration_is_one_line(command: Command, arguments: tuple[str, ...]) -> None:
    """What can't be used is one line on stderr, status 2, and no traceback."""
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("towerws: ")
    assert result.stderr.count("\n") == 1


def test_check_says_what_would_be_done() -> None:
    """The sources, the ports and who may listen are told; nobody is connected to."""
    result = run_check(*FREE, "--broker", "amqp://u:hunter2!@nowhere.invalid/v", "--websocket-ping-s", "60")
    assert result.exit_code == 0
    assert "  amqp://u:***@nowhere.invalid:5672/v\n" in result.stdout
    assert "Browsers connect to 127.0.0.1:0; who may listen: open.\n" in result.stdout
    assert "Advice: websocket.ping_s = 60" in result.stdout
    assert "Advice: a password in --broker is shown by ps" in result.stdout
    assert result.stdout.endswith("The configuration is good.\n")
    assert "hunter2!" not in result.output


def test_check_without_a_broker(tmp_path: Path) -> None:
    """The embedded source is told, and the groups of the file."""
    file = tmp_path / "towerws.toml"
    file.write_text("[groups.orders]\n")
    result = run_check(*FREE, "--config", str(file))
    assert "from no broker" in result.stdout
    assert "Groups beside AWX's: orders." in result.stdout
    assert f"Configuration: {file};" in result.stdout


def test_check_finds_a_taken_port(taken: int) -> None:
    """A port that somebody listens on is named with the setting that wants it."""
    result = run_check(*FREE, "--listen", f"tcp:{taken}:interface=127.0.0.1")
    assert result.exit_code == 2
    assert result.stderr == f"towerws: --listen = 'tcp:{taken}:interface=127.0.0.1': can't be listened on: Address already in use\n"
    assert "The configuration is good" not in result.stdout


def test_checking_a_port_leaves_it_free() -> None:
    """A port that was tried can be listened on afterwards, also through IPv6."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = parse_address(f"tcp:{port}:interface=127.0.0.1")
    assert why_not_free(address) is None
    assert why_not_free(address) is None
    assert why_not_free(parse_address("tcp:1:interface=nowhere.invalid")) is not None


def test_sockets_without_a_port(tmp_path: Path) -> None:
    """A unix socket needs its folder; what systemd opens isn't tried."""
    assert why_not_free(parse_address(f"unix:{tmp_path}/web.sock")) is None
    assert "is not a folder" in str(why_not_free(parse_address(f"unix:{tmp_path}/none/web.sock")))
    assert why_not_free(parse_address("systemd:domain=INET:index=0")) is None


@pytest.mark.parametrize("command", [config_command, check_command])
def test_help_begins_with_the_common_flags(command: Command) -> None:
    """The help has every flag, the common ones first."""
    text = CliRunner().invoke(command, ["--help"]).stdout
    places = {option.key: text.index(f"\n  --{option.flag} ") for option in OPTIONS}
    assert max(places[option.key] for option in OPTIONS if option.common) < min(
        places[option.key] for option in OPTIONS if not option.common
    )
