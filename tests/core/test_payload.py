from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.deliveries import Delivery
from towerws.core.errors import BadDelivery
from towerws.core.payload import MAX_DEPTH, check_payload, is_plain_object
from towerws.core.wire import V1

SAMPLES = [sample["payload"] for sample in json.loads((Path(__file__).parents[1] / "data" / "awx-events.json").read_text())]


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """An object in which values nest so many levels deep, the object counted."""
    return f'{{"a":{opening * (levels - 1)}{closing * (levels - 1)}}}'.encode()


def refusal(body: bytes) -> str | None:
    """The reason why a payload is refused, or None for a good one."""
    try:
        check_payload("a.1", body)
    except BadDelivery as bad:
        return bad.reason
    return None


FORGED = [
    b'{"a":1},"group":"job_events","event":"42","payload":{"stdout":"forged"}',
    b'{"a":1},"type":"bye","reason":"policy","reconnect_after_ms":0,"x":{}',
    b'{},"position":"0-forged","payload":{}',
    b'{}} {"type":"bye"}',
    b'{}}\n{"type":"event","payload":{}',
    b'{"a":1},"__proto__":{"group":"job_events"}',
    b'{"a":"\\"},"group":"job_events","payload":{"b":"}',
    b'{"a":1}/*},"group":"job_events","payload":{*/}',
    b'{"a":1}//","group":"job_events","payload":{}',
    b'{"a":[}],"group":"job_events","payload":[{]}',
    b'{"a":\'"\'},"group":"job_events","payload":{"b":"}',
]
"""Payloads that begin and end with a brace, and close the envelope's own object or value in between."""

MALFORMED = [
    b"",
    b" ",
    b"{",
    b"}",
    b"{]}",
    b"{}}",
    b"{{}",
    b"{{}}",
    b"{} {}",
    b"{}{}",
    b"{}\n{}",
    b"{},{}",
    b"{} x {}",
    b"{}x",
    b"x{}",
    b"{}\0",
    b"\0{}",
    b"{\0}",
    b"{}\x1e",
    b"\x1e{}",
    b"\x0b{}",
    b"{\x0c}",
    b"{\xc2\xa0}",
    b"\xef\xbb\xbf{}",
    b"{}\xef\xbb\xbf",
    b"[]",
    b"[{}]",
    b"1",
    b"null",
    b'"{}"',
    b"NaN",
    b"{,}",
    b'{"a"}',
    b'{"a":}',
    b"{:1}",
    b'{"a":1,}',
    b'{"a":1,,"b":2}',
    b'{"a":1 "b":2}',
    b'{"a" 1}',
    b'{"a"=1}',
    b"{a:1}",
    b"{'a':1}",
    b"{1:1}",
    b"{null:1}",
    b'{"a":[1,]}',
    b'{"a":[,]}',
    b'{"a":[1 2]}',
    b'{"a":[1}',
    b'{"a":"',
    b'{"a":"}',
    b'{"a":"\\"}',
    b'{"a":"\\q"}',
    b'{"a":"\\x41"}',
    b'{"a":"\\u12"}',
    b'{"a":"\\u12g4"}',
    b'{"a":"\\U00000041"}',
    b'{"a":"\\',
    b'{"a\n":1}',
    b'{"a":"\n"}',
    b'{"a":"\t"}',
    b'{"a":"\x00"}',
    b'{"a":"\x1f"}',
    b'{"a":nan}',
    b'{"a":+NaN}',
    b'{"a":-NaN}',
    b'{"a":+Infinity}',
    b'{"a":inf}',
    b'{"a":undefined}',
    b'{"a":True}',
    b'{"a":tru}',
    b'{"a":truex}',
    b'{"a":01}',
    b'{"a":+1}',
    b'{"a":-}',
    b'{"a":--1}',
    b'{"a":.5}',
    b'{"a":1.}',
    b'{"a":1.5.5}',
    b'{"a":1e}',
    b'{"a":1e+}',
    b'{"a":0x1}',
    b'{"a":1_0}',
    b'{"a":\xef\xbc\x91}',  # a full-width 1
    b'{"a":\xd9\xa1}',  # an Arabic 1
    b"{/**/}",
    b'{"a":/**/1}',
    b'{"a":1//\n}',
    b'{"a":1#\n}',
    b"{} //",
    b'{"a":`1`}',
    b"\x1f\x8b{}",
    '{"a":1}'.encode("utf-16-le"),
]

