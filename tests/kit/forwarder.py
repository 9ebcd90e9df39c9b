"""A TCP proxy in threads: it may end TLS, and it may hold small answers back, as a proxy that buffers does."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

from tests.kit.daemon import DEADLINE_S


class Forwarder:
    """Forwards to a port of loopback. With `certificate` (and its key) it speaks TLS to its clients.

    The first `at_once` answers of a connection are passed on at once. Later ones are held back until `hold_bytes` have come.
    """

    def __init__(self, port: int, *, certificate: tuple[Path, Path] | None = None, hold_bytes: int = 0, at_once: int = 1) -> None:
        self._target = port
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._hold_bytes = hold_bytes
        self._at_once = at_once
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target), DEADLINE_S)
        except OSError:
            client.close()
            return
        self._sockets += [client, server]
        client.settimeout(DEADLINE_S)
        with client, server:
            try:
                self._pump(client, server)
            except OSError:
                return

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
