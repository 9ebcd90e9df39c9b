"""The channel layer for AWX 19 to 24: events for browsers go to towerws, everything else stays with Redis.

    CHANNEL_LAYERS["default"]["BACKEND"] = "towerws_producer.channels_redis.Layer"
    CHANNEL_LAYERS["default"]["CONFIG"]["broker"] = "amqp://…"

AWX sends its nodes' `metrics` over the same layer. Those go to Redis, and from there to the other nodes.
"""

from typing import Any, Dict

from channels_redis.core import RedisChannelLayer

from towerws_producer.awx import BROADCAST, Relay, is_ours, wrapped_name
from towerws_producer.producer import ARGUMENTS

OUR_CONFIG = ARGUMENTS | {"broker"}
"""Keys of CONFIG for the producer. All others are channels_redis's."""


class Layer(RedisChannelLayer):  # type: ignore[misc]  # channels_redis has no annotations
    """channels_redis's layer, except that towerws gets the ten groups that browsers subscribe to."""

    def __init__(self, *args: Any, **config: Any) -> None:
        ours = {name: config.pop(name) for name in list(config) if name in OUR_CONFIG}
        super().__init__(*args, **config)
        self._relay = Relay(ours)

    # channels calls this

    async def group_send(self, group: str, message: Dict[str, Any]) -> None:
        """Publish an event for browsers. Any other group goes to Redis. For an event it never raises and never waits.

        AWX 19 to 21 send a copy of each event to the other nodes, which would send it to their layers again. Copies of events for
        browsers are dropped here. Copies of anything else go to Redis.
        """
        if is_ours(group):
            self._relay.send(group, message)
        elif group != BROADCAST or not is_ours(wrapped_name(message.get("text"))):
            await super().group_send(group, message)
