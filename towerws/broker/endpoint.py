"""The endpoint of a broker: TCP, or TLS with the certificate and the host name verified."""

from __future__ import annotations

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
    trust_root = _authorities(settings.tls_ca) if settings.tls_ca else None
    return wrapClientTLS(ssl.optionsForClientTLS(url.host, trustRoot=trust_root), tcp)


def _authorities(path: str) -> Any:
    parts = Path(path).read_bytes().split(_PEM_END)[:-1]
    if not parts:
        raise ValueError(f"tls_ca {path} has no PEM certificate")
    try:
        certificates = [ssl.Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
    except crypto.Error:
        raise ValueError(f"tls_ca {path} has a damaged certificate") from None
    trust: Any = ssl.trustRootFromCertificates  # without annotations in Twisted
    return trust(certificates)
