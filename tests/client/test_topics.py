from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.client.items import ITEM_BYTES, ClientError, Denied, DeniedTopic, Event, Gap, Item, Queue, Subscribed, topics_of
from towerws.client.topics import Topics

NAMES = ("jobs.a", "jobs.b", "jobs.c", "jobs.d")


class Server:
    """The log, and one connection at a time, as docs/protocol.md describes them. Frames wait in `out` until they are delivered."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.floor = 0
        """Positions before this have left history."""
        self.denied: frozenset[str] = frozenset()
        """Topics that can't be checked now."""
        self.errors: list[ClientError] = []
        self.requests: list[dict[str, Any]] = []
        self.online = False
        self.piece: int | None = None
        """So many events are written at once. A connection that has not got all of them is behind."""
        self.out: list[dict[str, Any]] = []
        self.reached: dict[str, int] = {}
        """The current topics, each with the place that the connection has written up to."""
        self.topics = Topics(send=self.request, report=self.errors.append, xrftoken=lambda: None)

    def connect(self) -> None:
        """A connection is open."""
        self.online, self.out, self.reached = True, [], {}
        self.topics.online()

    def lose(self) -> None:
        """The connection is lost, with all frames on it."""
        if self.online:
            self.online = False
            self.topics.offline()

    def publish(self, name: str) -> None:
        """Add an event to the log."""
        self.log.append((name, sum(topic == name for topic, _ in self.log)))

    def request(self, message: dict[str, Any]) -> None:
        """Answer a request, as the daemon does."""
        self.requests.append(message)
        self.write()
        wanted = [f"{group}.{event}" for group, events in message["groups"].items() for event in events]
        since = None if message.get("since") is None else int(message["since"])
        recovered = None if since is None else since >= self.floor
        start = since if since is not None and recovered else len(self.log)
        before = self.reached
        self.reached = {name: before.get(name, start) for name in wanted if name in before or name not in self.denied}
        self.out.append(
            {
                "type": "subscribed",
                "id": message["id"],
                "groups_current": list(self.reached),
                "groups_joined": [name for name in self.reached if name not in before],
                "denied": [{"topic": name, "reason": "unavailable"} for name in wanted if name not in self.reached],
                "position": self.position(),
                "recovered": recovered,
            }
        )

    def position(self) -> str:
        """The place up to which the connection has got everything."""
        return str(min(self.reached.values(), default=len(self.log)))

    def ping(self) -> None:
        """Answer a ping."""
        self.write()
        self.out.append({"type": "pong", "ping": 1, "position": self.position()})

    def write(self) -> None:
        """Write what the log has for the current topics, in its order: all of it, or a piece once the one before was delivered."""
        if self.piece is not None and self.out:
            return
        end, left = len(self.log), self.piece
        for at in range(min(self.reached.values(), default=end), end):
            name, number = self.log[at]
            if self.reached.get(name, end) <= at:
                group, _, event = name.partition(".")
                frame = {"type": "event", "position": str(at + 1), "group": group, "event": event, "payload": {"n": number}}
                self.out.append(frame)
                left = None if left is None else left - 1
                if left == 0:
                    end = at + 1
                    break
        self.reached = {name: max(place, end) for name, place in self.reached.items()}

    def gap(self) -> None:
        """The oldest events that have not been delivered are replaced by a gap."""
        self.write()
        lost = []
        while self.out and self.out[0]["type"] == "event":
            lost.append(self.out.pop(0))
        if lost:
            names = list(dict.fromkeys(f"{frame['group']}.{frame['event']}" for frame in lost))
            self.out.insert(0, {"type": "gap", "topics": names, "from": None, "to": lost[-1]["position"], "reason": "history"})

    def deliver(self, count: int) -> None:
        """Give the client so many frames."""
        if not self.online:
            return
        self.write()
        while count and self.out:
            count -= 1
            frame = self.out.pop(0)
            if frame["type"] == "subscribed":
                self.topics.answered(frame)
            elif frame["type"] == "gap":
                self.topics.gap(frame)
            elif frame["type"] == "pong":
                self.topics.pong(frame)
            else:
                self.topics.event(frame, "x" * 50)
            self.write()


