from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.auth.tower_kit import logged
from towerws.admin.health import MAX_PROBES, PROBE_S, REPORT_EVERY_S, monitor_site
from towerws.admin.metrics import MetricsPage
from towerws.core.sources import SourceState, SourceStatus

PROBE = b"GET /readyz HTTP/1.1\r\nHost: 10.0.0.5:9052\r\nConnection: close\r\n\r\n"


class Port:
    """The port of `monitor`, in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.factory: Any = monitor_site(lambda: SourceStatus(SourceState.CONSUMING), MetricsPage(dict, self.clock.seconds))
        self.factory.wrappedFactory.reactor = self.clock

    def connect(self) -> Client:
        """Open a connection."""
        return Client(self)


class Client:
    """One connection."""

    def __init__(self, port: Port) -> None:
        peer = IPv4Address("TCP", "198.51.100.7", 40000)
        self.transport = StringTransport(peerAddress=peer, hostAddress=peer)
        self._channel = port.factory.buildProtocol(peer)
        self._channel.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """Send bytes. Return all that came back."""
        if not self.ended:
            self._channel.dataReceived(data)
        return bytes(self.transport.value())

    @property
    def ended(self) -> bool:
        """Whether the port ended it."""
        return self.transport.disconnecting or self.transport.disconnected

    def lost(self) -> None:
        """The connection is lost."""
        self._channel.connectionLost(Failure(ConnectionAborted()))


def test_silent_clients_keep_no_probe_out() -> None:
    """A probe is answered while other clients of the port do anything else. No more than so many connections are open."""
    rows: list[tuple[str, bytes, float]] = [
        # name, what each of the others sends, seconds between two of them
        ("silent clients", b"", 0),
        ("clients that send a part", b"GET /readyz HTTP/1.1\r\nX-Slow: ", 0),
        ("clients that keep sending slowly", b"GET /rea", PROBE_S / MAX_PROBES / 2),
        ("clients that speak TLS", b"\x16\x03\x01\x02\x00", 0),
        ("clients with an answer that stay", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 0),
        ("clients that announce a body", b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 0),
    ]
    for name, sends, every_s in rows:
        port = Port()
        others = []
        for _ in range(3 * MAX_PROBES):
            others.append(port.connect())
            others[-1].send(sends)
            port.clock.advance(every_s)
            answer = port.connect().send(PROBE)
            assert answer.startswith(b"HTTP/1.1 200 "), name
            assert sum(not other.ended for other in others) <= MAX_PROBES, name
        for other in others:
            other.lost()


def test_a_full_port_says_so() -> None:
    """The log says once a minute that the port is full."""
    port = Port()
    with logged() as lines:
        for _ in range(MAX_PROBES):
            port.connect()
        assert lines.texts == []
        for _ in range(2):
            for _ in range(5):
                port.connect()
            port.clock.advance(REPORT_EVERY_S)
    said = [text for text in lines.texts if "monitor" in text]
    assert said == [f"the port of monitor has {MAX_PROBES} connections: each further one ends the oldest"] * 2
