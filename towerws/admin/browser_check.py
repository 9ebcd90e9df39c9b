"""Keeps pages of other sites away from the admin port, by Host and Origin, and other machines away from events and users."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.web.server import Request

from towerws.admin.endpoint import HttpError
from towerws.core.client_address import is_loopback
from towerws.core.errors import printable
from towerws.core.origins import is_local


def check_browser(request: Request) -> None:
    """Raise `HttpError` 403 for a request that a page of another site may have sent."""
    _check_host(request)
    _check_origin(request)


def check_reader(request: Request) -> None:
    """Raise `HttpError` 403 also for a request that another site made a browser send without an Origin, such as the one for an image.

    Such a page can't read the answer, but it must not cause the work either. Browsers say so in Sec-Fetch-Site (W3C Fetch Metadata).
    """
    check_browser(request)
    site = request.getHeader(b"sec-fetch-site")
    if site not in {None, b"same-origin", b"none"}:
        raise HttpError(
            403,
            f"Sec-Fetch-Site is '{printable(site.decode('latin-1'))}': a page of another site asked for this; "
            "open the console of this port, or use a client that is no browser",
        )


def details_check(*, shown: bool) -> Callable[[Request], None]:
    """Return the check of a path that names events, topics or users. `shown` is `admin_details`. It raises `HttpError` 403."""

    def check(request: Request) -> None:
        check_reader(request)
        if not shown:
            raise HttpError(403, "events and users are not shown here: admin_details is false in the daemon's configuration")
        listening = request.getHost()
        if not isinstance(listening, UNIXAddress) and not is_loopback(listening.host):
            raise HttpError(
                403,
                f"events and users are not shown on {listening.host}: this port has no authentication, and shows them only on loopback or "
                "a UNIX socket; listen there, and use an SSH tunnel",
            )

    return check


def _check_host(request: Request) -> None:
    """Refuse a foreign host name for a loopback address (DNS rebinding).

    Anyone can make a name point to 127.0.0.1. To a browser on this machine, a page of that name would have the same origin as ours.
    """
    listening = request.getHost()
    if not isinstance(listening, (IPv4Address, IPv6Address)) or not is_loopback(listening.host):
        return
    host = (request.getHeader(b"host") or b"localhost").decode("latin-1")
    if not is_local(host):
        raise HttpError(
            403,
            f"the Host is '{printable(host)}': on this machine's own address the admin port answers to localhost and IP addresses only; "
            f"use http://localhost:{listening.port}/",
        )


def _check_origin(request: Request) -> None:
    """Refuse a page of another origin: it can make a browser post here, but its Origin isn't the Host that it posts to."""
    origin = request.getHeader(b"origin")
    if origin is None:
        return
    found, host = _split(origin), request.getHeader(b"host")
    if host is None or found is None or found.netloc != host.decode("latin-1"):
        raise HttpError(
            403,
            f"the Origin is '{printable(origin.decode('latin-1'))}': the admin port refuses pages of another origin; "
            "open the live page of this port, or use a client that is no browser",
        )


def _split(url: bytes) -> SplitResult | None:
    """Split a URL into its parts. None for bytes that are no URL."""
    try:
        return urlsplit(url.decode("ascii"))
    except ValueError:
        return None