class Reader:
    """One subscriber. It checks what it gets: each event once and in order, or a notice before a jump."""

    def __init__(
        self, server: Server, names: tuple[str, ...], *, slow: bool, since: str | None = None, settle: bool = True, calm: bool = False
    ) -> None:
        self.names = names
        self.last: dict[str, int] = {}
        self.told: set[str] = set()
        self.calm = calm
        """Nothing was lost, so it may be told of no loss."""
        self.jumps: set[str] = set()
        self.slow = slow
        self.items: list[Item] = []
        self._server = server
        self.queue = Queue(names, 3000, since=since)
        self.queue.wake = self._wake
        server.topics.join(self.queue)
        if settle:
            server.topics.settle()

    def _wake(self) -> None:
        if not self.slow:
            self.handle()

    def handle(self, count: int = 10_000) -> None:
        """Handle so many items."""
        while count and (item := self.queue.take()) is not None:
            count -= 1
            self._got(item)
            self.queue.done()

    def _got(self, item: Item) -> None:
        self.items.append(item)
        if isinstance(item, Event):
            number, last = item.payload["n"], self.last.get(item.topic)
            assert item.topic in self.names
            if last is not None:
                assert number > last, f"{item.topic}: {number} after {last}"
                assert number == last + 1 or item.topic in self.jumps, f"{item.topic}: {number} after {last}, and nothing was told"
            self.last[item.topic] = number
            self.jumps.discard(item.topic)
        elif isinstance(item, Gap) or (isinstance(item, Subscribed) and item.type != "recovered"):
            assert item.type == "subscribed" or not self.calm, f"{item.type}: nothing was lost"
            self.jumps |= set(item.topics)
        if isinstance(item, Subscribed | Gap):
            assert item.type != "recovered" or self.queue.since is not None or self.told.issuperset(item.topics), "it has no state yet"
            self.told |= set(item.topics)

    def leave(self, *, settle: bool = True) -> None:
        """Close the subscription."""
        self.queue.ended = True
        self.queue.clear()
        self._server.topics.leave(self.queue)
        if settle:
            self._server.topics.settle()


LOSSES = {"gap", "forget"}


def steps_of(seed: int) -> list[tuple[Any, ...]]:
    """A long run: hypothesis' own lists are too short for replays that break."""
    random = Random(seed)

    def some() -> tuple[str, ...]:
        return tuple(name for name in NAMES if random.random() < 0.5) or NAMES[:1]

    kinds: list[Callable[[], tuple[Any, ...]]] = [
        lambda: ("publish", random.choices(NAMES, k=5)),
        lambda: ("publish", random.choices(NAMES, k=3)),
        lambda: ("deliver", random.randint(1, 4)),
        lambda: ("deliver", 100),
        lambda: ("join", some(), random.random() < 0.3, random.random() < 0.6),
        lambda: ("leave", random.randint(0, 9)),
        lambda: ("swap", random.randint(0, 5)),
        lambda: ("ping",),
        lambda: ("piece", random.choice((1, 2, None))),
        lambda: ("lose",),
        lambda: ("connect",),
        lambda: ("handle", random.randint(0, 5), random.randint(1, 5)),
        lambda: ("gap",),
        lambda: ("forget", random.random()) if random.random() < 0.2 else ("connect",),
        lambda: ("unsure", frozenset(some()) if random.random() < 0.3 else frozenset()),
        lambda: ("ask",),
    ]
    calm = seed % 3 == 0  # Only the connection breaks.
    return [("calm",)] * calm + [step for _ in range(120) if (step := random.choice(kinds)())[0] not in LOSSES or not calm]


