from __future__ import annotations

import re
from pathlib import Path

from tests.kit.rows import each_row
from towerws.config.exposure import exposure
from towerws.config.load import Loaded, load_all

UNIT = Path(__file__).parents[2] / "systemd" / "towerws.service"


def loaded(folder: Path, mode: int, text: str = "", **flags: str) -> Loaded:
    """A configuration whose files all have this mode."""
    secret, file = folder / "secret", folder / "towerws.toml"
    secret.write_bytes(b"s" * 64)
    file.write_text(text)
    for path in (secret, file):
        path.chmod(mode)
    given = {name: value.replace("SECRET", str(secret)) for name, value in flags.items()}
    return load_all({"auth": "open", "config": str(file), **given}, {})


@each_row(
    ("text", "flags", "said"),
    [
        ("", {"jwt-secret-file": "SECRET"}, r"jwt\.secret_file = .*secret.*chmod"),
        ("", {"broker-password-file": "SECRET", "broker": "amqp://u@h/v"}, r"broker_password_file = .*secret.*chmod"),
        ('broker = "amqp://u:canary@h/v"', {}, r"towerws\.toml: holds the broker's password.*chmod"),
        ('broker = ["amqp://h/v", "amqp://u:canary@h/v"]', {}, r"towerws\.toml: holds"),
        ('broker = "amqp://h/v"', {}, None),
        ('broker = "amqp://u:canary@h/v"', {"broker": "amqp://u:other@h/v"}, None),
        ("", {"broker": "amqp://u:canary@h/v"}, None),
        ("", {}, None),
        ("", {"jwt-secret-file": "/nowhere"}, None),
    ],
)
@each_row(("mode", "open_to_all"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False), (0o400, False)])
def test_secrets_that_everybody_can_read(
    tmp_path: Path, text: str, flags: dict[str, str], said: str | None, mode: int, open_to_all: bool
) -> None:
    """Each is reported with its option or file, and the fix. The secret itself is not shown."""
    sentences = list(exposure(loaded(tmp_path, mode, text, **flags), uid=1000))
    if said is None or not open_to_all:
        assert sentences == []
    else:
        (sentence,) = sentences
        assert re.search(said, sentence)
        assert "canary" not in sentence


@each_row(("uid", "said"), [(0, True), (1, False), (1000, False), (65534, False)])
def test_root(tmp_path: Path, uid: int, said: bool) -> None:
    """The report says that root is more than necessary."""
    assert any("runs as root" in sentence for sentence in exposure(loaded(tmp_path, 0o600), uid=uid)) is said


def test_the_unit_leaves_no_core_file() -> None:
    """A core file would contain every credential that is in memory."""
    assert "\nLimitCORE=0\n" in UNIT.read_text()
