from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.linear import LONGER
from tests.kit.rows import each_row
from towerws.core.errors import BadRequest
from towerws.core.requests import (
    MAX_BRACKETS,
    MAX_DEPTH,
    MAX_ID_BYTES,
    MAX_NUMBER_DIGITS,
    MAX_SHOWN,
    Denied,
    Request,
    TokenMessage,
    parse_message,
    parse_message_text,
)
from towerws.core.settings import GroupSettings
from towerws.core.topics import GroupTable

GROUPS = GroupTable({"notes": GroupSettings(events="any")})
MESSAGE_BYTES = 64 * 1024


def parse(text: str, max_topics: int = 1000) -> Request:
    """Read a message as a connection would."""
    request = parse_message_text(text, GROUPS, max_topics)
    assert isinstance(request, Request)
    return request


def code(text: str, max_topics: int = 1000) -> str:
    """The code with which a message is refused."""
    with pytest.raises(BadRequest) as caught:
        parse(text, max_topics)
    assert text == "" or len(text) < 5 or text not in str(caught.value), "what was sent is not repeated"
    assert str(caught.value).isprintable()
    return caught.value.code


@each_row(
    ("text", "expected"),
    [
        ("", "not_json"),
        ("hello", "not_json"),
        ("{", "not_json"),
        ('{"groups": {}} x', "not_json"),
        ('{"groups": {},}', "not_json"),
        ("{'groups': {}}", "not_json"),
        ('\ufeff{"groups": {}}', "not_json"),
        ('{\0"groups": {}}', "not_json"),
        ('{"groups": {"jobs": ["a\nb"]}}', "not_json"),
        ("[]", "not_an_object"),
        ("1", "not_an_object"),
        ("null", "not_an_object"),
        ("true", "not_an_object"),
        ('"groups"', "not_an_object"),
        ('[{"groups": {}}]', "not_an_object"),
        ("{}", "no_groups"),
        ('{"xrftoken": "right"}', "no_groups"),
        ('{"Groups": {}}', "no_groups"),
        ('{"groups": null}', "groups_not_an_object"),
        ('{"groups": []}', "groups_not_an_object"),
        ('{"groups": "jobs"}', "groups_not_an_object"),
        ('{"groups": 7}', "groups_not_an_object"),
        ('{"groups": {"job_events-42": 1}}', "not_a_list"),
        ('{"groups": {"job_events-42": true}}', "not_a_list"),
        ('{"groups": {"job_events": 42}}', "not_a_list"),
        ('{"groups": {"job_events": "42"}}', "not_a_list"),
        ('{"groups": {"job_events": null}}', "not_a_list"),
        ('{"groups": {"job_events": {"42": 1}}}', "not_a_list"),
        ('{"groups": {"jobs": ["summary"], "metrics": "x"}}', "not_a_list"),
        ('{"groups": {}, "since": 12}', "bad_since"),
        ('{"token": 12}', "bad_token"),
        ('{"token": null, "groups": {}}', "bad_token"),
        ('{"token": "a.b.c", "groups": {}}', "bad_token"),
        ('{"token": "a", "token": "b"}', "duplicate_key"),
        ('{"groups": {}, "since": ["1-a"]}', "bad_since"),
        ('{"groups": {}, "since": false}', "bad_since"),
        ('{"groups": {}, "groups": {}}', "duplicate_key"),
        ('{"groups": {"jobs": ["summary"], "jobs": []}}', "duplicate_key"),
        ('{"groups": {}, "id": {"a": 1, "\\u0061": 2}}', "duplicate_key"),
        ('{"groups": {}, "id": NaN}', "not_json"),
        ('{"groups": {"job_events": [Infinity]}}', "not_json"),
        ('{"groups": {"job_events": [-Infinity]}}', "not_json"),
        ('{"groups": {}, "id": 1e999}', "number_too_long"),
        ('{"groups": {"job_events": [-1e999]}}', "number_too_long"),
        ('{"groups": {"jobs": ["\\ud800"]}}', "not_unicode"),
        ('{"groups": {}, "id": "\\udfff"}', "not_unicode"),
        ('{"groups": {}, "\\udc00": 1}', "not_unicode"),
        ('{"groups": {"jobs": ["\\ude00\\ud83d"]}}', "not_unicode"),
    ],
)
def test_what_can_not_be_followed_as_a_whole_is_refused_by_a_code(text: str, expected: str) -> None:
    """Each malformed message of the contract (1.3, third column) has one code, and a text that repeats nothing of it."""
    assert code(text) == expected


