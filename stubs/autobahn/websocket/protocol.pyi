from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from autobahn.websocket.compress_deflate import PerMessageDeflate
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.python.failure import Failure

class _Timer(Protocol):
    def cancel(self) -> object: ...

class _Timers(Protocol):
    def call_later(self, delay_s: float, call: Callable[[], object], /) -> _Timer: ...

class TrafficStats: ...

class FrameHeader:
    opcode: int
    fin: bool
    rsv: int
    length: int
    mask: bytes | None

class WebSocketProtocol:
    STATE_CLOSED: int
    STATE_CONNECTING: int
    STATE_CLOSING: int
    STATE_OPEN: int

    # An attribute of the connection that the reader may change: not the class's constant.
    state: int
    data: bytes
    inside_message: bool
    current_frame: FrameHeader | None
    send_queue: deque[Any]
    trafficStats: TrafficStats
    utf8validator: Utf8Validator | None
    utf8validateIncomingCurrentMessage: bool
    failedByMe: bool
    wasClean: bool
    wasNotCleanReason: str | None
    openHandshakeTimeoutCall: _Timer | None
    closeHandshakeTimeoutCall: _Timer | None
    autoPingPendingCall: _Timer | None
    autoPingInterval: float
    maxFramePayloadSize: int
    maxMessagePayloadSize: int
    websocket_protocol_in_use: str | None
    websocket_version: int
    _perMessageCompress: PerMessageDeflate | None
    _isMessageCompressed: bool

    def __init__(self) -> None: ...
    def onOpen(self) -> None: ...
    def onMessageBegin(self, isBinary: bool) -> None: ...
    def onMessageFrameBegin(self, length: int) -> None: ...
    def onMessage(self, payload: bytes, isBinary: bool) -> None: ...
    def onPing(self, payload: bytes) -> None: ...
    def onPong(self, payload: bytes) -> None: ...
    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None: ...
    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None: ...
    def onFrameBegin(self) -> None: ...
    def onOpenHandshakeTimeout(self) -> None: ...
    def onAutoPingTimeout(self) -> None: ...
    def consumeData(self) -> None: ...
    def dropConnection(self, abort: bool = False) -> None: ...
    def sendMessage(
        self,
        payload: bytes,
        isBinary: bool = False,
        fragmentSize: int | None = None,
        sync: bool = False,
        doNotCompress: bool = False,
    ) -> None: ...
    def sendClose(self, code: int | None = None, reason: str | None = None) -> None: ...
    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None: ...
    def _connectionMade(self) -> None: ...
    def _connectionLost(self, reason: Failure) -> None: ...
    def _dataReceived(self, data: bytes) -> None: ...
    def _sendAutoPing(self) -> None: ...
    def _protocol_violation(self, reason: str) -> bool: ...
    def _invalid_payload(self, reason: str) -> bool: ...
    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None: ...

class WebSocketServerProtocol(WebSocketProtocol):
    CONFIG_ATTRS: Sequence[str]

class WebSocketClientProtocol(WebSocketProtocol): ...

class WebSocketFactory:
    isSecure: bool
    host: str
    port: int
    _batched_timer: _Timers

class WebSocketServerFactory(WebSocketFactory):
    countConnections: int
    # Autobahn copies each option that is not None.
    def setProtocolOptions(
        self,
        *,
        maxFramePayloadSize: int | None = None,
        maxMessagePayloadSize: int | None = None,
        failByDrop: bool | None = None,
        openHandshakeTimeout: float | None = None,
        closeHandshakeTimeout: float | None = None,
        tcpNoDelay: bool | None = None,
        perMessageCompressionAccept: Callable[[list[Any]], Any] | None = None,
        autoPingInterval: float | None = None,
        autoPingTimeout: float | None = None,
        autoPingSize: int | None = None,
        autoPingRestartOnAnyTraffic: bool | None = None,
    ) -> None: ...

class WebSocketClientFactory(WebSocketFactory):
    def setProtocolOptions(
        self,
        *,
        maxFramePayloadSize: int | None = None,
        maxMessagePayloadSize: int | None = None,
        openHandshakeTimeout: float | None = None,
        autoPingInterval: float | None = None,
        autoPingTimeout: float | None = None,
    ) -> None: ...
