from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.identity import Identity
from towerws.core.settings import GroupSettings
from towerws.core.topics import (
    AWX_GROUPS,
    MAX_EVENT_BYTES,
    MAX_GROUP_BYTES,
    MAX_ID_DIGITS,
    WITHHELD,
    GroupTable,
    Topic,
    UnknownItem,
    flat_name,
    is_event,
    is_group,
    is_routing_key,
    parse_flat_name,
    parse_routing_key,
)

GROUP_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
EVENT_CHARACTERS = "".join(character for character in map(chr, range(0x21, 0x7F)) if character not in '.*#"\\')

groups = st.text(GROUP_CHARACTERS, min_size=1, max_size=MAX_GROUP_BYTES)
events = st.text(EVENT_CHARACTERS, min_size=1, max_size=MAX_EVENT_BYTES)


@given(groups, events)
def test_a_topic_is_written_and_read_in_both_ways(group: str, event: str) -> None:
    """Routing key and flat name are each read back as the same topic, and fit what AMQP allows."""
    topic = Topic(group, event)
    assert parse_routing_key(topic.routing_key) == parse_flat_name(topic.flat_name) == topic
    assert is_routing_key(topic.routing_key)
    assert flat_name(topic.routing_key) == topic.flat_name
    assert len(topic.routing_key.encode()) <= 255, "AMQP 0-9-1 section 4.2.5.3, short string"


@given(st.text(max_size=200) | st.text('aZ9_.-*#" \n\0\u00e9', max_size=6))
def test_nothing_else_is_a_topic(text: str) -> None:
    """A text is a routing key exactly when its two halves follow the rules, character by character."""
    group, found, event = text.partition(".")
    good_group = 0 < len(group) <= MAX_GROUP_BYTES and set(group) <= set(GROUP_CHARACTERS)
    good_event = 0 < len(event) <= MAX_EVENT_BYTES and set(event) <= set(EVENT_CHARACTERS)
    assert is_group(group) is good_group
    assert is_event(event) is good_event
    assert is_routing_key(text) is (bool(found) and good_group and good_event)
    if is_routing_key(text):
        parse_routing_key(text)
    else:
        with pytest.raises(ValueError, match=r"^(routing key|group|event) "):
            parse_routing_key(text)


@each_row(
    ("text", "topic"),
    [
        ("job_events-42", Topic("job_events", "42")),
        ("jobs-status_changed", Topic("jobs", "status_changed")),
        ("control-limit_reached_7", Topic("control", "limit_reached_7")),
        ("g-a-b", Topic("g", "a-b")),
        ("g--", Topic("g", "-")),
    ],
)
def test_a_flat_name_is_split_at_the_first_hyphen(text: str, topic: Topic) -> None:
    """A group never holds a hyphen, an event may (awx-contract 2.1)."""
    assert parse_flat_name(text) == topic
    assert flat_name(topic.routing_key) == text


@each_row("byte", range(256))
def test_every_character_is_allowed_or_not(byte: int) -> None:
    """No character that is a pattern on the broker, needs escaping in JSON or is not printable ASCII is in any name."""
    character = chr(byte)
    assert is_group(f"a{character}b") is (character in GROUP_CHARACTERS)
    assert is_event(f"a{character}b") is (character in EVENT_CHARACTERS)


@each_row("is_name", [is_group, is_event])
@each_row("text", ["", "a\n", "\na", " a", "a ", "\u0661", "\u00e9", "\uff41", "a\u0301", "\ud800", "\U0001f680"])
def test_a_name_is_plain_ascii_without_anything_around_it(is_name: object, text: str) -> None:
    """Neither other digits and letters nor a line's end pass for a name's."""
    assert callable(is_name)
    assert not is_name(text)


