from __future__ import annotations

from collections.abc import Callable

from tests.kit.fakes import FakePeer
from tests.kit.rows import each_row
from towerws.core.batch import WRITE_BYTES, route
from towerws.core.deliveries import Delivery
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.wire import TOWER, V1, Dialect


def deliveries(*topics: str) -> list[Delivery]:
    """One for each, numbered."""
    return [Delivery(number, topic, b'{"n":%d}' % number, number, "q") for number, topic in enumerate(topics, 1)]


def by_topic(**listeners: str) -> dict[str, dict[str, None]]:
    """Subscribers are letters: `a="xy"` is a topic with two."""
    return {topic: dict.fromkeys(subscribers) for topic, subscribers in listeners.items()}


def frames(*numbers: int) -> bytes:
    """What a client of Tower's dialect gets of those deliveries."""
    return b"".join(b'\x81\x07{"n":%d}' % number for number in numbers)


def test_each_subscriber_gets_its_topics() -> None:
    """Each subscriber comes once. Its payload has the frames of all its topics, in the log's order."""
    batch = route(deliveries("a", "b", "none", "a", "c", "b"), by_topic(a="xy", b="yz", c="z", silent="w"), TOWER)
    due = {subscriber: batch.payload(mask) for subscriber, mask in batch.unserved}
    assert {subscriber: (data, count) for subscriber, (data, count, _) in due.items()} == {
        "x": (frames(1, 4), 2),
        "y": (frames(1, 2, 4, 6), 4),
        "z": (frames(2, 5, 6), 3),
    }
    assert all(cost == WRITE_BYTES + len(data) for data, _, cost in due.values())


def test_payloads_are_made_once() -> None:
    """Subscribers that get the same topics share the very same bytes, with any other topics besides."""
    batch = route(deliveries("a", "b", "a"), by_topic(a="wxy", b="xyz", silent="wz"), TOWER)
    payloads = {subscriber: batch.payload(mask)[0] for subscriber, mask in batch.unserved}
    assert payloads["x"] is payloads["y"]
    assert len({id(data) for data in payloads.values()}) == 3
    assert len(batch.payloads) == 3


def test_a_batch_without_subscribers() -> None:
    """No frame is made for a dialect in which no client has subscribed."""
    batch = route(deliveries("a", "b"), by_topic(c="x"), V1)
    assert list(batch.unserved) == []
    assert batch.pop("x") is None


def test_pop_marks_as_served() -> None:
    """A subscriber gets its payload early, and only once: after that its mask is 0."""
    batch = route(deliveries("a", "b"), by_topic(a="xyz", b="y"), TOWER)
    assert next(batch.unserved)[0] == "x"
    payload = batch.pop("y")
    assert payload is not None
    assert payload[0] == frames(1, 2)
    assert batch.pop("y") is None
    assert [(subscriber, bool(mask)) for subscriber, mask in batch.unserved] == [("y", False), ("z", True)]


def test_mark_served() -> None:
    """Up to the last served subscriber there is nothing to pop. For the later ones there still is."""
    batch = route(deliveries("a"), by_topic(a="wxyz"), TOWER)
    first, second = (next(batch.unserved)[0] for _ in range(2))
    batch.mark_served(second)
    assert batch.pop(first) is batch.pop(second) is None
    assert batch.pop("y") is not None
    last = [subscriber for subscriber, _ in batch.unserved][-1]
    batch.mark_served(last)
    assert batch.pop(last) is None


class HubInParts:
    """A hub that writes to `together` subscribers in one turn of the reactor, and a reactor whose turns the test takes."""

    def __init__(self, together: int) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.history = History(10**9, 10**9)
        self.history.begin(0, "q")
        self.hub = Hub(self.history, self.waiting.append, part_bytes=together * WRITE_BYTES)
        self.hub.flush()
        self.offset = 0
        self.written: list[str] = []

    def join(self, *topics: str, dialect: Dialect = TOWER) -> tuple[Subscriber, FakePeer]:
        """Add a subscriber of these topics."""
        peer = FakePeer()
        subscriber = self.hub.join(peer, dialect)
        self.hub.subscribe(subscriber, Request(topics))
        return subscriber, peer

    def send(self, *topics: str, name: str = "batch") -> list[bytes]:
        """Publish a batch. Its name is in `written` once all of it is written."""
        payloads = []
        for topic in topics:
            self.offset += 1
            payloads.append(b'{"n": %d}' % self.offset)
            self.hub.publish(self.history.append(topic, payloads[-1], self.offset, "q", None, 0.0))
        self.hub.flush(lambda: self.written.append(name))
        return payloads

    def part(self) -> None:
        """The next turn of the reactor."""
        waiting = list(self.waiting)
        self.waiting.clear()
        assert len(waiting) == 1, "one part in a turn of the reactor"
        waiting[0]()

    def behind(self) -> list[Subscriber]:
        """The subscribers that are behind."""
        return [subscriber for subscriber in self.hub.subscribers if subscriber.behind]


