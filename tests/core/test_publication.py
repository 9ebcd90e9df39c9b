from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.publication import MAX_VALUES, Publication, parse_publication
from towerws.core.topics import Topic


@each_row(
    ("body", "topic"),
    [
        ('{"topic": "a.1", "payload": {}}', Topic("a", "1")),
        ('{"payload": {}, "topic": "a.1"}', Topic("a", "1")),
        ('{"group": "a", "event": "b-c", "payload": {}}', Topic("a", "b-c")),
        ('{"event": 42, "payload": {}, "group": "job_events"}', Topic("job_events", "42")),
        (' {"\\u0074opic" : "a\\u002e1" ,\t"payload":{} } \r\n', Topic("a", "1")),
    ],
)
def test_an_envelope_names_its_topic_in_two_ways(body: str, topic: Topic) -> None:
    """As a routing key, or as group and event, in any order and spacing."""
    assert parse_publication(body.encode()) == Publication(topic, b"{}")


@each_row(
    "payload",
    [
        '{"a":1,   "a": 1.0}',
        '{\t"a" :\r\n1 }',
        '{"a": NaN, "b": -Infinity}',
        '{"a": "\\ud800 \\u0000 \\ud83d\\ude80"}',
        '{"a": "\u20ac\U0001f680\u2028"}',
        '{"a": 1e999, "b": 0.10, "c": 12345678901234567890123}',
        '{"a": ' + "[" * 500 + "]" * 500 + "}",
        '{"topic": "b.2", "payload": {}}',
        '{"a": "}, \\"topic\\": \\"b.2\\""}',
        "[1]",
        '"text"',
        "null",
    ],
)
def test_the_payload_is_kept_byte_for_byte(payload: str) -> None:
    """It is never encoded again. `Ingest` checks that it is an object, as for a message from the broker."""
    for body in (f'{{"topic":"a.1","payload":{payload}}}', f'{{"payload" : {payload} , "topic" : "a.1"}}'):
        assert parse_publication(body.encode()).payload == payload.encode()


@each_row(
    ("body", "message"),
    [
        (b"", "expected { at character 0"),
        (b"[]", "expected { at character 0"),
        (b"null", "expected { at character 0"),
        (b"{", "the body is not"),
        (b'{"topic"', "expected : at character 8"),
        (b'{"topic":', "the body is not"),
        (b'{"topic": "a.1"', "expected , at character 15"),
        (b'{"topic": "a.1",}', "the body is not"),
        (b'{"topic": "a.1", "payload": {}', "expected , at character 30"),
        (b'{"topic": "a.1", "payload": {}} x', "something follows the object"),
        (b'{"topic": "a.1", "payload": {}}{}', "something follows the object"),
        (b'{1: "a.1", "payload": {}}', "expected a key"),
        (b'{"topic": "a.1", "payload": {"a": }}', "the body is not"),
        (b'{"topic": "a.1", "topic": "a.2", "payload": {}}', "it has the key 'topic' twice"),
        (b'{"topic": "a.1", "payload": {}, "\\u0070ayload": {}}', "it has the key 'payload' twice"),
        (b'\xef\xbb\xbf{"topic": "a.1", "payload": {}}', "expected { at character 0"),
        (b'{"topic": "a.1", "payload": "\xff"}', "the body is not"),
        (b'{"topic": "a.1", "payload": "\xed\xa0\x80"}', "the body is not"),
        (b'{"topic": "a.1", "payload": ' + b"[" * 90_000, "it nests too deeply"),
        (b'{"topic": "a.1", "payload": ' + b"9" * 100_000 + b"}", "the body is not"),
        (b"{}", "payload is missing"),
        (b'{"topic": "a.1"}', "payload is missing"),
        (b'{"payload": {}}', "give either topic, or group and event"),
        (b'{"group": "a", "payload": {}}', "give either topic, or group and event"),
        (b'{"event": "a", "payload": {}}', "give either topic, or group and event"),
        (b'{"topic": "a.1", "group": "a", "event": "1", "payload": {}}', "give either topic, or group and event"),
        (b'{"topic": "a.1", "payload": {}, "extra": 1}', "unknown key 'extra'"),
        (b'{"Topic": "a.1", "payload": {}}', "unknown key 'Topic'"),
        (b'{"topic": 1, "payload": {}}', "topic is not a string"),
        (b'{"topic": null, "payload": {}}', "topic is not a string"),
        (b'{"topic": ["a.1"], "payload": {}}', "topic is not a string"),
        (b'{"group": null, "event": "x", "payload": {}}', "group is not a string"),
        (b'{"group": true, "event": "x", "payload": {}}', "group is not a string"),
        (b'{"group": 5, "event": "x", "payload": {}}', "group is not a string"),
        (b'{"group": "a", "event": true, "payload": {}}', "event is neither a string nor an integer"),
        (b'{"group": "a", "event": 1.5, "payload": {}}', "event is neither a string nor an integer"),
        (b'{"group": "a", "event": null, "payload": {}}', "event is neither a string nor an integer"),
        (b'{"topic": "metrics", "payload": {}}', "has no '.'"),
        (b'{"topic": "a.b.c", "payload": {}}', "event 'b.c'"),
        (b'{"topic": "a.*", "payload": {}}', "event '*'"),
        (b'{"topic": "a.\\ud800", "payload": {}}', "event '\\ud800'"),
        (b'{"group": "a.b", "event": "c", "payload": {}}', "event 'b.c'"),
        (b'{"group": "a", "event": "", "payload": {}}', "event ''"),
    ],
    ids=range(43),
)
def test_any_other_body_is_refused_by_a_text(body: bytes, message: str) -> None:
    """A `ValueError` of one printable, bounded line says what is wrong."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_publication(body)
    text = str(caught.value)
    assert message in text
    assert text.isprintable()
    assert len(text) < 400


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), _values), st.booleans(), st.sampled_from([None, 0, 3]))
def test_any_payload_comes_out_as_it_went_in(payload: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    """The bytes between the envelope's colon and comma are the payload."""
    written = json.dumps(payload, ensure_ascii=ascii_only, indent=indent)
    body = f'{{"payload":{written},"topic":"a.1"}}'
    with contextlib.suppress(UnicodeEncodeError):
        assert parse_publication(body.encode()).payload == written.encode()


