"""Decides which pages may connect, by the Origin and Host headers of the handshake."""

from __future__ import annotations

from collections.abc import Callable, Container

from towerws.core.errors import HandshakeError
from towerws.core.http_head import Head
from towerws.core.origins import Origins, Proxies, is_local, is_loopback, is_same_origin
from towerws.core.settings import AccessSettings


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
            raise HandshakeError(403, "a page of this origin may not connect here", "origin")

    def may_read_with_cookies(self, head: Head, peer: Callable[[], str]) -> bool:
        """Return whether the page may read the answer to a plain request that has its user's cookies.

        Without `check_origin` a page of any origin may ask. But `/events` and `/history` need no `xrftoken`, so only pages of allowed
        origins may act by a cookie. With the check, a page of another origin gets its refusal and nothing else. It may read that: a
        page that is not told what is wrong can't be mended.
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
            raise HandshakeError(403, "a page of this origin may not connect here", "origin")

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
            raise HandshakeError(403, "on this machine's own address the websocket answers for localhost and addresses only", "host")

    def _hosts(self, head: Head, peer: Callable[[], str]) -> list[str]:
        """The host names that the browser may have asked for, those from a trusted proxy included."""
        host, forwarded = head.headers["host"], head.headers.get("x-forwarded-host")
        if forwarded and self._proxies.trust(peer()):
            return [host, *forwarded.split(",")]
        return [host]