def got(*peers: FakePeer) -> list[int]:
    """How many writes each peer got."""
    return [len(peer.writes) for peer in peers]


def test_a_batch_is_written_in_parts() -> None:
    """So many subscribers at a time, in the same order, each with one write. `on_written` is called once, after the last."""
    parts = HubInParts(2)
    peers = [parts.join("a.1", "b.1", dialect=TOWER if number < 3 else V1)[1] for number in range(5)]
    first, second = parts.send("a.1", "b.1")
    assert (got(*peers), parts.written) == ([1, 1, 0, 0, 0], [])
    parts.part()
    assert (got(*peers), parts.written) == ([1, 1, 1, 1, 0], [])
    parts.part()
    assert (got(*peers), parts.written) == ([1, 1, 1, 1, 1], ["batch"])
    assert parts.waiting == []
    assert [peer.take() for peer in peers[:3]] == [[first, second]] * 3
    assert [message["position"] for message in peers[4].take_json()] == ["1-q", "2-q"]
    counters = parts.hub.counters
    assert (counters.batches, counters.deliveries_out) == (1, 10)


def test_a_part_that_ends_with_the_last_member() -> None:
    """What is allowed is used up just when all is written: another part finds nothing to do, and then all is said to be written."""
    parts = HubInParts(2)
    peers = [parts.join("a.1")[1] for _ in range(2)]
    parts.send("a.1")
    assert (got(*peers), parts.written) == ([1, 1], [])
    parts.part()
    assert (got(*peers), parts.written, parts.waiting) == ([1, 1], ["batch"], [])


def test_a_small_batch_is_written_at_once() -> None:
    """A batch that fits into one part is written before `flush` returns. So is one without a subscriber."""
    parts = HubInParts(3)
    peers = [parts.join("a.1")[1] for _ in range(2)]
    parts.send("a.1")
    parts.send("b.1", name="nobody's")
    assert (got(*peers), parts.written, parts.waiting) == ([1, 1], ["batch", "nobody's"], [])


def test_large_payloads_make_small_parts() -> None:
    """A write counts with its bytes, and with its own cost."""
    parts = HubInParts(3)
    peers = [parts.join("a.1")[1] for _ in range(4)]
    parts.offset += 1
    parts.hub.publish(parts.history.append("a.1", b"x" * WRITE_BYTES, parts.offset, "q", None, 0.0))
    parts.hub.flush()
    assert got(*peers) == [1, 1, 0, 0]


def test_a_batch_does_not_overtake_the_one_before() -> None:
    """The next batch first has what is left of this one written, at once."""
    parts = HubInParts(1)
    peers = [parts.join("a.1")[1] for _ in range(3)]
    first = parts.send("a.1", name="first")
    second = parts.send("a.1", name="second")
    assert parts.written == ["first"]
    assert got(*peers) == [2, 1, 1]
    while parts.waiting:
        parts.part()
    assert [peer.take() for peer in peers] == [first + second] * 3
    assert parts.written == ["first", "second"]


def test_an_empty_batch_leaves_the_rest_of_the_one_before() -> None:
    """It has nothing that could overtake. Its end is told after the rest, in the order of the batches."""
    parts = HubInParts(1)
    peers = [parts.join("a.1")[1] for _ in range(3)]
    first = parts.send("a.1", name="first")
    parts.send("b.1", name="nobody's")
    parts.send(name="empty")
    assert (got(*peers), parts.written) == ([1, 0, 0], [])
    parts.part()
    assert parts.written == []
    while parts.waiting:
        parts.part()
    assert [peer.take() for peer in peers] == [first] * 3
    assert parts.written == ["first", "nobody's", "empty"]
    parts.send(name="late")
    assert parts.written[3:] == ["late"]


