"""The channel layer for channels 2 to 4 without Redis, which AWX 10 to 18 can use: publishes to towerws, and receives nothing.

    CHANNEL_LAYERS = {"default": {"BACKEND": "towerws_producer.channels.Layer", "CONFIG": {"broker": "amqp://…"}}}

If other code of the application receives from the layer, `towerws_producer.channels_redis.Layer` leaves that to Redis.
"""

import asyncio
import uuid
from typing import Any, Dict

from channels.layers import BaseChannelLayer

from towerws_producer.awx import BROADCAST, Relay


class Layer(BaseChannelLayer):  # type: ignore[misc]  # channels has no annotations
    """Publishes the messages of `group_send`. It is bound to no event loop, because AWX makes a new loop for each event."""

    extensions = ["groups"]  # noqa: RUF012 - channels' own shape: it looks for a word in a list

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self._relay = Relay(config)

    # channels calls these

    async def group_send(self, group: str, message: Dict[str, Any]) -> None:
        """Publish the message's text on the group's topic. It never raises and never waits for the broker.

        It ignores the copies for AWX's other nodes, because towerws reaches the browsers of all nodes.
        """
        if group != BROADCAST:
            self._relay.send(group, message)

    async def send(self, channel: str, message: Dict[str, Any]) -> None:
        """Do nothing: this process has no clients."""

    async def receive(self, channel: str) -> Dict[str, Any]:
        """Wait until cancelled: nothing ever arrives."""
        answer: asyncio.Future[Dict[str, Any]] = asyncio.get_event_loop().create_future()
        return await answer

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a unique name."""
        return f"{prefix}.{uuid.uuid4().hex}!{uuid.uuid4().hex[:12]}"

    async def group_add(self, group: str, channel: str) -> None:
        """Do nothing: towerws knows its subscribers."""

    async def group_discard(self, group: str, channel: str) -> None:
        """Do nothing: towerws knows its subscribers."""

    async def flush(self) -> None:
        """Do nothing: there are no messages for receivers."""

    async def close_pools(self) -> None:
        """Do nothing: there are no pools."""
