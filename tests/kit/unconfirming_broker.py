"""A broker on a port of loopback that answers everything except publications."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from pika import spec
from twisted.internet.task import Clock

from tests.kit.daemon import DEADLINE_S
from tests.kit.fake_amqp import FakeBroker, Peer, Publication


class UnconfirmingBroker:
    """It lives and never confirms. With `alarm`, it reports one and reads nothing after the first publication, as RabbitMQ does.

    It does not answer methods of the class `mute` either.
    """

    def __init__(self, *, alarm: bool = False, mute: type | None = None) -> None:
        self._alarm = alarm
        self._mute = mute
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.got_one = threading.Event()
        """Set at the first publication."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for each in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._sockets.append(client)
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        broker = FakeBroker(Clock())
        broker.confirm = self._published
        broker.mute = self._mute
        peer = Peer(broker, None)
        with client, contextlib.suppress(OSError):
            while piece := client.recv(65536):
                peer.sent_to_us += piece
                peer.receive()
                client.sendall(peer.to_send)
                peer.to_send = b""
                if self._alarm and peer.published and peer.published[-1].whole:
                    self._ended.wait(DEADLINE_S)

    def _published(self, peer: Peer, _publication: Publication) -> None:
        if self._alarm:
            peer.send(0, spec.Connection.Blocked("low on memory"))
        self.got_one.set()
