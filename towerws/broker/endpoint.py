"""The endpoint of a broker: TCP, or TLS with the certificate and the host name verified."""

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
    """Return the endpoint of one broker URL. `tls_ca` (PEM, any number of certificates) replaces the system's authorities.

    It is read again for every attempt, so a renewed file counts. Raises OSError or ValueError if `tls_ca` can't be used.
    """
    tcp = HostnameEndpoint(reactor, url.host, url.port, timeout=settings.attempt_s)
    if not url.tls:
        return tcp
    pem = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    return wrapClientTLS(_tls(url.host, settings.tls_ca, pem), tcp)


@lru_cache(maxsize=16)
def _tls(host: str, path: str, pem: bytes | None) -> Any:
    """Return the TLS context for a host: one for all attempts, as long as the file stays the same.

    A connection that ends leaves reference cycles around its context, and the system's authorities take 870 KiB. That was measured with
    the HTTP client, which uses the same parts (auth/http_client.py).
    """
    return ssl.optionsForClientTLS(host, trustRoot=None if pem is None else _authorities(path, pem))


def _authorities(path: str, pem: bytes) -> Any:
    parts = pem.split(_PEM_END)[:-1]
    if not parts:
        raise ValueError(f"tls_ca {path} has no PEM certificate")
    try:
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except crypto.Error:
        raise ValueError(f"tls_ca {path} has a damaged certificate") from None
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)
