"""AWX's side of the websockets between its nodes, which the shipped proxies pass on to AWX."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.kit.daemon import DEADLINE_S

NODE_PATHS = ("/websocket/relay/", "/websocket/broadcast/")
"""AWX 22 to 24, and AWX 10 to 21."""


@contextmanager
def awx_node() -> Iterator[int]:
    """The port of an AWX that answers each text with the path and the secret of the opening handshake, and the text."""

    def answer(connection: ServerConnection) -> None:
        assert connection.request is not None
        for text in connection:
            connection.send(f"{connection.request.path} {connection.request.headers.get('secret')} {text!s}")

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield int(server.socket.getsockname()[1])
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)


def check_nodes(port: int) -> None:
    """Connect as another node does through this port, on each path."""
    for path in NODE_PATHS:
        with connect(f"ws://127.0.0.1:{port}{path}", additional_headers={"secret": "nonce:hash"}, open_timeout=DEADLINE_S) as client:
            client.send("an event")
            assert client.recv(DEADLINE_S) == f"{path} nonce:hash an event"
