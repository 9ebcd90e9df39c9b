"""For asyncio: `await publish(...)`. It works in any event loop: the confirm goes to the loop that waits for it.

`emit` has no counterpart here: it doesn't wait, so a coroutine may call it directly.
"""

import asyncio
from typing import Optional

import towerws_producer
from towerws_producer.errors import ProducerError
from towerws_producer.payload import Payload
from towerws_producer.producer import PUBLISH_S, Producer


async def publish(
    topic: str, payload: Payload, timeout: float = PUBLISH_S, message_id: Optional[str] = None, producer: Optional[Producer] = None
) -> str:
    """Publish and wait for the broker's confirm. Returns the message id. Raises the errors of `Producer.publish`."""
    producer = producer or towerws_producer.default_producer()
    loop = asyncio.get_event_loop()  # in a coroutine this is the running loop
    answer: asyncio.Future[Optional[ProducerError]] = loop.create_future()

    def settle(error: Optional[ProducerError]) -> None:
        if not answer.done():
            answer.set_result(error)

    def resolve(error: Optional[ProducerError]) -> None:
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:
            return  # the loop was closed, so no caller waits for the answer

    publication = producer.submit(topic, payload, resolve, message_id)
    try:
        error = await asyncio.wait_for(answer, timeout)
    except asyncio.TimeoutError:
        raise producer.gave_up(publication) from None
    if error is not None:
        raise error
    return str(publication.message_id)
