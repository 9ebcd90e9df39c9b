from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.rows import each_row
from towerws.config.load import Loaded, load_all
from towerws.config.options import OPTIONS
from towerws.config.reload import merge
from towerws.core.errors import ConfigError

TOWER = {"auth": "tower", "tower-url": "http://tower.example"}
BROKER = {"auth": "open", "broker": "amqp://u@h"}


def loaded(flags: dict[str, str], file: Path | None = None) -> Loaded:
    """The settings of a command line, and of a file."""
    return load_all({"auth": "open", **flags, **({} if file is None else {"config": str(file)})}, {})


def test_each_option_has_an_answer() -> None:
    """Whether SIGHUP puts it in force is known for every option, and most of them do."""
    assert all(isinstance(option.reload, bool) for option in OPTIONS)
    reloading = {option.key.partition(".")[0] for option in OPTIONS if option.reload}
    assert {"limits", "websocket", "jwt", "tower", "origins", "trusted_proxies", "log_level"} <= reloading
    assert not reloading & {"broker", "listen", "admin", "auth", "history", "stream", "insecure"}


@each_row(
    ("before", "after", "changed", "restart"),
    [
        ({}, {}, (), ()),
        ({}, {"limits-per-user": "5", "log-level": "warn"}, ("log_level", "limits.per_user"), ()),
        (
            {},
            {"listen": "tcp:1:interface=127.0.0.1"},
            (),
            ("--listen = 'tcp:1:interface=127.0.0.1': needs a restart; 'tcp:8051:interface=127.0.0.1' stays in force until then",),
        ),
        ({"monitor": "tcp:1"}, {}, (), ("monitor = '': needs a restart; 'tcp:1' stays in force until then",)),
        (
            BROKER | {"broker": "amqp://u:canary@h"},
            BROKER | {"broker": "amqp://u:other@h"},
            (),
            ("--broker = [amqp://***@h]: needs a restart; [amqp://***@h] stays in force until then",),
        ),
        (
            {"history-max-age-s": "60"},
            {"websocket-ping-s": "30"},
            ("websocket.ping_s",),
            ("history.max_age_s = 120: needs a restart; 60 stays in force until then",),
        ),
        (TOWER, TOWER | {"tower-url": "http://other.example"}, ("tower.url",), ()),
        (TOWER, {"auth": "open"}, (), ("--auth = ['open']: needs a restart; ['tower'] stays in force until then",)),
        ({}, TOWER, (), ("--auth = ['tower']: needs a restart; ['open'] stays in force until then",)),
    ],
)
def test_what_is_put_in_force_and_what_needs_a_restart(
    before: dict[str, str], after: dict[str, str], changed: tuple[str, ...], restart: tuple[str, ...]
) -> None:
    """Each changed option is either in force or named with both values. No password is shown."""
    old, new = loaded(before), loaded(after)
    merged = merge(old, new)
    assert merged.changed == changed
    assert merged.restart == restart
    for option in OPTIONS:
        wanted = new if option.key in changed else old
        assert merged.loaded.by_key[option.key].value == wanted.by_key[option.key].value, option.key
    assert merged.loaded.settings.listen == old.settings.listen
    assert merged.loaded.settings.tower == (old if "auth" in "".join(restart) else new).settings.tower
    again = merge(merged.loaded, new)
    assert (again.changed, again.restart) == ((), restart), "the same file once more"


def test_groups(tmp_path: Path) -> None:
    """Groups are put in force."""
    file = tmp_path / "towerws.toml"
    file.touch()
    before = loaded({}, file)
    file.write_text("[groups.orders]\nevents = 'any'")
    merged = merge(before, loaded({}, file))
    assert merged.changed == ("groups",)
    assert list(merged.loaded.settings.groups) == ["orders"]


def test_the_content_of_a_broker_s_files(tmp_path: Path) -> None:
    """A new password or position key in the same file is noticed. It needs a restart."""
    password, key = tmp_path / "password", tmp_path / "key"
    password.write_text("one")
    key.write_text("key-one")
    flags = BROKER | {"broker-password-file": str(password), "position-key-file": str(key)}
    before = loaded(flags)
    assert merge(before, loaded(flags)).restart == ()
    password.write_text("two")
    key.write_text("key-two")
    merged = merge(before, loaded(flags))
    ends = ": the file's content has changed and needs a restart; the old content stays in force until then"
    assert merged.restart == (f"--broker-password-file{ends}", f"--position-key-file{ends}")
    assert merged.loaded.settings.broker == before.settings.broker


def test_a_rule_that_the_mixture_breaks() -> None:
    """Old and new settings are valid. What would be in force is not, because one of two options needs a restart."""
    before = loaded({"history-max-bytes": "4MiB"})
    after = loaded({"history-max-bytes": "64MiB", "websocket-backlog-bytes": "8MiB"})
    with pytest.raises(ConfigError, match=r"^--websocket-backlog-bytes = 8388608: websocket.backlog_bytes must be at most"):
        merge(before, after)
