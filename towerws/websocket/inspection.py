"""What the console shows of connections: a page of rows, and why a client does not get the events of a topic. It can also end one of them.

`explain` follows the rules in the order in which the daemon applies them. The same objects answer that decide for a client: the groups,
the method that authenticated it, the hub and history.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError, inlineCallbacks, maybeDeferred  # noqa: A004 - Twisted's own
from twisted.logger import Logger

from towerws.core.errors import CloseReason, printable
from towerws.core.topics import parse_flat_name, parse_routing_key
from towerws.core.wire import UNAVAILABLE

if TYPE_CHECKING:
    from towerws.core.deliveries import Delivery
    from towerws.core.history import History
    from towerws.core.sources import SourceStatus
    from towerws.protocol import WebSocketConnection, WebSocketFactory
    from towerws.websocket.session import Session

MAX_ROWS = 100
"""The most rows in one answer."""

MAX_SEARCHED = 2000
"""The most connections that one answer looks at: 2.3 ms with a text to search for. The caller goes on from `next`."""

MAX_SEARCHED_TOPICS = 20_000
"""The most topics that one answer looks at: 1.5 ms. Of a connection with more, it looks at this many."""

TOPICS_SHOWN = 20
"""The most topics that a row lists. `topic_count` has the number of all."""

MAX_CONNECTIONS = 10
"""The most connections of the user that `explain` looks at. Each may cost a call to the API."""

DEADLINE_S = 10.0
"""Seconds that a method may take to decide about one connection."""

_log = Logger()


def list_connections(factory: WebSocketFactory, *, after: int, text: str, limit: int, behind: bool) -> dict[str, object]:
    """Return rows of connections whose number is larger than `after`, the oldest first.

    `text`: only connections with this text in their user, address, dialect, method, credential or topics. `behind`: only those that are
    behind. `next` in the answer is the number after which to go on, None at the end. `present` is the number of all connections.
    """
    rows: list[dict[str, object]] = []
    searched = topics = 0
    last: int | None = None
    for connection in factory.connections:
        if connection.number <= after:
            continue
        topics += _topic_count(connection) if text else 0
        if len(rows) >= limit or searched >= MAX_SEARCHED or (searched and topics > MAX_SEARCHED_TOPICS):
            return {"connections": rows, "next": last, "present": len(factory.connections)}
        searched += 1
        last = connection.number
        if _matches(connection, text, behind=behind):
            rows.append(_row(factory, connection))
    return {"connections": rows, "next": None, "present": len(factory.connections)}


def end_connection(factory: WebSocketFactory, number: int) -> bool:
    """Close the connection with this number. Its client reconnects, and resumes. Return False if there is no such connection."""
    found = next((connection for connection in factory.connections if connection.number == number), None)
    if found is None:
        return False
    if found.session is None and found.state == found.STATE_CONNECTING:
        found.dropConnection(abort=True)
    else:
        found.end(CloseReason.RESTART)
    return True


def _matches(connection: WebSocketConnection, text: str, *, behind: bool) -> bool:
    session = connection.session
    if behind and (session is None or not session.subscriber.behind):
        return False
    if not text or text in connection.address:
        return True
    if session is None:
        return False
    identity = session.identity
    names = (identity.user or "", session.dialect.name, identity.method, identity.session or "")
    return any(text in name for name in names) or any(text in topic for topic in islice(session.subscriber.topics, MAX_SEARCHED_TOPICS))


def _topic_count(connection: WebSocketConnection) -> int:
    return 0 if connection.session is None else len(connection.session.subscriber.topics)


def _row(factory: WebSocketFactory, connection: WebSocketConnection) -> dict[str, object]:
    row: dict[str, object] = {"connection": connection.number, "address": connection.address, "state": connection.stage}
    if (session := connection.session) is not None:
        topics = session.subscriber.topics
        row |= {
            "user": session.identity.user,
            "method": session.identity.method,
            "session": session.identity.session,
            "dialect": session.dialect.name,
            "behind": session.subscriber.behind,
            "age_s": round(factory.context.reactor.seconds() - connection.opened_at, 1),
            "requests": session.requests,
            "topics": list(islice(topics, TOPICS_SHOWN)),
            "topic_count": len(topics),
        }
    return row


_REFUSALS = {
    "not granted": "the token of this connection does not list the topic",
    "another user's": "the topic belongs to another user: the event must be the user's own id",
    UNAVAILABLE: "the API can't be asked just now, so nobody knows whether the user may have the topic",
}


class Step(NamedTuple):
    """One rule, what it says, and why. `passes` is None if it can't be known. The first rule that does not pass decides."""

    rule: str
    passes: bool | None
    text: str

    @property
    def as_json(self) -> dict[str, object]:
        """The step as a JSON-compatible dictionary."""
        return {"rule": self.rule, "passes": self.passes, "text": self.text}


