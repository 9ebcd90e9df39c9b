from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner, Result
from private_rabbitmq import free_port

from tests.kit.rows import each_row
from towerws.cli import main
from towerws.commands.config import check_command, config_command, why_not_free
from towerws.config.addresses import parse_address
from towerws.config.load import load
from towerws.config.options import OPTIONS

FREE = ("--auth", "open", "--listen", "tcp:0:interface=127.0.0.1", "--admin", "tcp:0:interface=127.0.0.1")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback interface that is in use."""
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
    result = run_config("--auth", "open", TOWERWS_HISTORY_MAX_BYTES="8MiB")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert 'auth = ["open"]  # --auth' in lines
    assert 'max_bytes = "8MiB"  # TOWERWS_HISTORY_MAX_BYTES' in lines
    assert "backoff_min_s = 0.5  # default" in lines
    assert len([line for line in lines if " = " in line]) == len(OPTIONS)


@each_row(
    ("command", "variable", "value", "reason", "step"),
    [
        (
            command,
            variable,
            before + folder + name + after,
            f"systemd gives {name} to {unit} only",
            f"run this with sudo and --{flag} {before}/etc/towerws/{name}{after} (the file that LoadCredential={name} of the unit names)",
        )
        for command in (["check"], ["config"], ["doctor"])
        for folder, unit in (("/run/credentials/towerws.service/", "towerws.service"), ("%d/", "its service"))
        for variable, flag, before, name, after in (
            ("TOWERWS_BROKER_PASSWORD_FILE", "broker-password-file", "", "broker-password", ""),
            ("TOWERWS_POSITION_KEY_FILE", "position-key-file", "", "position-key", ""),
            ("TOWERWS_LISTEN", "listen", "ssl:8051:privateKey=", "tls.pem", ":interface=127.0.0.1"),
        )
    ],
)
def test_a_credential_of_the_service(command: list[str], variable: str, value: str, reason: str, step: str) -> None:
    """In a shell one line says which file can't be read, why, and how to run the command."""
    result = CliRunner().invoke(main, [*command, "--auth", "open", "--broker", "amqp://u@127.0.0.1:1/v"], env={variable: value})
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"towerws: {variable} = {value!r}: can't be read here, because {reason}: {step}\n"


def test_a_secret_of_the_service() -> None:
    """The same holds for a file that is read later. `config` prints the configuration, since it needs no secret."""
    arguments = ["--auth", "jwt", "--jwt-algorithms", "HS256", "--jwt-secret-file", "/run/credentials/towerws.service/jwt-secret"]
    arguments += ["--broker", "embedded:", *FREE[2:]]
    checked = run_check(*arguments)
    assert checked.exit_code == 2
    assert "because systemd gives jwt-secret to towerws.service only" in checked.stderr
    asked = CliRunner().invoke(main, ["doctor", *arguments])
    step = "run this with sudo and --jwt-secret-file /etc/towerws/jwt-secret (the file that LoadCredential=jwt-secret of the unit names)"
    assert f"because systemd gives jwt-secret to towerws.service only -> {step}\n" in asked.stdout
    assert run_config(*arguments).exit_code == 0


def test_a_credential_that_the_service_lacks() -> None:
    """In the service itself the reason is another one."""
    folder = "/run/credentials/towerws.service"
    result = run_check(*FREE, CREDENTIALS_DIRECTORY=folder, TOWERWS_POSITION_KEY_FILE=f"{folder}/position-key")
    assert result.exit_code == 2
    assert "position-key': can't be read: No such file or directory" in result.stderr


