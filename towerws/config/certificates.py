"""Certificates of `ssl:` and `tls:` endpoints: read from their files and checked. Those of `ssl:` are replaced while the port is open.

Twisted reads the files of an `ssl:` endpoint once, when it parses the endpoint string. `TlsReactor` stands between the endpoint and the
reactor. It gives the port a `ReplaceableCertificate`, which the port asks for each new connection. Open connections keep their certificate.

Twisted also reads the folder of a `tls:` endpoint once, if it has a certificate. Otherwise it reads the folder again at each handshake,
and fails the handshake. So a folder without a certificate is refused, and a renewed one needs a restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.python.filepath import FilePath
from zope.interface import implementer

from towerws.config.addresses import certificate_path
from towerws.core.errors import one_line

_BEGIN = b"-----BEGIN "


def read_certificate(description: str) -> CertificateOptions:
    """Return the certificate and key of an `ssl:` endpoint. Raises `ValueError` with the reason if they can't be used together."""
    caught = TlsReactor(None)
    try:
        serverFromString(cast(Any, caught), description).listen(Factory())
        assert caught.certificate is not None
        caught.certificate.options.getContext()  # compares key and certificate
    except Exception as error:  # noqa: BLE001  OSError, OpenSSL's errors, and any error of pyOpenSSL for a bad PEM
        file = f"{error.filename}: " if isinstance(error, OSError) else ""
        raise ValueError(f"its certificate or key can't be used: {file}{_reason(error)}") from None
    return caught.certificate.options


def check_folder(description: str) -> None:
    """Read the folder of a `tls:` endpoint. Raises `ValueError` if clients could not get each host's certificate from it."""
    try:
        certificates, keys = _read_folder(certificate_path(description))
        if not certificates:
            raise ValueError("it holds no certificate; put it there as a file *.pem, with its key")
        with_key = [each for each in certificates if _public(each) in keys]
        served = {host for each in with_key for host in _hosts(each)}
        if lacking := sorted({host for each in certificates for host in _hosts(each)} - served):
            raise ValueError(f"it holds no key for the certificate of {', '.join(lacking)}; put it there as a file *.pem")
        if not served:
            raise ValueError("no certificate with a key in it names a host (subjectAltName), so clients would get none")
        authorities = {each.subject: each for each in certificates if each not in with_key}
        for each in with_key:
            _check_chain(each, authorities)
        serverFromString(cast(Any, None), description)
    except Exception as error:  # noqa: BLE001  OSError, and any error of the libraries for a bad PEM
        raise ValueError(f"its folder of certificates can't be used: {_reason(error)}") from None


def fingerprint(options: CertificateOptions) -> bytes:
    """Return the SHA-256 hashes of the certificate and of its chain. If they are equal, the endpoint sends the same."""
    assert options.certificate is not None, "an ssl: endpoint has a certificate"
    return b"".join(each.digest("sha256") for each in (options.certificate, *options.extraCertChain))


def _read_folder(folder: str) -> tuple[list[x509.Certificate], set[bytes]]:
    """Return the certificates in the files that Twisted reads, and the public keys of the private ones."""
    certificates: list[x509.Certificate] = []
    keys: set[bytes] = set()
    with os.scandir(folder):  # `walk` takes a folder that is missing for an empty one
        files = [file for file in FilePath(folder).walk() if file.basename().endswith(".pem") and file.isfile()]
    for file in files:
        try:
            for text in file.getContent().split(_BEGIN)[1:]:
                if b"CERTIFICATE" in text.partition(b"\n")[0]:
                    certificates.append(x509.load_pem_x509_certificate(_BEGIN + text))
                else:
                    keys.add(_public(serialization.load_pem_private_key(_BEGIN + text, None)))
        except Exception as error:  # noqa: BLE001  OSError, and any error of the library for a bad PEM
            raise ValueError(f"{file.path}: {_reason(error)}") from None
    return certificates, keys


def _check_chain(certificate: x509.Certificate, authorities: Mapping[x509.Name, x509.Certificate]) -> None:
    """Raise `ValueError` if a certificate's chain leads back to itself, as that of a root does. Twisted would follow it for ever."""
    name, followed = certificate.issuer, set[x509.Name]()
    while name in authorities:
        if name in followed:
            raise ValueError(f"remove the certificate of {name.rfc4514_string()}, a root: clients have it, and it must not be sent")
        followed.add(name)
        name = authorities[name].issuer


def _public(of: Any) -> bytes:
    """Return the public key of a certificate or of a private key."""
    key = of.public_key()
    return bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _hosts(certificate: x509.Certificate) -> list[str]:
    """Return the host names that Twisted serves the certificate for."""
    names = (each.value for each in certificate.extensions if isinstance(each.value, x509.SubjectAlternativeName))
    return [host for each in names for host in each.get_values_for_type(x509.DNSName)]


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or _openssl_reason(error) or str(error) or type(error).__name__
    return one_line(said).partition(". ")[0].removesuffix(".")


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