def canonical_topic(text: str) -> str:
    """Return the routing key of a topic, which may be given as a flat name. Raises `ValueError` with what is wrong."""
    try:
        return parse_routing_key(text).routing_key
    except ValueError:
        if "." in text or "-" not in text:
            raise
    return parse_flat_name(text).routing_key


@inlineCallbacks
def explain(
    factory: WebSocketFactory, history: History, user: str, topic: str, source_status: Callable[[], SourceStatus]
) -> Generator[Deferred[Any], Any, dict[str, object]]:
    """Explain why a client gets the events of a topic or not. Fires with the rules, and with the one that decides (`verdict`).

    `user` is empty for anonymous clients. `topic` is a routing key. Each connection takes `DEADLINE_S` at most, and at most
    `MAX_CONNECTIONS` are looked at.
    """
    newest = history.newest_of(topic)
    steps = [_name(factory, topic), _source(source_status()), _arrived(history, factory.context.reactor.seconds(), newest)]
    sessions = [
        (each.number, session)
        for each in factory.connections
        if (session := each.session) is not None and (session.identity.user or "") == user
    ]
    steps.append(connected(user, len(sessions)))
    connections: list[dict[str, Any]] = []
    if steps[0].passes:
        for number, session in sessions[:MAX_CONNECTIONS]:
            own: list[Step] = yield from _of_connection(factory, session, topic, newest)
            connections.append({"connection": number, "steps": [step.as_json for step in own]})
    found = [step.as_json for step in steps]
    answer: dict[str, object] = {"user": user, "topic": topic, "steps": found, "connections": connections}
    return {**answer, "more_connections": max(0, len(sessions) - MAX_CONNECTIONS), "verdict": verdict(found, connections)}