@settings(max_examples=200)
@given(st.integers(0, 2**32).map(steps_of))
def test_each_event_once_and_in_order_or_a_notice(steps: list[Any]) -> None:  # noqa: C901, PLR0912 - a table of steps
    """Random runs with a model of the daemon. In the end each reader has the last event of each topic."""
    server = Server()
    readers: list[Reader] = []
    calm = steps[0] == ("calm",)
    for name, *values in steps:
        if name == "publish":
            for topic in values[0]:
                server.publish(topic)
        elif name == "deliver":
            server.deliver(values[0])
        elif name == "join" and len(readers) < 6:
            since = str(server.floor) if values[2] and not calm and server.floor <= int(server.topics.position or "0") else None
            readers.append(Reader(server, values[0], slow=values[1] and not calm, since=since, calm=calm))
        elif name == "leave" and len(readers) > values[0]:
            readers.pop(values[0]).leave()
        elif name == "swap" and len(readers) > values[0]:
            readers.append(Reader(server, readers[values[0]].names, slow=False, settle=False, calm=calm))
            readers.pop(values[0]).leave()
        elif name == "ping" and server.online:
            server.ping()
        elif name == "piece":
            server.piece = values[0]
        elif name == "lose":
            server.lose()
        elif name == "connect" and not server.online:
            server.connect()
        elif name == "handle" and len(readers) > values[0]:
            readers[values[0]].handle(values[1])
        elif name == "gap" and server.online:
            server.gap()
        elif name == "forget":
            server.floor = max(server.floor, int(values[0] * len(server.log)))
        elif name == "unsure":
            server.denied = values[0]
        elif name == "ask":
            server.topics.ask_again("unavailable")
    server.denied, server.piece = frozenset(), None
    if not server.online:
        server.connect()
    for name in (*NAMES, ""):
        for _ in range(10):
            server.topics.ask_again()
            server.topics.settle()
            server.deliver(10_000)
            for reader in readers:
                reader.handle()
        if name:
            server.publish(name)
    assert server.errors == []
    for reader in readers:
        assert not reader.queue.waiting
        for name in reader.names:
            assert reader.last[name] == sum(topic == name for topic, _ in server.log) - 1, f"the end of {name}"


def told(reader: Reader) -> list[Any]:
    """What a reader got: numbers of events, and the types of the rest."""
    return [item.payload["n"] if isinstance(item, Event) else item.type for item in reader.items]


def opened(*names: str) -> tuple[Server, Reader]:
    """A server and a reader whose topics are subscribed."""
    server = Server()
    server.connect()
    reader = Reader(server, names, slow=False)
    server.deliver(100)
    return server, reader


def test_a_full_queue_without_a_loss() -> None:
    """A `Denied` that waits stays, so there is no gap: it would name no topic."""
    queue = Queue(("jobs.a", "jobs.b"), 1000)
    for reason in ("unavailable", "not granted"):
        queue.put(Denied((DeniedTopic("jobs.b", reason),)), "p1", 0, 1)
    queue.put(Event("jobs.a", "jobs", "a", {}, "p2"), "p1", 1000, 2)
    assert [(waiting.item.type, waiting.before) for waiting in queue.waiting] == [("denied", "p1"), ("event", "p1")]
    assert queue.bytes == sum(waiting.size for waiting in queue.waiting)


def test_the_server_hears_the_union() -> None:
    """Subscribers share topics, and leave without each other."""
    server, one = opened("jobs.a", "jobs.b")
    two = Reader(server, ("jobs.b", "jobs.c"), slow=False)
    assert told(two) == ["subscribed"], "jobs.b is there already"
    server.deliver(100)
    for name in NAMES:
        server.publish(name)
    server.deliver(100)
    one.leave()
    server.deliver(100)
    server.publish("jobs.b")
    server.deliver(100)
    two.leave()
    assert [message["groups"] for message in server.requests] == [
        {"jobs": ["a", "b"]}, {"jobs": ["a", "b", "c"]}, {"jobs": ["b", "c"]}, {},
    ]  # fmt: skip
    assert told(one) == ["subscribed", 0, 0]
    assert told(two) == ["subscribed", "subscribed", 0, 0, 1]


