"""The daemon on other transports than plain TCP: its own TLS, and a UNIX socket for a proxy on the same machine."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import websocket
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from private_rabbitmq import free_port

from tests.integration.test_websocket_daemon import LINGER_S, present, subscribers, wait_until
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.ws_kit import close, request, text

Dial = Callable[[], socket.socket]


def certificate(folder: Path) -> Path:
    """A key and a self-signed certificate for localhost, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    secret = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "localhost.pem"
    path.write_bytes(secret + made.public_bytes(form))
    return path


def tls(folder: Path) -> tuple[str, Dial]:
    """An endpoint with TLS, and a function that connects to it."""
    pem, port = certificate(folder), free_port()
    context = ssl.create_default_context(cafile=str(pem))

    def dial() -> socket.socket:
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")

    return f"ssl:{port}:privateKey={pem}:certKey={pem}:interface=127.0.0.1", dial


def unix(folder: Path) -> tuple[str, Dial]:
    """An endpoint on a UNIX socket, and a function that connects to it."""
    path = folder / "towerws.sock"

    def dial() -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(path))
        return found

    return f"unix:{path}", dial


def test_tls_with_alpn(tmp_path: Path) -> None:
    """Browsers, curl and Prometheus offer protocols (RFC 7301). Each of our ports chooses HTTP/1.1, and speaks it without an offer too."""
    pem = certificate(tmp_path)
    ports = {key: free_port() for key in ("listen", "monitor")}
    flags = [f"--{key}=ssl:{port}:privateKey={pem}:certKey={pem}:interface=127.0.0.1" for key, port in ports.items()]
    chosen: dict[tuple[str, tuple[str, ...]], str | None] = {}
    offers = [("http/1.1",), ("h2", "http/1.1"), ()]
    with Daemon(tmp_path, "embedded:", *flags):
        for key, port in ports.items():
            for offer in offers:
                context = ssl.create_default_context(cafile=str(pem))
                if offer:
                    context.set_alpn_protocols(list(offer))
                with context.wrap_socket(socket.create_connection(("127.0.0.1", port), DEADLINE_S), server_hostname="localhost") as client:
                    chosen[key, offer] = client.selected_alpn_protocol()
                    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert client.recv(9) == b"HTTP/1.1 "
    assert chosen == {(key, offer): "http/1.1" if offer else None for key in ports for offer in offers}


@pytest.mark.parametrize("transport", [tls, unix])
def test_slow_clients(tmp_path: Path, transport: Callable[[Path], tuple[str, Dial]]) -> None:
    """On every transport a client that stops reading falls behind and catches up. One that closes and stalls is aborted."""
    endpoint, dial = transport(tmp_path)
    with Daemon(tmp_path, "embedded:", "--listen", endpoint, f"--websocket-linger-s={LINGER_S}") as daemon:
        # Not `websockets.sync`: its threads share one TLS connection, and CPython lets them damage it (cpython#143756).
        with dial() as healthy, dial() as slow, dial() as stalling:
            bystander = websocket.create_connection("ws://localhost/websocket/", timeout=DEADLINE_S, socket=healthy)
            bystander.recv()
            bystander.send(json.dumps({"groups": {"job_events": [1]}}))
            bystander.recv()
            for raw in (slow, stalling):
                raw.settimeout(DEADLINE_S)
                raw.sendall(request(host="localhost") + text({"groups": {"job_events": [1]}}))
            wait_until(lambda: daemon.get("/status")[1]["requests"]["taken"] == 3)
            for number in range(100):
                daemon.publish("job_events.1", {"n": number, "x": "y" * 100_000})
                assert json.loads(bystander.recv())["n"] == number
            assert daemon.get("/status")[1]["hub"]["behind"] == 2
            stalling.sendall(close())
            wait_until(lambda: subscribers(daemon) == 2)
            wait_until(lambda: present(daemon) == 2, LINGER_S + 2)
            received = bytearray()
            while b'"n": 99,' not in received[-150_000:]:
                received += slow.recv(1024**2)
            places = [received.index(b'"n": %d,' % number) for number in range(100)]
            assert places == sorted(places)
        wait_until(lambda: present(daemon) == 0)
