from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.config.load import load_all
from towerws.doctor.daemon import AdminPort, _descriptors, _Process
from towerws.doctor.examination import Area
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


@each_row(
    ("workers", "said"),
    [
        ("1", "the daemon may open 1000 files: too few for limits.connections = 3000"),
        ("3", "each worker may open 1000 files: too few for limits.connections = 3000, of which 1000 are a worker's"),
    ],
)
def test_too_few_descriptors(workers: str, said: str) -> None:
    """The finding has the configured limit. With several workers it also has a worker's share, which counts."""
    loaded = load_all({"auth": "open", "broker": "amqp://h", "limits-connections": "3000", "workers": workers}, {})
    process = _Process(max_descriptors=1000, open_descriptors=20, max_connections=3000, resident_bytes=0, pid=None)
    finding = _descriptors(Area("daemon"), loaded, process)
    share = 3000 // int(workers)
    assert finding.text == said
    assert finding.change == f"LimitNOFILE={share + 64} in the unit, or a smaller limits.connections"
