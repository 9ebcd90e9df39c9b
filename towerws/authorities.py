"""Reads certificate authorities from PEM files, for TLS to the broker, to the API and to the issuer of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from OpenSSL import crypto
from twisted.internet import ssl

MAX_FILE_BYTES: Final = 16 * 1024**2
"""Debian's file with all authorities has 0.2 MB."""

_PEM_END: Final = b"-----END CERTIFICATE-----"


def read_pem(path: str) -> bytes:
    """Return the bytes of a file with authorities. Raises `ValueError` with the reason, which doesn't repeat the path."""
    try:
        with Path(path).open("rb") as file:
            pem = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ValueError(f"can't be read: {getattr(error, 'strerror', None) or 'not a path'}") from None
    if len(pem) > MAX_FILE_BYTES:
        raise ValueError(f"must be at most {MAX_FILE_BYTES} bytes")
    return pem


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
