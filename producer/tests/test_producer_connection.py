"""A connection that is ended while it is made."""

import gc
import socket
from contextlib import closing
from functools import partial
from typing import List, Optional

import pytest

from towerws_producer.address import parse_address
from towerws_producer.buffer import Event
from towerws_producer.connection import Connection
from towerws_producer.errors import ProducerError
from towerws_producer.publishing import Events
from towerws_producer.settings import Settings


class NoEvents(Events):
    """There is nothing to publish."""

    def take(self, most: int) -> List[Event]:
        """None."""
        return []

    def confirmed(self, events: List[Event]) -> None:
        """Never."""

    def failed(self, event: Event, error: ProducerError) -> None:
        """Never."""

    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """Never."""

    def retry(self, most: int) -> bool:
        """None."""
        return False

    def message_id(self, event: Event) -> str:
        """Of none."""
        return ""

    def ready(self) -> None:
        """Never."""

    def blocked(self, reason: Optional[str]) -> None:
        """Never."""


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize("listens", [True, False])
def test_a_close_while_it_connects_leaves_no_socket(scheme: str, listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever turn of the loop it comes. An open socket that is collected is a ResourceWarning, which fails the test."""
    monkeypatch.setattr("towerws_producer.connection.CLOSE_S", 0.02)  # nobody there says goodbye
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as mute:
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