@given(st.binary() | st.text('{}[]":, \\topicgrunevalydNf0123.').map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Nothing but `ValueError` is raised, and a payload that is read stood in the body."""
    with contextlib.suppress(ValueError):
        assert parse_publication(body).payload in body


MANY = 2 * MAX_VALUES
KEYS = b",".join(b'"%d":1' % number for number in range(MANY))
TOO_MANY = {
    "keys of the envelope": b"{" + KEYS + b"}",
    "keys of the payload": b'{"topic":"a.1","payload":{' + KEYS + b"}}",
    "numbers": b'{"topic":"a.1","payload":{"a":[' + b",".join([b"1"] * MANY) + b"]}}",
    "strings": b'{"topic":"a.1","payload":{"a":[' + b",".join([b'""'] * MANY) + b"]}}",
    "strings that end in a backslash": b'{"topic":"a.1","payload":{"a":[' + b",".join([rb'"\\"'] * MANY) + b"]}}",
    "lists": b'{"topic":"a.1","payload":{"a":[' + b",".join([b"[]"] * MANY) + b"]}}",
    "objects": b'{"topic":"a.1","payload":{"a":[' + b",".join([b"{}"] * MANY) + b"]}}",
    "brackets": b'{"topic":"a.1","payload":{"a":' + b"[" * MANY,
    "a topic that is a list": b'{"topic":[' + b",".join([b"{}"] * MANY) + b'],"payload":{}}',
    "the same key": b"{" + b",".join([b'"topic":1'] * MANY) + b"}",
}


@each_row("body", TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_values_are_not_decoded(body: bytes) -> None:
    """4 MiB of keys took a second of the reactor's: what a body may hold is bounded before it is looked at."""
    with pytest.raises(ValueError, match="more than 100000 values"):
        parse_publication(body)


def test_an_unknown_key_ends_it() -> None:
    """Nothing behind it is decoded, not even its value."""
    with pytest.raises(ValueError, match="unknown key 'x'"):
        parse_publication(b'{"x": this is not JSON')


@each_row(
    "payload",
    [
        '{"stdout": "' + "1," * MANY + '"}',
        '{"stdout": "' + '{\\"a\\": [1, 2]}, ' * MANY + '"}',
        '{"stdout": "' + "\\\\" * MANY + '", "b": "' + "," * MANY + '"}',
        '{"a": [' + ", ".join(["1"] * (MAX_VALUES - 10)) + "]}",
    ],
    ids=["commas", "JSON in text", "backslashes", "nearly too many"],
)
def test_text_may_hold_what_it_will(payload: str) -> None:
    """A job's output is one value, however many commas and brackets are in it."""
    assert parse_publication(f'{{"topic":"a.1","payload":{payload}}}'.encode()).payload == payload.encode()
