from typing import Any

class _Method: ...

class Basic:
    class Ack(_Method):
        delivery_tag: int
        multiple: bool
        def __init__(self, delivery_tag: int = 0, multiple: bool = False) -> None: ...

    class Cancel(_Method):
        consumer_tag: str
        nowait: bool
        def __init__(self, consumer_tag: str | None = None, nowait: bool = False) -> None: ...

    class Consume(_Method):
        ticket: int
        queue: str
        consumer_tag: str
        no_local: bool
        no_ack: bool
        exclusive: bool
        nowait: bool
        arguments: dict[str, Any]
        def __init__(
            self,
            ticket: int = 0,
            queue: str = "",
            consumer_tag: str = "",
            no_local: bool = False,
            no_ack: bool = False,
            exclusive: bool = False,
            nowait: bool = False,
            arguments: dict[str, Any] | None = None,
        ) -> None: ...

    class ConsumeOk(_Method):
        consumer_tag: str
        def __init__(self, consumer_tag: str | None = None) -> None: ...

    # pika encodes both; a test sends a routing key that is no UTF-8.
    class Deliver(_Method):
        consumer_tag: str
        delivery_tag: int
        redelivered: bool
        exchange: str
        routing_key: str | bytes
        def __init__(
            self,
            consumer_tag: str | None = None,
            delivery_tag: int | None = None,
            redelivered: bool = False,
            exchange: str | None = None,
            routing_key: str | bytes | None = None,
        ) -> None: ...

    class Nack(_Method):
        delivery_tag: int
        multiple: bool
        requeue: bool
        def __init__(self, delivery_tag: int = 0, multiple: bool = False, requeue: bool = True) -> None: ...

    class Publish(_Method):
        ticket: int
        exchange: str
        routing_key: str
        mandatory: bool
        immediate: bool
        def __init__(
            self, ticket: int = 0, exchange: str = "", routing_key: str = "", mandatory: bool = False, immediate: bool = False
        ) -> None: ...

    class Qos(_Method):
        prefetch_size: int
        prefetch_count: int
        global_qos: bool
        def __init__(self, prefetch_size: int = 0, prefetch_count: int = 0, global_qos: bool = False) -> None: ...

    class QosOk(_Method): ...

    class Return(_Method):
        reply_code: int
        reply_text: str
        exchange: str
        routing_key: str
        def __init__(
            self, reply_code: int | None = None, reply_text: str = "", exchange: str | None = None, routing_key: str | None = None
        ) -> None: ...

class Channel:
    class Close(_Method):
        reply_code: int
        reply_text: str
        class_id: int
        method_id: int
        def __init__(
            self, reply_code: int | None = None, reply_text: str = "", class_id: int | None = None, method_id: int | None = None
        ) -> None: ...

    class CloseOk(_Method): ...

    class Open(_Method):
        out_of_band: str
        def __init__(self, out_of_band: str = "") -> None: ...

    class OpenOk(_Method):
        channel_id: str
        def __init__(self, channel_id: str = "") -> None: ...

class Confirm:
    class Select(_Method):
        nowait: bool
        def __init__(self, nowait: bool = False) -> None: ...

    class SelectOk(_Method): ...

class Connection:
    class Blocked(_Method):
        reason: str
        def __init__(self, reason: str = "") -> None: ...

    class Close(_Method):
        reply_code: int
        reply_text: str
        class_id: int
        method_id: int
        def __init__(
            self, reply_code: int | None = None, reply_text: str = "", class_id: int | None = None, method_id: int | None = None
        ) -> None: ...

    class CloseOk(_Method): ...

    class Open(_Method):
        virtual_host: str
        capabilities: str
        insist: bool
        def __init__(self, virtual_host: str = "/", capabilities: str = "", insist: bool = False) -> None: ...

    class OpenOk(_Method):
        known_hosts: str
        def __init__(self, known_hosts: str = "") -> None: ...

    class Start(_Method):
        version_major: int
        version_minor: int
        server_properties: dict[str, Any]
        mechanisms: str
        locales: str
        def __init__(
            self,
            version_major: int = 0,
            version_minor: int = 9,
            server_properties: dict[str, Any] | None = None,
            mechanisms: str = "PLAIN",
            locales: str = "en_US",
        ) -> None: ...

    class StartOk(_Method):
        client_properties: dict[str, Any]
        mechanism: str
        response: str
        locale: str
        def __init__(
            self,
            client_properties: dict[str, Any] | None = None,
            mechanism: str = "PLAIN",
            response: str | None = None,
            locale: str = "en_US",
        ) -> None: ...

    class Tune(_Method):
        channel_max: int
        frame_max: int
        heartbeat: int
        def __init__(self, channel_max: int = 0, frame_max: int = 0, heartbeat: int = 0) -> None: ...

    class Unblocked(_Method): ...

class Exchange:
    class Declare(_Method):
        ticket: int
        exchange: str
        type: str
        passive: bool
        durable: bool
        auto_delete: bool
        internal: bool
        nowait: bool
        arguments: dict[str, Any]
        def __init__(
            self,
            ticket: int = 0,
            exchange: str | None = None,
            type: str = ...,
            passive: bool = False,
            durable: bool = False,
            auto_delete: bool = False,
            internal: bool = False,
            nowait: bool = False,
            arguments: dict[str, Any] | None = None,
        ) -> None: ...

    class DeclareOk(_Method): ...

class Queue:
    class Bind(_Method):
        ticket: int
        queue: str
        exchange: str
        routing_key: str
        nowait: bool
        arguments: dict[str, Any]
        def __init__(
            self,
            ticket: int = 0,
            queue: str = "",
            exchange: str | None = None,
            routing_key: str = "",
            nowait: bool = False,
            arguments: dict[str, Any] | None = None,
        ) -> None: ...

    class BindOk(_Method): ...

    class Declare(_Method):
        ticket: int
        queue: str
        passive: bool
        durable: bool
        exclusive: bool
        auto_delete: bool
        nowait: bool
        arguments: dict[str, Any]
        def __init__(
            self,
            ticket: int = 0,
            queue: str = "",
            passive: bool = False,
            durable: bool = False,
            exclusive: bool = False,
            auto_delete: bool = False,
            nowait: bool = False,
            arguments: dict[str, Any] | None = None,
        ) -> None: ...

    class DeclareOk(_Method):
        queue: str
        message_count: int
        consumer_count: int
        def __init__(self, queue: str | None = None, message_count: int | None = None, consumer_count: int | None = None) -> None: ...

class BasicProperties:
    content_type: str | None
    content_encoding: str | None
    headers: dict[str, Any] | None
    delivery_mode: int | None
    priority: int | None
    correlation_id: str | None
    reply_to: str | None
    expiration: str | None
    message_id: str | None
    timestamp: int | None
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None
    def __init__(
        self,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        delivery_mode: int | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expiration: str | None = None,
        message_id: str | None = None,
        timestamp: int | None = None,
        type: str | None = None,
        user_id: str | None = None,
        app_id: str | None = None,
        cluster_id: str | None = None,
    ) -> None: ...
    def encode(self) -> list[bytes]: ...