def test_a_replay_that_is_cut_off_repeats_nothing() -> None:
    """A topic is added from an older place. The connection breaks within the replay: each topic resumes at its own place."""
    server, one = opened("jobs.a")
    for name in ("jobs.b", "jobs.a", "jobs.b", "jobs.a"):
        server.publish(name)
    server.deliver(100)
    two = Reader(server, ("jobs.b",), slow=False, since="0")
    server.deliver(2)  # the answer, and the first event
    assert told(two) == ["recovered", 0]
    assert server.topics.handled() is None, "no single position has all that is missing"
    server.lose()
    server.publish("jobs.a")
    server.connect()
    server.deliver(100)
    assert [(message["groups"], message.get("since")) for message in server.requests[-2:]] == [
        ({"jobs": ["a"]}, "4"),
        ({"jobs": ["a", "b"]}, "1"),
    ]
    assert told(one) == ["subscribed", 0, 1, "recovered", 2]
    assert told(two) == ["recovered", 0, "recovered", 1]
    server.publish("jobs.a")
    server.deliver(100)
    assert server.topics.handled() == "6", "the replay has been overtaken"


def test_a_topic_that_could_not_be_checked_loses_nothing() -> None:
    """It is asked for again from the place of the first answer."""
    server = Server()
    server.denied = frozenset({"jobs.a"})
    server.connect()
    reader = Reader(server, ("jobs.a",), slow=False)
    server.deliver(100)
    assert server.topics.waits_for_unavailable()
    server.publish("jobs.a")
    server.denied = frozenset()
    server.topics.ask_again("unavailable")
    assert server.requests[-1]["since"] == "0"
    server.deliver(100)
    assert told(reader) == ["denied", "subscribed", 0]
    assert not server.topics.waits_for_unavailable()


@each_row("ends", ["it can be checked", "its subscriber leaves"])
def test_no_position_is_stored_past_a_topic_that_could_not_be_checked(ends: str) -> None:
    """The others go on. Another process that resumes from their position would miss events of this topic in silence."""
    server, one = opened("jobs.a", "jobs.b")
    server.denied = frozenset({"jobs.b"})
    reconnect(server)
    for name in ("jobs.b", "jobs.a"):
        server.publish(name)
    server.deliver(100)
    assert told(one)[-1] == 0
    assert (server.topics.position, server.topics.handled()) == ("2", None)
    if ends == "it can be checked":
        server.denied = frozenset()
        server.topics.ask_again("unavailable")
        assert server.requests[-1]["since"] == "0"
        server.deliver(100)
        server.publish("jobs.a")
        server.deliver(100)
        assert server.topics.handled() == "3"
    else:
        Reader(server, ("jobs.a",), slow=False)
        one.leave()
        server.deliver(100)
        assert server.topics.handled() == "2"


def reconnect(server: Server) -> None:
    """The connection is lost, and another one is open."""
    server.lose()
    server.connect()


def left_then_joined(server: Server, old: Reader, again: Callable[[], Reader]) -> Reader:
    """The server does not notice."""
    old.leave(settle=False)
    return again()


def joined_then_left(server: Server, old: Reader, again: Callable[[], Reader]) -> Reader:
    """The topic has a subscriber all the time."""
    new = again()
    old.leave(settle=False)
    return new


def left_and_joined_behind_a_request(server: Server, old: Reader, again: Callable[[], Reader]) -> Reader:
    """The request has the topic."""
    Reader(server, ("jobs.b",), slow=False)
    return left_then_joined(server, old, again)


def left_and_joined_behind_the_request_to_leave(server: Server, old: Reader, again: Callable[[], Reader]) -> Reader:
    """The events between the two requests are not sent."""
    old.leave()
    new = again()
    server.topics.settle()
    server.deliver(100)
    assert "since" not in server.requests[-1]
    return new


def left_and_joined_after_a_replay(server: Server, old: Reader, again: Callable[[], Reader]) -> Reader:
    """Another topic began at an older place on this connection."""
    server.publish("jobs.b")
    Reader(server, ("jobs.b",), slow=False, since="0")
    server.deliver(100)
    return left_then_joined(server, old, again)


