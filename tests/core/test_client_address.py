from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.linear import LONG_BYTES
from tests.kit.rows import each_row
from towerws.core.client_address import Proxies, address_key, forwarded_nodes, read_node

CHAIN = Proxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


def client_of(proxies: Proxies, peer: str, x_forwarded_for: str | None, forwarded: str | None = None) -> str:
    """The client's address, by these headers."""
    return proxies.client(peer, forwarded_nodes(x_forwarded_for, forwarded))


@each_row(
    ("peer", "header", "client"),
    [
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("203.0.113.9", "127.0.0.1", "203.0.113.9"),
        ("203.0.113.9", None, "203.0.113.9"),
        ("10.0.0.1", "127.0.0.1, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "10.0.0.9, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5, 192.0.2.7,10.9.9.9", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5,\t192.0.2.7 ", "203.0.113.5"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5, garbage", "10.0.0.1"),
        ("10.0.0.1", "garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "garbage, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5:1234", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.7:5000, 10.0.0.9:443", "203.0.113.7"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "[2001:DB8::1]:0, [fd00::5]:80", "2001:db8::1"),
        ("10.0.0.1", "[::ffff:203.0.113.5]:80", "203.0.113.5"),
        ("10.0.0.1", ", ,203.0.113.5,,", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5:", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5:http", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5:123456", "10.0.0.1"),
        ("10.0.0.1", "[203.0.113.5", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5]", "10.0.0.1"),
        ("10.0.0.1", "[2001:db8::1]x", "10.0.0.1"),
        ("10.0.0.1", "[fe80::1%eth0]:443", "10.0.0.1"),
        ("10.0.0.1", "\u00b2\u00b3.0.113.5", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5\u00a0", "10.0.0.1"),
        ("10.0.0.1", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("10.0.0.1", "203.0.113.005", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::0:5", "2001:db8::5"),
        ("10.0.0.1", "::ffff:203.0.113.5", "203.0.113.5"),
        ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        ("unix", "203.0.113.5", "unix"),
    ],
)
def test_the_client_address_behind_proxies(peer: str, header: str | None, client: str) -> None:
    """Only what a trusted proxy wrote is read, and only as long as it names an address."""
    assert client_of(CHAIN, peer, header) == client


@each_row(
    ("header", "client"),
    [
        ("for=192.0.2.60", "192.0.2.60"),
        ("For=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
        ("proto=https;by=10.0.0.1;for=192.0.2.60", "192.0.2.60"),
        ('for="192.0.2.60:47011"', "192.0.2.60"),
        ("for=192.0.2.60:47011", "192.0.2.60"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ('FOR="[2001:db8:cafe::17]"', "2001:db8:cafe::17"),
        ('for="2001:db8:cafe::17"', "2001:db8:cafe::17"),
        ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
        ("for=198.51.100.17, for=10.0.0.9;by=10.0.0.1", "198.51.100.17"),
        ('for=198.51.100.17,for="[fd00::9]:80" , for=10.0.0.9 ; proto=http', "198.51.100.17"),
        ("for=192.0.2.60;", "192.0.2.60"),
        ("for=9.9.9.9, for=unknown", "10.0.0.1"),
        ("for=9.9.9.9, for=_hidden", "10.0.0.1"),
        ('for=9.9.9.9, for="_hidden:_port"', "10.0.0.1"),
        ("for=9.9.9.9, proto=http", "10.0.0.1"),
        ("for=9.9.9.9, for=8.8.8.8;for=192.0.2.60", "10.0.0.1"),
        ("for=9.9.9.9, for = 192.0.2.60", "10.0.0.1"),
        ("for=9.9.9.9, garbage", "10.0.0.1"),
        ('for=192.0.2.60;host="a,for=9.9.9.9"', "192.0.2.60"),
        ('for=192.0.2.60;host="a;for=9.9.9.9"', "192.0.2.60"),
        ('for=192.0.2.60;xfor=9.9.9.9;host="for=9.9.9.9"', "192.0.2.60"),
        ('for=9.9.9.9;x=", for=192.0.2.60', "192.0.2.60"),
        ('for=9.9.9.9;x=", for="192.0.2.60"', "192.0.2.60"),
        ('for=9.9.9.9;x=", for="[2001:db8::1]:80";by="[fd00::1]"', "2001:db8::1"),
        ("for=9.9.9.9;x=\\, for=192.0.2.60", "192.0.2.60"),
        ('for=9.9.9.9;x=", for=10.0.0.9', "10.0.0.9"),
        ('for=9.9.9.9;x="\\", for=10.0.0.9', "10.0.0.9"),
        ("", "10.0.0.1"),
        (" , ", "10.0.0.1"),
        ("for=192.0.2.60, ", "192.0.2.60"),
        ("for=192.0.2.60,,\t,", "192.0.2.60"),
        ("for=9.9.9.9, , for=192.0.2.60", "192.0.2.60"),
        ("for=192.0.2.60, , for=10.0.0.9", "192.0.2.60"),
        ('"', "10.0.0.1"),
        ("\\", "10.0.0.1"),
    ],
)
def test_forwarded(header: str, client: str) -> None:
    """Findings P4: RFC 7239, from the right. What a client leaves open in front of it changes nothing of what the proxy wrote."""
    assert client_of(CHAIN, "10.0.0.1", None, header) == client
    assert client_of(CHAIN, "203.0.113.9", None, header) == "203.0.113.9"
    assert client_of(CHAIN, "10.0.0.1", "203.0.113.5", header) == "203.0.113.5", "the other header counts where it is there"


@given(
    st.text(alphabet=st.sampled_from('for=1.2;,"\\ [:]x')),
    st.sampled_from(["for=192.0.2.60", 'for="[2001:db8::1]:80";host="h"', 'by=x;for="192.0.2.60:1"']),
)
def test_a_client_cannot_hide_what_a_proxy_forwarded(sent: str, appended: str) -> None:
    """The element that a proxy appended is read first, for any text that a client sends before it."""
    node = forwarded_nodes(None, f"{sent}, {appended}")[0]
    assert str(read_node(node)) in ("192.0.2.60", "2001:db8::1")


def test_forwarded_is_read_in_linear_time() -> None:
    """Headers 100 times as long as a head may be. A quadratic reader would not end before the timeout."""
    for piece in ('a="', "a=a;", ',"', '"', "for=1,"):
        assert client_of(CHAIN, "10.0.0.1", None, piece * (LONG_BYTES // len(piece))) == "10.0.0.1", "it names no address"


def test_a_proxy_on_a_unix_socket() -> None:
    """A UNIX socket has no address: `unix` in the list trusts every process that may open it."""
    assert client_of(Proxies(["unix"]), "unix", "203.0.113.5") == "203.0.113.5"
    assert client_of(Proxies(["unix"]), "127.0.0.1", "203.0.113.5") == "127.0.0.1"


@given(st.text(), st.ip_addresses())
def test_nobody_is_trusted_by_default(header: str, peer: object) -> None:
    """Without a list of proxies the headers are ignored."""
    assert client_of(Proxies([]), str(peer), header, header) == str(peer)


@given(st.text(alphabet=st.characters(codec="ascii")), st.ip_addresses(v=4))
def test_a_client_cannot_choose_its_address(sent: str, client: object) -> None:
    """Behind a proxy that appends to the header, a client is known by the address that the proxy saw."""
    proxy = Proxies(["192.0.2.7"])
    if str(client) != "192.0.2.7":
        assert client_of(proxy, "192.0.2.7", f"{sent}, {client}") == str(client)


@given(st.lists(st.ip_addresses()), st.ip_addresses(), st.lists(st.sampled_from(["10.0.0.1", "10.255.0.1", "fd00::1"])))
def test_a_chain_of_proxies_is_walked(forged: list[object], client: object, proxies: list[str]) -> None:
    """However many trusted proxies stand in between, the first that is none is the client."""
    if not CHAIN.trust(str(client)) and not getattr(client, "ipv4_mapped", None) and "%" not in str(client):
        header = ", ".join(map(str, [*forged, client, *proxies]))
        assert client_of(CHAIN, "10.0.0.1", header) == str(client)


@each_row("text", ["10.0.0.1/8", "proxy.example.com", "", "10.0.0.0/33", "*"])
def test_what_is_no_network(text: str) -> None:
    """A name, or a network with host bits set, is a mistake that is said."""
    with pytest.raises(ValueError, match=r".*"):
        Proxies([text])


def test_address_keys() -> None:
    """An IPv6 host may pick any address of its /64: they count as one. IPv4 addresses and UNIX sockets count as themselves."""
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:1") != address_key("2001:db8:0:1::1")
    assert address_key("::ffff:192.0.2.1") == address_key("192.0.2.1") == "192.0.2.1"
    assert address_key("unix") == "unix"
