from collections.abc import Mapping, Sequence
from typing import Any

from autobahn.websocket import protocol
from twisted.internet.protocol import ClientFactory, Protocol, ServerFactory
from twisted.python.failure import Failure

class WebSocketAdapterProtocol(Protocol):
    log: Any
    transport: Any  # a stream transport: TCP, TLS or UNIX
    def connectionMade(self) -> None: ...
    def connectionLost(self, reason: Failure = ...) -> None: ...
    def dataReceived(self, data: bytes) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def _closeConnection(self, abort: bool = False) -> None: ...

class WebSocketServerProtocol(WebSocketAdapterProtocol, protocol.WebSocketServerProtocol): ...
class WebSocketClientProtocol(WebSocketAdapterProtocol, protocol.WebSocketClientProtocol): ...
class WebSocketAdapterFactory: ...

class WebSocketServerFactory(WebSocketAdapterFactory, protocol.WebSocketServerFactory, ServerFactory):
    protocol: Any
    log: Any
    def __init__(self, url: str | None = None, protocols: Sequence[str] | None = None, *, reactor: Any = None) -> None: ...

class WebSocketClientFactory(WebSocketAdapterFactory, protocol.WebSocketClientFactory, ClientFactory):
    protocol: Any
    def __init__(
        self,
        url: str | None = None,
        origin: str | None = None,
        protocols: Sequence[str] | None = None,
        useragent: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        reactor: Any = None,
    ) -> None: ...
