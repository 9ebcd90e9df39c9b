"""The entries of the log: deliveries with their positions, and the daemons' own markers.

A position is opaque text for clients: `<offset>-<epoch>`. The offset says where in the log, the epoch says in which log.
- A log of this process (a queue, the embedded source) has a random name. That name is the epoch.
- AMQP 0-9-1 has no identity for a stream, and a stream may be deleted and declared again. There the epoch is a keyed fingerprint
  of the delivery. Every daemon of a broker computes the same one, and another message at the same offset has another one. Without
  the key a position says nothing about the delivery's content.
- `<offset>-<epoch>.b` is the place just before that delivery: the end of a gap.

A daemon publishes a marker and reads it back from the log. Then everything that producers had confirmed before has been read too,
and the log is the one to which the broker writes. A marker that went through the events exchange also proves the binding. Its text
is random, so no other log holds it. Clients never get markers, and can't subscribe to their topic.

A marker may report a hole: events that producers published between two places of the log never reached it. Every daemon reads the
marker at the same place, and tells its clients the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b, scrypt
from typing import NamedTuple, Self, TypeGuard

BEFORE = ".b"
"""The end of a position that means: just before this delivery."""

_FINGERPRINT_BYTES = 6

parse_position = re.compile(r"([0-9]{1,19})-([0-9a-z.]{1,32})", re.ASCII).fullmatch


def derive_key(secret: bytes, salt: bytes) -> bytes:
    """Derive the key of a `Fingerprint` from a secret that may be a password.

    A client knows events and their positions, so it could try passwords at the speed of a hash. scrypt makes each guess expensive:
    some 50 ms and 16 MiB. Call it once per process.
    """
    return scrypt(secret, salt=salt, n=2**14, r=8, p=1, dklen=32)


class Fingerprint:
    """Computes the epoch of a stream's deliveries. `key` has at most 64 bytes (RFC 7693 section 2.9)."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, topic: str, message_id: str | None, payload: bytes) -> str:
        """Return twelve hexadecimal digits: 48 bits of keyed BLAKE2b (RFC 7693)."""
        text = f"{topic}\0{message_id or ''}\0".encode()
        return blake2b(text + payload, digest_size=_FINGERPRINT_BYTES, key=self._key).hexdigest()


@dataclass(slots=True, eq=False)
class Delivery:
    """One message of the log, or a mark between two of them (then `topic` is empty and `epoch` is text)."""

    seq: int
    """The number of this delivery or mark in this process, from 0. Everything is sent in this order."""
    topic: str
    payload: bytes
    offset: int
    epoch: str | Fingerprint
    """Names the log. A stream's deliveries share one `Fingerprint`, which computes it. Empty: no client can resume from here."""
    message_id: str | None = None
    arrived: float = 0.0
    """When the message was read, in seconds of history's clock."""

    @property
    def position(self) -> str:
        """The text with which a client resumes after this delivery, or "" where it can't. Computed on demand."""
        epoch = self.epoch
        if not isinstance(epoch, str):
            epoch = epoch(self.topic, self.message_id, self.payload)
        elif not epoch:
            return ""
        return f"{self.offset}-{epoch}"


class OversizedBody(bytes):
    """Stands for the body of a message that is larger than its reader accepts. The source keeps nothing of such a body.

    `len` is the size of that body, so each check of a size refuses it. Its own bytes are that number in decimal: no payload, and no marker.

    The message is not kept in history, so it has no position. Only the end of a hole just before it has the fingerprint of this body. That
    of another body of the same size, topic and id at the same offset of another stream would be the same.
    """

    def __new__(cls, size: int) -> Self:
        """`size` is the size of the body in bytes."""
        return super().__new__(cls, b"%d" % size)

    def __len__(self) -> int:
        return int(self)


MARKER_TOPIC = "towerws.marker"
"""The routing key of markers that go through the events exchange, and the topic of all markers in history."""

MAX_MARKER_BYTES = 256

_is_name = re.compile("[0-9a-f]{8,64}", re.ASCII).fullmatch


class Marker(NamedTuple):
    """A message that a daemon publishes to the log and reads back.

    `text` names the marker, and `daemon` the process that published it. Both are random hexadecimal digits. `hole`: events between
    the delivery at this offset and the marker did not reach the stream. None: the daemon knows of no hole.

    `machine` and `previous_s` say when the daemon published its previous confirmed marker, without any clock that can be set. That
    was `previous_s` seconds after the daemon's machine started. `machine` names this start of the machine, or is "" if the daemon
    does not know it. `previous_s` is None if there is no previous marker.
    """

    text: str
    daemon: str
    hole: int | None = None
    machine: str = ""
    previous_s: int | None = None

    @property
    def body(self) -> bytes:
        """The message's body: one JSON object in ASCII."""
        message: dict[str, object] = {"marker": self.text, "daemon": self.daemon}
        if self.hole is not None:
            message["hole"] = self.hole
        if self.machine:
            message["machine"] = self.machine
        if self.previous_s is not None:
            message["previous_s"] = self.previous_s
        return json.dumps(message).encode("ascii")


def parse_marker(body: bytes) -> Marker | None:
    """Return the marker in a message, or None if the message is not a marker."""
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
    if hole is not None and not _is_count(hole):
        return None
    machine, previous_s = message.get("machine"), message.get("previous_s")
    if not isinstance(machine, str) or not _is_name(machine) or not (previous_s is None or _is_count(previous_s)):
        return Marker(text, daemon, hole)
    return Marker(text, daemon, hole, machine, previous_s)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63
