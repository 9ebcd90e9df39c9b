from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kit.rows import each_row
from tests.kit.ws_kit import BINARY, PING, TEXT, Edge, Edges, edges, frame, request, text


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def slow_handshake(edge: Edge) -> None:
    """Half of a request, then nothing."""
    edge.connect().send(request()[:40])
    edge.advance(16)


def no_pong(edge: Edge) -> None:
    """A client that answers no ping."""
    edge.open()
    edge.advance(52)


def fragments(edge: Edge) -> None:
    """A message in more frames than are allowed."""
    edge.open().send(frame(TEXT, b"{", fin=False), *[frame(0, b" ", fin=False)] * 70)


def assembly(edge: Edge) -> None:
    """A message that begins and never ends."""
    edge.open().send(frame(TEXT, b"{", fin=False))
    edge.advance(11)


def controls(edge: Edge) -> None:
    """A flood of pings."""
    edge.open().send(*[frame(PING, b"x")] * 50)


def size(edge: Edge) -> None:
    """A message that is too long."""
    edge.open().send(frame(TEXT, b" " * 65537))


def malformed(edge: Edge) -> None:
    """Malformed messages, one after the other."""
    edge.open().send(*[frame(BINARY, b"x")] * 10)


def inbox(edge: Edge) -> None:
    """Long messages, more than are handled at once."""
    edge.open().send(*[text({"groups": {}, "pad": "x" * 3000})] * 70)


def backlog(edge: Edge) -> None:
    """A client that sends requests and does not read the answers."""
    client = edge.open()
    client.transport.stalled = True
    wanted = text({"groups": {"job_events": list(range(1000))}})
    for _ in range(60):
        client.send(wanted)
        edge.advance(0.25)


def rate(edge: Edge) -> None:
    """One message more than the burst allows: it waits."""
    edge.open().send(*[text({"groups": {}})] * 41)


def topics(edge: Edge) -> None:
    """A request for too many topics is refused, and the connection stays."""
    edge.open().ask({"job_events": list(range(1001))})


@each_row(
    ("limit", "meet", "ends"),
    [
        ("handshake_s", slow_handshake, True),
        ("pong_s", no_pong, True),
        ("fragments", fragments, True),
        ("assembly_s", assembly, True),
        ("controls_per_s", controls, True),
        ("message_bytes", size, True),
        ("malformed", malformed, True),
        ("inbox", inbox, True),
        ("backlog_bytes", backlog, True),
        ("messages_per_s", rate, False),
        ("topics", topics, False),
    ],
    make=edges,
)
def test_each_limit_is_counted_by_its_name(make: Edges, limit: str, meet: Callable[[Edge], None], ends: bool) -> None:
    """`/status` shows which limit clients reach. A connection that ends on a limit is counted once."""
    edge = make()
    bystander = edge.open()
    bystander.listen(1)
    assert bystander.connection.autoPingPendingCall is not None
    bystander.connection.autoPingPendingCall.cancel()  # it would have to answer
    bystander.connection.autoPingPendingCall = None
    meet(edge)
    if ends:
        assert dict(edge.context.limit_counts) == ({limit: 1, "messages_per_s": 1} if limit == "inbox" else {limit: 1})
    else:
        assert edge.context.limit_counts[limit] == 1
    edge.publish("job_events.1", {"n": 1})
    assert bystander.take()[-1] == {"n": 1}
