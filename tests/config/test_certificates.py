"""The folder of a `tls:` endpoint: what of it can't be served is told before the port opens."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kit.rows import each_row
from towerws.config.certificates import check_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*pyOpenSSL:DeprecationWarning", "ignore:.*cryptography's:DeprecationWarning")  # Twisted
PEM = serialization.Encoding.PEM


def pair(*hosts: str, subject: str = "towerws", issuer: str = "root") -> tuple[bytes, bytes]:
    """A certificate for these host names, and its key. It has no good signature, which only clients check."""
    key = ec.generate_private_key(ec.SECP256R1())
    by, of = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (issuer, subject))
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(by, of, key.public_key(), x509.random_serial_number(), now, now + dt.timedelta(days=1))
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
    secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM), secret


def _in_one_file(folder: Path) -> None:
    (folder / "web.pem").write_bytes(b"".join(pair("a.example", "*.b.example")))


def _as_certbot_writes_them(folder: Path) -> None:
    certificate, key = pair("a.example", issuer="authority")
    authority, _ = pair(subject="authority")
    (folder / "live").mkdir()
    for name, content in (("cert", certificate), ("chain", authority), ("fullchain", certificate + authority), ("privkey", key)):
        (folder / "live" / f"{name}.pem").write_bytes(content)


def _as_kubernetes_mounts_them(folder: Path) -> None:
    (folder / "..2026").mkdir()
    _in_one_file(folder / "..2026")
    (folder / "..data").symlink_to("..2026")
    (folder / "web.pem").symlink_to("..data/web.pem")


def _with_an_old_certificate(folder: Path) -> None:
    (folder / "old.pem").write_bytes(pair("a.example")[0])
    _in_one_file(folder)


@each_row("make", [_in_one_file, _as_certbot_writes_them, _as_kubernetes_mounts_them, _with_an_old_certificate])
def test_a_folder_that_can_be_served(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A key may be in the file of its certificate or in another one, and an authority needs none."""
    (folder := tmp_path / make.__name__).mkdir()
    make(folder)
    check_folder(f"tls:{folder}:8043")


def _missing(folder: Path) -> None:
    folder.rmdir()


def _a_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


def _empty(folder: Path) -> None:
    """Leave it empty."""


def _other_names(folder: Path) -> None:
    (folder / "tls.crt").write_bytes(b"".join(pair("a.example")))


def _a_key_alone(folder: Path) -> None:
    (folder / "key.pem").write_bytes(pair("a.example")[1])


def _no_key(folder: Path) -> None:
    _in_one_file(folder)
    (folder / "shop.pem").write_bytes(pair("shop.example")[0])


def _key_of_another(folder: Path) -> None:
    (folder / "web.pem").write_bytes(pair("a.example")[0] + pair("a.example")[1])


def _no_host(folder: Path) -> None:
    (folder / "web.pem").write_bytes(b"".join(pair()))


def _broken(folder: Path) -> None:
    _in_one_file(folder)
    (folder / "x.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")


def _a_root(folder: Path) -> None:
    _as_certbot_writes_them(folder)
    (folder / "root.pem").write_bytes(pair(subject="root")[0])


def _encrypted(folder: Path) -> None:
    certificate, key = pair("a.example")
    encrypted = serialization.load_pem_private_key(key, None).private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")
    )
    (folder / "web.pem").write_bytes(certificate + encrypted)


def _a_cycle(folder: Path) -> None:
    (folder / "again").symlink_to(folder)


@each_row(
    ("make", "said"),
    [
        (_missing, "No such file or directory"),
        (_a_file, "Not a directory"),
        (_empty, "it holds no certificate; put it there as a file *.pem, with its key"),
        (_other_names, "it holds no certificate; put it there as a file *.pem, with its key"),
        (_a_key_alone, "it holds no certificate; put it there as a file *.pem, with its key"),
        (_no_key, "it holds no key for the certificate of shop.example; put it there as a file *.pem"),
        (_key_of_another, "it holds no key for the certificate of a.example; put it there as a file *.pem"),
        (_no_host, "no certificate with a key in it names a host (subjectAltName), so clients would get none"),
        (_broken, "FOLDER/x.pem: "),
        (_encrypted, "FOLDER/web.pem: Password was not given but private key is encrypted"),
        (_a_root, "remove the certificate of CN=root, a root: clients have it, and it must not be sent"),
        (_a_cycle, "Cycle in file graph"),
    ],
)
def test_a_folder_that_can_t_be_served(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    """Twisted takes a folder that is missing for an empty one, and each client would fail its handshake."""
    (folder := tmp_path / make.__name__).mkdir()
    make(folder)
    with pytest.raises(ValueError, match=r"^its folder of certificates can't be used: ") as caught:
        check_folder(f"haproxy:tls:{folder}:8043")
    assert f"used: {said.replace('FOLDER', str(folder))}" in str(caught.value)
    assert "\n" not in str(caught.value)
