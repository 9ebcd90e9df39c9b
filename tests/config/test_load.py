from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from twisted.python import usage

from tests.kit.rows import each_row
from tests.test_outgoing import certificate
from towerws.config.load import (
    MAX_FILE_BYTES,
    SHOWN_CHARACTERS,
    given,
    load,
    load_all,
    read_file,
    shown,
    shown_path,
    usage_flags,
    usage_parameters,
)
from towerws.config.options import OPTIONS, Kind, Option
from towerws.core.errors import ConfigError
from towerws.core.settings import GroupSettings, HistorySettings, Settings, WebSocketSettings

OPEN: dict[str, str | None] = {"auth": "open"}

NO_FOLDER = r"tls:/nowhere:1:interface=\:\:1"


def refusal(flags: dict[str, str | None], environ: dict[str, str] | None = None) -> str:
    """The single line with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(flags, environ or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config_file(folder: Path, text: str) -> str:
    """The path of a file with this text."""
    file = folder / "towerws.toml"
    file.write_text(text)
    return str(file)


def test_defaults() -> None:
    """If only the authentication is chosen, all settings have their defaults."""
    assert load(OPEN, {}) == Settings(broker=None, auth=("open",), history=HistorySettings(), websocket=WebSocketSettings())


def test_defaults_with_a_broker() -> None:
    """The broker's settings have theirs, too. The refill follows history."""
    settings = load({**OPEN, "broker": "amqp://h", "history-max-age-s": "2m"}, {})
    assert settings.broker is not None
    assert (settings.broker.consume, settings.broker.prefetch, settings.broker.refill_s) == ("auto", 1000, 120)
    assert settings.broker.urls[0].host == "h"


def test_authentication_must_be_chosen() -> None:
    """Without a choice the daemon does not start, and the line says what to write."""
    said = refusal({})
    assert 'auth = ["tower"] or ["jwt"]' in said
    assert "--auth open" in said


def test_precedence(tmp_path: Path) -> None:
    """A flag wins over a variable, that over the file, that over the default. Each value knows its source."""
    path = config_file(tmp_path, "prefetch = 1\n[websocket]\ntopics = 1\nfragments = 1\n")
    environ = {"TOWERWS_CONFIG": "/nowhere", "TOWERWS_PREFETCH": "2", "TOWERWS_WEBSOCKET_TOPICS": "2", "PATH": "x"}
    loaded = load_all({**OPEN, "config": path, "prefetch": "3", "heartbeat-s": None}, environ)
    came_from = {key: (setting.value, setting.origin) for key, setting in loaded.by_key.items() if not setting.is_default}
    assert came_from == {
        "auth": (("open",), "--auth"),
        "prefetch": (3, "--prefetch"),
        "websocket.topics": (2, "TOWERWS_WEBSOCKET_TOPICS"),
        "websocket.fragments": (1, f"{path}: websocket.fragments"),
    }
    assert loaded.file == path
    assert loaded.settings.websocket.topics == 2


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """TOWERWS_CONFIG names the file. The file may have all forms of a value."""
    path = config_file(
        tmp_path,
        'auth = "open"\nbroker = ["amqp://a", "amqps://b"]\nmax_payload_bytes = "1MiB"\npassive = true\n'
        'history = {max_age_s = "500s", max_bytes = 8388608}\n[groups.orders]\nevents = ["paid"]\n',
    )
    settings = load({}, {"TOWERWS_CONFIG": path})
    assert settings.broker is not None
    assert [url.host for url in settings.broker.urls] == ["a", "b"]
    assert settings.broker.passive is True
    assert (settings.max_payload_bytes, settings.history) == (1024**2, HistorySettings(max_bytes=8 * 1024**2, max_age_s=500))
    assert settings.groups == {"orders": GroupSettings(events=("paid",))}


