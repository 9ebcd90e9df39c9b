"""The topics of all subscriptions on one connection: what to ask the server for, and what a frame means to each subscription. Plain Python.

The client asks the server for the union of the topics. At most one request waits for its answer, because a newer request would cut it
short.

Each topic has a place in the log, up to which the client has its events. Most topics share one place, the position of the newest event. A
topic that is replayed from an older position has a place of its own, until the replay has reached an event of the other topics. Such a
topic has a `since`, or the server could not check it at first. So a connection that breaks during a replay repeats nothing.

`_places` has the places in the order of the server's answers. A connection gets the events of all its topics in the order of the log. So an
event at one place shows that the topics of all later places have been read up to this event, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

from towerws.client.items import ClientError, Denied, DeniedTopic, Event, Gap, Queue, Subscribed, as_groups
from towerws.core.wire import UNAVAILABLE

MAX_REQUEST_BYTES = 65_536
"""The daemon closes a connection that sends more in one message."""


class _Place:
    """A position in the log that some topics have reached.

    `current`: whether the server sends these topics on this connection. `into`: the place that replaced this one, because its topics have
    reached it.
    """

    __slots__ = ("current", "into", "position")

    def __init__(self, position: str | None) -> None:
        self.position = position
        self.current = False
        self.into: _Place | None = None


class _Topic:
    """A topic that has a subscriber. `denied` is the server's reason not to send it."""

    __slots__ = ("ask", "denied", "place", "queues", "retried", "since")

    def __init__(self, since: str | None, place: _Place | None) -> None:
        self.queues: dict[Queue, None] = {}
        self.since = since
        """The position from which the topic is to begin, if it has not begun yet."""
        self.place = place
        """The place that the topic has reached. None if the topic is new, and begins with the next event."""
        self.denied: str | None = None
        self.ask = False
        """Whether the next request has to contain this denied topic."""
        self.retried = False
        """Whether `since` is the position of an answer that left the topic out. Then events before it are missing."""


class _Request:
    """The request that waits for its answer. `joined` are the topics that it adds, from the position `since` or the place `place`."""

    __slots__ = ("joined", "number", "place", "since")

    def __init__(self, number: int, joined: list[str], since: str | None, place: _Place | None) -> None:
        self.number = number
        self.joined = set(joined)
        self.since = since
        self.place = place


