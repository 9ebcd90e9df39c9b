from collections.abc import Callable
from typing import Any, TypeAlias

from pika import frame, spec
from pika.connection import Connection

_Answered: TypeAlias = Callable[[frame.Method[Any]], object]

class Channel:
    channel_number: int
    connection: Connection
    @property
    def is_open(self) -> bool: ...
    @property
    def is_opening(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    def close(self, reply_code: int = 0, reply_text: str = "Normal shutdown") -> None: ...
    def add_on_cancel_callback(self, callback: _Answered) -> None: ...
    def add_on_close_callback(self, callback: Callable[[Channel, Exception], object]) -> None: ...
    def add_on_return_callback(self, callback: Callable[[Channel, spec.Basic.Return, spec.BasicProperties, bytes], object]) -> None: ...
    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None: ...
    def basic_consume(
        self,
        queue: str,
        on_message_callback: Callable[[Channel, spec.Basic.Deliver, spec.BasicProperties, bytes], object],
        auto_ack: bool = False,
        exclusive: bool = False,
        consumer_tag: str | None = None,
        arguments: dict[str, Any] | None = None,
        callback: _Answered | None = None,
    ) -> str: ...
    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: spec.BasicProperties | None = None, mandatory: bool = False
    ) -> None: ...
    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, global_qos: bool = False, callback: _Answered | None = None
    ) -> None: ...
    def confirm_delivery(self, ack_nack_callback: _Answered, callback: _Answered | None = None) -> None: ...
    def exchange_declare(
        self,
        exchange: str,
        exchange_type: str = ...,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: dict[str, Any] | None = None,
        callback: _Answered | None = None,
    ) -> None: ...
    def queue_bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str | None = None,
        arguments: dict[str, Any] | None = None,
        callback: _Answered | None = None,
    ) -> None: ...
    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        callback: _Answered | None = None,
    ) -> None: ...