def test_a_check_that_is_on_by_default_can_be_switched_off(tmp_path: Path) -> None:
    """It can be switched off by a flag with a value, by a variable and by the file. Lists may be empty."""
    path = config_file(tmp_path, 'auth = "open"\ncheck_origin = false\norigins = []\ntrusted_proxies = ["10.0.0.0/8", "unix"]\n')
    for flags, environ in (
        ({"auth": "open", "check-origin": "false"}, {}),
        (OPEN, {"TOWERWS_CHECK_ORIGIN": "false"}),
        ({"config": path}, {}),
    ):
        access = load(flags, environ).access
        assert (access.check_origin, access.check_xrftoken, access.origins) == (False, True, ())
    assert access.trusted_proxies == ("10.0.0.0/8", "unix")


def test_an_empty_variable_is_not_set() -> None:
    """`TOWERWS_BROKER=` in a unit's environment file changes nothing."""
    assert load(OPEN, {"TOWERWS_BROKER": "", "TOWERWS_CONFIG": "", "TOWERWS_ANYTHING": ""}) == load(OPEN, {})


@each_row(
    ("flags", "environ", "said"),
    [
        ({"prefetch": "many"}, {}, "--prefetch = 'many': must be a whole number"),
        ({"prefetch": "0"}, {}, "--prefetch = '0': must be at least 1"),
        ({"prefetch": ""}, {}, "--prefetch = '': must be a whole number"),
        ({}, {"TOWERWS_PREFETCH": "65536"}, "TOWERWS_PREFETCH = '65536': must be at most 65535"),
        ({}, {"TOWERWS_PASSIVE": "yes"}, "TOWERWS_PASSIVE = 'yes': must be true or false"),
        ({"history-max-bytes": "1MB"}, {}, "--history-max-bytes = '1MB': a size is"),
        ({"history-max-bytes": "x" * 5000}, {}, f"--history-max-bytes = '{'x' * 79}…: a size is"),
        ({"consume": "topic"}, {}, "--consume = 'topic': must be one of auto, stream, queue"),
        ({"auth": "jwd"}, {}, "--auth = ['jwd']: unknown method 'jwd'; there is tower, jwt, open; did you mean jwt"),
        ({"listen": "tcp:8051"}, {}, "--listen = 'tcp:8051': with auth open"),
        ({"admin": "tcp:99999"}, {}, "--admin = 'tcp:99999': the port must be"),
        ({}, {"TOWERWS_PREFETSH": "5"}, "'TOWERWS_PREFETSH': unknown environment variable; did you mean TOWERWS_PREFETCH?"),
        ({"prefetsh": "5"}, {}, "--prefetsh: unknown flag; did you mean --prefetch?"),
        ({"config": "/nowhere/x.toml"}, {}, "--config = '/nowhere/x.toml': can't be read: No such file or directory"),
        ({"config": ""}, {}, "--config = '': can't be read"),
        ({}, {"TOWERWS_CONFIG": "/nowhere"}, "TOWERWS_CONFIG = '/nowhere': can't be read"),
        (
            {"broker": "amqp://h", "heartbeat-s": "11"},
            {},
            "--heartbeat-s = 11: silence_s must be at least twice heartbeat_s (silence_s is 20)",
        ),
        ({"broker": ""}, {}, "--broker = '…': a broker is amqp://"),
        ({"broker": "amqp://h,embedded:"}, {}, "--broker = [amqp://h, '…']: embedded: stands alone"),
        ({"broker": "embeded:"}, {}, "--broker = '…': a broker is amqp://"),
        ({"broker": "amqp://u:pw@h:x"}, {}, "--broker = amqp://***@h…: the port must be"),
        ({"tls-ca": "/nowhere"}, {}, "--tls-ca = '/nowhere': can't be read"),
        ({"tls-ca": __file__}, {}, "must hold certificates in PEM form"),
        ({"listen": "ssl:1:interface=127.0.0.1:privateKey=/nowhere"}, {}, "its certificate or key can't be used: /nowhere: No such file"),
        ({"listen": f"ssl:1:interface=127.0.0.1:privateKey={__file__}"}, {}, "its certificate or key can't be used: "),
        ({"listen": NO_FOLDER}, {}, f"--listen = {NO_FOLDER!r}: its folder of certificates can't be used: No such file"),
        ({"admin": NO_FOLDER}, {}, f"--admin = {NO_FOLDER!r}: its folder of certificates can't be used: No such file"),
        ({"monitor": NO_FOLDER}, {}, f"--monitor = {NO_FOLDER!r}: its folder of certificates can't be used: No such file"),
    ],
)
def test_refused(flags: dict[str, str | None], environ: dict[str, str], said: str) -> None:
    """An invalid value is refused in one line with its source, the value and the rule."""
    assert said in refusal({**OPEN, **flags}, environ)


