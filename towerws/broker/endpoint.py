"""Where a broker is reached: TCP, or TLS with the certificate and the host name verified."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from towerws.core.settings import BrokerSettings, BrokerUrl

_PEM_END = b"-----END CERTIFICATE-----"


def broker_endpoint(reactor: Any, url: BrokerUrl, settings: BrokerSettings) -> IStreamClientEndpoint:
    """The endpoint of one broker URL. `tls_ca` (PEM, any number of certificates) replaces the system's authorities.

    Raises OSError or ValueError when `tls_ca` can't be used: it is read anew for every attempt, so that a renewed one counts.
    """
    tcp = HostnameEndpoint(reactor, url.host, url.port, timeout=settings.attempt_s)
    if not url.tls:
        return tcp
    pem = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    return wrapClientTLS(_tls(url.host, settings.tls_ca, pem), tcp)


@lru_cache(maxsize=16)
def _tls(host: str, path: str, pem: bytes | None) -> Any:
    """One TLS context for all attempts: a connection that ends leaves cycles around it, and the system's authorities weigh 870 KiB.

    That figure was measured with the HTTP client, which stands on the same parts (auth/http_client.py).
    """
    return ssl.optionsForClientTLS(host, trustRoot=None if pem is None else _authorities(path, pem))


def _authorities(path: str, pem: bytes) -> Any:
    parts = pem.split(_PEM_END)[:-1]
    if not parts:
        raise ValueError(f"tls_ca {path} holds no PEM certificate")
    try:
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except crypto.Error:
        raise ValueError(f"tls_ca {path} holds a certificate that is damaged") from None
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)
