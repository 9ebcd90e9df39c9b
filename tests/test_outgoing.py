"""TCP and TLS to a broker, over loopback sockets with a certificate made for the test."""

from __future__ import annotations

import datetime as dt
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import interfaces, protocol, ssl, task
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address
from zope.interface import implementer

from tests.kit.fake_amqp import RecordingSink
from tests.kit.rows import each_row
from towerws.amqp import AmqpSource
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.sources import SourceState
from towerws.outgoing import MAX_FILE_BYTES, broker_endpoint

reactor: Any = _reactor


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Run a test in the reactor."""
    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(test))


async def until(what: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < 10, "not within 10 s"
        await task.deferLater(reactor, 0.01)


def certificate(folder: Path, *, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Return a self-signed certificate for an address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(made.public_bytes(pem))
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate_file, key_file


class Mute(protocol.Protocol):
    """Accepts connections, and never answers, not even a close."""

    def connectionMade(self) -> None:
        """Count the connection."""
        cast("MuteFactory", self.factory).open += 1

    def dataReceived(self, data: bytes) -> None:
        """Keep the bytes."""
        cast("MuteFactory", self.factory).received += data

    def connectionLost(self, reason: Any = None) -> None:
        """Count the end."""
        cast("MuteFactory", self.factory).open -= 1


class MuteFactory(protocol.ServerFactory):
    """Counts its connections."""

    protocol = Mute
    noisy = False

    def __init__(self) -> None:
        self.open = 0
        self.received = b""


@asynccontextmanager
async def listening(files: tuple[Path, Path] | None) -> AsyncIterator[tuple[int, MuteFactory]]:
    """Run a mute server, with TLS if there is a certificate."""
    factory = MuteFactory()
    if files is None:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    else:
        port = reactor.listenSSL(0, factory, ssl.DefaultOpenSSLContextFactory(str(files[1]), str(files[0])), interface="127.0.0.1")
    try:
        yield port.getHost().port, factory
    finally:
        await port.stopListening()
        await until(lambda: factory.open == 0)


@implementer(interfaces.IHostnameResolver)
class Loopback:
    """Resolves some names to 127.0.0.1, and no other name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, addressTypes: Any = None, transportSemantics: str = "TCP"
    ) -> Any:
        """See `IHostnameResolver`."""
        resolutionReceiver.resolutionBegan(None)
        if hostName in self._names:
            resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()


@asynccontextmanager
async def resolved_to_loopback(*names: str) -> AsyncIterator[None]:
    """Resolve these names to 127.0.0.1."""
    before = reactor.installNameResolver(Loopback(names))
    try:
        yield
    finally:
        reactor.installNameResolver(before)


@asynccontextmanager
async def source_to(port: int, *, tls: bool, host: str = "127.0.0.1", **changes: Any) -> AsyncIterator[AmqpSource]:
    """Return a source that tries that port."""
    url = BrokerUrl(host, port, "u", Secret("canary"), "/", tls=tls)
    source = AmqpSource(BrokerSettings(urls=(url,), **changes), RecordingSink(), reactor)
    source.start()
    try:
        yield source
    finally:
        await source.stop()


@each_row("host", ["rabbit_mq", "rabbit-mq.", "r3---a"])
@run
async def test_names_that_resolve(host: str) -> None:
    """A name that only /etc/hosts or Docker's DNS knows may break the rules of IDNA."""
    async with listening(None) as (port, factory), resolved_to_loopback(host), source_to(port, tls=False, host=host):
        await until(lambda: factory.received.startswith(b"AMQP"))


def test_a_host_name_for_which_tls_fails_is_no_fault_of_tls_ca() -> None:
    """Only an error in the file blames tls_ca."""
    url = BrokerUrl("rabbit_mq", 1, "u", Secret("p"), "/", tls=True)
    with pytest.raises(ValueError, match="rabbit_mq") as caught:
        broker_endpoint(reactor, url, BrokerSettings(urls=(url,)))
    assert "tls_ca" not in str(caught.value)


@run
async def test_an_unknown_authority_is_refused(tmp_path: Path) -> None:
    """Certificates are verified by default. The reason has the next step."""
    async with listening(certificate(tmp_path)) as (port, factory), source_to(port, tls=True) as source:
        await until(lambda: source.counters["last_failure"] is not None)
        reason = str(source.counters["last_failure"])
        assert "certificate verify failed" in reason
        assert "tls_ca" in reason
        assert factory.received == b""


@run
async def test_the_authority_in_tls_ca_is_trusted(tmp_path: Path) -> None:
    """With tls_ca the handshake begins. A broker that stays silent over TLS is aborted at the deadline (pitfall F1)."""
    files = certificate(tmp_path)
    async with listening(files) as (port, factory), source_to(port, tls=True, tls_ca=str(files[0]), attempt_s=1) as source:
        await until(lambda: factory.received == b"AMQP\x00\x00\x09\x01")
        assert source.status().state is SourceState.HANDSHAKE
        await until(lambda: "no answer from the broker" in str(source.counters["last_failure"]))
        await until(lambda: factory.open == 0)


@run
async def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    """A trusted certificate for another name is refused."""
    files = certificate(tmp_path, address="127.0.0.2")
    async with listening(files) as (port, factory), source_to(port, tls=True, tls_ca=str(files[0])) as source:
        await until(lambda: source.counters["last_failure"] is not None)
        assert "TLS failed" in str(source.counters["last_failure"])
        assert factory.received == b""


@run
async def test_tls_to_a_port_without(tmp_path: Path) -> None:
    """amqps:// to a port with plain AMQP ends with a reason."""
    async with listening(None) as (port, factory), source_to(port, tls=True, attempt_s=0.3) as source:
        await until(lambda: source.counters["last_failure"] is not None)
        assert factory.received[:1] == b"\x16"


@run
async def test_an_unusable_tls_ca_is_a_reason(tmp_path: Path) -> None:
    """A tls_ca that is missing when it is needed is reported like any other failure, and retried."""
    async with source_to(1, tls=True, tls_ca=str(tmp_path / "gone.pem")) as source:
        assert source.status().state is SourceState.BACKOFF
        assert "gone.pem" in str(source.status().reason)


@run
async def test_stop_over_tls_has_a_deadline(tmp_path: Path) -> None:
    """Where the peer never answers TLS's close, the stop still ends, and so does the connection."""
    files = certificate(tmp_path)
    async with listening(files) as (port, factory), source_to(port, tls=True, tls_ca=str(files[0])) as source:
        await until(lambda: factory.received != b"")
        await source.stop()
        assert source.status().state is SourceState.STOPPED
        await until(lambda: factory.open == 0)


DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@each_row(
    "content", [None, b"", b"no certificate", DAMAGED, b" " * (MAX_FILE_BYTES + 1)], ids=["missing", "empty", "none", "damaged", "huge"]
)
def test_a_tls_ca_that_cannot_be_used_is_said(tmp_path: Path, content: bytes | None) -> None:
    """A missing, empty, damaged or huge file is an error that names it."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    url = BrokerUrl("h", 1, "u", Secret("p"), "/", tls=True)
    with pytest.raises(ValueError, match=str(path)):
        broker_endpoint(reactor, url, BrokerSettings(urls=(url,), tls_ca=str(path)))
