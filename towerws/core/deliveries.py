"""A delivery: one message of the log, and where it stands there.

Positions are opaque text for clients. `<offset>-<tag>`: the offset says where, the tag says in which log.
- A log that exists in this process only (a queue, the embedded source) has a random name: that is the tag.
- A stream has no name that AMQP 0-9-1 would tell, and may be deleted and made anew under the same one. There the tag is a
  fingerprint of the delivery itself. Every process computes the same without having to agree on anything, and an offset
  with another message behind it, from another stream, does not match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

_FINGERPRINT_OCTETS = 6

parse_position = re.compile(r"([0-9]{1,19})-([0-9a-z.]{1,32})", re.ASCII).fullmatch


@dataclass(slots=True, eq=False)
class Delivery:
    """One message of the log, or a mark between two of them (then `topic` is empty and `tag` is given)."""

    seq: int
    """Counts deliveries and marks in this process, from 0; the order in which everything goes out."""
    topic: str
    payload: bytes
    offset: int
    tag: str | None
    """Names the log; None for a stream, whose positions carry a fingerprint instead."""
    message_id: str | None = None
    arrived: float = 0.0
    """Seconds of the clock that history uses."""

    @property
    def position(self) -> str:
        """What a client quotes to resume after this delivery. Computed on demand: only `towerws.v1` clients see it."""
        tag = self.tag
        if tag is None:
            text = f"{self.topic}\0{self.message_id or ''}\0".encode()
            tag = blake2b(text + self.payload, digest_size=_FINGERPRINT_OCTETS).hexdigest()
        return f"{self.offset}-{tag}"
