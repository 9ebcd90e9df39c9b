"""A connection that is closed while it connects."""

import gc
import socket
from contextlib import closing
from functools import partial
from typing import List, Optional

import pytest
from tests.kit.collector import only_new_objects
from tests.kit.rows import each_row

from towerws_producer.address import parse_address
from towerws_producer.buffer import Event
from towerws_producer.connection import Connection
from towerws_producer.errors import ProducerError
from towerws_producer.publishing import Events
from towerws_producer.settings import Settings


class NoEvents(Events):
    """There is nothing to publish."""

    def take(self, most: int) -> List[Event]:
        """Take nothing."""
        return []

    def confirmed(self, events: List[Event]) -> None:
        """Not called."""

    def failed(self, event: Event, error: ProducerError) -> None:
        """Not called."""

    def returned(self, event: Event) -> None:
        """Not called."""

    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """Not called."""

    def retry(self, most: int) -> bool:
        """Retry nothing."""
        return False

    def message_id(self, event: Event) -> str:
        """There are no events."""
        return ""

    def ready(self) -> None:
        """Not called."""

    def blocked(self, reason: Optional[str]) -> None:
        """Not called."""


@each_row("scheme", ["amqp", "amqps"])
@each_row("listens", [True, False], monkeypatch=pytest.MonkeyPatch.context)
def test_a_close_while_it_connects_leaves_no_socket(scheme: str, listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any iteration of the loop. An open socket that is collected is a ResourceWarning, which fails the test."""
    monkeypatch.setattr("towerws_producer.connection.CLOSE_S", 0.02)  # the peer answers no close
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as mute, only_new_objects():
        address = parse_address(f"{scheme}://127.0.0.1:{mute.getsockname()[1] if listens else 1}")
        for turn in range(20):
            connection = Connection(address, Settings(str(address)), NoEvents(), declare=True)
            _stop_in_turn(connection, turn)
            connection.run()
            connection.close_loop()
            del connection
            gc.collect()


def _stop_in_turn(connection: Connection, turn: int) -> None:
    if turn == 0:
        connection.stop()
    else:
        connection._loop.add_callback_threadsafe(partial(_stop_in_turn, connection, turn - 1))
