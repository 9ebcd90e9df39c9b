"""The bounded buffer."""

from typing import List, Optional

from hypothesis import given
from hypothesis import strategies as st

from towerws_producer.buffer import EVENT_BYTES, Buffer, Dropped, Entry, Event, Publication


def entry(number: int, size: int = 100, publication: Optional[Publication] = None) -> Entry:
    """An event that occupies `size` bytes in addition to the fixed part. Its topic is its number."""
    return (str(number), b"x" * size, number, 0, publication)


def numbers(events: List[Event]) -> List[int]:
    """The numbers of these events."""
    return [one.number for one in events]


def topics(gone: List[Dropped]) -> List[int]:
    """The numbers of these dropped events."""
    return [int(topic) for topic, _ in gone]


def test_first_in_first_out_within_the_window() -> None:
    """Bounds hold for the events, the events in flight, and the bytes. An event larger than the window is sent alone."""
    buffer = Buffer(10**6)
    for number in range(10):
        assert buffer.add(entry(number)) == []
    assert numbers(buffer.take(4, 100, 10**6)) == [0, 1, 2, 3]
    assert numbers(buffer.take(100, 6, 10**6)) == [4, 5]
    assert buffer.take(100, 100, 6 * (100 + EVENT_BYTES)) == []
    assert (buffer.in_flight, buffer.waiting, len(buffer)) == (6, 4, 10)
    large = Buffer(10**6)
    large.add(entry(1, 5000))
    large.add(entry(2))
    assert numbers(large.take(10, 10, 1000)) == [1]


def test_the_oldest_go_when_it_is_full() -> None:
    """Waiting events are dropped, never those in flight. The bytes add up."""
    size = 100 + EVENT_BYTES
    buffer = Buffer(10 * size)
    for number in range(10):
        buffer.add(entry(number))
    taken = buffer.take(3, 100, 10**6)
    gone = buffer.add(entry(10))
    assert topics(gone)[0] == 3
    assert buffer.bytes == len(buffer) * size <= 10 * size
    assert [buffer.done(one) for one in taken] == [True] * 3
    assert (buffer.bytes, buffer.bytes_in_flight) == (len(buffer) * size, 0)


def test_an_event_without_room_costs_no_other_event() -> None:
    """If the events in flight leave no room for it, only the event itself is dropped. An event that has just room is kept."""
    size = 100 + EVENT_BYTES
    buffer = Buffer(10 * size)
    for number in range(6):
        buffer.add(entry(number))
    buffer.take(3, 100, 10**6)
    assert topics(buffer.add(entry(6, 8 * size - EVENT_BYTES))) == [6]
    assert (len(buffer), buffer.bytes) == (6, 6 * size)
    assert topics(buffer.add(entry(7, 7 * size - EVENT_BYTES))) == [3, 4, 5]
    assert (len(buffer), buffer.bytes) == (4, 10 * size)


def test_what_was_in_flight_waits_in_front_again() -> None:
    """Events in flight wait again in their old order, before later ones. A late confirm for them has no effect."""
    buffer = Buffer(10**6)
    for number in range(6):
        buffer.add(entry(number))
    taken = buffer.take(4, 100, 10**6)
    assert buffer.done(taken[1])
    assert numbers(buffer.recall()) == [0, 2, 3]
    assert not buffer.done(taken[0])
    assert numbers(buffer.take(10, 100, 10**6)) == [0, 2, 3, 4, 5]
    assert topics(buffer.clear()) == [0, 2, 3, 4, 5]
    assert (buffer.bytes, buffer.bytes_in_flight, len(buffer)) == (0, 0, 0)


def test_what_was_nacked_waits_for_its_release() -> None:
    """Other events pass it. A released event goes first, in the order of the nacks. The bound drops nacked events like others."""
    size = 100 + EVENT_BYTES
    buffer = Buffer(10 * size)
    for number in range(6):
        buffer.add(entry(number))
    taken = buffer.take(4, 100, 10**6)
    assert [buffer.put_aside(taken[index]) for index in (2, 0, 1)] == [True] * 3
    assert not buffer.put_aside(taken[0])
    assert (buffer.set_aside, buffer.waiting, buffer.in_flight) == (3, 2, 1)
    assert numbers(buffer.take(1, 100, 10**6)) == [4]
    buffer.release(2)
    assert numbers(buffer.take(10, 100, 10**6)) == [2, 0, 5]
    for number in range(6, 10):
        assert buffer.add(entry(number)) == []
    assert topics(buffer.add(entry(10)))[0] == 1
    assert buffer.bytes == len(buffer) * size


def test_some_leave_wherever_they_wait() -> None:
    """Events with a waiting caller are removed when their publication can't succeed."""
    buffer = Buffer(10**6)
    for number in range(8):
        buffer.add(entry(number, publication=Publication(None, lambda error: None) if number % 2 else None))
    taken = buffer.take(4, 100, 10**6)
    buffer.put_aside(taken[1])
    buffer.recall()
    assert sorted(topics(buffer.remove_published())) == [1, 3, 5, 7]
    assert numbers(buffer.take(10, 100, 10**6)) == [0, 2, 4, 6]
    assert buffer.bytes == 4 * (100 + EVENT_BYTES)


def test_a_watch_ends_with_the_last_of_its_events() -> None:
    """In whichever way they leave. Later events don't count."""
    buffer = Buffer(10**6)
    assert buffer.watch(0, lambda: None) is None
    for number in (1, 2, 3):
        buffer.add(entry(number))
    said: List[str] = []
    watch = buffer.watch(3, lambda: said.append("done"))
    assert watch is not None
    buffer.add(entry(4))
    first, second, third, fourth = buffer.take(4, 100, 10**6)
    buffer.done(fourth)
    buffer.done(third)
    buffer.put_aside(first)
    buffer.done(second)
    assert said == []
    buffer.clear()
    assert said == ["done"]
    buffer.unwatch(watch)


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done", "aside", "back", "release", "recall", "clear"]), st.integers(0, 50))))
def test_nothing_is_lost_or_doubled(steps: "List[tuple[str, int]]") -> None:
    """In any order of steps each event is here, confirmed, or returned as dropped, exactly once. The bytes add up."""
    size = 10 + EVENT_BYTES
    buffer = Buffer(20 * size)
    added, confirmed = 0, []
    dropped: List[int] = []
    in_flight: List[Event] = []
    for step, amount in steps:
        if step == "add":
            dropped += topics(buffer.add(entry(added, 10)))
            added += 1
        elif step == "take":
            in_flight += buffer.take(amount, 8, 10**6)
        elif step == "release":
            buffer.release(amount)
        elif step == "recall":
            assert numbers(buffer.recall()) == sorted(numbers(in_flight))
            in_flight.clear()
        elif step == "clear":
            dropped += topics(buffer.clear())
            in_flight.clear()
        elif in_flight:
            event = in_flight.pop(amount % len(in_flight))
            if step == "done":
                assert buffer.done(event)
                confirmed.append(event.number)
            elif step == "back":
                buffer.put_back(event)
            else:
                assert buffer.put_aside(event)
        assert buffer.bytes == len(buffer) * size <= 20 * size
        assert buffer.bytes_in_flight == len(in_flight) * size
    dropped += topics(buffer.clear())
    assert sorted(dropped + confirmed) == list(range(added))
