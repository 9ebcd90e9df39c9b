from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.config.test_certificates import pair
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
        ("", {"position-key-file": "SECRET", "broker": "amqp://u@h/v"}, r"position_key_file = .*secret.*chmod"),
        ('[jwt]\njwks_url = "https://i.example/keys?key=canary"', {}, r"towerws\.toml: jwt\.jwks_url has a query.*chmod"),
        ('[jwt]\njwks_url = "https://i.example/keys"', {}, None),
        ("", {"jwt-jwks-url": "https://i.example/keys?key=canary"}, None),
        ("", {"jwt-public-key-file": "SECRET"}, None),
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


TOWER = {"auth": "tower", "tower-url": "https://h"}
NOT_ASKED = """groups.job_events replaces AWX's group and has no object_url, so Tower is not asked what a user may see: \
add object_url = "/api/v2/jobs/{id}/", or remove the table"""


@each_row(
    ("text", "flags", "said"),
    [
        ('[groups.job_events]\nevents = "id"', TOWER, NOT_ASKED),
        ('[groups.job_events]\nevents = "id"\npolicy = "own"', TOWER, NOT_ASKED),
        ("[groups.control]", TOWER, "groups.control replaces AWX's group, so users may hear each other's topics: remove the table"),
        ('[groups.job_events]\nevents = "id"\nobject_url = "/api/v2/jobs/{id}/"', TOWER, None),
        ('[groups.job_events]\npolicy = "never"', TOWER, None),
        ('[groups.control]\npolicy = "own"', TOWER, None),
        ("[groups.jobs]", TOWER, None),
        ("[groups.orders]", TOWER, None),
        ('[groups.job_events]\nevents = "id"', {}, None),  # everybody hears everything, also without this table
    ],
)
def test_a_group_of_the_configuration_that_takes_a_check_of_awx_s_away(
    tmp_path: Path, text: str, flags: dict[str, str], said: str | None
) -> None:
    """A table with the name of one of AWX's groups replaces it. If a check goes with it, a sentence says so."""
    assert list(exposure(loaded(tmp_path, 0o600, text, **flags), uid=1000)) == ([] if said is None else [said])


def test_files_that_everybody_can_change(tmp_path: Path) -> None:
    """A file by which the daemon decides whom to trust is reported if other users may write to it, and so is the configuration."""
    rows: list[tuple[str, dict[str, str], int, tuple[str, ...]]] = [
        # name, flags, mode, what the sentences begin with
        ("a secret", {"jwt-secret-file": "SECRET"}, 0o602, ("jwt.secret_file = ", "FILE: ")),
        ("a public key", {"jwt-public-key-file": "SECRET"}, 0o646, ("jwt.public_key_file = ", "FILE: ")),
        ("the authorities of a key set", {"jwt-jwks-ca-file": "SECRET"}, 0o602, ("jwt.jwks_ca_file = ", "FILE: ")),
        ("the authorities of the API", {"tower-tls-ca": "SECRET"}, 0o602, ("tower.tls_ca = ", "FILE: ")),
        ("the key of positions", {"position-key-file": "SECRET", "broker": "amqp://u@h/v"}, 0o602, ("position_key_file = ", "FILE: ")),
        ("the configuration alone", {}, 0o602, ("FILE: ",)),
        ("a group's file", {"jwt-secret-file": "SECRET"}, 0o660, ()),
        ("a public key that all may read", {"jwt-public-key-file": "SECRET"}, 0o644, ()),
    ]
    for name, flags, mode, begins in rows:
        sentences = list(exposure(loaded(tmp_path, mode, **flags), uid=1000))
        shown = [sentence.replace(str(tmp_path / "towerws.toml"), "FILE") for sentence in sentences]
        assert len(shown) == len(begins), name
        assert all(sentence.startswith(begin) for sentence, begin in zip(shown, begins, strict=True)), (name, shown)
        assert all("can change" in sentence and sentence.endswith("chmod o-w") for sentence in shown), name


@each_row("endpoint", ["ssl:0:privateKey=FILE", "haproxy:ssl:0:privateKey=FILE:certKey=FILE", "tls:FOLDER:0", "tcp:0"])
@each_row("option", ["listen", "admin", "monitor"])
@pytest.mark.filterwarnings("ignore:.*pyOpenSSL:DeprecationWarning", "ignore:.*cryptography's:DeprecationWarning")  # Twisted
def test_keys_of_tls(tmp_path: Path, endpoint: str, option: str) -> None:
    """The private key of an endpoint is reported if other users may read or change it."""
    folder = tmp_path / "keys"
    folder.mkdir(exist_ok=True)
    (folder / "a.pem").write_bytes(b"".join(pair("a.example")))
    (folder / "notes.txt").touch()
    text = endpoint.replace("FILE", f"{folder}/a.pem").replace("FOLDER", str(folder))
    for mode in (0o666, 0o604, 0o602, 0o640, 0o600):
        for file in folder.iterdir():
            file.chmod(mode)
        sentences = list(exposure(loaded(tmp_path, 0o600, **{option: text, "insecure": "true"}), uid=1000))
        said = [f"{option}: '{folder}/a.pem' holds a private key, and every user of this machine can read or change it: chmod o-rwx"]
        assert sentences == (said if mode & 0o006 and str(folder) in text else []), mode


@each_row(("uid", "said"), [(0, True), (1, False), (1000, False), (65534, False)])
def test_root(tmp_path: Path, uid: int, said: bool) -> None:
    """The report says that root is more than necessary."""
    assert any("runs as root" in sentence for sentence in exposure(loaded(tmp_path, 0o600), uid=uid)) is said


def test_the_unit_leaves_no_core_file() -> None:
    """A core file would contain every credential that is in memory."""
    assert "\nLimitCORE=0\n" in UNIT.read_text()
