import ssl
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from pika.callback import CallbackManager
from pika.channel import Channel
from pika.credentials import PlainCredentials

class SSLOptions:
    def __init__(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None: ...

class Parameters:
    host: str
    port: int
    virtual_host: str
    credentials: PlainCredentials
    heartbeat: int | None
    blocked_connection_timeout: float | None
    socket_timeout: float | None
    stack_timeout: float | None
    connection_attempts: int
    retry_delay: float
    client_properties: dict[str, Any] | None
    ssl_options: SSLOptions | None

class ConnectionParameters(Parameters):
    def __init__(
        self,
        host: str = ...,
        port: int = ...,
        virtual_host: str = ...,
        credentials: PlainCredentials = ...,
        channel_max: int = ...,
        frame_max: int = ...,
        heartbeat: int | None = ...,
        ssl_options: SSLOptions | None = ...,
        connection_attempts: int = ...,
        retry_delay: float = ...,
        socket_timeout: float | None = ...,
        stack_timeout: float | None = ...,
        locale: str = ...,
        blocked_connection_timeout: float | None = ...,
        client_properties: dict[str, Any] | None = ...,
        tcp_options: dict[str, Any] | None = ...,
    ) -> None: ...

class URLParameters(Parameters):
    def __init__(self, url: str) -> None: ...

class Connection(metaclass=ABCMeta):
    server_properties: Mapping[str, Any] | None
    bytes_received: int
    _frame_buffer: bytes
    _error: Exception | None
    @property
    def is_open(self) -> bool: ...
    @property
    def is_closing(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    def channel(self, channel_number: int | None = None, on_open_callback: Callable[[Channel], object] | None = None) -> Channel: ...
    def close(self, reply_code: int = 200, reply_text: str = "Normal shutdown") -> None: ...
    def add_on_connection_blocked_callback(self, callback: Callable[[Connection, Any], object]) -> None: ...
    def add_on_connection_unblocked_callback(self, callback: Callable[[Connection, Any], object]) -> None: ...
    def _on_data_available(self, data_in: bytes) -> None: ...
    def _process_frame(self, frame_value: object) -> None: ...
    def _remove_heartbeat(self) -> None: ...
    callbacks: CallbackManager
    _channels: dict[int, Channel]
    @abstractmethod
    def _adapter_disconnect_stream(self) -> None: ...
