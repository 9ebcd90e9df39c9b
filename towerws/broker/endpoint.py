"""The endpoint of a broker: TCP, or TLS with the certificate and the host name verified."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from twisted.internet import ssl
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from towerws.authorities import read_pem, trust_root
from towerws.core.settings import BrokerSettings, BrokerUrl


def broker_endpoint(reactor: Any, url: BrokerUrl, settings: BrokerSettings) -> IStreamClientEndpoint:
    """Return the endpoint of one broker URL. `tls_ca` (PEM, any number of certificates) replaces the system's authorities.

    It is read again for every attempt, so a renewed file counts. Raises ValueError if `tls_ca` can't be used.
    """
    tcp = HostnameEndpoint(reactor, url.host, url.port, timeout=settings.attempt_s)
    if not url.tls:
        return tcp
    try:
        options = _tls(url.host, read_pem(settings.tls_ca) if settings.tls_ca else None)
    except ValueError as error:
        raise ValueError(f"tls_ca = {settings.tls_ca!r}: {error}") from None
    return wrapClientTLS(options, tcp)


@lru_cache(maxsize=16)
def _tls(host: str, pem: bytes | None) -> Any:
    """Return the TLS context for a host: one for all attempts, as long as the file stays the same.

    A connection that ends leaves reference cycles around its context, and the system's authorities take 870 KiB. That was measured with
    the HTTP client, which uses the same parts (auth/http_client.py).
    """
    return ssl.optionsForClientTLS(host, trustRoot=None if pem is None else trust_root(pem))
