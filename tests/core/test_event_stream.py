from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_wire import CHANGE, OUTPUT
from tests.kit.event_stream import read_events
from tests.kit.rows import each_row
from towerws.core.deliveries import Delivery, Fingerprint
from towerws.core.errors import CloseReason
from towerws.core.event_stream import EVENT_STREAM, HEARTBEAT, retry_line
from towerws.core.identity import Identity
from towerws.core.requests import Denied
from towerws.core.wire import V1, Gap

GAP = Gap(("job_events.42",), "1041-5b0c7e9f21aa", "1899-7a1f03b2c4d5", "history")
DELIVERY = Delivery(1, "job_events.42", OUTPUT, 1042, "0d4ee47ad09c")


@each_row(
    ("written", "frame", "kind", "position"),
    [
        (EVENT_STREAM.welcome(Identity(7), "1041-a", 20), V1.welcome(Identity(7), "1041-a", 20), "welcome", None),
        (
            EVENT_STREAM.frame(DELIVERY),
            V1.event(DELIVERY).replace(b'"type":"event","position":"1042-0d4ee47ad09c",', b""),
            "message",
            "1042-0d4ee47ad09c",
        ),
        (
            EVENT_STREAM.subscribed(CHANGE, [Denied("nonsense", "1", "no such group")], None),
            V1.subscribed(CHANGE, [Denied("nonsense", "1", "no such group")], None),
            "subscribed",
            CHANGE.position,
        ),
        (EVENT_STREAM.revoked(CHANGE, [])[0], V1.revoked(CHANGE, [])[0], "revoked", CHANGE.position),
        (EVENT_STREAM.gap(GAP), V1.gap(GAP), "gap", GAP.end),
        (EVENT_STREAM.bye(CloseReason.RESTART.value, 1500), V1.bye(CloseReason.RESTART.value, 1500), "bye", None),
    ],
    ids=["welcome", "event", "subscribed", "revoked", "gap", "bye"],
)
def test_each_frame_of_v1_is_one_event(written: bytes, frame: bytes, kind: str, position: str | None) -> None:
    """Its data is the frame, and its id the position that the frame moves a reader to. A welcome moves nobody.

    A delivery's frame is without what the event has already.
    """
    (event,) = read_events(written)
    assert (event.kind, event.data, event.id) == (kind, frame.decode(), position)
    assert event.retry == (1500 if kind == "bye" else None)


def test_a_reader_keeps_its_position_where_there_is_none() -> None:
    """An empty id would delete the reader's."""
    for written in (
        EVENT_STREAM.frame(Delivery(1, "job_events.42", OUTPUT, 1042, "")),
        EVENT_STREAM.subscribed(CHANGE._replace(position=""), [], None),
        EVENT_STREAM.gap(Gap((), "", "", "broker")) or b"",
    ):
        (event,) = read_events(written)
        assert event.id is None


@given(st.lists(st.sampled_from(["\n", "\r", "\r\n", " ", '"a\\n:"', "1", "\u2028", ": x", "data: x", "id: 1"])))
def test_no_payload_breaks_out_of_its_event(pieces: list[str]) -> None:
    """Line ends in a payload become line feeds. Nothing else changes, and no line of it is taken for a field."""
    text = "".join(pieces)
    written = EVENT_STREAM.frame(Delivery(1, "chat.a", text.encode(), 3, Fingerprint(b"k")))
    (event,) = read_events(written + HEARTBEAT)
    assert event.data.partition('"payload":')[2] == text.replace("\r\n", "\n").replace("\r", "\n") + "}"


def test_a_payload_over_several_lines_is_the_same_json() -> None:
    """A producer that indents its JSON loses nothing."""
    payload = json.dumps({"a": ["x\ny", 1]}, indent=2).replace("\n", "\r\n").encode()
    (event,) = read_events(EVENT_STREAM.frame(Delivery(1, "chat.a", payload, 3, "e")))
    assert json.loads(event.data)["payload"] == {"a": ["x\ny", 1]}


def test_the_documented_stream() -> None:
    """docs/protocol.md shows each event as it is sent."""
    change = CHANGE._replace(joined=CHANGE.current, left=())
    stream = b"".join(
        [
            retry_line(1730),
            EVENT_STREAM.welcome(Identity(7), "1041-5b0c7e9f21aa", 20),
            EVENT_STREAM.subscribed(change, [], None),
            EVENT_STREAM.frame(DELIVERY),
            HEARTBEAT,
            EVENT_STREAM.gap(GAP) or b"",
            EVENT_STREAM.bye(CloseReason.RESTART.value, 1500) or b"",
        ]
    )
    document = Path(__file__).parents[2] / "docs" / "protocol.md"
    assert f"```text\n{stream.decode()}```" in document.read_text()
