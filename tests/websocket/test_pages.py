"""Pages of other sites, and foreign names for this machine: which clients may connect while the daemon asks for no credential."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edge, Edges, SlowMethod, edges, request
from towerws.auth.base import Method
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import AccessSettings

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 8051)
ADMIN_PORT = 9051


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


class Named(Open):
    """Every client has a credential."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(Identity(7, "tower", session="5e55"))


class NoCredential(Open):
    """No client has a credential. It may come in a message."""

    takes_tokens = True

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(None)

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """No test here sends a token."""
        raise AssertionError("a token was looked at")


def status(edge: Edge, host: str, origin: str | None, *, listening: object = LOOPBACK, peer: str = "127.0.0.1") -> int:
    """The status for a browser on the page `origin` that connects to `host`."""
    client = edge.connect(peer)
    transport: Any = client.transport
    transport.getHost = lambda: listening
    client.send(request(without=["Host"], added=[f"Host: {host}", *([] if origin is None else [f"Origin: {origin}"])]))
    return client.status


@each_row("method", [Open, NoCredential, Named, SlowMethod])
@each_row(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8051", True),
        ("http://127.0.0.1:9051", True),
        ("http://evil.example", False),
        ("http://evil.example:8051", False),
        ("http://evil.example:9051", False),
        ("http://127.0.0.1:3000", False),
        ("http://127.0.0.1", False),
        ("http://localhost:9051", False),
        ("http://127.0.0.1.evil.example:9051", False),
        ("null", False),
        ("file://", False),
        ("", False),
    ],
    make=edges,
)
def test_which_pages_may_connect(make: Edges, method: type[Method], origin: str | None, allowed: bool) -> None:
    """A page must come from the host that it connects to, or from the daemon's admin port there. The method makes no difference."""
    edge = make(method())
    edge.factory.pages._page_ports = lambda: (ADMIN_PORT,)
    assert status(edge, "127.0.0.1:8051", origin) == (101 if allowed else 403)
    if not allowed:
        assert edge.factory.refused_for == {"origin": 1}
        if isinstance(edge.context.auth, SlowMethod):
            assert edge.context.auth.handshakes == [], "nothing is asked for a foreign page"


@each_row(
    ("host", "allowed"),
    [
        ("localhost:8051", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8051", True),
        ("[::1]:8051", True),
        ("192.0.2.1", True),
        ("portal.example.com", True),
        ("evil.example:8051", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.", False),
    ],
)
@each_row("listening", [LOOPBACK, IPv4Address("TCP", "127.8.0.1", 8051), IPv6Address("TCP", "::1", 8051)], make=edges)
def test_by_which_name(make: Edges, host: str, allowed: bool, listening: object) -> None:
    """On loopback, without a credential, a foreign name that resolves to this machine is refused, even if the page's origin matches."""
    edge = make(access=AccessSettings(origins=("https://portal.example.com",)))
    for origin in (None, f"http://{host}"):
        assert status(edge, host, origin, listening=listening) == (101 if allowed else 403)
    if not allowed:
        assert edge.factory.refused_for == {"host": 2}


@each_row(
    ("method", "access", "listening"),
    [
        (Named, AccessSettings(), LOOPBACK),
        (NoCredential, AccessSettings(), LOOPBACK),
        (Open, AccessSettings(trusted_proxies=("127.0.0.1",)), LOOPBACK),
        (Open, AccessSettings(), IPv4Address("TCP", "192.0.2.2", 8051)),
        (Open, AccessSettings(), UNIXAddress("/run/towerws.sock")),
    ],
    make=edges,
)
def test_where_any_name_will_do(make: Edges, method: type[Method], access: AccessSettings, listening: object) -> None:
    """Any name is accepted with a credential, on an address of the network, or behind a proxy.

    AWX's own nginx passes on the browser's `Host`, and may not be configured for towerws (contract 4.1).
    """
    assert status(make(method(), access=access), "tower.example.com", "https://tower.example.com", listening=listening) == 101


def test_where_origins_are_not_checked(make: Edges) -> None:
    """The option that switches the check off applies to all pages."""
    assert status(make(access=AccessSettings(check_origin=False)), "127.0.0.1", "http://evil.example") == 101
