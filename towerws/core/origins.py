"""Which pages may connect, by the Origin and Host headers of the handshake.

Browsers let any page open a websocket, but they send the page's origin. A page may connect if its origin has the host and port to which
it connects, or that host and the port of the daemon's own pages. The scheme is not compared, because TLS ends at a proxy. An origin
without a port has its scheme's default. A `Host` without a port has the default of the origin's scheme.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from towerws.core.client_address import Proxies, is_loopback, read_address
from towerws.core.errors import HandshakeError
from towerws.core.http_head import Head
from towerws.core.settings import AccessSettings

DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

MAX_ORIGIN_BYTES = 512

ORIGIN_REFUSED = "a page of this origin may not connect here"
HOST_REFUSED = "on this machine's own address the websocket answers for localhost and addresses only"
"""The texts of refusals, by which `towerws doctor` knows them from a proxy's."""

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


class PageCheck:
    """The rules of `settings` for pages of other origins.

    `page_ports` returns the ports of the daemon's own pages, which may always connect. The methods take the addresses of a connection as
    functions. Twisted makes an object for each call, and most handshakes need none.
    """

    def __init__(self, settings: AccessSettings, proxies: Proxies, page_ports: Callable[[], Container[int]]) -> None:
        self._check_origin = settings.check_origin
        self._origins = Origins(settings.origins)
        self._proxies = proxies
        self._page_ports = page_ports

    def check_origin(self, head: Head, peer: Callable[[], str]) -> None:
        """Refuse a page of another origin. A client without Origin is no browser, and passes.

        `peer` returns the address at the other end of the TCP connection. Raises `HandshakeError` 403 with the reason `origin`.
        """
        if self._check_origin and not self._is_allowed(head, peer):
            raise HandshakeError(403, ORIGIN_REFUSED, "origin")

    def may_read_with_cookies(self, head: Head, peer: Callable[[], str]) -> bool:
        """Return whether the page may read the answer to a plain request that has its user's cookies.

        Without `check_origin` a page of any origin may ask. But `/events` and `/history` need no `xrftoken`, so only pages of allowed
        origins may act by a cookie. With the check, a page of another origin gets only its refusal. It may read the refusal, so that
        its author learns what is wrong.
        """
        return self._check_origin or self._is_allowed(head, peer)

    def _is_allowed(self, head: Head, peer: Callable[[], str]) -> bool:
        origin = head.headers.get("origin")
        if origin is None or is_same_origin(origin, head.headers["host"]):
            return True
        hosts = self._hosts(head, peer)
        # The daemon's own ports come last: to learn them costs system calls.
        return self._origins.allow(origin, hosts) or self._origins.allow(origin, hosts, self._page_ports())

    def check_site(self, head: Head) -> None:
        """Refuse an element of another site's page, such as an image: its request has a user's cookies but no Origin.

        The page could read nothing. But it would take the user's connections, and a bad token in its URL would count as a failed
        sign-in of the user's address. Browsers send `Sec-Fetch-Site` to https:// and localhost only.

        Raises `HandshakeError` 403 with the reason `origin`.
        """
        site = head.headers.get("sec-fetch-site")
        if self._check_origin and "origin" not in head.headers and site not in (None, "same-origin", "none"):
            raise HandshakeError(403, ORIGIN_REFUSED, "origin")

    def check_host(self, head: Head, peer: Callable[[], str], listening: Callable[[], str]) -> None:
        """Refuse a foreign host name for this machine's loopback address (DNS rebinding), as the admin port does.

        Only for clients without a credential: a browser that was led here by a foreign name has no credential for it. A trusted proxy
        passes on the name that its clients use. `listening` returns the local address of the connection. Raises `HandshakeError` 403
        with the reason `host`.
        """
        host = head.headers["host"]
        if is_local(host) or self._origins.lists(host) or self._proxies.trust(peer()):
            return
        if is_loopback(listening()):
            raise HandshakeError(403, HOST_REFUSED, "host")

    def _hosts(self, head: Head, peer: Callable[[], str]) -> list[str]:
        """Return the host names that the browser may have asked for, including those from a trusted proxy."""
        host, forwarded = head.headers["host"], head.headers.get("x-forwarded-host")
        if forwarded and self._proxies.trust(peer()):
            return [host, *forwarded.split(",")]
        return [host]
