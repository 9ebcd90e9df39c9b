"""What outgoing connections share: the broker's endpoint, certificate authorities, deadlines, and the end of a closed socket."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from OpenSSL import crypto
from twisted.internet import interfaces, ssl
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from towerws.core.settings import BrokerSettings, BrokerUrl

MAX_FILE_BYTES: Final = 16 * 1024**2
"""Debian's file with all authorities has 0.2 MB."""

_PEM_END: Final = b"-----END CERTIFICATE-----"


MakeEndpoint = Callable[[BrokerUrl], IStreamClientEndpoint]
"""Returns the endpoint of a broker, as `broker_endpoint` does."""


def broker_endpoint(reactor: Any, url: BrokerUrl, settings: BrokerSettings) -> IStreamClientEndpoint:
    """Return the endpoint of one broker URL. `tls_ca` (PEM, any number of certificates) replaces the system's authorities.

    The file is read again for every attempt, so a renewed file counts. Raises `ValueError` if `tls_ca` can't be used, and if TLS can't
    be used with the host's name.
    """
    tcp = tcp_endpoint(reactor, url.host, url.port, settings.attempt_s)
    if not url.tls:
        return tcp
    try:
        pem = read_bounded(settings.tls_ca) if settings.tls_ca else None
        trust = None if pem is None else _trust_root(pem)
    except ValueError as error:
        raise ValueError(f"tls_ca = {settings.tls_ca!r}: {error}") from None
    return wrapClientTLS(_tls(url.host, trust), tcp)


def tcp_endpoint(reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
    """Return the endpoint of a host that `check_host` accepts. Names that break the rules of IDNA are resolved, too."""
    endpoint = HostnameEndpoint(reactor, host, port, timeout=timeout_s)
    endpoint._badHostname = False  # noqa: SLF001 - Docker's DNS knows names such as rabbit_mq
    return endpoint


@lru_cache(maxsize=16)
def _trust_root(pem: bytes) -> Any:
    """Return the trust root of this text. Equal texts give the same one, so that `_tls` finds its context again."""
    return trust_root(pem)


@lru_cache(maxsize=16)
def _tls(host: str, trust: Any) -> Any:
    """Return the TLS context for a host. All attempts share it while the file stays the same.

    A connection that ends leaves reference cycles around its context, and the system's authorities take 870 KiB. That was measured with
    the HTTP client, which uses the same parts (auth/http_client.py).
    """
    return ssl.optionsForClientTLS(host, trustRoot=trust)


def read_bounded(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file of at most `max_bytes` bytes. Raises `ValueError` with the reason, which doesn't repeat the path."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ValueError(f"can't be read: {getattr(error, 'strerror', None) or 'not a path'}") from None
    if len(content) > max_bytes:
        raise ValueError(f"must be at most {max_bytes} bytes")
    return content


def trust_root(pem: bytes) -> Any:
    """Return the trust root of the certificates in this text, for Twisted's TLS. Raises `ValueError` with the reason."""
    try:
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in pem.split(_PEM_END)[:-1]]
    except (crypto.Error, ValueError):
        raise ValueError("holds a certificate that is damaged") from None
    if not certificates:
        raise ValueError("must hold certificates in PEM form")
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)


class Deadline:
    """Calls a function once after a delay, unless it is set again or cleared before that."""

    __slots__ = ("_reactor", "_timer")

    def __init__(self, reactor: interfaces.IReactorTime) -> None:
        self._reactor = reactor
        self._timer: interfaces.IDelayedCall | None = None

    def set(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call `call` after `delay_s` seconds. An earlier call that is still due is cancelled."""
        self.clear()
        self._timer = self._reactor.callLater(delay_s, call)

    def clear(self) -> None:
        """Cancel the call. Does nothing if none is due."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def socket_transport(transport: Any) -> Any:
    """Return the transport of the socket itself. With TLS it is inside `transport`."""
    while (inner := getattr(transport, "transport", None)) is not None:
        transport = inner
    return transport


def release(transport: Any) -> None:
    """Break the cycle that a closed outgoing socket is part of. Otherwise only a full collection frees it (`towerws/process.py`).

    The socket, its connector and the endpoint's factory refer to each other, and to OpenSSL's buffers.
    """
    connector = getattr(socket_transport(transport), "connector", None)
    if connector is not None:
        connector.transport = None
        connector.factory._connector = None  # noqa: SLF001