@each_row(
    "steps",
    [
        left_then_joined, joined_then_left, left_and_joined_behind_a_request, left_and_joined_behind_the_request_to_leave,
        left_and_joined_after_a_replay,
    ],
)  # fmt: skip
def test_left_and_joined_in_one_moment(steps: Callable[[Server, Reader, Callable[[], Reader]], Reader]) -> None:
    """The topic then survives the loss of the connection like any other."""
    server, old = opened("jobs.a")
    server.publish("jobs.a")
    server.deliver(100)
    new = steps(server, old, lambda: Reader(server, ("jobs.a",), slow=False, settle=False))
    server.topics.settle()
    server.deliver(100)
    assert told(new) == ["subscribed"]
    server.lose()
    server.publish("jobs.a")
    server.connect()
    server.deliver(100)
    assert told(new) == ["subscribed", "recovered", 1]


def test_a_replayed_topic_that_is_left_and_joined_in_one_moment() -> None:
    """It goes on where its replay is. No other topic is sent again because of that."""
    server, one = opened("jobs.a")
    for name in ("jobs.b", "jobs.a", "jobs.b", "jobs.a"):
        server.publish(name)
    server.deliver(100)
    old = Reader(server, ("jobs.b",), slow=False, since="0")
    server.deliver(2)  # the answer, and the first event
    for _ in range(2):  # also on a connection that resumes the replay
        old.leave(settle=False)
        new = old = Reader(server, ("jobs.b",), slow=False)
        assert told(new) == ["subscribed"]
        reconnect(server)
        server.deliver(2)  # both answers
    server.deliver(100)
    assert told(new) == ["subscribed", "recovered", 1]
    assert [item for item in told(one) if item != "recovered"] == ["subscribed", 0, 1]


def test_a_subscription_that_is_made_while_the_connection_is_lost() -> None:
    """It has no state yet, so it is told `subscribed`, also if another one has the topic and resumes."""
    server, one = opened("jobs.a")
    server.publish("jobs.a")
    server.deliver(100)
    server.lose()
    new = Reader(server, ("jobs.a", "jobs.b"), slow=False)
    server.publish("jobs.a")
    server.connect()
    server.deliver(100)
    assert told(one) == ["subscribed", 0, "recovered", 1]
    assert told(new) == ["subscribed", 1, "subscribed"]
    server.floor = 9
    reconnect(server)
    server.deliver(100)
    assert (told(one)[-1], told(new)[-1]) == ("stale", "stale")


def test_since_of_a_subscription_that_is_made_while_the_connection_is_lost() -> None:
    """`recovered` holds for the one whose position was asked for. What another one needs was not."""
    server = Server()
    server.publish("jobs.a")
    server.publish("jobs.a")
    first, same, older, new = (Reader(server, ("jobs.a",), slow=False, since=since) for since in ("1", "1", "0", None))
    server.connect()
    server.deliver(100)
    assert server.requests[0]["since"] == "1"
    assert [told(reader)[0] for reader in (first, same, older, new)] == ["recovered", "recovered", "stale", "subscribed"]
    server.lose()
    resumed = Reader(server, ("jobs.a",), slow=False, since="0")
    server.connect()
    server.deliver(100)
    assert told(resumed) == ["stale"]


def test_a_stored_position() -> None:
    """It counts for the subscriptions that are there before the first connection, and not for a topic that begins elsewhere."""
    server = Server()
    for name in ("jobs.a", "jobs.b", "jobs.a"):
        server.publish(name)
    before = Reader(server, ("jobs.a",), slow=False)
    server.topics.resume_from("1")
    elsewhere = Reader(server, ("jobs.b",), slow=False, since="0")
    after = Reader(server, ("jobs.a", "jobs.b"), slow=False)
    server.connect()
    server.deliver(100)
    assert (told(before), told(elsewhere)) == (["recovered", 1], ["recovered", 0])
    assert sorted(map(str, told(after))) == ["0", "1", "recovered", "stale"]
    new = Reader(server, ("jobs.a",), slow=False)
    assert told(new) == ["subscribed"]


