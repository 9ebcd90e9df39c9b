from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.deliveries import Delivery, Fingerprint
from towerws.core.errors import BadRequest, CloseReason
from towerws.core.identity import Identity
from towerws.core.requests import Denied, PingMessage, Request, TokenMessage, parse_message_text
from towerws.core.topics import GroupTable
from towerws.core.wire import SUBPROTOCOL, TOWER, V1, Change, Dialect, Gap

SAMPLES = {
    (sample["dialect"], sample["name"]): sample
    for sample in json.loads((Path(__file__).parents[1] / "data" / "protocol-samples.json").read_text())
}

CHANGE = Change(
    current=("job_events.42", "jobs.status_changed"),
    joined=("job_events.42",),
    left=("jobs.summary",),
    position="1041-5b0c7e9f21aa",
    recovered=True,
)
STATUS = b'{"unified_job_id": 42, "status": "pending", "type": "job", "group_name": "jobs", "unified_job_template_id": 9}'
OUTPUT = b'{"counter": 16, "stdout": "ok: [web01]"}'

FRAMES: dict[tuple[str, str], Callable[[], bytes | None]] = {
    ("tower", "welcome"): lambda: TOWER.welcome(Identity(7), "1041-5b0c7e9f21aa", 20),
    ("tower", "unavailable"): lambda: TOWER.denied(Denied("job_events", "42", "unavailable")),
    ("tower", "denied"): lambda: TOWER.denied(Denied("job_events", "42", "no such event in this group")),
    ("tower", "subscribed"): lambda: TOWER.subscribed(CHANGE, [], 1),
    ("tower", "not-a-list"): lambda: TOWER.error(BadRequest("not_a_list", "the value of each group must be a list")),
    ("tower", "error"): lambda: TOWER.error(BadRequest("not_json", "message is not JSON")),
    ("tower", "event"): lambda: TOWER.event(Delivery(1, "jobs.status_changed", STATUS, 1042, "0d4ee47ad09c")),
    ("towerws.v1", "welcome"): lambda: V1.welcome(Identity(7), "1041-5b0c7e9f21aa", 20),
    ("towerws.v1", "subscribed"): lambda: V1.subscribed(CHANGE, [Denied("nonsense", "1", "no such group")], 1),
    ("towerws.v1", "renewed"): lambda: V1.renewed(Identity("anna"), 2),
    ("towerws.v1", "event"): lambda: V1.event(Delivery(1, "job_events.42", OUTPUT, 1042, "0d4ee47ad09c")),
    ("towerws.v1", "gap"): lambda: V1.gap(Gap(("job_events.42",), "1041-5b0c7e9f21aa", "1899-7a1f03b2c4d5", "history")),
    ("towerws.v1", "pong"): lambda: V1.pong("are you there?", "1042-0d4ee47ad09c"),
    ("towerws.v1", "revoked"): lambda: V1.revoked(
        Change(("jobs.status_changed",), (), ("job_events.42",), "1042-0d4ee47ad09c", None),
        [Denied("job_events", "42", "not visible to this user")],
    )[0],
    ("towerws.v1", "error"): lambda: V1.error(BadRequest("not_json", "message is not JSON")),
    ("towerws.v1", "bye"): lambda: V1.bye(CloseReason.RESTART.value, 1500),
}


@each_row("key", FRAMES, ids="-".join)
def test_what_is_sent_is_the_golden_sample(key: tuple[str, str]) -> None:
    """Each frame of both dialects, byte for byte as docs/protocol.md shows it."""
    frame = FRAMES[key]()
    assert frame is not None
    assert SAMPLES[key]["direction"] == "from server"
    assert frame.decode() == SAMPLES[key]["frame"]


def test_every_golden_sample_is_checked() -> None:
    """None is shown that is not made, or read, here."""
    assert {key for key, sample in SAMPLES.items() if sample["direction"] == "from server"} == set(FRAMES)
    assert {key for key, sample in SAMPLES.items() if sample["direction"] == "from client"} == {
        ("any", "request"),
        ("any", "token"),
        ("towerws.v1", "ping"),
    }


def test_the_golden_messages_are_understood() -> None:
    """What the document tells clients to send is what is read."""
    token = parse_message_text(SAMPLES["any", "token"]["frame"], GroupTable(), 1000)
    assert isinstance(token, TokenMessage)
    assert (token.token.reveal()[:12], token.request_id) == ("eyJhbGciOiJF", 2)
    assert parse_message_text(SAMPLES["towerws.v1", "ping"]["frame"], GroupTable(), 1000) == PingMessage("are you there?")
    assert parse_message_text(SAMPLES["any", "request"]["frame"], GroupTable(), 1000) == Request(
        topics=("jobs.status_changed", "jobs.summary", "job_events.42"), since="1041-5b0c7e9f21aa", request_id=1, xrftoken="…"
    )


# -- Tower ---------------------------------------------------------------------------------------------------------------


def test_towers_answer_to_a_token_is_its_first_frame() -> None:
    """AWX has no such message; a client that knows the first frame knows this one."""
    assert TOWER.renewed(Identity(7), 1) == TOWER.welcome(Identity(7), "1041-5b0c7e9f21aa", 20)


@each_row(("user_id", "told"), [(7, 7), (0, 0), (None, 0), ("ada", 0)])
def test_towers_first_frame_tells_a_number(user_id: int | str | None, told: int) -> None:
    """`{"accept": true, "user": <int>}` for every user (awx-contract 1.4 point 5)."""
    assert json.loads(TOWER.welcome(Identity(user_id), "0-q", 20)) == {"accept": True, "user": told}


