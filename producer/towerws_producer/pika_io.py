"""pika's parameters for a connection, and its I/O with two changes."""

import socket
import ssl
from functools import partial
from typing import Any, List

import pika
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from towerws_producer.address import Address
from towerws_producer.settings import Settings


def parameters(address: Address, settings: Settings) -> Any:
    """Return pika's parameters for one address."""
    options = None
    if address.tls:
        options = pika.SSLOptions(ssl.create_default_context(cafile=settings.tls_ca), address.host)
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.username, address.password),
        ssl_options=options,
        heartbeat=settings.heartbeat_s,
        socket_timeout=settings.connect_s,
        stack_timeout=2 * settings.attempt_s,  # longer than our own timeout, whose text is better
        connection_attempts=1,
        retry_delay=0,
        client_properties={"connection_name": "towerws-producer"},
    )


class _Resolved(AbstractIOReference):
    """A finished name lookup."""

    def cancel(self) -> bool:
        """Return False: it is too late to cancel."""
        return False


class Services(SelectorIOServicesAdapter):
    """pika's I/O, with two changes.

    It looks names up on our thread. pika would start another thread, which Python 3.12 forbids in an ending process. It closes a socket
    even if the connection ends while the socket connects. pika would leave such a socket to the garbage collector.
    """

    def __init__(self, native_loop: Any) -> None:
        super().__init__(native_loop)
        self._sockets: List[socket.socket] = []

    def connect_socket(self, sock: socket.socket, resolved_addr: Any, on_done: Any) -> Any:
        """Connect the socket, and keep it for `close_sockets`."""
        self._sockets.append(sock)
        return super().connect_socket(sock, resolved_addr, on_done)  # type: ignore[misc]  # a mixin has this method

    def close_sockets(self) -> None:
        """Close the sockets that are still open. Call it when the loop has ended."""
        for sock in self._sockets:
            sock.close()

    def getaddrinfo(
        self, host: str, port: int, on_done: Any, family: int = 0, socktype: int = 0, proto: int = 0, flags: int = 0
    ) -> AbstractIOReference:
        """Look the name up, and call `on_done` in the loop's next iteration."""
        try:
            found: Any = socket.getaddrinfo(host, port, family, socktype, proto, flags)
        except Exception as error:  # noqa: BLE001 - `on_done` takes any exception
            found = error
        self.add_callback_threadsafe(partial(on_done, found))
        return _Resolved()