def test_a_quiet_topic_resumes_at_the_position_of_the_newest_pong() -> None:
    """The position of its last event would leave history. A pong without a position changes nothing."""
    server, one = opened("jobs.a")
    server.publish("jobs.a")
    server.deliver(100)
    for _ in range(5):
        server.publish("jobs.d")
    server.ping()
    server.deliver(100)
    assert (server.topics.position, server.topics.handled()) == ("6", "6")
    server.topics.pong({"type": "pong", "ping": 1, "position": None})
    server.floor = 4
    server.lose()
    server.connect()
    server.deliver(100)
    assert told(one) == ["subscribed", 0, "recovered"]


def test_a_pong_before_the_answer() -> None:
    """Its position counts for no topic that the server does not send yet."""
    server, one = opened("jobs.a")
    server.lose()
    server.publish("jobs.a")
    server.connect()
    server.topics.pong({"type": "pong", "ping": None, "position": "1"})
    reconnect(server)
    assert server.requests[-1]["since"] == "0"
    server.deliver(100)
    assert told(one) == ["subscribed", "recovered", 0]


def test_a_pong_within_a_replay() -> None:
    """It has the place of the replay, which is older than that of the other topics. One after the replay counts for all."""
    server, one = opened("jobs.a")
    for name in ("jobs.b", "jobs.a", "jobs.b", "jobs.d", "jobs.d"):
        server.publish(name)
    server.deliver(100)
    two = Reader(server, ("jobs.b",), slow=False, since="0")
    server.piece = 1
    server.deliver(1)  # the answer
    server.ping()
    server.deliver(2)  # the first event, and the pong
    assert told(two) == ["recovered", 0]
    assert server.topics.position == "2"
    server.piece = None
    server.deliver(100)
    server.ping()
    server.deliver(100)
    assert (server.topics.position, server.topics.handled()) == ("5", "5")
    server.floor = 5
    reconnect(server)
    server.deliver(100)
    assert (told(one), told(two)) == (["subscribed", 0, "recovered"], ["recovered", 0, 1, "recovered"])


def test_since_for_a_topic_that_is_there() -> None:
    """It can't be replayed for one subscriber alone, so that one is told `stale`."""
    server, _ = opened("jobs.a")
    assert told(Reader(server, ("jobs.a",), slow=False, since="0")) == ["stale"]


def test_an_error_of_a_request_leaves_the_others_alone() -> None:
    """Its topics are denied. So are those of a request that would be too long for the daemon."""
    server, one = opened("jobs.a")
    two = Reader(server, ("jobs.b",), slow=False)
    server.topics.request_failed("too_many_topics", "more than 1000 topics")
    three = Reader(server, tuple(f"jobs.{'x' * 100}{n}" for n in range(700)), slow=False)
    server.out.clear()
    server.publish("jobs.a")
    server.reached = {"jobs.a": 0}
    server.deliver(100)
    assert [error.code for error in server.errors] == ["too_many_topics"] * 2
    assert [told(reader) for reader in (one, two, three)] == [["subscribed", 0], ["denied"], ["denied"]]


def test_revoked() -> None:
    """It is told, and asked for again when there are new rights. Then it is stale."""
    server, reader = opened("jobs.a", "jobs.b")
    frame = {"groups_current": ["jobs.b"], "denied": [{"topic": "jobs.a", "reason": "not allowed"}], "position": "0"}
    server.topics.revoked(frame)
    server.reached.pop("jobs.a")
    assert len(server.requests) == 1, "asking again would not help"
    server.topics.ask_again()
    server.deliver(100)
    assert told(reader) == ["subscribed", "denied", "stale"]


def test_revoked_while_a_request_is_open() -> None:
    """The server holds some of the request's topics already. They are told once, by the answer."""
    server, reader = opened("jobs.a", "jobs.b")
    other = Reader(server, ("jobs.c", "jobs.d"), slow=False)
    server.topics.settle()
    frame = {"groups_current": ["jobs.a", "jobs.c"], "denied": [{"topic": "jobs.b", "reason": "not allowed"}], "position": "0"}
    server.topics.revoked(frame)
    server.reached.pop("jobs.b")
    assert [told(each) for each in (reader, other)] == [["subscribed", "denied"], []]
    server.deliver(100)
    assert told(other) == ["subscribed"]