@each_row(
    ("text", "said"),
    [
        ("prefetch = 1.5", "prefetch = 1.5: must be a whole number"),
        ("prefetch = true", "prefetch = True: must be a whole number"),
        ('passive = "true"', "passive = 'true': must be true or false"),
        ("listen = 8051", "listen = 8051: must be printable text"),
        ('listen = "tcp:1\\n"', r"listen = 'tcp:1\n': must be printable text"),
        ("auth = []", "auth = []: must be a list of words"),
        ("broker = []", "broker = []: must be a URL"),
        ("broker = 5", "broker = (int): must be a URL"),
        ('broker = ["amqp://u:QXZQ@h", 5]', "broker = [amqp://***@h, (int)]: must be a URL"),
        ("[broker]", "broker = (dict): must be a URL"),
        ("heartbeat_s = 0.5", "heartbeat_s = 0.5: a duration here is in whole seconds"),
        ("[history]\nmax_age_s = nan", "history.max_age_s = nan: a duration is"),
        ("[history]\nmax_age_s = 2024-01-01", "history.max_age_s = datetime.date(2024, 1, 1): a duration is"),
    ],
)
def test_refused_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    """The refusal names the file and the key."""
    path = config_file(tmp_path, text)
    assert f"{path}: {said}" in refusal({**OPEN, "config": path} if "auth" not in text else {"config": path})


def test_password_file(tmp_path: Path) -> None:
    """The broker's password is a file's only line. It is used for every URL without one."""
    file = tmp_path / "password"
    file.write_text("p#ss w@rd \n")
    settings = load({**OPEN, "broker": "amqp://u@a,amqp://u@b", "broker-password-file": str(file)}, {})
    assert settings.broker is not None
    assert [url.password.reveal() for url in settings.broker.urls] == ["p#ss w@rd "] * 2


@each_row(("content", "said"), [("", "on a single line"), ("\n", "on a single line"), ("hunter2!\nhunter2!\n", "on a single line")])
def test_bad_password_file(tmp_path: Path, content: str, said: str) -> None:
    """A file without a password, or with several lines, is refused. Its content is not shown."""
    file = tmp_path / "password"
    file.write_text(content)
    line = refusal({**OPEN, "broker": "amqp://u@a", "broker-password-file": str(file)})
    assert said in line
    assert "hunter2!" not in line


def test_two_passwords(tmp_path: Path) -> None:
    """A password in the URL together with a password file is refused, and not shown."""
    file = tmp_path / "password"
    file.write_text("x")
    line = refusal({**OPEN, "broker": "amqp://u:QXZQ@a", "broker-password-file": str(file)})
    assert "amqp://***@a" in line
    assert "use one of them" in line
    assert "QXZQ" not in line


@hypothesis_given(
    st.text(alphabet="QXZ#@:/?%&=+,'\" []\n", min_size=4, max_size=12), st.sampled_from(["h", "", "h:x", "h?a", "h/v/w", "h,x"])
)
def test_no_line_shows_a_password(password: str, rest: str) -> None:
    """No refusal of an invalid URL contains its password, whichever source it has."""
    url = f"amqp://user:{password}@{rest}"
    for flags, environ in (({"broker": url}, {}), ({}, {"TOWERWS_BROKER": f"{url},ftp://{password}@x"})):
        try:
            said = repr(load({**OPEN, **flags}, environ))
        except ConfigError as error:
            said = str(error)
        pieces = {password[i : i + 4] for i in range(len(password) - 3)}
        assert all(piece not in said for piece in pieces if set(piece) & set("QXZ"))


