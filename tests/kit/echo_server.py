"""An echo server for `test_conformance.py`: the daemon's connections, with only their messages replaced.

`python -m tests.kit.echo_server` prints its port, and runs until it is killed. With `own` it answers with the frames that the
daemon builds for its clients, otherwise with Autobahn's. With `deflate` it receives and sends compressed messages.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.internet import reactor as default_reactor

from towerws.auth.chain import Open
from towerws.core.deflate import Deflater
from towerws.core.frames import text_frame
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.ingest import Ingest
from towerws.core.settings import LimitSettings, WebSocketSettings
from towerws.core.topics import GroupTable
from towerws.process import use_monotonic_clock
from towerws.protocol import WebSocketConnection, WebSocketFactory
from towerws.websocket.context import ConnectionContext
from towerws.websocket.send_buffer import open_send_buffer

reactor: Any = default_reactor

LARGEST = 16 * 1024 * 1024
"""The longest message of group 9. The daemon's own limits have their own tests."""


class EchoConnection(WebSocketConnection):
    """Sends each message back. It has no session, which would send a welcome first."""

    own = False
    """Whether text is sent in the daemon's own frames. Binary messages always use Autobahn's: the daemon sends none."""
    deflater: Deflater | None = None

    def opened(self, response: bytes) -> None:
        """The connection is open."""
        self.send_buffer = open_send_buffer(self.transport, LARGEST, self.factory.soon)
        self.transport.write(response)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message has arrived."""
        if isBinary or not self.own:
            self.sendMessage(payload, isBinary)
        elif self._perMessageCompress is None or self.deflater is None:
            self.send_buffer.send(text_frame(payload))
        else:
            self.send_buffer.send(self.deflater.frame(payload))


class EchoFactory(WebSocketFactory):
    """Makes echo connections."""

    protocol = EchoConnection


def main(*how: str) -> None:
    """Listen, print the port, and serve."""
    EchoConnection.own = "own" in how
    EchoConnection.deflater = Deflater(0)
    use_monotonic_clock(reactor)
    history = History(1, 1)
    hub = Hub(history)
    ingest = Ingest(
        history,
        hub,
        max_payload_bytes=1,
        clock=time.monotonic,
        wall_clock=time.time,
        report=lambda bad: None,
        new_epoch=lambda: "mark",
    )
    settings = WebSocketSettings(
        controls_per_s=10**6,
        controls_burst=10**6,
        message_bytes=LARGEST,
        fragments=LARGEST,
        assembly_s=600,
        # A ping ends a case of groups 9, 12 and 13: kosoku 0.1.0 answers it, closes with 1000, and reports "Case did not finish within
        # 480 seconds" after some milliseconds. Case 12.1.5 against any server that pings meanwhile shows it.
        ping_s=3600,
        compression="deflate" in how,
    )
    factory = EchoFactory(
        ConnectionContext(hub, ingest, Open(), GroupTable(), settings, reactor), settings, reactor, limits=LimitSettings(connections=1000)
    )
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    print(port.getHost().port, flush=True)  # noqa: T201 - the test reads it
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