def test_config_can_be_used_as_a_file(tmp_path: Path) -> None:
    """The file that it prints gives the same settings, and prints as itself but for the origins."""
    (tmp_path / "password").write_text("p@ss")
    first = tmp_path / "first.toml"
    first.write_text(
        f'broker = "amqp://u@[::1]/a%2Fb"\nbroker_password_file = "{tmp_path}/password"\nauth = ["open"]\ninsecure = true\n'
        'listen = \'tcp6:8051:interface=\\:\\:1\'\nexchange = "quote\\" and \\\\"\n'
        'heartbeat_s = "5s"\nbackoff_min_s = "250ms"\n[history]\nmax_bytes = 8388609\n'
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


@each_row("command", [config_command, check_command])
@each_row("arguments", [(), ("--auth", "open", "--prefetch", "x"), ("--auth=open", "--config", "/nowhere")])
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
    assert "Browsers connect to 127.0.0.1:0. Methods of authentication: open.\n" in result.stdout
    assert "Advice: websocket.ping_s = 60" in result.stdout
    assert "Advice: a password in --broker is shown by ps" in result.stdout
    assert result.stdout.endswith("The configuration is good.\n")
    assert "hunter2!" not in result.output


def test_check_compares_the_limit_of_connections_with_that_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell may have another limit than the daemon. With workers the share of each counts, since each has its own descriptors."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    few = "a daemon of this shell may open 1000 files, and 64 of them are reserved, so 936 connections are its limit"
    said = run_check(*FREE, "--limits-connections", "937").stdout
    assert f"Advice: limits.connections = 937: {few}: set LimitNOFILE=1001 or more in the unit, or lower limits.connections.\n" in said
    assert "limits.connections" not in run_check(*FREE, "--limits-connections", "936").stdout
    assert "limits.connections" not in run_check(*FREE).stdout
    flags = ("--auth", "open", "--broker", "amqp://h", "--workers", "2", "--listen", f"tcp:{free_port()}:interface=127.0.0.1")
    said = run_check(*FREE, *flags, "--limits-connections", "2001").stdout
    assert f"Advice: limits.connections = 2001, of which 1001 are a worker's: {few}: set LimitNOFILE=1065 or more" in said
    assert "limits.connections" not in run_check(*FREE, *flags, "--limits-connections", "1872").stdout


def test_check_without_a_broker(tmp_path: Path) -> None:
    """The embedded source is told, and the groups of the file."""
    file = tmp_path / "towerws.toml"
    file.write_text("[groups.orders]\n[groups.job_events]\n[groups.stock]\n[groups.jobs]\n")
    result = run_check(*FREE, "--config", str(file))
    assert "from no broker" in result.stdout
    assert "Groups in addition to AWX's: orders, stock.\nGroups that replace AWX's: job_events, jobs.\n" in result.stdout
    assert f"Configuration: {file};" in result.stdout


@each_row(
    ("flags", "content", "said"),
    [
        (
            "--auth jwt --jwt-algorithms HS256 --jwt-secret-file FILE",
            None,
            "jwt.secret_file = 'FILE': can't be read: No such file or directory",
        ),
        (
            "--auth jwt --jwt-algorithms HS256 --jwt-secret-file FILE",
            b"short",
            "jwt.secret_file = 'FILE': must hold at least 32 bytes, for HS256",
        ),
        ("--auth jwt --jwt-algorithms none --jwt-secret-file FILE", b"s" * 32, "jwt.algorithms = 'none': must be one or more of"),
        (
            "--auth jwt --jwt-algorithms ES256 --jwt-public-key-file FILE",
            b"key",
            "jwt.public_key_file = 'FILE': must hold a public key in PEM",
        ),
        ("--auth jwt --jwt-algorithms ES256 --jwt-jwks-url http://h/?canary", None, "jwt.jwks_url = http://h…: must be https"),
        (
            "--auth jwt --jwt-algorithms ES256 --jwt-jwks-url https://h/keys --jwt-jwks-ca-file FILE",
            b"",
            "jwt.jwks_ca_file = 'FILE': must hold certificates in PEM form",
        ),
        ("--auth tower --tower-url ftp://h", None, "tower.url = 'ftp://h': must be http://host or https://host"),
        ("--auth tower --tower-url u:canary@h", None, "tower.url = …: must be http://host or https://host"),
        ("--auth jwt --jwt-algorithms ES256 --jwt-jwks-url h/keys", None, "jwt.jwks_url = 'h/keys': must be https://host/path"),
        ("--auth tower --tower-url https://h --tower-tls-ca FILE", b"", "tower.tls_ca = 'FILE': must hold certificates in PEM form"),
        (
            "--auth tower --tower-url https://h --tower-tls-ca FILE",
            b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
            "tower.tls_ca = 'FILE': holds a certificate that is damaged",
        ),
    ],
)
def test_check_finds_what_a_method_cannot_use(tmp_path: Path, flags: str, content: bytes | None, said: str) -> None:
    """A file or address that would stop the start is told by `check`, in one line. `config` still prints it."""
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    arguments = [*FREE, *flags.replace("FILE", str(path)).split()]
    result = run_check(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("towerws: " + said.replace("FILE", str(path)))
    assert "canary" not in line
    assert "The configuration is good" not in result.stdout
    assert run_config(*arguments).exit_code == 0


def test_check_contacts_no_server(tmp_path: Path) -> None:
    """Methods that can be made are good, whether or not their servers answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = run_check(*FREE, "--auth", "jwt,tower", "--tower-url", url, "--jwt-algorithms", "ES256", "--jwt-jwks-url", f"{url}/keys")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (result.exit_code, result.stderr) == (0, "")


def test_check_finds_a_taken_port(taken: int) -> None:
    """A port in use is named, with the option that has it."""
    result = run_check(*FREE, "--listen", f"tcp:{taken}:interface=127.0.0.1")
    assert result.exit_code == 2
    said = f"towerws: --listen = 'tcp:{taken}:interface=127.0.0.1': can't be listened on: "
    said += "Address already in use, perhaps by a running daemon; choose another address with --listen\n"
    assert result.stderr == said
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


@each_row("command", [config_command, check_command])
def test_help_begins_with_the_common_flags(command: Command) -> None:
    """The help has every flag, the common ones first."""
    text = CliRunner().invoke(command, ["--help"]).stdout
    places = {option.key: text.index(f"\n  --{option.flag} ") for option in OPTIONS}
    assert max(places[option.key] for option in OPTIONS if option.common) < min(
        places[option.key] for option in OPTIONS if not option.common
    )


@each_row(
    ("url", "shown"),
    [
        ("https://issuer.example/keys?key=canary", "https://issuer.example/keys?***"),
        ("https://issuer.example/keys?canary", "https://issuer.example/keys?***"),
        ("https://issuer.example/keys?", "https://issuer.example/keys?***"),
        ("https://issuer.example/?a=canary&b=canary", "https://issuer.example/?***"),
        ("https://issuer.example/keys", "https://issuer.example/keys"),
    ],
)
def test_a_key_sets_query_is_not_shown(url: str, shown: str) -> None:
    """It may hold a key of the issuer, and is hidden for any source."""
    flags = ("--auth", "jwt", "--jwt-algorithms", "ES256")
    for result in (
        run_config(*flags, "--jwt-jwks-url", url),
        run_config(*flags, TOWERWS_JWT_JWKS_URL=url),
        run_check(*flags, "--jwt-jwks-url", url),
    ):
        assert "canary" not in result.output
    assert f'jwks_url = "{shown}"' in run_config(*flags, "--jwt-jwks-url", url).stdout


def test_no_part_of_a_url_that_may_be_secret_is_shown() -> None:
    """`config` also prints a URL that the daemon refuses: that is when an operator shows the output to others."""
    rows: list[tuple[str, str]] = [
        ("https://user:canary@host/path", "https://***@host/path"),
        ("https://canary@host", "https://***@host"),
        ("https://user:can@ary@host/path", "https://***@host/path"),
        ("https://user:canary@host/path?key=canary", "https://***@host/path?***"),
        ("https://host/path#canary", "https://host/path#***"),
        ("https://host/path#a?canary", "https://host/path#***"),
        ("https://host?a=@canary", "https://host?***"),
        ("//user:canary@host", "//***@host"),
        ("ftp://user:canary@host/", "ftp://***@host/"),
        ("https://host:8443/a@b/", "https://host:8443/a@b/"),
        ("https://[2001:db8::1]/path", "https://[2001:db8::1]/path"),
    ]
    for url, shown in rows:
        for name, flag in (("url", "--tower-url"), ("jwks_url", "--jwt-jwks-url")):
            output = run_config("--auth", "open", flag, url).output
            assert f'\n{name} = "{shown}"' in output, url
            assert "canary" not in output, url


def test_check_says_what_lies_open(tmp_path: Path) -> None:
    """A secret that every user of the machine can read is among the advice."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 64)
    secret.chmod(0o644)
    result = run_check(*FREE[2:], "--auth", "jwt", "--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret))
    assert "Advice: jwt.secret_file = " in result.stdout
