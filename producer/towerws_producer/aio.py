"""For asyncio: `await publish(...)`. Nothing is bound to an event loop: the confirm finds the loop that waits for it.

`emit` needs no counterpart: it doesn't wait, and may be called from a coroutine as it is.
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
    """Publish and wait for the broker's confirm. Returns the message id; raises as `Producer.publish` does."""
    producer = producer or towerws_producer.default_producer()
    loop = asyncio.get_event_loop()  # inside a coroutine: the running one
    answer: asyncio.Future[Optional[ProducerError]] = loop.create_future()

    def settle(error: Optional[ProducerError]) -> None:
        if not answer.done():
            answer.set_result(error)

    def resolve(error: Optional[ProducerError]) -> None:
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more

    publication = producer.submit(topic, payload, resolve, message_id)
    try:
        error = await asyncio.wait_for(answer, timeout)
    except asyncio.TimeoutError:
        raise producer.gave_up(publication) from None
    if error is not None:
        raise error
    return str(publication.message_id)
