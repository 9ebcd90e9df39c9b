"""Markers: small messages of the daemons themselves, whose way through the broker proves what silence can't.

A daemon publishes a marker and reads it back from the log. When it arrives, all that was confirmed to producers before has
arrived too, and the log is the one that the broker writes to. One that went through the events exchange proves the binding.
The text is random, so no other log holds it, and no other message can be taken for it. Clients never get markers, and nobody
can subscribe to their topic.

A marker may tell of a hole: events that producers published between two places of the log never reached it. Every daemon
reads that at the same place, and tells its clients the same.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

MARKER_TOPIC = "towerws.marker"
"""The routing key of markers that go through the events exchange, and the topic of all of them in history."""

MAX_MARKER_BYTES = 256

_is_name = re.compile("[0-9a-f]{8,64}", re.ASCII).fullmatch


class Marker(NamedTuple):
    """`text` names the marker, `daemon` the process that published it. Both are random hexadecimal digits.

    `hole`: events between the delivery at this offset and the marker itself did not reach the stream. None: no hole is known.
    """

    text: str
    daemon: str
    hole: int | None = None

    @property
    def body(self) -> bytes:
        """The message: one JSON object."""
        message: dict[str, object] = {"marker": self.text, "daemon": self.daemon}
        if self.hole is not None:
            message["hole"] = self.hole
        return json.dumps(message).encode("ascii")


def parse_marker(body: bytes) -> Marker | None:
    """The marker in a message; None when the message is none."""
    if len(body) > MAX_MARKER_BYTES:
        return None
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    text, daemon = message.get("marker"), message.get("daemon")
    if not isinstance(text, str) or not isinstance(daemon, str) or not _is_name(text) or not _is_name(daemon):
        return None
    hole = message.get("hole")
    if hole is not None and (type(hole) is not int or not 0 <= hole < 2**63):
        return None
    return Marker(text, daemon, hole)
