from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.topics import (
    MAX_EVENT_BYTES,
    MAX_GROUP_BYTES,
    MAX_ROUTING_KEY_BYTES,
    Topic,
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
    assert len(topic.routing_key.encode()) <= MAX_ROUTING_KEY_BYTES


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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("byte", range(256))
def test_every_character_is_allowed_or_not(byte: int) -> None:
    """No character that is a pattern on the broker, needs escaping in JSON or is not printable ASCII is in any name."""
    character = chr(byte)
    assert is_group(f"a{character}b") is (character in GROUP_CHARACTERS)
    assert is_event(f"a{character}b") is (character in EVENT_CHARACTERS)


@pytest.mark.parametrize("is_name", [is_group, is_event])
@pytest.mark.parametrize("text", ["", "a\n", "\na", " a", "a ", "\u0661", "\u00e9", "\uff41", "a\u0301", "\ud800", "\U0001f680"])
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


@pytest.mark.parametrize(
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