def test_a_request_to_leave_that_fails() -> None:
    """It is not repeated, since it would fail again. A later request leaves the topic."""
    server, _ = opened("jobs.a")
    two = Reader(server, ("jobs.b",), slow=False)
    server.deliver(100)
    server.topics.leave(two.queue)
    server.topics.settle()
    assert len(server.requests) == 3
    server.topics.request_failed("xrftoken", "access denied to channel")
    assert len(server.requests) == 3
    again = Reader(server, ("jobs.b",), slow=False)
    server.deliver(100)
    assert told(again) == ["subscribed"]


def test_revoked_and_brought_back_by_the_open_request() -> None:
    """The request was on its way with the topic, so it joins the topic again. Events between the two are missing: it is stale."""
    server, reader = opened("jobs.a")
    Reader(server, ("jobs.b",), slow=False)
    server.topics.revoked({"groups_current": [], "denied": [{"topic": "jobs.a", "reason": "unavailable"}], "position": "0"})
    server.out[-1]["groups_joined"].append("jobs.a")
    server.deliver(100)
    server.publish("jobs.a")
    server.deliver(100)
    assert told(reader) == ["subscribed", "denied", "stale", 0]


def test_a_slow_handler() -> None:
    """Its queue is bounded, others are not slower, and the loss is one gap. The newest list of denied topics stays."""
    server, quick = opened("jobs.a")
    slow = Reader(server, ("jobs.a",), slow=True)
    for _ in range(50):
        server.publish("jobs.a")
    server.deliver(10)
    slow.queue.put(Denied(()), None, 0, 1)
    server.deliver(40)
    assert slow.queue.bytes <= 3000 + ITEM_BYTES
    slow.handle()
    gaps = [item for item in slow.items if isinstance(item, Gap)]
    assert {gap.reason for gap in gaps} == {"slow"}
    assert gaps[0].topics == ("jobs.a",)
    assert any(isinstance(item, Denied) for item in slow.items)
    assert told(slow)[-1] == 49
    assert told(quick) == ["subscribed", *range(50)]


def test_what_a_store_resumes_from() -> None:
    """The position before the oldest item that no handler has finished."""
    server, _ = opened("jobs.a")
    slow = Reader(server, ("jobs.a",), slow=True)
    slow.handle()
    for _ in range(3):
        server.publish("jobs.a")
    server.deliver(100)
    assert server.topics.handled() == "0"
    slow.handle(2)
    assert server.topics.handled() == "2"
    slow.handle()
    assert server.topics.handled() == "3"


@each_row(
    "groups, error",
    [
        ({"jobs": "a"}, TypeError), ({"jobs": {"a": 1}}, TypeError), ({"jobs": 5}, TypeError), (None, TypeError), ([], TypeError),
        ({"jobs": [None]}, ValueError), ({"jobs": [True]}, ValueError), ({"jobs": [1.5]}, ValueError), ({"jobs": ["a.b"]}, ValueError),
        ({"jobs": ["*"]}, ValueError), ({"jobs": ["\u00e9"]}, ValueError), ({"jobs": [""]}, ValueError), ({"a-b": ["x"]}, ValueError),
        ({"": [1]}, ValueError), ({5: [1]}, ValueError), ({"jobs": ["x" * 129]}, ValueError), ({"jobs": ["\ud800"]}, ValueError),
    ],
)  # fmt: skip
def test_malformed_topics(groups: Any, error: type[Exception]) -> None:
    """Each is an error at once."""
    with pytest.raises(error):
        topics_of(groups)


def test_topics_of_groups() -> None:
    """Numbers and their texts are the same event."""
    assert topics_of({"jobs": ["a"], "job_events": (42, "42", "43")}) == ("jobs.a", "job_events.42", "job_events.43")