def test_certificate_authorities(tmp_path: Path) -> None:
    """A PEM file is accepted. One whose certificate is damaged ends the start, not the first attempt to connect."""
    pem, _ = certificate(tmp_path)
    settings = load({**OPEN, "broker": "amqps://h", "tls-ca": str(pem)}, {})
    assert settings.broker is not None
    assert settings.broker.tls_ca == str(pem)
    pem.write_text(ssl.DER_cert_to_PEM_cert(b"certificate"))
    assert "holds a certificate that is damaged" in refusal({**OPEN, "broker": "amqps://h", "tls-ca": str(pem)})


class UsageOptions(usage.Options):
    """The flags as twistd defines them."""

    optParameters = usage_parameters()
    optFlags = usage_flags()


def test_flags_for_twistd() -> None:
    """Every option is a flag of twistd. A flag that is not given does not override the environment or the file."""
    options = UsageOptions()
    options.parseOptions(["--auth", "open", "--prefetch=5", "--insecure", "--history-max-bytes", "8MiB"])
    flags = given(options)
    assert {name: value for name, value in flags.items() if value is not None} == {
        "auth": "open",
        "prefetch": "5",
        "insecure": "true",
        "history-max-bytes": "8MiB",
    }
    settings = load(flags, {"TOWERWS_PASSIVE": "true", "TOWERWS_BROKER": "amqp://h"})
    assert settings.broker is not None
    assert (settings.broker.prefetch, settings.broker.passive, settings.insecure) == (5, True, True)


def test_given_takes_clicks_names() -> None:
    """Click's names for flags are understood, and names that are no option are left out."""
    assert given({"history_max_bytes": "1KiB", "config": None, "insecure": False, "verbose": True}) == {
        "history-max-bytes": "1KiB",
        "config": None,
        "insecure": None,
    }


@each_row("option", [option for option in OPTIONS if option.low is not None], ids=lambda option: option.key)
def test_each_number_reaches_its_setting(option: Option) -> None:
    """A number given by flag or by variable reaches its setting."""
    assert option.default is not None
    text = option.format(option.default)
    for flags, environ in (({option.flag: text}, {}), ({}, {option.variable: text})):
        loaded = load_all({**OPEN, **flags}, environ)
        assert loaded.by_key[option.key].value == option.default
        assert not loaded.by_key[option.key].is_default


def test_kinds_are_all_in_use() -> None:
    """Each kind of value is used by an option."""
    assert {option.kind for option in OPTIONS} == set(Kind)


def test_a_kubernetes_service_of_our_name() -> None:
    """A Service called `towerws` sets these for every pod of its namespace, the daemon's too."""
    environ = {
        "TOWERWS_SERVICE_HOST": "10.96.0.11",
        "TOWERWS_SERVICE_PORT": "8051",
        "TOWERWS_PORT": "tcp://10.96.0.11:8051",
        "TOWERWS_PORT_8051_TCP": "tcp://10.96.0.11:8051",
        "TOWERWS_PORT_8051_TCP_PROTO": "tcp",
        "TOWERWS_PORT_8051_TCP_PORT": "8051",
        "TOWERWS_PORT_8051_TCP_ADDR": "10.96.0.11",
    }
    assert load(OPEN, environ) == load(OPEN, {})
    assert load(OPEN, {**environ, "TOWERWS_LISTEN": "tcp:8052:interface=127.0.0.1"}).listen == "tcp:8052:interface=127.0.0.1"


def test_a_port_for_probes() -> None:
    """It may be public without `insecure`, and must differ from the other two. Empty means none. Its former name brings up the new one."""
    assert load({**OPEN, "monitor": "tcp:9052"}, {}).monitor == "tcp:9052"
    assert load(OPEN, {"TOWERWS_MONITOR": ""}).monitor == ""
    assert refusal({**OPEN, "health": "tcp:9052"}) == "--health: unknown flag; did you mean --monitor?"
    for clash in ("tcp:8051", "tcp:9051:interface=127.0.0.1"):
        assert "must not be the same address and port" in refusal({**OPEN, "monitor": clash})
    assert "--monitor = 'tcp:x': the port must be a number" in refusal({**OPEN, "monitor": "tcp:x"})
    assert "must be one of auto, text, json" in refusal({**OPEN, "log-format": "xml"})
    assert "must be one of debug, info, warn, error, critical" in refusal({**OPEN, "log-level": "verbose"})


