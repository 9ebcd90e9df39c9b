"""An echo server whose connections are the daemon's own, with only what they say replaced: for `test_conformance.py`.

`python -m tests.echo_server` prints its port, and runs until it is killed.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet import reactor as default_reactor

from towerws.auth.open import Open
from towerws.clock import use_monotonic_clock
from towerws.core.groups import GroupTable
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.intake import Intake
from towerws.core.settings import LimitSettings, WebSocketSettings
from towerws.protocol import WebSocketConnection, WebSocketFactory
from towerws.websocket.desk import Desk

reactor: Any = default_reactor


class EchoConnection(WebSocketConnection):
    """Sends back what it gets. It has no session: that would speak first."""

    def opened(self, response: bytes) -> None:
        """Open, and wait."""
        self.transport.write(response)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message."""
        self.sendMessage(payload, isBinary)


class EchoFactory(WebSocketFactory):
    """Makes them."""

    protocol = EchoConnection


def main() -> None:
    """Listen, say where, and serve."""
    use_monotonic_clock(reactor)
    history = History(1, 1)
    hub = Hub(history)
    intake = Intake(history, hub, max_payload_octets=1, clock=time.monotonic, report=lambda bad: None, new_epoch=lambda: "mark")
    settings = WebSocketSettings(controls_per_s=10**6, controls_burst=10**6)
    factory = EchoFactory(
        Desk(hub, intake, Open(), GroupTable(), settings, reactor), settings, reactor, limits=LimitSettings(connections=1000)
    )
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    print(port.getHost().port, flush=True)  # noqa: T201 - the test reads it
    reactor.run()


if __name__ == "__main__":
    main()
