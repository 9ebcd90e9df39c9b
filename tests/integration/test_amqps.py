"""Publishing over `amqps://` to a real RabbitMQ with TLS, by the producer and by `towerws publish`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from private_rabbitmq import PrivateRabbit, free_port

from tests.integration.authority import Authority
from tests.integration.producer_queue import Queue
from tests.kit.daemon import DEADLINE_S
from towerws.cli import main
from towerws_producer import Producer, Refused


@dataclass(frozen=True)
class TlsBroker:
    """A node whose certificate is for 127.0.0.1. It also listens on 127.0.0.2, for which the certificate is not valid."""

    node: PrivateRabbit
    port: int
    authority: Authority
    files: tuple[Path, Path]

    def url(self, host: str = "127.0.0.1") -> str:
        """The URL of the TLS listener."""
        return f"amqps://guest:guest@{host}:{self.port}"

    @contextmanager
    def certificate(self, files: tuple[Path, Path]) -> Iterator[None]:
        """Use another certificate for a while. The node is told to drop its cached one."""
        kept = [file.read_bytes() for file in self.files]
        for new, file in zip(files, self.files, strict=True):
            shutil.copy(new, file)
        self.node.eval("ssl:clear_pem_cache()")
        try:
            yield
        finally:
            for content, file in zip(kept, self.files, strict=True):
                file.write_bytes(content)
            self.node.eval("ssl:clear_pem_cache()")


@pytest.fixture(scope="module")
def broker(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    """A node with TLS. Without RabbitMQ, `rabbit` skips or fails the test."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "authority")
    certificate, key = authority.sign("broker")
    port = free_port()
    config = f"""
listeners.ssl.1 = 127.0.0.1:{port}
listeners.ssl.2 = 127.0.0.2:{port}
ssl_options.cacertfile = {authority.file}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
"""
    with PrivateRabbit(tmp_path_factory.mktemp("tls-rabbit"), config=config) as node:
        yield TlsBroker(node, port, authority, (certificate, key))


@pytest.fixture
def exchange() -> str:
    """An exchange name of the test's own."""
    return f"amqps-{uuid4().hex}"


def publish(url: str, authority: Path, exchange: str, timeout: float = DEADLINE_S) -> tuple[int, str]:
    """Run `towerws publish`. Returns its exit code and its output."""
    arguments = ["publish", "jobs.summary", '{"by": "command"}', "--broker", url, "--exchange", exchange, "--timeout", str(timeout)]
    done = CliRunner(env={"TOWERWS_TLS_CA": str(authority)}).invoke(main, arguments)
    return done.exit_code, done.stderr


def test_a_good_certificate(broker: TlsBroker, exchange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events arrive if the certificate is for the URL's host, and signed by the authority of the setting or the environment."""
    authority = str(broker.authority.file)
    with Queue(broker.node.url, exchange) as queue:
        with Producer(broker.url(), exchange=exchange, tls_ca=authority) as producer:
            producer.publish("jobs.summary", {"by": "setting"}, timeout=DEADLINE_S)
        monkeypatch.setenv("TOWERWS_TLS_CA", authority)
        with Producer(broker.url(), exchange=exchange) as producer:
            producer.publish("jobs.summary", {"by": "environment"}, timeout=DEADLINE_S)
        assert publish(broker.url(), broker.authority.file, exchange) == (0, "1 event published on jobs.summary and confirmed\n")
        assert queue.payloads(3) == [{"by": "setting"}, {"by": "environment"}, {"by": "command"}]


def test_the_demo(broker: TlsBroker, exchange: str) -> None:
    """`towerws demo` trusts the authority that its own error text names."""
    arguments = ["demo", "--broker", broker.url(), "--exchange", exchange, "--count", "1", "--rate", "100"]
    done = CliRunner(env={"TOWERWS_TLS_CA": ""}).invoke(main, arguments)
    assert (done.exit_code, "TOWERWS_TLS_CA" in done.stderr) == (1, True), done.stderr
    done = CliRunner(env={"TOWERWS_TLS_CA": str(broker.authority.file)}).invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    done = CliRunner(env={"TOWERWS_TLS_CA": "/nonexistent"}).invoke(main, arguments)
    assert (done.exit_code, "TOWERWS_TLS_CA = '/nonexistent': can't be read" in done.stderr) == (2, True), done.stderr


def refused(url: str, authority: Path, exchange: str, why: str) -> None:
    """Both clients report at once why they do not connect, and what to check."""
    with Producer(url, exchange=exchange, tls_ca=str(authority)) as producer:
        with pytest.raises(Refused) as raised:
            producer.publish("jobs.summary", {}, timeout=DEADLINE_S)
        producer.close(timeout=0)
    text = str(raised.value)
    host = url.rpartition("@")[2]
    assert text.startswith(f"connecting to amqps://{host}: TLS failed: ")
    assert why in text
    assert text.endswith("; check the certificate, or tls_ca")
    code, said = publish(url, authority, exchange)
    assert (code, why in said) == (3, True), said


def test_an_unknown_authority(broker: TlsBroker, exchange: str, tmp_path: Path) -> None:
    """A certificate of an authority that is not trusted is refused."""
    refused(broker.url(), Authority(tmp_path, "another").file, exchange, "certificate in certificate chain")


def test_a_certificate_for_another_host(broker: TlsBroker, exchange: str) -> None:
    """The certificate must be for the host of the URL."""
    refused(broker.url("127.0.0.2"), broker.authority.file, exchange, "IP address mismatch, certificate is not valid for '127.0.0.2'")


def test_an_expired_certificate(broker: TlsBroker, exchange: str) -> None:
    """It is refused. The same producer's next attempt accepts the renewed certificate."""
    expired = broker.authority.sign("expired", days=-1)
    with (
        Queue(broker.node.url, exchange) as queue,
        Producer(broker.url(), exchange=exchange, tls_ca=str(broker.authority.file)) as producer,
    ):
        with broker.certificate(expired):
            refused(broker.url(), broker.authority.file, exchange, "certificate has expired")
            producer.emit("jobs.summary", {"by": "patience"})
            with pytest.raises(Refused, match="certificate has expired"):
                producer.publish("jobs.summary", {}, timeout=DEADLINE_S)
        assert queue.payloads(1) == [{"by": "patience"}]