def written(folder: Path, text: str | bytes) -> str:
    """The path of a file with this content."""
    file = folder / "towerws.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def test_keys_are_flat(tmp_path: Path) -> None:
    """Keys are named as in the table of options, except groups."""
    path = written(
        tmp_path, 'listen = "tcp:1"\nhistory = {max_age_s = 5}\n[websocket]\nping_s = "30s"\n[groups.a]\nevents = "id"\n[groups.b]\n'
    )
    assert read_file(path, "--config") == (
        {"listen": "tcp:1", "history.max_age_s": 5, "websocket.ping_s": "30s"},
        {"a": GroupSettings(events="id"), "b": GroupSettings()},
    )


def test_a_byte_order_mark_is_no_hindrance(tmp_path: Path) -> None:
    """A file saved by a Windows editor can be read."""
    assert read_file(written(tmp_path, b"\xef\xbb\xbfprefetch = 5\r\n"), "--config") == ({"prefetch": 5}, {})


@each_row(
    ("text", "said"),
    [
        ("listen =", "not valid TOML: Invalid value (at "),
        ("auth = open", "not valid TOML: Invalid value (at line 1, column 8); a text needs quotes"),
        ("a = 1\na = 2", "not valid TOML: Cannot overwrite a value (at "),
        ("max-payload-bytes = 1", "unknown key 'max-payload-bytes'; did you mean max_payload_bytes?"),
        ("[history]\nmax_byte = 1", "unknown key 'history.max_byte'; did you mean history.max_bytes?"),
        ("max_bytes = 1", "unknown key 'max_bytes'; did you mean history.max_bytes?"),
        ('"history.max_bytes" = 1', "unknown key 'history.max_bytes'; write it without quotes"),
        ("[histori]\nmax_bytes = 1", "unknown key 'histori'; did you mean history?"),
        ("zzzzzzz = 1", "unknown key 'zzzzzzz'"),
        ("history = 5", "history = 5: must be a table: [history]"),
        ("groups = 5", "groups = 5: must be a table: [groups]"),
        ("[groups.a-b]", "[groups.a-b] = {}: a group's name is"),
        ('[groups."a\\nb"]', r"[groups.'a\nb'] = {}: a group's name is"),
        ('"groups.a" = {}', "unknown key 'groups.a'"),
        ("[groups.a]\nevents = 5", "[groups.a] = {'events': 5}: events must be"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("prefetch = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
        (b"listen = '\xff'", "must be UTF-8, but byte 10 isn't"),
        (b"#" * (MAX_FILE_BYTES + 1), f"must be at most {MAX_FILE_BYTES} bytes"),
    ],
)
def test_refused_files(tmp_path: Path, text: str | bytes, said: str) -> None:
    """A file that can't be used is refused, in one line that names it."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_file(path, "--config")
    assert said in str(caught.value)
    assert path[:60] in str(caught.value)
    assert "\n" not in str(caught.value)


@each_row(("name", "said"), [("none", "No such file"), ("", "directory"), ("\0", "must be the path of a file")])
def test_unreadable(tmp_path: Path, name: str, said: str) -> None:
    """The refusal of an unreadable file also names the setting that named the file."""
    with pytest.raises(ConfigError, match=said) as caught:
        read_file(f"{tmp_path}/{name}", "TOWERWS_CONFIG")
    assert str(caught.value).startswith("TOWERWS_CONFIG = '")


def test_what_is_shown_is_short_and_on_one_line() -> None:
    """Values, paths and other libraries' texts never break the line or fill the screen."""
    assert shown(("a", "b")) == "['a', 'b']"
    assert len(shown("x" * 1000)) == SHOWN_CHARACTERS + 1
    assert shown_path("/a\nb") == r"'/a\nb'"