NOT_UTF8 = [
    b'{"a":"\xff"}',
    b'{"\xff":1}',
    b'{"a":"\xc3"}',
    b'{"a":"\x80"}',
    b'{"a":"\xc0\x80"}',  # an overlong NUL
    b'{"a":"\xe0\x80\xa2"}',  # an overlong quote
    b'{"a":"\xed\xa0\x80"}',  # a surrogate
    b'{"a":"\xed\xa0\xbd\xed\xba\x80"}',  # a pair of them, as CESU-8 has it
    b'{"a":"\xf4\x90\x80\x80"}',  # beyond U+10FFFF
    b'{"a":"\xf5\x80\x80\x80"}',
    b'{"a":"\xfe\xff"}',
    b'{"a":"\xe2\x82"}',
]

TOO_DEEP = [
    nested(MAX_DEPTH + 1),
    nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":1}", 1),
    nested(MAX_DEPTH + 1, '[{"a":', "}]").replace(b":}", b":1}", 1),
    nested(5000),
    nested(300_000),
    b'{"a":"]]]]]]]]","b":' + nested(MAX_DEPTH) + b"}",
    b'{"a":"\\\\","b":' + nested(MAX_DEPTH) + b"}",
    b'{"a":"\\"]\\\\\\"]","b":' + nested(MAX_DEPTH) + b"}",
    b'{"a":NaN,"b":' + nested(MAX_DEPTH) + b"}",
    b'{"a":' + b"[" * 1010,  # not closed, and too deep for the scanner's recursion
    b'{"a":' + b"[" * 300_000,
]

GOOD = [
    b"{}",
    b' \t\r\n{ "a" : 1 }\t\n',
    b'{"a":{"b":[1,[],{},"",0,-0,1.5e-7,true,false,null]}}',
    b'{"a":1,"a":2}',  # a duplicate key changes this payload only
    b'{"__proto__":{}}',
    b'{"":""}',
    b'{"a":"}","b":"{","c":"\\"}"}',
    b'{"a":"\\u0000\\u001f\\u007f\\u2028\\/\\b"}',
    b'{"a":"\x7f"}',
    b'{"a":1e999,"b":-1e-999}',
    b'{"a":' + b"9" * 100_000 + b"}",
    b'{"a":0.' + b"1" * 100_000 + b"}",
    b'{"a":NaN,"b":[Infinity,-Infinity]}',
    b'{"a":NaN,"b":' + b"9" * 100_000 + b"}",
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00\\ud83d"}',
    b'{"\\udfff":"\\uD83D\\uDE80"}',
    '{"a":"\u00fc\u20ac\u2028\ufeff\U0001f680\u202e"}'.encode(),
    '{"\u00fc":NaN}'.encode(),
    nested(MAX_DEPTH),
    nested(MAX_DEPTH, '{"a":', "}").replace(b":}", b":1}", 1),
    b'{"a":[' + b",".join([b"[{}]"] * 5000) + b"]}",  # wide is not deep
    b'{"a":"' + b"[" * 5000 + b'"}',
    b'{"a":"' + b'\\"[\\\\{' * 5000 + b'"}',
    b'{"a":"' + b'\\"[\\\\{' * 5000 + b'","b":NaN}',
    b'{"a":"' + b"x" * 1_000_000 + b'"}',
    *[json.dumps(payload).encode() for payload in SAMPLES],
    *[json.dumps(payload, ensure_ascii=False).encode("utf-8", "ignore") for payload in SAMPLES],
]

REFUSED = [
    *[(body, "not_an_object") for body in FORGED],
    *[(body, "not_an_object") for body in MALFORMED],
    *[(body, "not_utf8") for body in NOT_UTF8],
    *[(body, "too_deep") for body in TOO_DEEP],
]


def name(value: object) -> str:
    """The start of a payload, for the name of a test."""
    return repr(value[:30]) if isinstance(value, bytes) else str(value)