def verdict(steps: Sequence[Mapping[str, Any]], connections: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the step that decides: of the daemon first, then of the first connection that does not get the events.

    Steps and connections are those of the answer. The verdict has the keys of the connection, too.
    """
    if not (step := _deciding(steps))["passes"]:
        return dict(step)
    connection = next((each for each in connections if not _deciding(each["steps"])["passes"]), connections[0])
    return {**_deciding(connection["steps"]), **{key: value for key, value in connection.items() if key != "steps"}}


def connected(user: str, count: int) -> Step:
    """Return the step for a user (empty: anonymous clients) with so many connections."""
    rule = "the user is connected to this daemon"
    who = f"user {printable(user)}" if user else "an anonymous client"
    if count:
        return Step(rule, passes=True, text=f"{who}: {count} connection{'' if count == 1 else 's'}")
    text = f"{who} has no connection to this daemon. Other daemons know their own. The log says who was refused, and why: refused address=…"
    return Step(rule, passes=False, text=text)


def _name(factory: WebSocketFactory, topic: str) -> Step:
    rule = "a client may ask for this topic"
    groups = factory.context.groups
    group, _, event = topic.partition(".")
    problem = groups.why_no_subscriber(group, event)
    if problem is None:
        return Step(rule, passes=True, text=f"the group {group} has this event")
    return Step(rule, passes=False, text=problem)


def _source(status: SourceStatus) -> Step:
    rule = "events come from the source"
    if status.ready:
        return Step(rule, passes=True, text="the source is consuming")
    return Step(rule, passes=False, text=f"the source is {status.state.value}: {status.reason or 'no events come yet'}")


def _arrived(history: History, now: float, newest: Delivery | None) -> Step:
    rule = "an event of this topic has arrived"
    if newest is not None:
        text = f"the newest one arrived {now - newest.arrived:.0f} s ago, at position {newest.position or 'unknown'}"
        return Step(rule, passes=True, text=text)
    oldest = history.oldest
    reach = "history is empty" if oldest is None else f"history holds none, and reaches back {now - oldest.arrived:.0f} s"
    text = (
        f"{reach}. Does the producer publish to the daemon's exchange, with exactly this routing key? "
        "ingest.skipped in /status counts messages that were not forwarded"
    )
    return Step(rule, passes=False, text=text)


def _of_connection(
    factory: WebSocketFactory, session: Session, topic: str, newest: Delivery | None
) -> Generator[Deferred[Any], Any, list[Step]]:
    context = factory.context
    rule = "the user may have the topic"
    refused: dict[str, str] = context.groups.refusals(session.identity, [topic])
    if not refused:
        try:
            refused = yield maybeDeferred(context.auth.refusals, session.identity, [topic]).addTimeout(DEADLINE_S, context.reactor)
        except TimeoutError:
            refused = {topic: UNAVAILABLE}
        except Exception:  # noqa: BLE001 - a fault: the other steps still answer
            _log.failure("explain: the method could not answer about a topic")
            refused = {topic: UNAVAILABLE}
    if (reason := refused.get(topic)) is None:
        steps = [Step(rule, passes=True, text=f"by {session.identity.method}")]
    else:
        text = _REFUSALS.get(reason, f"{session.identity.method} refuses it: {reason}")
        steps = [Step(rule, passes=None if reason == UNAVAILABLE else False, text=text)]
    return [*steps, *_delivery(factory, session, topic, newest)]


def _delivery(factory: WebSocketFactory, session: Session, topic: str, newest: Delivery | None) -> list[Step]:
    """Return the rules from the subscription to the socket."""
    subscriber, hub = session.subscriber, factory.context.hub
    if subscriber not in hub.subscribers:
        return [Step("the connection is open", passes=False, text="it ended just now")]
    held = subscriber.topics
    if topic not in held:
        text = f"it has asked for {len(held)} topics, and not for this one" if held else "it has not asked for any topic yet"
        return [Step("the client has subscribed to it", passes=False, text=f"{text}. A request replaces the one before it")]
    steps = [Step("the client has subscribed to it", passes=True, text=f"one of its {len(held)} topics")]
    if newest is None:
        return steps
    if newest.seq <= held[topic]:
        text = "the newest one came before the subscription, or the client had it already when it resumed or the connection was moved"
        return [*steps, Step("the next event is written to the connection", passes=True, text=text)]
    steps.append(Step("the event came after the subscription", passes=True, text="so the client is due the newest event"))
    if subscriber.behind and subscriber.cursor.seq < newest.seq:
        text = "the connection is behind: it reads more slowly than events come, and gets this one when its socket has drained"
        steps.append(Step("the event was written to the connection", passes=False, text=text))
    elif newest.seq > hub.flushed.seq:
        steps.append(Step("the event was written to the connection", passes=None, text="its batch is being written just now"))
    else:
        text = "it was written. If the page doesn't show it, look at the client itself, or at a proxy between them"
        steps.append(Step("the event was written to the connection", passes=True, text=text))
    return steps


def _deciding(steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first step that does not pass, otherwise the last one."""
    return next((step for step in steps if not step["passes"]), steps[-1])