class Topics:
    """Keeps the topics of all subscriptions, makes the requests, and handles the frames.

    `send` gets each request, and `report` each error that concerns no single subscription. `xrftoken` returns Tower's CSRF token, or None.
    """

    def __init__(
        self, *, send: Callable[[dict[str, Any]], None], report: Callable[[ClientError], None], xrftoken: Callable[[], str | None]
    ) -> None:
        self._send = send
        self._report = report
        self._xrftoken = xrftoken
        self._topics: dict[str, _Topic] = {}
        self.queues: dict[Queue, None] = {}
        self._places = [_Place(None)]
        self._held: set[str] = set()
        """The topics that the server sends on this connection."""
        self._left: dict[str, _Topic] = {}
        """Topics without a subscriber that the server still sends. A new subscriber of such a topic goes on at its place."""
        self._newest: str | None = None
        """The position of the newest frame of this connection, without `pong` and `revoked`."""
        self.asked: _Request | None = None
        self._online = False
        self._replayed = False
        """Whether a topic began at an older place on this connection. Its events may come even if it has no subscriber any more."""
        self._was_online = False
        self._unsure = False
        """Whether the server could not check a topic. Such a topic will begin at a place behind the others."""
        self._numbers = 0

    # the subscribers

    def join(self, queue: Queue) -> None:
        """Add a subscriber. `settle` asks for its topics."""
        self.queues[queue] = None
        stored = None if self._was_online or self._places[0].position is None or queue.since is not None else self._places[0]
        since = queue.since
        if stored is not None:
            queue.since = stored.position
        for name in queue.topics:
            topic = self._topics.get(name)
            if topic is None:
                # A held topic has just lost its last subscriber. It goes on, and can't be replayed, because live events may come first.
                topic = (self._left.pop(name, None) or _Topic(None, None)) if name in self._held else _Topic(since, stored)
                self._topics[name] = topic
            topic.queues[queue] = None

    def leave(self, queue: Queue) -> None:
        """Remove a subscriber. Others keep their topics."""
        self.queues.pop(queue, None)
        for name in queue.topics:
            if (topic := self._topics.get(name)) is not None and topic.queues.pop(queue, ...) is None and not topic.queues:
                del self._topics[name]
                if name in self._held:
                    self._left[name] = topic
        self._drop_empty_places()
        self._look_for_unavailable()

    @property
    def position(self) -> str | None:
        """The newest position that the server has sent."""
        return self._places[0].position

    def resume_from(self, position: str) -> None:
        """Begin at a position that an earlier client has stored."""
        self._places[0].position = position
        for topic in self._topics.values():
            if topic.since is None:
                topic.place = self._places[0]
        for queue in self.queues:
            if queue.since is None:
                queue.since = position

    def handled(self) -> str | None:
        """Return the position at which a later process has to resume: before the oldest item that is not handled yet.

        None during a replay, or before one: then no single position is right for all topics.
        """
        if len(self._places) > 1 or self._unsure:
            return None
        oldest = min((queue.waiting[0] for queue in self.queues if queue.waiting), key=lambda waiting: waiting.at, default=None)
        return self.position if oldest is None else oldest.before

    # the connection

    def online(self) -> None:
        """Ask for all topics, on a connection that has just opened."""
        self._online = self._was_online = True
        self.ask_again()

    def offline(self) -> None:
        """Note that the connection has ended. Topics keep their places."""
        self._online = self._replayed = False
        self._held, self._left, self._newest = set(), {}, None
        self.asked = None
        for place in self._places:
            place.current = False

    def ask_again(self, reason: str | None = None) -> None:
        """Ask again for the topics that were denied, for this reason or (None) for any."""
        for topic in self._topics.values():
            if topic.denied is not None and reason in {None, topic.denied}:
                topic.ask = True
        self.request()

    def waits_for_unavailable(self) -> bool:
        """Whether the server could not check a topic that no request asks for again yet."""
        return any(topic.denied == UNAVAILABLE and not topic.ask for topic in self._topics.values())

    def settle(self) -> None:
        """Handle new and ended subscriptions: tell the new ones which of their topics the server sends already, and ask for the rest."""
        if self._online and self.asked is None:
            for queue in list(self.queues):
                self._tell(queue)
            self.request()

    # requests

    def request(self) -> None:
        """Send the next request, if one is due and none waits."""
        if not self._online or self.asked is not None:
            return
        fresh = [name for name, topic in self._topics.items() if name not in self._held and (topic.ask or topic.denied is None)]
        if not fresh and self._held <= self._topics.keys():
            return
        joined, since, place = self._next(fresh)
        self._numbers += 1
        self.asked = _Request(self._numbers, joined, since, place)
        message: dict[str, Any] = {"groups": as_groups([*(name for name in self._topics if name in self._held), *joined])}
        if since is not None:
            message["since"] = since
        message["id"] = self._numbers
        if (xrftoken := self._xrftoken()) is not None:
            message["xrftoken"] = xrftoken
        if len(json.dumps(message)) > MAX_REQUEST_BYTES:
            self.request_failed("too_many_topics", f"the topics take more than {MAX_REQUEST_BYTES} bytes")
        else:
            self._send(message)

    def _next(self, fresh: list[str]) -> tuple[list[str], str | None, _Place | None]:
        """Return the new topics for the next request, with the position and the place where they begin. Later requests add the others.

        A request has one `since`, so it can only add topics that begin at the same position.
        """
        for place in self._places:
            if resumed := [name for name in fresh if self._place(name) is place]:
                return resumed, place.position, place
        since = next((found for name in fresh if (found := self._topics[name].since) is not None), None)
        if since is not None:
            return [name for name in fresh if self._topics[name].since == since], since, None
        return fresh, None, None

    def answered(self, frame: dict[str, Any]) -> None:
        """Handle `subscribed`."""
        request = self.asked
        if request is None or frame.get("id") != request.number:
            return
        self.asked = None
        before = request.since or self.position
        for name in self._held.difference(frame["groups_current"]) & self._topics.keys():
            self._topics[name].place = None  # The topic lost its subscribers and got new ones during the request, so it begins again.
        self._hold(frame["groups_current"])
        self._newest = frame["position"] or self._newest
        position, recovered = frame["position"], frame.get("recovered")
        reasons = {item["topic"]: item["reason"] for item in frame["denied"]}
        request.joined.update(frame["groups_joined"])  # also topics that were taken away while the request waited
        begun = [name for name in request.joined if name in self._held and name in self._topics]
        place = request.place
        if place is not None and not (place := self._resolve(place)).current and place in self._places:
            place.position = position or place.position
            self._replayed = self._replayed or place is not self._places[0]
        elif request.since is not None and recovered:
            self._replayed = True
            place = _Place(position or request.since)
            self._places += [place] if begun else []
        elif len(self._places) > 1 or self._replayed:
            place = _Place(position)
            self._places += [place] if begun else []
        else:
            place = self._places[0]
            place.position = position or place.position
        place.current = True
        retried = {name for name in begun if self._topics[name].retried}
        for name in begun:
            topic = self._topics[name]
            topic.place, topic.since, topic.denied, topic.retried = place, None, None, False
        for name in request.joined - self._held:
            self._deny(name, reasons.get(name, "left out"), request.since, position)
        for name in self._held & self._topics.keys():
            topic = self._topics[name]
            topic.denied, topic.ask = None, False
        self._drop_empty_places()
        self._look_for_unavailable()
        for queue in list(self.queues):
            self._tell(queue, set(begun), since=request.since if recovered else None, before=before, retried=retried)
        self.request()

    def request_failed(self, code: str, text: str) -> None:
        """Handle an `error` that answers the request. Its new topics are denied, the others go on."""
        if self.asked is None:
            return
        joined, self.asked = self.asked.joined, None
        for name in joined:
            self._deny(name, code)
        self._hold(self._held & self._topics.keys())  # without another request to leave topics, which would fail, too
        self._look_for_unavailable()
        self._report(ClientError(code, f"a request failed: {text}"))
        for queue in list(self.queues):
            self._tell(queue)
        self.request()

    def _deny(self, name: str, reason: str, since: str | None = None, position: str | None = None) -> None:
        """Note that the server does not send a topic. If it could not check the topic, a later request asks again.

        The topic then begins at the position that it was to begin at (`since`), or at that of the answer (`position`).
        """
        if (topic := self._topics.get(name)) is None:
            return
        topic.denied, topic.ask, topic.place = reason, False, None
        topic.since = (since or position) if reason == UNAVAILABLE else None
        topic.retried = topic.since is not None and (topic.retried or since is None)

    def _look_for_unavailable(self) -> None:
        self._unsure = any(topic.denied == UNAVAILABLE for topic in self._topics.values())

    # frames

    def event(self, frame: dict[str, Any], text: str) -> None:
        """Handle `event`. `text` is the whole frame."""
        name = f"{frame['group']}.{frame['event']}"
        topic, position = self._topics.get(name), frame["position"]
        self._newest = position or self._newest
        place = self._reached(name)
        before = self.position if place is None else place.position
        if place is not None:
            self._advance(place, position)
        if topic is None:
            return
        item = Event(name, frame["group"], frame["event"], frame["payload"], position or before, frame.get("text"), text)
        for queue in list(topic.queues):
            self._put(queue, item, before, len(text))

    def gap(self, frame: dict[str, Any]) -> None:
        """Handle `gap`."""
        self._newest = frame["to"] or self._newest
        places = [place for name in frame["topics"] if (place := self._reached(name)) is not None]
        oldest = min(places, key=self._places.index, default=None)
        before = self.position if oldest is None else oldest.position
        if oldest is not None:
            self._advance(oldest, frame["to"])
        for queue in list(self.queues):
            lost = tuple(name for name in frame["topics"] if name in queue.topics)
            if lost:
                self._put(queue, Gap(lost, frame.get("from"), frame["to"], frame["reason"]), before)

    def revoked(self, frame: dict[str, Any]) -> None:
        """Handle `revoked`: the server took topics away."""
        self._hold(frame["groups_current"])
        for item in frame["denied"]:
            self._deny(item["topic"], item["reason"])
        self._look_for_unavailable()
        self._read_up_to(frame["position"])
        self._drop_empty_places()
        for queue in list(self.queues):
            self._tell(queue)
        self.settle()

    def pong(self, frame: dict[str, Any]) -> None:
        """Handle `pong`. Without its position, that of a client with quiet topics would soon be too old for the server's history."""
        self._read_up_to(frame["position"])

    # places

    def _place(self, name: str) -> _Place | None:
        place = self._topics[name].place
        return None if place is None else self._resolve(place)

    @staticmethod
    def _resolve(place: _Place) -> _Place:
        while place.into is not None:
            place = place.into
        return place

    def _reached(self, name: str) -> _Place | None:
        """Return the place that a frame of this topic advances. None if that can't be known, right after the topic was left or joined."""
        if (topic := self._topics.get(name) or self._left.get(name)) is None:
            return None
        if topic.place is None:  # The topic's events may come shortly before the answer to the request that added it.
            return None if self._replayed or len(self._places) > 1 else self._places[0]
        return self._resolve(topic.place)

    def _read_up_to(self, position: str | None) -> None:
        """Advance all topics that the server sends, because it has sent all their events up to this position.

        During a replay the server names the position of the replay, which is that of the newest frame. Such a position is ignored, because
        it is not valid for the other topics.
        """
        if position is None or (position == self._newest and (self._replayed or len(self._places) > 1)):
            return
        place = next((place for place in self._places if place.current), None)
        if place is not None:
            self._advance(place, position)

    def _hold(self, names: Iterable[str]) -> None:
        """Note that the server sends these topics, and no others."""
        self._held = set(names)
        self._left = {name: topic for name, topic in self._left.items() if name in self._held}

    def _advance(self, place: _Place, position: str | None) -> None:
        """Move a place to this position. It replaces all later places that the server sends, which have been read up to it as well."""
        place.position = position or place.position
        if self._places[-1] is not place:
            at = self._places.index(place) + 1
            for later in self._places[at:]:
                if later.current:
                    later.into = place
            self._places[at:] = [later for later in self._places[at:] if not later.current]

    def _drop_empty_places(self) -> None:
        if len(self._places) > 1:
            topics = (*self._topics.values(), *self._left.values())
            used = {self._resolve(topic.place) for topic in topics if topic.place is not None}
            self._places = [place for place in self._places if place in used] or self._places[:1]

    # subscribers

    def _tell(
        self,
        queue: Queue,
        joined: Iterable[str] = (),
        *,
        since: str | None = None,
        before: str | None = None,
        retried: Iterable[str] = (),
    ) -> None:
        """Give a subscriber the items that say what the newest answer means for its topics.

        The topics that the request `joined` have recovered from `since`, or have not (None). A topic that the subscriber has no state of is
        `subscribed`: it got no item about the topic before, and brought no position. Topics of an open request wait for its answer.
        """
        asked = frozenset() if self.asked is None else self.asked.joined
        news: dict[Literal["subscribed", "recovered", "stale"], list[str]] = {"subscribed": [], "recovered": [], "stale": []}
        for name in queue.topics:
            known = name in queue.told
            if name not in self._held or name in asked or (known and name not in joined):
                continue
            queue.told.add(name)
            if not known and queue.since is None:
                news["subscribed"].append(name)
            elif name in joined and name not in retried and since is not None and (known or since == queue.since):
                news["recovered"].append(name)
            else:
                news["stale"].append(name)
        before = before or self.position
        for word, names in news.items():
            if names:
                self._put(queue, Subscribed(word, tuple(names), self._where(names[0])), before)
        denied = tuple(
            DeniedTopic(name, topic.denied)
            for name in queue.topics
            if (topic := self._topics.get(name)) is not None and topic.denied is not None
        )
        if denied != queue.told_denied:
            queue.told_denied = denied
            if denied:
                self._put(queue, Denied(denied), before)

    def _where(self, name: str) -> str | None:
        place = self._place(name) if name in self._topics else None
        return self.position if place is None else place.position

    def _put(self, queue: Queue, item: Event | Subscribed | Gap | Denied, before: str | None, characters: int = 0) -> None:
        self._numbers += 1
        queue.put(item, before, characters, self._numbers)
