from abc import ABCMeta
from collections.abc import Callable
from typing import Any

from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.nbio_interface import AbstractIOReference

class SelectorIOServicesAdapter(metaclass=ABCMeta):
    def __init__(self, native_loop: IOLoop) -> None: ...
    def add_callback_threadsafe(self, callback: Callable[[], object]) -> None: ...
    def getaddrinfo(
        self, host: str, port: int, on_done: Callable[[Any], object], family: int = 0, socktype: int = 0, proto: int = 0, flags: int = 0
    ) -> AbstractIOReference: ...
