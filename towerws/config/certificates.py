"""Certificates of `ssl:` endpoints: read from their files, checked, and replaced while the port is open.

Twisted reads the files of an `ssl:` endpoint once, when it parses the endpoint string. `TlsReactor` stands between the endpoint and the
reactor. So the open port asks a `ReplaceableCertificate` for each new connection, and connections that are open keep theirs.
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
        said = getattr(error, "strerror", None) or _openssl_reason(error) or str(error) or type(error).__name__
        raise ValueError(f"its certificate or key can't be used: {one_line(said).removesuffix('.')}") from None
    return caught.certificate.options


def fingerprint(options: CertificateOptions) -> bytes:
    """Return the certificate's hash, to tell whether it is another one."""
    assert options.certificate is not None, "an ssl: endpoint has one"
    return options.certificate.digest("sha256")


def _openssl_reason(error: Exception) -> str:
    """Return the reasons of an error of OpenSSL's, which pyOpenSSL gives as a list of tuples."""
    reasons = error.args[0] if error.args else ()
    return ", ".join(str(reason[-1]) for reason in reasons if isinstance(reason, tuple)) if isinstance(reasons, list) else ""


@implementer(IOpenSSLServerConnectionCreator)
class ReplaceableCertificate:
    """Begins the TLS of new connections, with the certificate that is in force."""

    def __init__(self, options: CertificateOptions) -> None:
        self.options = options
        """The certificate and key in force."""

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        """Twisted calls this for each new connection."""
        return self.options.serverConnectionForTLS(protocol)


class TlsReactor:
    """A reactor for endpoints. It makes the certificate of an `ssl:` endpoint replaceable. Without a reactor it only keeps it."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.certificate: ReplaceableCertificate | None = None
        """The certificate of the endpoint that listens. None if it has none."""

    def on(self, reactor: Any) -> TlsReactor:
        """Open ports with this reactor instead."""
        self._reactor = reactor
        return self

    def listenSSL(
        self, port: int, factory: Any, contextFactory: CertificateOptions, backlog: int = 50, interface: str = ""
    ) -> IListeningPort | None:
        """IReactorSSL: open the port, with a certificate that can be replaced."""
        self.certificate = ReplaceableCertificate(contextFactory)
        if self._reactor is None:
            return None
        port_opened: IListeningPort = self._reactor.listenSSL(port, factory, self.certificate, backlog, interface)
        return port_opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
