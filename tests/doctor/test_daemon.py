from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.doctor.daemon import AdminPort
from towerws.doctor.network import Unreachable


@each_row("admin", ["haproxy:unix:/run/towerws/admin.sock", "haproxy:tcp:9051", "systemd:domain=UNIX:index=0", "ssl:9051"])
def test_an_admin_port_that_can_not_be_asked(admin: str) -> None:
    """The doctor says that it can't ask such a port, and does not say that no daemon answers. It doesn't speak the PROXY protocol."""
    port = AdminPort(admin)
    assert port.why_not_asked == f"the doctor can't connect to {admin}: it asks tcp: and unix: addresses only"
    with pytest.raises(Unreachable, match="it asks tcp: and unix: addresses only"):
        port.ask("/readyz")


@each_row("admin", ["unix:/run/towerws/admin.sock", "tcp:9051:interface=127.0.0.1", "tcp6:9051:interface=\\:\\:1"])
def test_an_admin_port_that_can_be_asked(admin: str) -> None:
    """Plain TCP and a UNIX socket."""
    assert AdminPort(admin).why_not_asked is None
