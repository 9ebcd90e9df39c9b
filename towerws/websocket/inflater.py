"""Reads what clients compressed (RFC 7692), with Autobahn's processor."""

from __future__ import annotations

from autobahn.websocket.compress_deflate import PerMessageDeflate

LARGEST_WINDOW = 15


class Inflater(PerMessageDeflate):  # type: ignore[misc]
    """One connection's. Holds nothing between messages: a window is 32 KiB, and clients speak rarely.

    A message that is longer than `max_octets` once it is inflated ends the connection with 1009; no more of it is inflated.
    """

    def __init__(self, max_octets: int) -> None:
        super().__init__(True, True, True, LARGEST_WINDOW, LARGEST_WINDOW, None, max_octets)

    def end_decompress_message(self) -> None:
        """The message is whole."""
        super().end_decompress_message()
        self._decompressor = None
