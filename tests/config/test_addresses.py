from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.config.addresses import parse_address


@each_row(
    ("text", "shown", "local"),
    [
        ("tcp:8051:interface=127.0.0.1", "127.0.0.1:8051", True),
        ("tcp:8051:interface=127.1.2.3:backlog=100", "127.1.2.3:8051", True),
        ("tcp:port=8051:interface=localhost", "localhost:8051", True),
        ("tcp:8051", "0.0.0.0:8051", False),
        ("tcp:0:interface=10.0.0.1", "10.0.0.1:0", False),
        (r"tcp:8051:interface=\:\:1", "[::1]:8051", True),
        (r"tcp6:8051:interface=\:\:1", "[::1]:8051", True),
        (r"tcp6:8051:interface=\:\:ffff\:127.0.0.1", "[::ffff:127.0.0.1]:8051", True),
        ("tcp6:8051", "[::]:8051", False),
        ("ssl:8043:privateKey=key.pem:interface=127.0.0.1", "127.0.0.1:8043", True),
        ("tls:/etc/certs", "[::]:443", False),
        ("haproxy:tcp:8051:interface=127.0.0.1", "127.0.0.1:8051", True),
        ("unix:/run/a.sock:mode=660", "/run/a.sock", True),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0", False),
        ("systemd:domain=UNIX:name=web", "systemd:domain=UNIX:name=web", True),
    ],
)
def test_understood(text: str, shown: str, local: bool) -> None:
    """An endpoint string is parsed as Twisted does, and recognized as local or not."""
    address = parse_address(text)
    assert (str(address), address.local) == (shown, local)


@each_row(
    ("text", "rule"),
    [
        ("", "must be an endpoint"),
        ("8051", "must be an endpoint"),
        ("127.0.0.1:8051", "for example tcp:8051:interface=127.0.0.1"),
        ("tpc:8051", r"did you mean tcp:\?"),
        ("haproxy:", "must be an endpoint"),
        ("stdio:", "must be an endpoint"),
        ("tcp:", "the port must be"),
        ("tcp:http", "the port must be"),
        ("tcp:-1", "the port must be"),
        ("tcp:65536", "the port must be"),
        ("tcp:\uff18\uff10", "the port must be"),
        ("tcp6:8051:interface=::1", r"colons of an IPv6 address or a path as \\:"),
        ("tcp6:8051:interface=127.0.0.1", "is an IPv6 address"),
        ("tcp:8051:iface=127.0.0.1", "takes only port, interface, backlog"),
        ("tcp:8051:backlog=x", "backlog must be"),
        ("tls:", "needs the folder"),
        ("unix:", "needs a path"),
        ("unix:/a:mode=9", "octal"),
        ("unix:/a:lockfile=x", "lockfile"),
        ("systemd:index=0", "needs domain"),
        ("systemd:domain=INET", "either index or name"),
        ("systemd:domain=INET:index=x", "a number from 0"),
        ("tcp:8051\\", "in the middle of an escape"),
    ],
)
def test_refused(text: str, rule: str) -> None:
    """An endpoint on which Twisted could not listen is refused with the rule."""
    with pytest.raises(ValueError, match=rule):
        parse_address(text)


@each_row(
    ("one", "other", "clash"),
    [
        ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.1", True),
        ("tcp:1:interface=127.0.0.1", "tcp:1", True),
        ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.2", False),
        ("tcp:1", "tcp:2", False),
        ("tcp:0", "tcp:0", False),
        ("unix:/a", "unix:/a:mode=660", True),
        ("unix:/a", "tcp:1", False),
        ("tcp:1", "unix:/a", False),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0", True),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1", False),
    ],
)
def test_clashes(one: str, other: str, clash: bool) -> None:
    """Two addresses clash if they can't both be listened on."""
    assert parse_address(one).clashes(parse_address(other)) is clash