def test_a_flush_without_a_report_writes_the_rest() -> None:
    """What follows it may change the log, so nothing of the batch may be left."""
    parts = HubInParts(1)
    peers = [parts.join("a.1")[1] for _ in range(3)]
    parts.send("a.1")
    parts.hub.flush()
    assert (got(*peers), parts.written) == ([1, 1, 1], ["batch"])


@each_row("since", [None, "1-q"])
def test_a_request_between_two_parts(since: str | None) -> None:
    """The subscriber first gets its part of the batch, then its answer. Nothing of that batch comes after it."""
    parts = HubInParts(1)
    parts.join("a.1")
    subscriber, peer = parts.join("a.1", dialect=V1)
    parts.send("a.1", "b.1")
    found = None if since is None else parts.history.find(since)
    change = parts.hub.subscribe(subscriber, Request(("b.1",), since=since), found)
    assert [message["position"] for message in peer.take_json()] == ["1-q"]
    assert change.position == ("2-q" if since is None else since)
    parts.hub.feed(subscriber)
    while peer.draining:
        peer.draining = False
        parts.hub.feed(subscriber)
    while parts.waiting:
        parts.part()
    assert [message["position"] for message in peer.take_json()] == ([] if since is None else ["2-q"])
    (third,) = parts.send("b.1")
    while parts.waiting:
        parts.part()
    assert third in peer.writes[0]


def test_a_subscriber_that_leaves_between_two_parts_gets_nothing() -> None:
    """Not even when it comes to its place."""
    parts = HubInParts(1)
    parts.join("a.1")
    subscriber, peer = parts.join("a.1")
    _, last = parts.join("a.1")
    parts.send("a.1")
    parts.hub.leave(subscriber)
    while parts.waiting:
        parts.part()
    assert got(peer, last) == [0, 1]


def test_a_subscriber_that_joins_between_two_parts_gets_only_later_deliveries() -> None:
    """What was published before it came is not its."""
    parts = HubInParts(1)
    parts.join("a.1")
    parts.join("a.1")
    parts.send("a.1")
    _, late = parts.join("a.1")
    while parts.waiting:
        parts.part()
    assert got(late) == [0]
    parts.send("a.1")
    while parts.waiting:
        parts.part()
    assert got(late) == [1]


@each_row("how", ["part", "request", "next batch"])
def test_a_full_peer_falls_behind_the_batch(how: str) -> None:
    """A subscriber with a full send buffer stands before the whole batch, and is fed all of it, once."""
    parts = HubInParts(1)
    parts.join("a.1")
    subscriber, peer = parts.join("a.1", "b.1")
    payloads = parts.send("a.1", "b.1")
    peer.full = True
    if how == "part":
        parts.part()
    elif how == "request":
        parts.hub.subscribe(subscriber, Request(("a.1", "b.1")))
    else:
        payloads += parts.send("b.1")
    while parts.waiting:
        parts.part()
    assert parts.behind() == [subscriber]
    peer.full = False
    while peer.draining:
        peer.draining = False
        parts.hub.feed(subscriber)
    assert parts.behind() == []
    assert peer.take() == payloads


def test_a_subscriber_that_catches_up_between_two_parts_gets_nothing_twice() -> None:
    """It was behind when the batch ended, is fed the batch from history, and is passed over when it comes to its place."""
    parts = HubInParts(1)
    parts.join("a.1")
    subscriber, peer = parts.join("a.1")
    peer.full = True
    before = parts.send("a.1")
    parts.part()
    while parts.waiting:
        parts.part()
    assert parts.behind() == [subscriber]
    peer.full = False
    payloads = parts.send("a.1")
    assert parts.waiting
    while peer.draining:
        peer.draining = False
        parts.hub.feed(subscriber)
    assert parts.behind() == []
    while parts.waiting:
        parts.part()
    assert peer.take() == before + payloads


def test_a_gap_is_told_behind_what_came_before() -> None:
    """What is left is written first, or the notice would overtake it."""
    parts = HubInParts(1)
    peers = [parts.join("a.1", dialect=V1)[1] for _ in range(3)]
    parts.send("a.1")
    start: Delivery = parts.history.head
    parts.hub.gap(start, parts.history.mark(start.offset, "mark"), "broker")
    assert [[message["type"] for message in peer.take_json()] for peer in peers] == [["event", "gap"]] * 3
    assert parts.written == ["batch"]
