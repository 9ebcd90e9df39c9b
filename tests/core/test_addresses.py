from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.addresses import Proxies, household

CHAIN = Proxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
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
        ("10.0.0.1", "203.0.113.5:1234", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.005", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::0:5", "2001:db8::5"),
        ("10.0.0.1", "::ffff:203.0.113.5", "203.0.113.5"),
        ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        ("unix", "203.0.113.5", "unix"),
    ],
)
def test_whose_address_counts(peer: str, header: str | None, client: str) -> None:
    """Only what a trusted proxy wrote is read, and only as long as it names an address."""
    assert CHAIN.client(peer, header) == client


def test_a_proxy_on_a_unix_socket() -> None:
    """A UNIX socket has no address: `unix` in the list trusts whoever may open it."""
    assert Proxies(["unix"]).client("unix", "203.0.113.5") == "203.0.113.5"
    assert Proxies(["unix"]).client("127.0.0.1", "203.0.113.5") == "127.0.0.1"


@given(st.text(), st.ip_addresses())
def test_nobody_is_trusted_by_default(header: str, peer: object) -> None:
    """Without a list the header says nothing, whatever is in it."""
    assert Proxies([]).client(str(peer), header) == str(peer)


@given(st.text(alphabet=st.characters(codec="ascii")), st.ip_addresses(v=4))
def test_a_client_cannot_choose_its_address(sent: str, client: object) -> None:
    """Whatever a client sends, behind a proxy that appends as all do it is known by the address that the proxy saw."""
    proxy = Proxies(["192.0.2.7"])
    if str(client) != "192.0.2.7":
        assert proxy.client("192.0.2.7", f"{sent}, {client}") == str(client)


@given(st.lists(st.ip_addresses()), st.ip_addresses(), st.lists(st.sampled_from(["10.0.0.1", "10.255.0.1", "fd00::1"])))
def test_a_chain_of_proxies_is_walked(forged: list[object], client: object, proxies: list[str]) -> None:
    """However many trusted proxies stand in between, the first that is none is the client."""
    if not CHAIN.trust(str(client)) and not getattr(client, "ipv4_mapped", None) and "%" not in str(client):
        header = ", ".join(map(str, [*forged, client, *proxies]))
        assert CHAIN.client("10.0.0.1", header) == str(client)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example.com", "", "10.0.0.0/33", "*"])
def test_what_is_no_network(text: str) -> None:
    """A name, or a network with host bits set, is a mistake that is said."""
    with pytest.raises(ValueError, match=r".*"):
        Proxies([text])


def test_households() -> None:
    """An IPv6 host may pick any address of its /64: they count as one. IPv4 addresses and UNIX sockets count as themselves."""
    assert household("2001:db8::1") == household("2001:db8::ffff:1") != household("2001:db8:0:1::1")
    assert household("::ffff:192.0.2.1") == household("192.0.2.1") == "192.0.2.1"
    assert household("unix") == "unix"
