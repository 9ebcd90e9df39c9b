"""The list of connections for the console: a page of rows, and the end of one connection."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from towerws.core.errors import CloseReason

if TYPE_CHECKING:
    from towerws.protocol import WebSocketConnection, WebSocketFactory

MAX_ROWS = 100
"""The most rows in one answer."""

SEARCHED = 2000
"""How many connections one answer looks at: 2.3 ms with a text to search for. The caller goes on from `next`."""

SEARCHED_TOPICS = 20_000
"""How many topics one answer looks at: 1.5 ms. Of a connection with more it looks at so many."""

TOPICS_SHOWN = 20
"""Topics in a row. The row has the number of all."""


def list_connections(factory: WebSocketFactory, *, after: int, text: str, limit: int, behind: bool) -> dict[str, object]:
    """Return rows of connections whose number is larger than `after`, the oldest first.

    `text`: only connections with this text in their user, address, dialect, method, credential or topics. `behind`: only those that are
    behind. `next` in the answer is the number after which to go on, None at the end.
    """
    rows: list[dict[str, object]] = []
    searched = topics = 0
    last: int | None = None
    for connection in factory.connections:
        if connection.number <= after:
            continue
        topics += _topic_count(connection) if text else 0
        if len(rows) >= limit or searched >= SEARCHED or (searched and topics > SEARCHED_TOPICS):
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
    return any(text in name for name in names) or any(text in topic for topic in islice(session.subscriber.topics, SEARCHED_TOPICS))


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
            "topics": [topic for topic, _ in zip(topics, range(TOPICS_SHOWN), strict=False)],
            "topic_count": len(topics),
        }
    return row
