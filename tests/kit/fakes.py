"""Small fakes of the package's protocols, and a frame reader that shares no code with the writer."""

from __future__ import annotations

import json
from typing import Any

from towerws.core.errors import CloseReason


class FakePeer:
    """A `towerws.core.hub.Peer` that records what was written, how often the hub waited for a drain, and how it ended."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.full = False
        self.draining = False
        self.drains = 0
        self.ended: list[CloseReason] = []
        self.holes = 0

    def send(self, data: bytes) -> bool:
        """Accept the frames, unless it is full."""
        if self.full:
            return False
        self.writes.append(data)
        return True

    def await_drain(self) -> None:
        """Note that the hub waits."""
        self.draining = True
        self.drains += 1

    def note_hole(self) -> None:
        """Count the hole."""
        self.holes += 1

    def end(self, reason: CloseReason) -> None:
        """Note the reason."""
        self.ended.append(reason)

    def take(self) -> list[bytes]:
        """The payloads of all frames written since the last call."""
        writes, self.writes = self.writes, []
        return [payload for data in writes for payload in read_frames(data)]

    def take_json(self) -> list[Any]:
        """The same payloads, decoded."""
        return [json.loads(payload) for payload in self.take()]


def read_frames(data: bytes) -> list[bytes]:
    """The payloads of whole, unmasked text messages of one frame each (RFC 6455 section 5.2). Anything else fails."""
    payloads = []
    at = 0
    while at < len(data):
        assert data[at] == 0x81, f"not a final text frame at byte {at}"
        raw, at = data[at + 1], at + 2
        assert raw < 128, "a server's frame is never masked"
        wide = {126: 2, 127: 8}.get(raw, 0)
        if wide:
            raw = int.from_bytes(data[at : at + wide], "big")
            assert raw > {2: 125, 8: 65535}[wide], "the length must be written in its shortest form"
            at += wide
        payloads.append(data[at : at + raw])
        assert len(payloads[-1]) == raw, "a frame is cut off"
        at += raw
    return payloads