def test_tower_has_no_word_for_a_gap_or_a_farewell() -> None:
    """Nothing is sent that AWX does not send."""
    assert TOWER.gap(Gap(("a.1",), "1-q", "2-q", "history")) is None
    assert TOWER.bye(CloseReason.RESTART.value, 1000) is None


@each_row(
    ("message", "error"),
    [
        ('{"groups": {"job_events": [null]}}', "access denied to channel job_events for resource id None"),
        ('{"groups": {"job_events": ["abc"]}}', "access denied to channel job_events for resource id abc"),
        ('{"groups": {"job_events": [42.0]}}', "access denied to channel job_events for resource id 42.0"),
        ('{"groups": {"jobs": ["foo"]}}', "access denied to channel jobs for resource id foo"),
        ('{"groups": {"nonsense": [1]}}', "access denied to channel nonsense for resource id 1"),
        ('{"groups": {"control": ["limit_reached"]}}', "access denied to channel control for resource id limit_reached"),
        ('{"groups": {"metrics": ["x"]}}', "access denied to channel metrics for resource id x"),
        ('{"groups": {"broadcast-group_send": ["x"]}}', "access denied to channel broadcast-group_send for resource id x"),
    ],
)
def test_towers_text_for_an_item_is_awxs(message: str, error: str) -> None:
    """One error frame for each item that is left out, in AWX's own words (awx-contract 1.2)."""
    request = parse_message_text(message, GroupTable(), 1000)
    assert isinstance(request, Request)
    (denied,) = request.denied
    reply = TOWER.denied(denied)
    assert reply is not None
    assert json.loads(reply) == {"error": error}


@each_row(
    ("message", "error"),
    [
        ("hello", "message is not JSON"),
        ("[]", "message is not a JSON object"),
        ("1", "message is not a JSON object"),
        ("null", "message is not a JSON object"),
        ("{}", 'message has no "groups"'),
        ('{"groups": 1}', '"groups" is not an object'),
        ('{"groups": {"job_events-42": 1}}', "access denied to channel"),
        ('{"groups": {"job_events-42": true}}', "access denied to channel"),
        ('{"groups": {"job_events": "42"}}', "access denied to channel"),
    ],
)
def test_towers_text_for_a_whole_message(message: str, error: str) -> None:
    """One error frame: AWX's text for what AWX answers, ours where it kept silent or closed (awx-contract 1.3)."""
    with pytest.raises(BadRequest) as caught:
        parse_message_text(message, GroupTable(), 1000)
    assert json.loads(TOWER.error(caught.value)) == {"error": error}


def test_towers_answer_has_the_three_keys_whatever_happened() -> None:
    """awxkit waits for `groups_current`; leaving everything is answered with empty lists."""
    empty = TOWER.subscribed(Change((), (), (), "0-q", recovered=False), [], None)
    assert json.loads(empty) == {"groups_current": [], "groups_left": [], "groups_joined": []}


# -- towerws.v1 ----------------------------------------------------------------------------------------------------------


def test_v1_lists_what_was_left_out_in_its_answer() -> None:
    """No frame for each item: the answer has them all, with the reason."""
    assert V1.denied(Denied("a", "1", "no such group")) is None
    answer = json.loads(V1.subscribed(CHANGE, [Denied("a", "1", "x"), Denied("a.b", "\u20ac", "y")], None))
    assert answer["denied"] == [{"topic": "a.1", "reason": "x"}, {"topic": "a.b.\u20ac", "reason": "y"}]


@each_row("request_id", [None, 0, 7, "a", "\u20ac\U0001f680", [1, {"a": None}], 1.5, True])
def test_v1_repeats_the_requests_id(request_id: object) -> None:
    """The same value, in both kinds of answers."""
    assert json.loads(V1.subscribed(CHANGE, [], request_id))["id"] == request_id
    assert json.loads(V1.error(BadRequest("x", "y", request_id)))["id"] == request_id


@given(
    st.from_regex(r"\A[A-Za-z0-9_]{1,64}\Z"),
    st.text("".join(character for character in map(chr, range(0x21, 0x7F)) if character not in '.*#"\\'), min_size=1, max_size=128),
    st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    st.booleans(),
)
def test_v1s_event_is_json_whatever_its_names(group: str, event: str, payload: dict[str, object], ascii_only: bool) -> None:
    """Names are put between quotes as they are, and the payload's bytes stand in the frame untouched."""
    raw = json.dumps(payload, ensure_ascii=ascii_only).encode("utf-8", "replace")
    delivery = Delivery(1, f"{group}.{event}", raw, 5, Fingerprint(b""), None)
    frame = V1.event(delivery)
    message = json.loads(frame)
    assert (message["type"], message["group"], message["event"]) == ("event", group, event)
    assert message["position"] == delivery.position
    assert frame.endswith(b',"payload":' + raw + b"}")


@each_row("dialect", [TOWER, V1], ids=lambda dialect: dialect.name)
def test_what_a_client_wrote_can_not_break_a_reply(dialect: Dialect) -> None:
    """Quotes, line ends, other scripts and escape codes come back as JSON of plain ASCII."""
    nasty = '"}\r\n\x1b[31m\u2028\u202e\U0001f680\\'
    for frame in (dialect.denied(Denied(nasty, nasty, "x")), dialect.subscribed(CHANGE, [Denied(nasty, nasty, "x")], nasty)):
        if frame is not None:
            json.loads(frame)
            assert frame.isascii()
            assert frame.decode().isprintable()


def test_the_dialects_are_chosen_by_their_subprotocols() -> None:
    """Tower's is spoken to who asks for none."""
    assert (TOWER.subprotocol, V1.subprotocol) == (None, SUBPROTOCOL)
    assert SUBPROTOCOL == "towerws.v1"
