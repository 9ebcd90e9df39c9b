"""`towerws restart` without a daemon. With one it is in `tests/integration/test_handover.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.broker.test_endpoint import certificate
from tests.kit.rows import each_row
from towerws.commands.restart import restart_command


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's, for a certificate
@each_row(
    ("admin", "why"),
    [
        ("ssl:9051:privateKey=KEY:certKey=PEM:interface=127.0.0.1", "it speaks TLS"),
        (r"tls:/etc/towerws/certs:9051:interface=\:\:1", "it speaks TLS"),
        ("haproxy:tcp:9051:interface=127.0.0.1", "it expects the PROXY protocol"),
        ("systemd:domain=UNIX:name=admin", "the address of a systemd socket is in its unit"),
    ],
)
def test_an_admin_port_that_it_cannot_ask(tmp_path: Path, admin: str, why: str) -> None:
    """One line says why, and what to do instead."""
    if "PEM" in admin:
        pem, key = certificate(tmp_path)
        admin = admin.replace("PEM", str(pem)).replace("KEY", str(key))
    done = CliRunner().invoke(restart_command, ["--auth", "open", "--broker", "embedded:", "--admin", admin])
    assert done.stderr == f"towerws: admin = {admin!r}: this command can't ask there: {why}; use kill -USR2, and read the log\n"
    assert done.exit_code == 3
