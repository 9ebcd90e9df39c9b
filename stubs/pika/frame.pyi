from typing import Any, Generic, TypeVar

from pika import spec

_M = TypeVar("_M")

class Frame:
    frame_type: int
    channel_number: int
    def marshal(self) -> bytes: ...

class Method(Frame, Generic[_M]):
    method: _M
    def __init__(self, channel_number: int, method: _M) -> None: ...

class Header(Frame):
    body_size: int
    properties: spec.BasicProperties
    def __init__(self, channel_number: int, body_size: int, props: spec.BasicProperties) -> None: ...

class Body(Frame):
    fragment: bytes
    def __init__(self, channel_number: int, fragment: bytes) -> None: ...

class Heartbeat(Frame):
    def __init__(self) -> None: ...

class ProtocolHeader:
    def __init__(self, major: int | None = None, minor: int | None = None, revision: int | None = None) -> None: ...
    def marshal(self) -> bytes: ...

def decode_frame(data_in: bytes) -> tuple[int, Any]: ...