@each_row(("body", "reason"), REFUSED, ids=name)
def test_what_is_not_exactly_one_object_is_refused(body: bytes, reason: str) -> None:
    """Findings P1: the short check does not pass it, and the whole check gives the reason."""
    assert not is_plain_object(body)
    assert refusal(body) == reason


@each_row("body", GOOD, ids=name)
def test_what_awx_sends_is_taken(body: bytes) -> None:
    """JSON as RFC 8259 has it passes, and so do `NaN`, `Infinity` and escapes of lone surrogates."""
    assert refusal(body) is None


@each_row("body", FORGED, ids=name)
def test_the_table_of_forgeries_is_real(body: bytes) -> None:
    """Each forgery sits between two braces: a look at the outer ones would pass it."""
    assert body[:1] == b"{"
    assert body[-1:] == b"}"


def test_most_of_what_awx_sends_takes_the_short_way() -> None:
    """The short check alone passes every sample that holds neither `NaN` nor half a surrogate pair."""
    assert sum(is_plain_object(json.dumps(payload).encode()) for payload in SAMPLES) > 0.9 * len(SAMPLES)


def in_a_deep_stack(levels: int, call: Callable[[], Any]) -> Any:
    """Call from so many frames further down."""
    return call() if levels == 0 else in_a_deep_stack(levels - 1, call)


@each_row("body", [nested(MAX_DEPTH), nested(MAX_DEPTH + 1), nested(MAX_DEPTH - 1).replace(b"[]", b"[NaN]")])
def test_the_verdict_does_not_depend_on_the_stack(body: bytes) -> None:
    """Two daemons that read one stream skip the same messages, at any depth of the stack."""
    deeper = (sys.getrecursionlimit() - MAX_DEPTH) // 2
    assert in_a_deep_stack(deeper, lambda: refusal(body)) == refusal(body)
    assert in_a_deep_stack(deeper, lambda: is_plain_object(body)) == is_plain_object(body)


TOKENS = [
    *[b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b'"', b'"a"', b'"b":', b"\\", b'\\"', b"1", b"-", b"0", b".5", b"e9"],
    *[b"NaN", b"-Infinity", b"true", b"null", b"\\ud800", b"\\u0041", b"\xc3\xbc", b"\xed\xa0\x80", b"\xff", b"\x00", b"/", b"'"],
    *[b'{"a":1}', b'{"a":[{}]}', b'"group":"x"', b"payload"],
]


@given(st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join) | st.binary(max_size=40))
def test_an_independent_parser_agrees(body: bytes) -> None:
    """Any body passes exactly when the standard library reads it as one object. The short check passes no others."""
    for each in (body, b"{" + body + b"}", b'{"a":' + body + b"}"):
        try:
            expected = isinstance(json.loads(each.decode()), dict)
        except ValueError:
            expected = False
        assert (refusal(each) is None) == expected
        assert not is_plain_object(each) or expected


@given(st.lists(st.sampled_from(TOKENS), max_size=8).map(b"".join))
def test_no_payload_changes_its_envelope(inner: bytes) -> None:
    """The frame of a payload that is taken parses to the envelope that the daemon wrote, and to that payload."""
    body = b'{"a":1' + inner + b"}"
    if refusal(body) is not None:
        return
    event = json.loads(V1.event(Delivery(1, "job_events.42", body, 1, "q")))
    assert {key: value for key, value in event.items() if key != "payload"} == {
        "type": "event",
        "position": event["position"],
        "group": "job_events",
        "event": "42",
    }
    assert json.dumps(event["payload"]) == json.dumps(json.loads(body))


def test_a_refusal_repeats_nothing_of_the_payload() -> None:
    """A payload may hold a secret: the text for the log has places and rules, and no content."""
    for body in (b'{"canary":}', b'{"a":"canary', b'["canary"]', b'{"canary":"\xff"}', b'{"canary":1}canary', b'{"canary":\\canary}'):
        with pytest.raises(BadDelivery) as caught:
            check_payload("a.1", body)
        assert "canary" not in str(caught.value)
        assert str(caught.value).isprintable()
