from collections.abc import Callable
from typing import Any

from pika.connection import Connection, Parameters
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol

class _TwistedConnectionAdapter(Connection):
    def __init__(
        self,
        parameters: Parameters | None,
        on_open_callback: Callable[[Connection], object] | None,
        on_open_error_callback: Callable[[Connection, Exception], object] | None,
        on_close_callback: Callable[[Connection, Exception], object] | None,
        custom_reactor: Any = None,
    ) -> None: ...
    def _adapter_disconnect_stream(self) -> None: ...
    def connection_made(self, transport: ITransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...

class TwistedProtocolConnection(Protocol):
    def __init__(self, parameters: Parameters | None = None, custom_reactor: Any = None) -> None: ...
