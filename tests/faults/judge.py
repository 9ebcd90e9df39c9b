"""Compares the events that one client received with those that were published. No I/O.

The rules (docs/protocol.md):
- A client that has read `subscribed` gets every later event of its topics. An earlier event is a bonus.
- From its first event on, a client that resumes misses nothing, unless it was told: by a `gap`, or by `recovered: false`.
- A Tower client has no positions: each of its connections is judged alone. It may get events again that it had on a connection
    to another daemon, which may be behind, but none that it had from the same daemon.
- Numbers come in the order in which they were published. Numbers that were sent twice, after a lost confirm, may be swapped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field, fields

from tests.faults.publisher import Journal


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The answer to a request. `recovered` is None if no position was sent."""

    at_ns: int
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap notice."""

    at_ns: int
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended. `code` is the close code, or 1006 without one."""

    code: int


Note = Subscribed | Gap | Lost


@dataclass(slots=True)
class Story:
    """What one client received, in order: numbers of events, and notes as `-1 - index in notes`."""

    topics: frozenset[int]
    v1: bool = True
    track: array[int] = field(default_factory=lambda: array("i"))  # a list takes nine times as much in a soak of hours
    notes: list[Note] = field(default_factory=list)
    roams: bool = False
    """Whether its connections go to several daemons."""

    def event(self, number: int) -> None:
        """Add an event."""
        self.track.append(number)

    def note(self, note: Note) -> None:
        """Add anything else."""
        self.track.append(-1 - len(self.notes))
        self.notes.append(note)


@dataclass(slots=True)
class Tally:
    """The counts for one client or many. `+` adds them, except that it keeps the worst latency and the most gaps of one client."""

    clients: int = 0
    events: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    gaps: int = 0
    gaps_of_nothing: int = 0
    """Gaps that cover no missing event."""
    hidden: int = 0
    """Missing events that a gap (or `recovered: false`) covers, though the broker had not lost them."""
    recovered_false: int = 0
    closes_1013: int = 0
    most_told: int = 0
    """The most gaps and `recovered: false` of one v1 client."""
    least_told: int = -1
    """The fewest, or -1 without a v1 client."""
    examples: list[str] = field(default_factory=list)
    lost_numbers: set[int] = field(default_factory=set)

    def add(self, other: Tally) -> None:
        """Add the counts of another client, or of several."""
        for each in fields(self):
            mine, others = getattr(self, each.name), getattr(other, each.name)
            if each.name == "most_told":
                value = max(mine, others)
            elif each.name == "least_told":
                value = others if mine < 0 else mine if others < 0 else min(mine, others)
            elif each.name == "examples":
                value = (mine + others)[:10]
            elif each.name == "lost_numbers":
                value = mine | others
            else:
                value = mine + others
            setattr(self, each.name, value)


class Judge:
    """Judges any number of clients against one journal, up to its last number."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._due: dict[tuple[frozenset[int], bool], list[int]] = {}
        self._numbers: dict[int, list[int]] = {}
        """Numbers by topic, in order."""
        for number, topic in enumerate(journal.topic_of):
            self._numbers.setdefault(topic, []).append(number)
        self._again = sorted(journal.resent)

    def judge(self, story: Story, name: str = "client") -> Tally:
        """The counts for one client."""
        return _Trial(self, story, name).run()

    def due(self, topics: frozenset[int], *, v1: bool) -> list[int]:
        """The confirmed numbers on these topics, in order. For a Tower client without those whose loss it can't be told."""
        found = self._due.get((topics, v1))
        if found is None:
            confirmed, untold = self._journal.confirmed, set() if v1 else self.really_lost
            numbers = sorted(number for topic in topics for number in self._numbers.get(topic, ()))
            found = self._due[topics, v1] = [number for number in numbers if number in confirmed and number not in untold]
        return found

    @property
    def really_lost(self) -> set[int]:
        """Numbers that the broker lost, or may have lost."""
        return self._journal.gone | self._journal.returned

    def sent_ns(self, number: int) -> int:
        """The time when it was first published."""
        return self._journal.sent_ns[number]

    def may_swap(self, earlier: int, later: int) -> bool:
        """Whether both were sent again together, so that their order in the log is open."""
        return any(low <= earlier <= high and low <= later <= high for low, high in self._again)


