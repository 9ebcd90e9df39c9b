"""The bounded buffer."""

from typing import List

from towerws_producer.buffer import EVENT_BYTES, Buffer, Event


def event(seq: int, size: int = 100) -> Event:
    """An event that occupies `size` bytes beside the fixed part."""
    return Event("a.b", b"x" * size, seq, None, 0, None)


def seqs(events: List[Event]) -> List[int]:
    """Which they are."""
    return [one.seq for one in events]


def test_first_in_first_out_within_the_window() -> None:
    """So many events, so many in flight, so many bytes; one that is larger than the window flies alone."""
    buffer = Buffer(10**6)
    for seq in range(10):
        assert buffer.add(event(seq)) == []
    assert seqs(buffer.take(4, 100, 10**6)) == [0, 1, 2, 3]
    assert seqs(buffer.take(100, 6, 10**6)) == [4, 5]
    assert buffer.take(100, 100, 6 * (100 + EVENT_BYTES)) == []
    assert (buffer.in_flight, buffer.waiting, len(buffer)) == (6, 4, 10)
    large = Buffer(10**6)
    large.add(event(1, 5000))
    large.add(event(2))
    assert seqs(large.take(10, 10, 1000)) == [1]


def test_the_oldest_go_when_it_is_full() -> None:
    """Those that wait, never those in flight; an event that has no room beside these goes itself. The bytes always add up."""
    size = 100 + EVENT_BYTES
    buffer = Buffer(10 * size)
    for seq in range(10):
        buffer.add(event(seq))
    taken = buffer.take(3, 100, 10**6)
    gone = buffer.add(event(10))
    assert seqs(gone)[0] == 3
    assert buffer.bytes == len(buffer) * size <= 10 * size
    assert seqs(buffer.add(event(11, 20 * size)))[-1] == 11
    assert [buffer.done(one) for one in taken] == [True] * 3
    assert (buffer.bytes, buffer.bytes_in_flight) == (len(buffer) * size, 0)


def test_what_was_in_flight_waits_in_front_again() -> None:
    """In its old order, before what came later; a late confirm for it counts no more."""
    buffer = Buffer(10**6)
    for seq in range(6):
        buffer.add(event(seq))
    taken = buffer.take(4, 100, 10**6)
    assert buffer.done(taken[1])
    assert seqs(buffer.recall()) == [0, 2, 3]
    assert not buffer.done(taken[0])
    assert buffer.oldest is taken[0]
    assert seqs(buffer.take(10, 100, 10**6)) == [0, 2, 3, 4, 5]
    assert seqs(buffer.clear()) == [0, 2, 3, 4, 5]
    assert (buffer.bytes, buffer.bytes_in_flight, len(buffer)) == (0, 0, 0)


def test_some_leave_wherever_they_wait() -> None:
    """Those that somebody waits for, when their publication can't succeed."""
    buffer = Buffer(10**6)
    for seq in range(5):
        one = event(seq)
        one.resolve = (lambda error: None) if seq % 2 else None
        buffer.add(one)
    waited_for = buffer.with_resolve()
    assert seqs(waited_for) == [1, 3]
    buffer.remove_waiting(waited_for)
    assert seqs(buffer.take(10, 100, 10**6)) == [0, 2, 4]
    assert buffer.bytes == 3 * (100 + EVENT_BYTES)
