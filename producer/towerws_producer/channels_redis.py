"""The channel layer for AWX 19 to 24: events for browsers go to towerws, all other messages go to Redis.

    CHANNEL_LAYERS["default"]["BACKEND"] = "towerws_producer.channels_redis.Layer"
    CHANNEL_LAYERS["default"]["CONFIG"]["broker"] = "amqp://…"

AWX sends the `metrics` of its nodes over the same layer. They go to Redis, and from there to the other nodes.
"""

from typing import Any, Dict

from channels_redis.core import RedisChannelLayer

from towerws_producer.awx import BROADCAST, Relay, is_ours, wrapped_name
from towerws_producer.producer import ARGUMENTS

OUR_CONFIG = ARGUMENTS | {"broker"}
"""Keys of CONFIG for the producer. channels_redis gets all others."""


class Layer(RedisChannelLayer):  # type: ignore[misc]  # channels_redis has no annotations
    """The layer of channels_redis, except that towerws gets the ten groups that browsers subscribe to."""

    def __init__(self, *args: Any, **config: Any) -> None:
        ours = {name: config.pop(name) for name in list(config) if name in OUR_CONFIG}
        super().__init__(*args, **config)
        self._relay = Relay(ours)

    # channels calls this

    async def group_send(self, group: str, message: Dict[str, Any]) -> None:
        """Publish an event for browsers, and send any other message to Redis. For an event it never raises and never waits.

        AWX 19 to 21 send a copy of each message to the other nodes, which would send it to their layers again. This method drops the
        copies of events for browsers, and sends other copies to Redis.
        """
        if is_ours(group):
            self._relay.send(group, message)
        elif group != BROADCAST or not is_ours(wrapped_name(message.get("text"))):
            await super().group_send(group, message)
