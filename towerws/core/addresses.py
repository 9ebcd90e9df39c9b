"""Whose address counts: the TCP peer's, or what proxies that are trusted say of it.

`X-Forwarded-For` grows to the right: each proxy appends the address of who spoke to it, behind whatever that one sent. So
it is read from the right, only as long as the speaker is trusted; what an untrusted one put in front of it is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""What stands for the address of a peer on a UNIX socket, also in the list of trusted proxies."""

LONGEST = 45
"""The octets of the longest address (`INET6_ADDRSTRLEN` less its NUL)."""

HOUSEHOLD_BITS = 64
"""An IPv6 host owns at least a /64 (RFC 6177): its addresses count as one."""


class Proxies:
    """The proxies that are believed."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`ValueError` for what is neither an address, a network (`10.0.0.0/8`) nor `unix`."""
        self._unix = UNIX in texts
        self._networks: list[Network] = [ip_network(text) for text in texts if text != UNIX]

    def trust(self, address: str) -> bool:
        """Whether what this peer says of others is believed."""
        if address == UNIX:
            return self._unix
        if not self._networks:
            return False
        known = read_address(address)
        return known is not None and self._trust(known)

    def client(self, peer: str, forwarded_for: str | None) -> str:
        """The address of the client: the first from the right that is not a trusted proxy's.

        Where the header is missing, or holds what is no address, it is that of the last speaker that could be read.
        """
        if forwarded_for is None or not self.trust(peer):
            return peer
        client = peer
        for text in reversed(forwarded_for.split(",")):
            address = read_address(text.strip(" \t"))
            if address is None:
                break
            client = str(address)
            if not self._trust(address):
                break
        return client

    def _trust(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def read_address(text: str) -> Address | None:
    """An address as such, without a port or a zone; an IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is the IPv4 one."""
    return None if "%" in text or len(text) > LONGEST else _read_address(text)


@lru_cache(8192)  # a client's is read three times at its handshake: 10 % of a connect and subscribe (make bench SCENARIO=storm)
def _read_address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def household(address: str) -> str:
    """What an address is counted as: itself, or its /64."""
    if "." in address and ":" not in address:
        return address  # as it is written: there is one way only
    known = read_address(address)
    if not isinstance(known, IPv6Address):
        return str(known or address)
    return str(ip_network((known, HOUSEHOLD_BITS), strict=False))
