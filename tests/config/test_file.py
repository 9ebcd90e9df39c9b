from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.rows import each_row
from towerws.config.file import MAX_FILE_BYTES, SHOWN_CHARACTERS, one_line, read_file, shown, shown_path
from towerws.core.errors import ConfigError
from towerws.core.settings import GroupSettings


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
def test_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
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
    assert one_line("a\n  b") == "a b"
    assert len(one_line("x" * 1000)) == 2 * SHOWN_CHARACTERS + 1
