"""A client's address: the TCP peer's, or the one that trusted proxies forward.

`X-Forwarded-For` and `Forwarded` (RFC 7239) grow to the right: each proxy appends the address of its peer after the text that this peer
sent. So they are read from the right, and only while the writer is trusted. Text before an untrusted address is ignored. If both headers
are there, `X-Forwarded-For` counts: proxies that write it pass `Forwarded` on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""Stands for the address of a peer on a UNIX socket, also in the list of trusted proxies."""

MAX_ADDRESS_CHARACTERS = 45
"""The length of the longest address (`INET6_ADDRSTRLEN` without its NUL)."""

ADDRESS_KEY_BITS = 64
"""An IPv6 host has at least a /64 (RFC 6177). Its addresses count as one."""


class Proxies:
    """The trusted proxies."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raise `ValueError` for a text that is not an address, a network (`10.0.0.0/8`) or `unix`."""
        self._unix = UNIX in texts
        self._networks: list[Network] = [ip_network(text) for text in texts if text != UNIX]

    def trust(self, address: str) -> bool:
        """Return whether this peer is a trusted proxy."""
        if address == UNIX:
            return self._unix
        if not self._networks:
            return False
        known = read_address(address)
        return known is not None and self._trust(known)

    def client(self, peer: str, nodes: Sequence[str]) -> str:
        """Return the client's address: the first of the nodes (see `forwarded_nodes`) that is not a trusted proxy.

        Without nodes, or at a node that is not an address, it is the last address that could be read.
        """
        if not nodes or not self.trust(peer):
            return peer
        client = peer
        for text in nodes:
            address = read_node(text)
            if address is None:
                break
            client = str(address)
            if not self._trust(address):
                break
        return client

    def _trust(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def forwarded_nodes(x_forwarded_for: str | None, forwarded: str | None) -> list[str]:
    """Return the addresses that the proxies wrote into the headers, newest first. An unreadable element of `Forwarded` is ''."""
    if x_forwarded_for is not None:
        return [node for text in reversed(x_forwarded_for.split(",")) if (node := text.strip(" \t"))]
    nodes: list[str] = []
    # From the right: a quote that a client leaves open can't hide what the proxy appended.
    text, at = (forwarded or "")[::-1], 0
    while at < len(text):
        end = _element(text, at).end()  # type: ignore[union-attr]  # it matches anywhere
        if element := text[at:end][::-1].strip(" \t"):  # an empty one is none (RFC 9110 section 5.6.1)
            nodes.append(_node_of(element))
        if text[end : end + 1] != ",":  # the end, or a quote or backslash out of place
            return nodes if end == len(text) else [*nodes, ""]
        at = end + 1
    return nodes


_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_element = re.compile(r'(?:[^",\\]++|"[^"\\]*+")*+').match
_pair = re.compile(rf'[ \t]*+({_WORD})=("[^"\\]*+"|[^\s",;\\]++)[ \t]*+(?:;|$)').match


def _node_of(element: str) -> str:
    """Return the value of `for` in one element of `Forwarded`: '' if there is none or more than one, or the element is malformed."""
    nodes, at = [], 0
    while at < len(element):
        pair = _pair(element, at)
        if pair is None:
            return ""
        if pair[1].lower() == "for":
            nodes.append(pair[2].strip('"'))
        at = pair.end()
    return nodes[0] if len(nodes) == 1 else ""


def read_node(text: str) -> Address | None:
    """Read an address as proxies write it: alone, with a port (`192.0.2.1:5000`), or in brackets (`[2001:db8::1]:443`)."""
    found = _is_with_port(text)
    return read_address(text if found is None else found[1] or found[2])


_is_with_port = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5})").fullmatch


def read_address(text: str) -> Address | None:
    """Read an address without a port or a zone. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) becomes the IPv4 one."""
    return None if "%" in text or len(text) > MAX_ADDRESS_CHARACTERS else _read_address(text)


@lru_cache(8192)  # a handshake reads it three times: saves 10 % of a connect and subscribe (make bench SCENARIO=storm)
def _read_address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(text: str) -> bool:
    """Return whether an address without a port is one of this machine's own: 127.0.0.0/8 or ::1.

    A socket on `::` sees 127.0.0.1 as `::ffff:127.0.0.1`, which Python before 3.13 does not take for loopback.
    """
    address = read_address(text.partition("%")[0])
    return address is not None and address.is_loopback


def address_key(address: str) -> str:
    """Return the key under which an address is counted: the address, or an IPv6 address's /64."""
    if "." in address and ":" not in address:
        return address  # IPv4 has only one way to write it
    known = read_address(address)
    if not isinstance(known, IPv6Address):
        return str(known or address)
    return str(ip_network((known, ADDRESS_KEY_BITS), strict=False))
