"""A delivery: one message of the log, and where it stands there.

Positions are opaque text for clients: `<offset>-<epoch>`. The offset says where, the epoch says in which log.
- A log that exists in this process only (a queue, the embedded source) has a random name. That name is the epoch.
- A stream has no name that AMQP 0-9-1 would tell, and may be deleted and declared again. There the epoch is a keyed
  fingerprint of the delivery itself. Every daemon of a broker computes the same one, and another message at the same offset
  has another one. Without the key a position says nothing about the content of the delivery.
- `<offset>-<epoch>.b` is the place just before that delivery: the end of a gap.

Markers: small messages of the daemons themselves, whose way through the broker proves what silence can't.

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
from dataclasses import dataclass
from hashlib import blake2b, scrypt
from typing import NamedTuple

BEFORE = ".b"
"""Ends the position of the place just before a delivery."""

_FINGERPRINT_BYTES = 6

parse_position = re.compile(r"([0-9]{1,19})-([0-9a-z.]{1,32})", re.ASCII).fullmatch


def derive_key(secret: bytes, salt: bytes) -> bytes:
    """The key of a `Fingerprint` from a secret that may be a password.

    scrypt makes each guess expensive (some 50 ms and 16 MiB): a reader knows events and their positions, and could otherwise try passwords
    at the speed of a hash. Called once per process.
    """
    return scrypt(secret, salt=salt, n=2**14, r=8, p=1, dklen=32)


class Fingerprint:
    """Computes the epoch of a stream's deliveries. `key` has at most 64 bytes (RFC 7693 section 2.9)."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, topic: str, message_id: str | None, payload: bytes) -> str:
        """Twelve hexadecimal digits: 48 bits of keyed BLAKE2b."""
        text = f"{topic}\0{message_id or ''}\0".encode()
        return blake2b(text + payload, digest_size=_FINGERPRINT_BYTES, key=self._key).hexdigest()


@dataclass(slots=True, eq=False)
class Delivery:
    """One message of the log, or a mark between two of them (then `topic` is empty and `epoch` is text)."""

    seq: int
    """Counts deliveries and marks in this process, from 0; the order in which everything goes out."""
    topic: str
    payload: bytes
    offset: int
    epoch: str | Fingerprint
    """Names the log. A stream's deliveries share the `Fingerprint` that computes it. Empty: a place that no client can resume from."""
    message_id: str | None = None
    arrived: float = 0.0
    """Seconds of the clock that history uses."""

    @property
    def position(self) -> str:
        """What a client quotes to resume after this delivery, or "" where it can't. Computed on demand."""
        epoch = self.epoch
        if not isinstance(epoch, str):
            epoch = epoch(self.topic, self.message_id, self.payload)
        elif not epoch:
            return ""
        return f"{self.offset}-{epoch}"


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
