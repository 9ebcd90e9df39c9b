"""A TCP proxy in threads: it may end TLS, and it may hold small answers back, as a proxy that buffers does."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.kit.daemon import DEADLINE_S


class Forwarder:
    """Forwards to a port of loopback. With `certificate` (and its key) it speaks TLS to its clients.

    The first `at_once` answers of a connection are passed on at once. Later ones are held back until `hold_bytes` have come. It
    stops listening after `most` connections. `accepted` counts them.
    """

    def __init__(
        self, port: int, *, certificate: tuple[Path, Path] | None = None, hold_bytes: int = 0, at_once: int = 1, most: int | None = None
    ) -> None:
        self._target = port
        self._most = most
        self.accepted = 0
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._hold_bytes = hold_bytes
        self._at_once = at_once
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        """End the connections and wait for their threads. Only a thread closes its own sockets: it may be waiting for them."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE_S)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def cut(self) -> None:
        """End the connections. It still listens."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # an `SSLSocket`'s own `shutdown` takes its TLS away from the thread

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            if self.accepted == self._most:  # before the client gets an answer and can connect again
                self._server.close()
            client.settimeout(DEADLINE_S)
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
            self._sockets.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if isinstance(client, ssl.SSLSocket):
                client.do_handshake()
            with socket.create_connection(("127.0.0.1", self._target), DEADLINE_S) as server:
                self._sockets.append(server)
                self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """Forward until one side ends. One thread for both directions: two must not use one TLS connection at a time."""
        held, answers = b"", 0
        while True:
            decrypted = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if decrypted else select.select([client, server], [], [], DEADLINE_S)[0]
            for source in ready:
                piece = source.recv(65536)
                if not piece:
                    return
                if source is client:
                    server.sendall(piece)
                    continue
                held, answers = held + piece, answers + 1
                if answers <= self._at_once or len(held) >= self._hold_bytes:
                    client.sendall(held)
                    held = b""
