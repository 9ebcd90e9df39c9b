"""Connections, TLS and HTTP for the checks: blocking, with a timeout for each step, and the reason of a failure in one line."""

from __future__ import annotations

import datetime as dt
import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from towerws.doctor.examination import Area, Finding

STEP_S = 5.0
"""Timeout of one step: connecting, TLS, an answer."""

EXPIRES_SOON_DAYS = 14
"""A certificate with fewer days left is a warning. Let's Encrypt's clients would have renewed it 30 days before the end."""

CLOCKS_S = 5.0
"""Allowed difference between two clocks. An HTTP date is in whole seconds."""

MAX_BODY_BYTES = 1024**2
MAX_LINE_CHARACTERS = 200


class Unreachable(Exception):
    """A server can't be asked: no connection, no TLS, or no answer. The text is the reason, and `change` says what to change."""

    def __init__(self, why: str, change: str) -> None:
        super().__init__(why)
        self.change = change


@dataclass(frozen=True, slots=True)
class Fetched:
    """An HTTP answer.

    `seconds` is the time of the answer. `clock_s` is by how many seconds the server's clock is ahead of this machine's, None if the answer
    has no date. `days` is for how many days the server's certificate is still valid, None without TLS.
    """

    status: int
    body: bytes
    seconds: float
    clock_s: float | None
    days: float | None


def connect(host: str, port: int, *, tls: bool, ca: str = "", ca_option: str = "", timeout_s: float = STEP_S) -> socket.socket:
    """Return a connected socket. Raises `Unreachable`. `ca` (a PEM file, named by `ca_option`) replaces the system's authorities."""
    try:
        raw = socket.create_connection((host, port), timeout_s)
    except (OSError, UnicodeError) as error:
        raise Unreachable(reason(error), f"check that it runs, and host {host} and port {port}, and any firewall between") from None
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not tls:
        return raw
    try:
        context = ssl.create_default_context(cafile=ca or None)
        context.set_alpn_protocols(["http/1.1"])
        return context.wrap_socket(raw, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raw.close()
        raise Unreachable(f"TLS: the certificate can't be trusted: {error.verify_message}", _certificate_change(error, ca_option)) from None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raw.close()
        raise Unreachable(f"TLS failed: {reason(error)}", f"check that port {port} of {host} speaks TLS") from None


def days_left(connection: socket.socket) -> float | None:
    """Return for how many days the server's certificate, which was verified, is still valid. None without TLS."""
    if not isinstance(connection, ssl.SSLSocket):
        return None
    certificate = connection.getpeercert() or {}
    ends = certificate.get("notAfter")
    return (ssl.cert_time_to_seconds(ends) - time.time()) / 86400 if isinstance(ends, str) else None


def certificate_finding(area: Area, whose: str, days: float) -> Finding:
    """Return the finding for a certificate that is valid for so many days."""
    if days < 0:
        return area.problem("certificate", f"{whose} expired {-days:.0f} days ago", "renew it, and restart what serves it")
    ends = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).date()
    if days < EXPIRES_SOON_DAYS:
        return area.warning(
            "certificate", f"{whose} expires in {days:.0f} days, on {ends}", "renew it, and check what should have renewed it"
        )
    return area.ok("certificate", f"{whose} is valid until {ends}, for {days:.0f} days")


def clock_finding(area: Area, whose: str, ahead_s: float, allowed_s: float = CLOCKS_S) -> Finding:
    """Return the finding for another machine's clock that is ahead of this machine's by so many seconds."""
    if abs(ahead_s) > allowed_s:
        how = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
        return area.warning("clock", f"the clock of {whose} is {how}", "let both machines follow NTP (timedatectl shows whether one does)")
    return area.ok("clock", f"the clock of {whose} agrees with this machine's, within {allowed_s:g} s")


def fetch(url: str, headers: Mapping[str, str], *, ca: str = "", ca_option: str = "", timeout_s: float = STEP_S) -> Fetched:
    """Send one GET, on a connection of its own, without following redirects. Raises `Unreachable`.

    `seconds` is the time from sending the request to the end of the answer, without connecting.
    """
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    connection = connect(host, parts.port or (443 if tls else 80), tls=tls, ca=ca, ca_option=ca_option, timeout_s=timeout_s)
    return fetch_from(connection, url, headers)


def fetch_from(connection: socket.socket, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Fetched:
    """Send one request on this connection, and close it: a GET, or a POST of `body`. Raises `Unreachable`."""
    parts = urlsplit(url)
    client = http.client.HTTPConnection(parts.netloc)
    client.sock = connection  # with the timeout that the socket has already
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    began = time.monotonic()
    with connection:
        try:
            client.request("GET" if body is None else "POST", path, body, {"Host": parts.netloc, "Connection": "close", **headers})
            answer = client.getresponse()
            content = answer.read(MAX_BODY_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"no HTTP answer: {reason(error)}", "check that this is the server's own address") from None
        seconds = time.monotonic() - began
        return Fetched(answer.status, content, seconds, _clock(answer.headers.get("Date", ""), seconds), days_left(connection))


def reason(error: BaseException) -> str:
    """Return why a connection failed, in one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, socket.gaierror):
        return "the host's name can't be resolved"
    if isinstance(error, (ConnectionResetError, http.client.RemoteDisconnected)):
        return "the connection was closed before an answer"
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(error):
        return "that port doesn't speak TLS"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(str(text))


def shown(text: str) -> str:
    """Return another program's text on one line, printable and shortened."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= MAX_LINE_CHARACTERS else f"{line[:MAX_LINE_CHARACTERS]}…"


def _clock(date: str, seconds: float) -> float | None:
    """Return by how much the clock of a `Date` header is ahead, from its whole seconds and the time of the answer."""
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # The server wrote the date within the last `seconds`, and rounded it down to a whole second. Both errors are corrected by their mean.
    return there + 0.5 + seconds / 2 - time.time()


def _certificate_change(error: ssl.SSLCertVerificationError, ca_option: str) -> str:
    if "expired" in error.verify_message:
        return "renew the certificate, and restart what serves it"
    if "ostname" in error.verify_message or "IP address" in error.verify_message:
        return "use a host name that the certificate is for, or a certificate for this host"
    return f"name its authority in {ca_option or 'the option for authorities'}, and serve the intermediate certificates with it"
