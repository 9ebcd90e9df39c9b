"""The channel layer for channels 1, which AWX 1.0 to 9.3 uses: publishes to towerws, and receives nothing.

    CHANNEL_LAYERS["default"]["BACKEND"] = "towerws_producer.channels1.Layer"

`CONFIG` may stay as it was. Its `url` is the broker, in kombu's form: `//` at its end means the virtual host `/`. TOWERWS_BROKER
overrides `url`. Other keys of the former layer are ignored.
"""

import uuid
from typing import Any, Dict, List, Optional, Tuple

from towerws_producer.awx import Relay


class ChannelFull(Exception):
    """channels catches this exception. This layer never raises it."""


class MessageTooLarge(Exception):
    """channels expects this name. This layer never raises the exception."""


class Layer:
    """Publishes the messages of `send_group`. The calls for websockets do nothing, because towerws serves the websockets."""

    extensions = ["groups"]  # noqa: RUF012 - channels' own shape: it looks for a word in a list
    group_expiry = 86400
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    def __init__(self, **config: Any) -> None:
        self._relay = Relay(config)

    # channels calls these

    def send_group(self, group: str, message: Dict[str, Any]) -> None:
        """Publish the message's text on the group's topic. It never raises and never waits for the broker."""
        self._relay.send(group, message)

    def send(self, channel: str, message: Dict[str, Any]) -> None:
        """Do nothing: this process has no clients."""

    def group_add(self, group: str, channel: str) -> None:
        """Do nothing: towerws knows its subscribers."""

    def group_discard(self, group: str, channel: str) -> None:
        """Do nothing: towerws knows its subscribers."""

    def group_channels(self, group: str) -> List[str]:
        """Return an empty list: no channel of this process is in a group."""
        return []

    def receive(self, channels: List[str], block: bool = False) -> Tuple[Optional[str], Optional[Dict[str, Any]]]:
        """Return no channel and no message: nothing ever arrives."""
        return None, None

    receive_many = receive

    def new_channel(self, pattern: str) -> str:
        """Return a unique name."""
        return pattern + uuid.uuid4().hex

    def flush(self) -> None:
        """Do nothing: there are no messages for receivers."""