class _Trial:
    """One client."""

    def __init__(self, judge: Judge, story: Story, name: str) -> None:
        self._judge = judge
        self._story = story
        self._name = name
        self._due = judge.due(story.topics, v1=story.v1)
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()
        """The events that a Tower client of one daemon had on earlier connections."""
        self._lost: set[int] = set()
        self._highest = -1
        self._missing: set[int] = set()
        self._excused: set[int] = set()
        self._listening = False  # its request was answered; a Tower client must also still be connected
        self._from: int | None = None  # index in `due` of the next event that must come. None: `_since_ns` decides
        self._since_ns = 0
        self._told = False  # the client got a gap, and no event is missing yet
        self._tally = Tally(clients=1)

    def run(self) -> Tally:
        """Walk through the story."""
        tally, story = self._tally, self._story
        if self._is_perfect():
            return tally
        for item in story.track:
            if item >= 0:
                self._event(item)
            else:
                self._note(story.notes[-1 - item])
        if self._listening:
            self._miss(len(self._due))
            if self._told:
                self._explain(len(self._due))
        self._lost |= self._missing - self._seen
        lost = sorted(self._lost)
        tally.lost, tally.lost_numbers = len(lost), set(lost)
        if lost:
            tally.examples.append(f"{self._name} lost {len(lost)}: {_ranges(lost)}; {self._connections()}")
        if story.v1:
            tally.most_told = tally.least_told = tally.gaps + tally.recovered_false
            tally.hidden = len(self._excused - self._seen - self._judge.really_lost)
        return tally

    def _connections(self) -> str:
        """The last notes, each with the event before it: whether a loss came with a new connection."""
        last, texts = -1, []
        for item in self._story.track:
            if item >= 0:
                last = item
            else:
                texts.append(f"after {last} {self._story.notes[-1 - item]}")
        return "; ".join(texts[-4:])

    def _is_perfect(self) -> bool:
        """A shortcut for the usual story: one unbroken piece of the due events, to their end. Thousands of clients have the same."""
        story, due = self._story, self._due
        first = story.notes[0] if story.notes else None
        later = story.notes[1:]
        if not isinstance(first, Subscribed) or not (
            all(isinstance(note, Lost) or (isinstance(note, Subscribed) and note.recovered is not False) for note in later)
            if story.v1
            else not later
        ):
            return False
        events = [item for item in story.track if item >= 0]
        if not events or events != due[-len(events) :]:
            return False
        if len(due) - len(events) > bisect_right(due, first.at_ns - 1, key=self._judge.sent_ns):
            return False
        self._tally.events = len(events)
        self._tally.closes_1013 = sum(isinstance(note, Lost) and note.code == 1013 for note in later)
        if story.v1:
            self._tally.most_told = self._tally.least_told = 0
        return True

    def _note(self, note: Note) -> None:
        if isinstance(note, Subscribed):
            if not self._listening:
                self._begin(note.at_ns)
            elif note.recovered is False and self._story.v1:
                self._tally.recovered_false += 1
                self._tally.examples.append(f"{self._name}: recovered false after {self._highest}")
                self._begin(note.at_ns)
        elif isinstance(note, Gap):
            self._tally.gaps += 1
            self._tally.examples.append(f"{self._name}: gap after {self._highest}")
            self._told = True
            self._begin(note.at_ns)
        else:
            self._tally.closes_1013 += note.code == 1013
            if not self._story.v1:
                self._forget_connection()

    def _forget_connection(self) -> None:
        """A Tower client's connection ended: the next one is judged alone."""
        self._lost |= self._missing - self._seen
        if not self._story.roams:
            self._seen_before |= self._seen
        self._seen, self._missing, self._highest = set(), set(), -1
        self._listening, self._from, self._open = False, None, 0

    def _begin(self, at_ns: int) -> None:
        """Only later events must come, until the next one shows the client's position."""
        if self._from is not None:
            self._open = self._from
        elif not self._listening:
            self._open = bisect_right(self._due, at_ns - 1, key=self._judge.sent_ns)
        self._listening, self._from, self._since_ns = True, None, at_ns

    _open = 0
    """Index in `due` at which the last reported hole begins."""

    def _event(self, number: int) -> None:
        tally = self._tally
        tally.events += 1
        if number in self._seen or number in self._seen_before:
            tally.repeated += 1
            if len(tally.examples) < 10:
                tally.examples.append(f"{self._name}: {number} again, after {self._highest}")
            if number in self._seen:
                return
        self._seen.add(number)
        index = bisect_left(self._due, number)
        if number < self._highest and self._from is not None:
            if not self._judge.may_swap(number, self._highest):
                tally.reordered += 1
                tally.examples.append(f"{self._name}: {number} after {self._highest}")
            return
        if self._told:
            self._explain(index)
        self._miss(index)
        self._from = index + 1 if index < len(self._due) and self._due[index] == number else index
        self._highest = max(self._highest, number)

    def _miss(self, end: int) -> None:
        """Count all events before index `end` as missing."""
        begin = self._from
        if begin is None:
            begin = max(self._open, bisect_right(self._due, self._since_ns - 1, key=self._judge.sent_ns))
            self._excused.update(self._due[self._open : min(begin, end)])
        for number in self._due[begin:end]:
            if number not in self._seen:
                self._missing.add(number)

    def _explain(self, end: int) -> None:
        """Check whether a reported gap covers anything."""
        self._told = False
        if all(number in self._seen for number in self._due[self._open : end]):
            self._tally.gaps_of_nothing += 1


def _ranges(numbers: list[int]) -> str:
    """`3-5, 9`, shortened."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts[:5])
    return text + (", …" if len(parts) > 5 else "")


def total(tallies: list[Tally]) -> Tally:
    """The sum, with examples for each reason."""
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result


def close_codes(stories: list[Story]) -> Counter[int]:
    """How often connections ended with each code."""
    return Counter(note.code for story in stories for note in story.notes if isinstance(note, Lost))