def test_the_limits_are_in_bytes_and_inclusive() -> None:
    """So many bytes are a name, and not one more."""
    assert is_group("g" * MAX_GROUP_BYTES)
    assert not is_group("g" * (MAX_GROUP_BYTES + 1))
    assert is_event("e" * MAX_EVENT_BYTES)
    assert not is_event("e" * (MAX_EVENT_BYTES + 1))


@each_row(
    ("text", "message"),
    [
        ("metrics", "routing key 'metrics' has no '.': expected group.event"),
        (".42", "group '': expected 1 to 64 of A-Z a-z 0-9 _"),
        ("a-b.42", "group 'a-b': expected 1 to 64 of A-Z a-z 0-9 _"),
        ("jobs.", "event '': expected 1 to 128 printable ASCII characters without . * # \" \\"),
        ("jobs.a.b", "event 'a.b': expected 1 to 128 printable ASCII characters without . * # \" \\"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    """The error says which part, how it reads and what the rule is."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_routing_key(text)


def test_what_is_wrong_is_shortened() -> None:
    """An error never repeats more than the start of what was given."""
    for text in ("x" * 10_000, "x" * 10_000 + ".1", "a." + "x" * 10_000):
        with pytest.raises(ValueError, match="expected") as caught:
            parse_routing_key(text)
        assert len(str(caught.value)) < 250


AWX = GroupTable()
IDS = [
    "job_events",
    "ad_hoc_command_events",
    "project_update_events",
    "inventory_update_events",
    "system_job_events",
    "workflow_events",
]


def test_the_groups_known_without_configuration_are_awxs() -> None:
    """Exactly those of awx-contract 2.1, without `metrics`."""
    assert set(AWX_GROUPS) == {*IDS, "jobs", "schedules", "inventories", "control"}


@each_row("group", IDS)
@each_row(
    ("item", "event"),
    [
        (42, "42"),
        ("42", "42"),
        ("042", "42"),
        (0, "0"),
        ("000", "0"),
        (10**MAX_ID_DIGITS - 1, "9" * MAX_ID_DIGITS),
        ("9" * MAX_ID_DIGITS, "9" * 18),
    ],
)
def test_a_number_is_an_id_as_integer_and_as_text(group: str, item: object, event: str) -> None:
    """Both name the same topic, of up to 18 digits."""
    assert AWX.routing_key(group, item) == f"{group}.{event}"


@each_row("group", IDS)
@each_row(
    "item",
    [
        None,
        True,
        False,
        1.0,
        42.5,
        float("nan"),
        -1,
        "-1",
        10**MAX_ID_DIGITS,
        10**400,
        "1" * (MAX_ID_DIGITS + 1),
        "0" * (MAX_ID_DIGITS + 1),
        "",
        " 42",
        "42 ",
        "42\n",
        "4_2",
        "+42",
        "0x2a",
        "42.0",
        "1e3",
        "\u0664\u0662",
        "\uff14\uff12",
        "\u00b2",
        "abc",
        "#",
        "*",
        "42.*",
        "42-43",
        "\0",
        "\ud800",
        "x" * 300,
        [],
        [42],
        {},
        {"id": 42},
    ],
    ids=repr,
)
def test_nothing_else_is_an_id(group: str, item: object) -> None:
    """Neither what Python takes for a number (true, fractions, other digits) nor any text but digits."""
    with pytest.raises(UnknownItem):
        AWX.routing_key(group, item)


@each_row(
    ("group", "words"),
    [("jobs", ["status_changed", "summary"]), ("schedules", ["changed"]), ("inventories", ["status_changed"])],
)
def test_a_group_of_words_has_these_words(group: str, words: list[str]) -> None:
    """Each word is an event; another, a number, a part of one or another case is not."""
    for word in words:
        assert AWX.routing_key(group, word) == f"{group}.{word}"
        for other in (word.upper(), word[:-1], word + "\n", f" {word}", f"{word}.x"):
            with pytest.raises(UnknownItem):
                AWX.routing_key(group, other)
    for item in (42, "42", "foo", "", None, "#", "*"):
        with pytest.raises(UnknownItem):
            AWX.routing_key(group, item)


def test_control_is_one_topic_per_user() -> None:
    """`limit_reached_<user id>`, which React's pages ask for with 1; the global one of older AWX is never available."""
    assert AWX.routing_key("control", "limit_reached_1") == "control.limit_reached_1"
    for item in ("limit_reached", "limit_reached_", "limit_reached_x", "limit_reached_1 ", "limit_reached_1.0", "limit_reached_-1", 1, "1"):
        with pytest.raises(UnknownItem):
            AWX.routing_key("control", item)


@each_row("group", ["", "metrics", "broadcast-group_send", "job_events-42", "job_events.42", "JOBS", "jobs ", "#", "*", "g" * 300])
def test_an_unknown_group_has_no_topics(group: str) -> None:
    """For any item the group is looked up as it is written."""
    for item in (42, "42", "status_changed", "x"):
        with pytest.raises(UnknownItem, match=r"^no such group$"):
            AWX.routing_key(group, item)


@each_row(
    ("events", "item", "event"),
    [
        ("id", 7, "7"),
        ("id", "x", None),
        ("any", "x", "x"),
        ("any", 7, "7"),
        ("any", "a-b", "a-b"),
        ("any", -7, None),
        ("any", 10**MAX_ID_DIGITS, None),
        ("any", "a.b", None),
        ("any", "*", None),
        ("any", "", None),
        ("any", "x" * 129, None),
        ("any", True, None),
        ("any", None, None),
        (("up", "down"), "up", "up"),
        (("up", "down"), "left", None),
        (("up", "down"), "any", None),
        (("1",), 1, "1"),
    ],
)
def test_a_configuration_adds_groups(events: str | tuple[str, ...], item: object, event: str | None) -> None:
    """With ids, with any name that is one, or with the words that it lists; AWX's stay."""
    table = GroupTable({"mine": GroupSettings(events=events)})
    if event is None:
        with pytest.raises(UnknownItem):
            table.routing_key("mine", item)
    else:
        assert table.routing_key("mine", item) == f"mine.{event}"
    assert table.routing_key("job_events", 42) == "job_events.42"


def test_groups_for_the_live_page() -> None:
    """The groups of the configuration to which clients can subscribe, and what they can ask for in each."""
    added = {
        "orders": GroupSettings(events=("paid", "created")),
        "sensors": GroupSettings(events="id"),
        "inbox": GroupSettings(events="any", policy="own"),
        "hidden": GroupSettings(events="any", policy="never"),
    }
    assert AWX.configured == {}
    assert GroupTable(added).configured == {
        "orders": {"events": ["created", "paid"], "own": False},
        "sensors": {"events": "id", "own": False},
        "inbox": {"events": "any", "own": True},
    }


def test_what_is_withheld_can_not_be_configured_back() -> None:
    """A session's key was once sent on `control.limit_reached`: no configuration makes a topic of it."""
    table = GroupTable({"control": GroupSettings(events="any")})
    assert table.routing_key("control", "limit_reached_1")
    with pytest.raises(UnknownItem):
        table.routing_key("control", "limit_reached")
    assert {"metrics", "control.limit_reached", "towerws.marker"} == WITHHELD


def test_nobody_subscribes_to_markers() -> None:
    """Not even where a group of that name is configured."""
    for events in ("any", ("marker", "other")):
        table = GroupTable({"towerws": GroupSettings(events=events)})
        assert table.routing_key("towerws", "other") == "towerws.other"
        with pytest.raises(UnknownItem):
            table.routing_key("towerws", "marker")


def test_an_error_never_repeats_the_item() -> None:
    """Its text is fixed."""
    for group, item in [("jobs", "c4n4ry"), ("c4n4ry", 1), ("job_events", "c4n4ry"), ("control", "limit_reached_c4n4ry")]:
        with pytest.raises(UnknownItem) as caught:
            AWX.routing_key(group, item)
        assert "c4n4ry" not in str(caught.value)


@each_row("events", ["any", "id", ("paid",)])
def test_a_group_that_is_never_heard(events: str | tuple[str, ...]) -> None:
    """Its events are refused one by one, as those of a group that does not exist."""
    table = GroupTable({"orders": GroupSettings(events=events, policy="never")})
    for item in ("paid", 1):
        with pytest.raises(UnknownItem):
            table.routing_key("orders", item)


def test_which_topics_belong_to_a_user() -> None:
    """`control` is each user's own, and so is any group that the configuration says is; the rest is not this table's to refuse."""
    table = GroupTable({"inbox": GroupSettings(policy="own"), "desk": GroupSettings(events="id", policy="own")})
    topics = ["control.limit_reached_7", "control.limit_reached_17", "inbox.7", "inbox.x_7", "desk.7", "desk.70", "jobs.summary"]
    others = {"control.limit_reached_17", "inbox.x_7", "desk.70"}
    assert table.refusals(Identity(7, "tower"), topics) == dict.fromkeys(others, "another user's")
    assert table.refusals(Identity("7", "jwt"), topics).keys() == others
    assert table.refusals(Identity(), topics) == {}


@each_row(
    ("topic", "nobody"),
    [
        ("jobs.status_changed", False),
        ("job_events.42", False),
        ("orders.paid", False),
        ("deploys.anything", False),
        ("ordres.paid", True),
        ("orders.lost", True),
        ("job_events.forty", True),
        ("secret.x", True),
        ("metrics.x", True),
        ("control.limit_reached", True),
        ("control.limit_reached_7", False),
        ("job_events.0", False),
        ("job_events.042", True),
        ("Jobs.summary", True),
    ],
)
def test_unknown_groups_are_reported_to_the_producer(topic: str, nobody: bool) -> None:
    """The producer of a message to an unknown group is told so, and what to do."""
    table = GroupTable({"orders": GroupSettings(events=("paid",)), "deploys": GroupSettings(), "secret": GroupSettings(policy="never")})
    said = table.why_no_subscriber(*topic.split("."))
    assert (said is not None) is nobody
    assert said is None or said.startswith(f"no client can subscribe to {topic}: ")


@each_row(
    ("topic", "advice"),
    [
        ("ordres.paid", "the groups are jobs, schedules,"),
        ("orders.lost", "its events are paid"),
        ("jobs.changed", "its events are status_changed, summary"),
        ("job_events.forty", "its events are numbers of 1 to 18 digits"),
        ("control.x", "its events are limit_reached_<number>"),
        ("job_events.042", "a client that asks for it gets job_events.42; publish on that"),
        ("secret.x", 'its policy is "never" in [groups.secret]'),
    ],
)
def test_the_advice_for_a_topic_without_subscribers(topic: str, advice: str) -> None:
    """Findings O9: it names what is possible in this group, or the groups that exist."""
    table = GroupTable({"orders": GroupSettings(events=("paid",)), "secret": GroupSettings(policy="never")})
    assert advice in (table.why_no_subscriber(*topic.split(".")) or "")


def test_what_another_table_withdraws() -> None:
    """Topics that were allowed by an earlier table: unknown groups and events, forbidden groups, other users' topics."""
    table = GroupTable(
        {"inbox": GroupSettings(policy="own"), "secret": GroupSettings(policy="never"), "orders": GroupSettings(events=("new",))}
    )
    kept = ["jobs.summary", "inbox.7", "orders.new", "job_events.42", "control.limit_reached_7"]
    gone = {
        "inbox.8": "another user's",
        "secret.a": "no client may subscribe to this group",
        "orders.old": "no such event in this group",
        "parcels.a": "no such group",
    }
    assert table.withdrawn(Identity(7, "tower"), [*kept, *gone]) == gone
    assert table.withdrawn(Identity(), [*kept, *gone]).keys() == gone.keys() - {"inbox.8"}