BOMBS: list[tuple[Callable[[int], str], str]] = [
    (lambda times: "[" * times * MESSAGE_BYTES, "too_deep"),
    (lambda times: "{" * times * MESSAGE_BYTES, "too_deep"),
    (lambda times: '{"a":' * (times * MESSAGE_BYTES // 5), "too_deep"),
    (lambda times: "[]" * (times * MESSAGE_BYTES // 2), "too_deep"),
    (lambda times: "[" * (times * MESSAGE_BYTES // 2) + "]" * (times * MESSAGE_BYTES // 2), "too_deep"),
    (lambda times: "[[]," * (times * MESSAGE_BYTES // 4), "too_deep"),
    (lambda times: "[" * 9 + '"' + '\\"' * (times * MESSAGE_BYTES // 2 - 5), "too_deep"),
    (lambda times: "[" * 9 + '"a' * (times * MESSAGE_BYTES // 2 - 5), "too_deep"),
    (lambda times: "[" * 9 + '"' + "\\" * (times * MESSAGE_BYTES - 10), "too_deep"),
    (lambda times: "[" * 9 + '"\\' * (times * MESSAGE_BYTES // 2 - 5), "too_deep"),
    (lambda times: '{"groups":{"jobs":[' + "[[[[[[" + '"' + '\\"' * (30_000 * times), "too_deep"),
    (lambda times: "[" * MAX_BRACKETS + '"' * (times * MESSAGE_BYTES - MAX_BRACKETS), "too_deep"),
    (lambda times: "1" * (5000 * times), "number_too_long"),
    (lambda times: "-" + "1" * (times * MESSAGE_BYTES - 1), "number_too_long"),
    (lambda times: '{"groups": {"job_events": [' + "1" * (5000 * times) + "]}}", "number_too_long"),
    (lambda times: '{"groups": {}, "id": ' + "9" * ((MAX_NUMBER_DIGITS + 1) * times) + "}", "number_too_long"),
    (lambda times: "1." + "1" * (times * MESSAGE_BYTES - 2), "not_an_object"),
    (lambda times: "1e" + "1" * (times * MESSAGE_BYTES - 2), "number_too_long"),
    (lambda times: "{" + ",".join(f'"{number}":{number}' for number in range(4500 * times)) + "}", "no_groups"),
    (lambda times: "{" + ",".join(f'"k{number}":[]' for number in range(3000 * times)) + "}", "no_groups"),
    (lambda times: "{" + ",".join('"k":1' for number in range(10_000 * times)) + "}", "duplicate_key"),
    (lambda times: '"' + "\\ud800" * (10_000 * times) + '"', "not_an_object"),
    (lambda times: '{"groups":{},"id":"' + "\\ud83d\\ude00" * (5000 * times) + '"}', "bad_id"),
    (lambda times: '{"groups":{},"id":"' + "\u20ac" * (20_000 * times) + '"}', "bad_id"),
    (lambda times: " " * (times * MESSAGE_BYTES - 1) + "x", "not_json"),
    (lambda times: "\0" * times * MESSAGE_BYTES, "not_json"),
    (lambda times: '{"groups": {"job_events": [' + "0," * (30_000 * times) + "0]}}", "too_many_topics"),
    (lambda times: json.dumps({"groups": {}})[:-1] + ', "since": ' + "[" * 7 + "]" * 7 + " " * (times - 1) + "}", "bad_since"),
    (lambda times: '{"groups":{"jobs":[' * (MAX_DEPTH * times), "too_deep"),
]
"""The worst that fits in a message, or `times` as long, and the code that refuses it."""


@each_row(("bomb", "expected"), BOMBS, ids=range(29))
def test_a_json_bomb_is_refused_by_its_code(bomb: Callable[[int], str], expected: str) -> None:
    """Each has a code of its own. A longer one may break an earlier rule, and get another code."""
    assert len(bomb(1)) <= MESSAGE_BYTES
    assert code(bomb(1)) == expected


@each_row("bomb", [bomb for bomb, _ in BOMBS], ids=range(29))
def test_a_json_bomb_is_refused_in_linear_time(bomb: Callable[[int], str]) -> None:
    """The same, 30 times as long as a message may be. A quadratic reader would not end before the timeout."""
    with pytest.raises(BadRequest):
        parse(bomb(LONGER))


def test_utf_16_is_not_json() -> None:
    """Text that was meant as UTF-16 is refused as what it looks like."""
    assert code('{"groups": {}}'.encode("utf-16-le").decode()) == "not_json"


@each_row(
    "text",
    [
        '{"groups": {"jobs": ["' + "[" * 100 + '"]}}',
        '{"groups": {"jobs": ["' + "\\\\" * 100 + "[" * 100 + '"]}}',
        '{"groups": {"jobs": ["' + '\\"[' * 100 + '"]}}',
        '{"groups": {' + ", ".join(f'"g{number}": []' for number in range(900)) + "}}",
        '{"groups": {"jobs": [[[[[[]]]]]]}}',
        '{"groups": {}, "id": [[[[[[[]]]]]]]}',
    ],
)
def test_brackets_in_strings_and_side_by_side_are_not_depth(text: str) -> None:
    """Only what really nests counts against the limit of eight levels."""
    assert isinstance(parse(text), Request)


@given(st.recursive(st.just("1"), lambda inner: st.lists(inner, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]"), max_leaves=30))
def test_depth_is_counted_as_a_parser_would(text: str) -> None:
    """A message is too deep exactly when it nests deeper than the limit."""
    deepest = depth = 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    assert (code(text) == "too_deep") is (deepest > MAX_DEPTH)


def test_a_request_is_read() -> None:
    """Topics are routing keys in the client's order; id, since and token come along."""
    text = '{"groups": {"jobs": ["status_changed"], "job_events": [42, "7"]}, "since": "5-ab", "id": {"n": 1}, "xrftoken": "t"}'
    assert parse(text) == Request(("jobs.status_changed", "job_events.42", "job_events.7"), (), "5-ab", {"n": 1}, "t")
    assert parse('{"groups": {}}') == Request(())
    assert parse('{"groups": {"jobs": []}, "since": null, "xrftoken": null, "more": 1}') == Request(())
    assert parse(' \t\r\n{"groups": {}}\n').topics == ()
    assert parse('{"groups": {"notes": ["\\u0061"]}, "id": "\\ud83d\\ude80"}') == Request(("notes.a",), request_id="\U0001f680")


@each_row(
    ("item", "topics"),
    [
        ("42", ("job_events.42",)),
        ('"42"', ("job_events.42",)),
        ('42, "42", "042", 42', ("job_events.42",)),
        ('0, "000"', ("job_events.0",)),
        ("999999999999999999", ("job_events.999999999999999999",)),
        ("1000000000000000000", ()),
        ('"1000000000000000000"', ()),
        ("42.0", ()),
        ("4e1", ()),
        ("-1", ()),
        ("-0", ("job_events.0",)),
        ("true", ()),
        ("false", ()),
        ("null", ()),
        ('" 42"', ()),
        ('"42\\n"', ()),
        ('"+42"', ()),
        ('"4_2"', ()),
        ('"0x2a"', ()),
        ('"\\u0664\\u0662"', ()),
        ('""', ()),
        ('"abc"', ()),
        ('"#"', ()),
        ('"*"', ()),
        ('"42.*"', ()),
        ('"42-43"', ()),
        ('"\\u0000"', ()),
        ("[42]", ()),
        ("[]", ()),
        ('{"id": 42}', ()),
    ],
)
def test_an_item_is_an_id_or_it_is_left_out(item: str, topics: tuple[str, ...]) -> None:
    """Integers and text of 1 to 18 digits are ids (duplicates collapse); everything else is denied by itself."""
    request = parse('{"groups": {"jobs": ["summary"], "job_events": [' + item + "]}}")
    assert request.topics == ("jobs.summary", *topics)
    assert len(request.denied) == (0 if topics else 1)


@each_row(
    ("group", "item", "shown"),
    [
        ("job_events", None, Denied("job_events", "None", "an event is a word or a number")),
        ("job_events", True, Denied("job_events", "True", "an event is a word or a number")),
        ("job_events", 42.0, Denied("job_events", "42.0", "an event is a word or a number")),
        ("job_events", "abc", Denied("job_events", "abc", "no such event in this group")),
        ("jobs", "foo", Denied("jobs", "foo", "no such event in this group")),
        ("nonsense", 1, Denied("nonsense", "1", "no such group")),
        ("job_events-42", 1, Denied("job_events-42", "1", "no such group")),
        ("metrics", "x", Denied("metrics", "x", "no such group")),
        ("broadcast-group_send", "x", Denied("broadcast-group_send", "x", "no such group")),
        ("control", "limit_reached", Denied("control", "limit_reached", "no such event in this group")),
        ("job_events", "9" * 300, Denied("job_events", "9" * MAX_SHOWN + "…", "no such event in this group")),
        ("g" * 300, 1, Denied("g" * MAX_SHOWN + "…", "1", "no such group")),
        ("", "", Denied("", "", "no such group")),
    ],
)
def test_what_is_left_out_is_named_as_the_client_wrote_it(group: str, item: object, shown: Denied) -> None:
    """A denied item repeats group and item, shortened, and gives the reason; the others are followed."""
    request = parse(json.dumps({"groups": {group: [item], "schedules": ["changed"]}}))
    assert request.denied == (shown,)
    assert request.topics == ("schedules.changed",)


def test_the_number_of_topics_has_a_limit() -> None:
    """So many items are allowed in a request, and not one more."""
    assert len(parse('{"groups": {"job_events": [1, 2], "jobs": ["summary"]}}', 3).topics) == 3
    assert code('{"groups": {"job_events": [1, 2, 2], "jobs": ["summary"]}}', 3) == "too_many_topics"


def test_the_id_has_a_limit() -> None:
    """An id may be anything of so many bytes as JSON, and not one more."""
    assert parse('{"groups": {}, "id": "%s"}' % ("x" * (MAX_ID_BYTES - 2))).request_id
    assert code('{"groups": {}, "id": "%s"}' % ("x" * (MAX_ID_BYTES - 1))) == "bad_id"


def test_a_refusal_carries_the_id_where_it_could_be_read() -> None:
    """The client can tell which of its messages was refused."""
    for text, expected in [('{"id": 7}', 7), ('{"groups": {"jobs": 1}, "id": "a"}', "a"), ('{"id": 7', None), ("[]", None)]:
        with pytest.raises(BadRequest) as caught:
            parse(text)
        assert caught.value.request_id == expected


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_group = st.sampled_from(["jobs", "job_events", "control", "notes", "metrics", "job_events-42", "#", "*", "jobs.#"]) | st.text(max_size=300)


@given(st.dictionaries(_group, _json | st.lists(_json, max_size=5), max_size=5), st.booleans())
def test_names_are_inert(groups: dict[str, Any], ascii_only: bool) -> None:
    """For any request only exact names of known groups come out, and nothing but `BadRequest` is raised."""
    text = json.dumps({"groups": groups}, ensure_ascii=ascii_only)
    try:
        request = parse(text)
    except BadRequest:
        return
    for topic in request.topics:
        group, _, event = topic.partition(".")
        assert event in [str(item).lstrip("0") or "0" for item in groups[group]] or event in groups[group]
        assert not set(event) & set('.*#"\\ \0')
    assert len(request.topics) + len(request.denied) <= sum(len(items) for items in groups.values())


@given(st.text(st.characters(codec="utf-8")) | st.text('{}[]",:\\ 0123456789.eE+-truefalsnuINgoup'))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but `BadRequest`."""
    with contextlib.suppress(BadRequest):
        parse(text)


def test_a_token_is_read_and_not_shown() -> None:
    """A message with a token is a `TokenMessage`, with any other keys but `groups`. Its `repr` does not show the token."""
    message = parse_message_text('{"token": "canary", "id": [1], "since": 7}', GROUPS, 1000)
    assert isinstance(message, TokenMessage)
    assert (message.token.reveal(), message.request_id) == ("canary", [1])
    assert "canary" not in repr(message)


@each_row(("payload", "is_binary", "said"), [(b"{}", True, "binary"), (b'{"a": "\xff"}', False, "not_json"), (b"[", False, "not_json")])
def test_bytes_that_are_no_message(payload: bytes, is_binary: bool, said: str) -> None:
    """What is not text in UTF-8 is refused by its code before it is read any further."""
    with pytest.raises(BadRequest) as caught:
        parse_message(payload, GROUPS, 1000, is_binary=is_binary)
    assert caught.value.code == said
