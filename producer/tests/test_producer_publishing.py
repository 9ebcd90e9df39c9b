"""Events on an open channel, and what the broker answers: each event gets its own answer."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import pika
from pika import frame, spec
from tests.kit.rows import each_row

from towerws_producer.buffer import Event, Publication
from towerws_producer.errors import ProducerError
from towerws_producer.publishing import Events, Publishing
from towerws_producer.settings import Settings


class Given(Events):
    """Gives these events, and notes what became of each, by its number."""

    def __init__(self, events: List[Event]) -> None:
        self.events = events
        self.became: Dict[int, str] = {}

    def take(self, most: int) -> List[Event]:
        """Give the events once."""
        taken, self.events = self.events, []
        return taken

    def confirmed(self, events: List[Event]) -> None:
        """Note it."""
        self.became.update((event.number, "confirmed") for event in events)

    def failed(self, event: Event, error: ProducerError) -> None:
        """Note the reason."""
        self.became[event.number] = error.reason

    def returned(self, event: Event) -> None:
        """Not called."""

    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """Not called."""

    def retry(self, most: int) -> bool:
        """Not called."""
        return False

    def message_id(self, event: Event) -> str:
        """The id that the caller gave."""
        return str(event.publication.message_id if event.publication is not None else None)

    def ready(self) -> None:
        """Not called."""

    def blocked(self, reason: Optional[str]) -> None:
        """Not called."""


class FakeChannel:
    """Takes every message, and returns and confirms what a test says."""

    def __init__(self) -> None:
        self.take_back: Callable[[Any, Any, Any, bytes], None]
        self.confirm: Callable[[Any], None]

    def add_on_return_callback(self, callback: Callable[[Any, Any, Any, bytes], None]) -> None:
        """Keep the callback."""
        self.take_back = callback

    def confirm_delivery(self, ack: Callable[[Any], None], callback: Any) -> None:
        """Keep the callback for confirms."""
        self.confirm = ack

    def basic_publish(self, *_: Any, **__: Any) -> None:
        """Take a message."""


Confirm = Tuple[int, bool]
"""A delivery tag, and whether the confirm counts for all before it, too."""


@each_row(
    ("topics", "returned", "confirms", "became"),
    [
        (["jobs.1", "jobs.1"], ["jobs.1", "jobs.1"], [(2, True)], {1: "returned", 2: "returned"}),
        (["jobs.1", "jobs.2"], ["jobs.2"], [(1, False), (2, False)], {1: "confirmed", 2: "returned"}),
        (["jobs.1", "jobs.1"], ["jobs.1"], [(1, False), (2, False)], {1: "returned", 2: "confirmed"}),
    ],
)
def test_a_repeated_event_that_no_queue_takes(
    topics: List[str], returned: List[str], confirms: List[Confirm], became: Dict[int, str]
) -> None:
    """Two events with one `message_id` are on their way. Each that the broker returns fails, and no other one does."""
    events = Given([Event(topic, b"{}", number, 0, Publication("same", None)) for number, topic in enumerate(topics, 1)])
    publishing, channel = Publishing(Settings("amqp://localhost"), events, None), FakeChannel()
    publishing.confirm_on(channel, None)
    publishing.start()
    for topic in returned:
        channel.take_back(channel, spec.Basic.Return(312, "NO_ROUTE", "towerws", topic), pika.BasicProperties(message_id="same"), b"{}")
    for tag, multiple in confirms:
        channel.confirm(frame.Method(1, spec.Basic.Ack(tag, multiple)))
    assert events.became == became
