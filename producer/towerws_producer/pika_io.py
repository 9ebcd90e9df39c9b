"""What pika needs to connect, and its I/O with two changes."""

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
    """pika's parameters for one address."""
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
        stack_timeout=2 * settings.attempt_s,  # ours comes first, and says more
        connection_attempts=1,
        retry_delay=0,
        client_properties={"connection_name": "towerws-producer"},
    )


class _Resolved(AbstractIOReference):
    """A look-up that is over."""

    def cancel(self) -> bool:
        """Too late."""
        return False


class Services(SelectorIOServicesAdapter):
    """pika's I/O, with two changes.

    Names are looked up on our thread: pika starts one for that, which Python 3.12 forbids to an ending process. A socket is closed
    even if the connection ends while it connects: pika leaves that one to the garbage collector.
    """

    def __init__(self, native_loop: Any) -> None:
        super().__init__(native_loop)
        self._sockets: List[socket.socket] = []

    def connect_socket(self, sock: socket.socket, resolved_addr: Any, on_done: Any) -> Any:
        """Connect it, and remember it."""
        self._sockets.append(sock)
        return super().connect_socket(sock, resolved_addr, on_done)  # type: ignore[misc]  # it is a mixin's

    def close_sockets(self) -> None:
        """Close what is still open. The loop has ended."""
        for sock in self._sockets:
            sock.close()

    def getaddrinfo(
        self, host: str, port: int, on_done: Any, family: int = 0, socktype: int = 0, proto: int = 0, flags: int = 0
    ) -> AbstractIOReference:
        """Look it up, and report in the loop's next turn."""
        try:
            found: Any = socket.getaddrinfo(host, port, family, socktype, proto, flags)
        except Exception as error:  # noqa: BLE001 - whatever it is, pika is told
            found = error
        self.add_callback_threadsafe(partial(on_done, found))
        return _Resolved()
