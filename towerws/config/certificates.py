"""Certificates of `ssl:` endpoints: read from their files, checked, and replaced while the port is open.

Twisted reads the files of an `ssl:` endpoint once, when it parses the endpoint string. `TlsReactor` stands between the endpoint and the
reactor. It gives the port a `ReplaceableCertificate`, which the port asks for each new connection. Open connections keep their certificate.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from zope.interface import implementer

from towerws.core.errors import one_line


def read_certificate(description: str) -> CertificateOptions:
    """Return the certificate and key of an `ssl:` endpoint. Raises `ValueError` with the reason if they can't be used together."""
    caught = TlsReactor(None)
    try:
        serverFromString(cast(Any, caught), description).listen(Factory())
        assert caught.certificate is not None
        caught.certificate.options.getContext()  # compares key and certificate
    except Exception as error:  # noqa: BLE001  OSError, OpenSSL's errors, and any error of pyOpenSSL for a bad PEM
        reason = getattr(error, "strerror", None) or _openssl_reason(error) or str(error) or type(error).__name__
        raise ValueError(f"its certificate or key can't be used: {one_line(reason).removesuffix('.')}") from None
    return caught.certificate.options


def fingerprint(options: CertificateOptions) -> bytes:
    """Return the certificate's SHA-256 hash. Two certificates with one hash are the same."""
    assert options.certificate is not None, "an ssl: endpoint has a certificate"
    return options.certificate.digest("sha256")


def _openssl_reason(error: Exception) -> str:
    """Return the reasons of an OpenSSL error, which pyOpenSSL gives as a list of tuples. Empty for any other error."""
    reasons = error.args[0] if error.args else ()
    return ", ".join(str(reason[-1]) for reason in reasons if isinstance(reason, tuple)) if isinstance(reasons, list) else ""


@implementer(IOpenSSLServerConnectionCreator)
class ReplaceableCertificate:
    """Makes the TLS side of new connections, with the certificate that is in force."""

    def __init__(self, options: CertificateOptions) -> None:
        self.options = options
        """The certificate and key in force."""

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        """See `IOpenSSLServerConnectionCreator`. Twisted calls this method for each new connection."""
        return self.options.serverConnectionForTLS(protocol)


class TlsReactor:
    """A reactor for endpoints that makes the certificate of an `ssl:` endpoint replaceable.

    With `reactor` None it opens no port, and only keeps the certificate that the endpoint has read.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.certificate: ReplaceableCertificate | None = None
        """The certificate of the `ssl:` endpoint that listens. None: no such endpoint does."""

    def on(self, reactor: Any) -> TlsReactor:
        """Open ports with this reactor instead. Returns itself."""
        self._reactor = reactor
        return self

    def listenSSL(
        self, port: int, factory: Any, contextFactory: CertificateOptions, backlog: int = 50, interface: str = ""
    ) -> IListeningPort | None:
        """See `IReactorSSL`. Open the port with a certificate that can be replaced."""
        self.certificate = ReplaceableCertificate(contextFactory)
        if self._reactor is None:
            return None
        port_opened: IListeningPort = self._reactor.listenSSL(port, factory, self.certificate, backlog, interface)
        return port_opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
