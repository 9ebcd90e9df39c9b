"""The origins of pages that may connect: browsers let any page open a websocket, but they send the page's origin.

A page may connect if its origin has the host and port to which it connects, or that host and the port of the daemon's own pages. The
scheme is not compared, because TLS ends at a proxy. An origin without a port has its scheme's default. A `Host` without a port has the
default of the origin's scheme.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from towerws.core.addresses import read_address

DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

MAX_ORIGIN_BYTES = 512

_HOST = r"(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
_is_origin = re.compile(rf"(?P<scheme>https?|wss?)://{_HOST}", re.ASCII).fullmatch
_is_authority = re.compile(_HOST, re.ASCII).fullmatch


class Origin(NamedTuple):
    """A page's origin, in lower case and with its port."""

    scheme: str
    host: str
    port: int


def read_origin(text: str) -> Origin | None:
    """Read an origin as browsers write it (`https://tower.example.com`). Return None for `null`, `file://` and any other text."""
    return _read_origin(text) if len(text) <= MAX_ORIGIN_BYTES else None


@lru_cache(1024)  # all pages of a site have the same origin: saves 4 of 60 µs of a handshake in memory
def _read_origin(text: str) -> Origin | None:
    found = _is_origin(text.lower())
    if found is None:
        return None
    return Origin(found["scheme"], found["host"], int(found["port"] or DEFAULT_PORTS[found["scheme"]]))


def _read_host(text: str) -> tuple[str, int | None] | None:
    """Return the host and the port (None if there is none) of a value of `Host`. Return None for any other text."""
    return _read_authority(text) if len(text) <= MAX_ORIGIN_BYTES else None


@lru_cache(1024)  # all clients of a site send the same host: saves 2 of 36 µs
def _read_authority(text: str) -> tuple[str, int | None] | None:
    found = _is_authority(text.strip(" \t").lower())
    return None if found is None else (found["host"], int(found["port"]) if found["port"] else None)


class Origins:
    """The origins from which pages may connect, besides the host's own."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raise `ValueError` for a text that is not an origin."""
        self._listed = set()
        for text in texts:
            if (origin := read_origin(text)) is None:
                raise ValueError(f"{text!r:.80} is not an origin: scheme://host or scheme://host:port, without a path")
            self._listed.add(origin)

    def allow(self, text: str | None, hosts: Iterable[str], own_ports: Container[int] = ()) -> bool:
        """Return whether a page of this origin may connect to one of these hosts (values of `Host`).

        `own_ports` are the ports where the daemon serves its own pages. A request without an origin is allowed: a browser always
        sends one.
        """
        if text is None:
            return True
        origin = read_origin(text)
        if origin is None:
            return False
        for host in hosts:  # a loop: the first nearly always matches, and a generator costs as much as the comparison
            if _same_place(origin, host, own_ports):
                return True
        return origin in self._listed

    def lists(self, host: str) -> bool:
        """Return whether an origin with this host and port (a value of `Host`) is listed."""
        return any(_same_place(origin, host, ()) for origin in self._listed)


def is_same_origin(text: str, host: str) -> bool:
    """Return whether a page of the origin `text` connects to its own host and port. `host` is a value of `Host`."""
    return len(text) <= MAX_ORIGIN_BYTES and len(host) <= MAX_ORIGIN_BYTES and _is_same_origin(text, host)


@lru_cache(1024)  # all pages of a site send the same two headers
def _is_same_origin(text: str, host: str) -> bool:
    origin = read_origin(text)
    return origin is not None and _same_place(origin, host, ())


def is_local(host: str) -> bool:
    """Return whether a value of `Host` is `localhost` or an address.

    An attacker can make any other name point to 127.0.0.1. To a browser a page of that name then has the same origin as the daemon
    (DNS rebinding).
    """
    return len(host) <= MAX_ORIGIN_BYTES and _is_local(host)


@lru_cache(1024)  # all clients of a site send the same host
def _is_local(host: str) -> bool:
    found = _read_host(host)
    return found is not None and (found[0] == "localhost" or read_address(found[0].strip("[]")) is not None)


def _same_place(origin: Origin, host: str, own_ports: Container[int]) -> bool:
    found = _read_host(host)
    if found is None or found[0] != origin.host:
        return False
    port = DEFAULT_PORTS[origin.scheme] if found[1] is None else found[1]
    return origin.port == port or origin.port in own_ports
