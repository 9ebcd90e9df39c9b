"""A bounded queue in which everyone gets a share, however many entries somebody puts in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries that wait, by owner. The owner with the fewest entries under way goes first; each owner's own are first in, first out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, deque[T]] = {}  # from the owner that waits longest for its turn
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, owner: str, entry: T) -> T | None:
        """Put an entry in. Gives one that has no room: the newest of the owner with the most, which may be this entry."""
        self._waiting.setdefault(owner, deque()).append(entry)
        self._count += 1
        if self._count <= self._most:
            return None
        # This owner loses among equals: so it takes nothing away from one that has no more than itself.
        longest = max(self._waiting, key=lambda each: (len(self._waiting[each]), each == owner))
        dropped = self._waiting[longest].pop()
        self._less(longest)
        return dropped

    def pop(self, under_way: Mapping[str, int]) -> T:
        """Take out the entry whose turn it is. `under_way` says how many each owner has under way. Needs an entry."""
        owner = min(self._waiting, key=lambda each: under_way.get(each, 0))
        entries = self._waiting.pop(owner)
        entry = entries.popleft()
        self._waiting[owner] = entries  # behind the others
        self._less(owner)
        return entry

    def remove(self, owner: str, entry: T) -> None:
        """Take out an entry, wherever it stands; one that is not there is no error."""
        entries = self._waiting.get(owner)
        if entries is not None and entry in entries:
            entries.remove(entry)
            self._less(owner)

    def _less(self, owner: str) -> None:
        self._count -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
