from __future__ import annotations

import pytest

from tests.auth.jwt_kit import CANARY, b64, sign
from tests.kit.rows import each_row
from towerws.auth.base import Refused
from towerws.auth.jwt_token import (
    MAX_GRANTS,
    MAX_TOKEN_BYTES,
    Grants,
    is_shaped_like_token,
    parse_grants,
    parse_token,
    read_claim,
    read_object,
)


@each_row(
    ("text", "shaped"),
    [
        ("a.b.c", True), ("a.b.", True), ("eyJ9.e30.-_", True), ("", False), ("abc", False), ("a.b.c.d", False), (".b.c", False),
        ("a..c", False), ("a.b.c=", False), ("a.b.c\n", False), ("a.b.c ", False), ("a+.b.c", False), ("a.b.\u00e9", False),
    ],
)  # fmt: skip
def test_what_is_shaped_like_a_token(text: str, shaped: bool) -> None:
    """Three parts of base64url with dots between, the last perhaps empty. Any other text belongs to another method."""
    assert is_shaped_like_token(text) is shaped


def test_a_token_is_taken_apart() -> None:
    """The header is read and the rest is kept as bytes. The repr shows none of it."""
    text = sign({"sub": CANARY}, header={"kid": "k1", "jku": CANARY})
    token = parse_token(text)
    assert (token.algorithm, token.kid) == ("HS256", "k1")
    assert token.payload == b'{"sub": "' + CANARY.encode() + b'"}'
    assert token.signed == text.rpartition(".")[0].encode()
    assert len(token.signature) == 32
    assert CANARY not in repr(token)


@each_row("header", [{"typ": "jwt"}, {"typ": "at+jwt"}, {"typ": "application/at+jwt"}, {"kid": ""}, {"kid": "k" * 256}])
def test_headers_that_are_fine(header: dict[str, object]) -> None:
    """The types of RFC 7519 and RFC 9068 in any case are accepted, and a `kid` of up to 256 characters."""
    assert parse_token(sign(header=header)).kid == header.get("kid")


@each_row(
    "header",
    [
        {"crit": ["exp"]}, {"crit": []}, {"crit": None}, {"b64": False}, {"b64": True}, {"typ": "logout+jwt"}, {"typ": 1}, {"typ": None},
        {"kid": None}, {"kid": 1}, {"kid": ["a"]}, {"kid": "k" * 257}, {"alg": None}, {"alg": 1}, {"alg": ["HS256"]},
        "[]", '"HS256"', "null", "{", "", "\ufeff{}", '{"alg": "HS256", "alg": "none"}', '{"alg": "HS256", "x": NaN}',
        '{"alg": "HS256", "x": Infinity}', '{"alg": "HS256", "x": 1e999}', '{"alg": "HS256", "x": ' + "9" * 5000 + "}",
        '{"alg": "HS256", "x": {"y": 1, "y": 1}}', '{"typ": "JWT"}', "[" * 5000, '{"alg": "HS256"}x', '{"alg": "HS256",}',
    ],
)  # fmt: skip
def test_headers_that_are_not(header: object) -> None:
    """Unknown extensions, other types, and JSON that two readers could read differently are refused."""
    with pytest.raises(Refused):
        parse_token(sign(header=header))


@each_row("text", ["", "abc", "a.b", "a.b.c.d", "a.b.c\n", "e.e30.x", f"{b64({'alg': 'HS256'})}.e30.xx="])
def test_what_is_no_token(text: str) -> None:
    """A text that is not in the form of a token is refused if a token was expected."""
    with pytest.raises(Refused):
        parse_token(text)


@each_row("spoiled", ["signature", "payload", "header"])
def test_base64url_is_canonical(spoiled: str) -> None:
    """The unused bits after the last byte must be 0, so that a token has one form only."""
    parts = {"header": b64('{"alg":"HS256" }'), "payload": b64('{"a":1 }'), "signature": b64(b"s" * 32)}
    parse_token(".".join(parts.values()))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(parts[spoiled][-1]) + 1]
    parts[spoiled] = parts[spoiled][:-1] + last
    with pytest.raises(Refused, match="canonical"):
        parse_token(".".join(parts.values()))


def test_the_size_is_bounded() -> None:
    """8 KiB are read. A longer token is refused before it is parsed."""
    start = f"{b64({'alg': 'HS256'})}.{b64('{ }')}."
    assert (MAX_TOKEN_BYTES - len(start)) % 4 != 1
    for length, fits in ((MAX_TOKEN_BYTES - len(start), True), (MAX_TOKEN_BYTES - len(start) + 1, False)):
        text = start + "A" * length
        if fits:
            assert len(parse_token(text).signature) == length * 3 // 4
        else:
            with pytest.raises(Refused, match="longer than 8192"):
                parse_token(text)


def test_text_that_is_no_utf_8_is_refused() -> None:
    """JSON is UTF-8. Other encodings, which the library would guess, are refused."""
    assert read_object('{"a": "\u00e9"}'.encode()) == {"a": "\u00e9"}
    for encoding in ("utf-16", "utf-32", "latin-1"):
        with pytest.raises(Refused):
            read_object('{"a": "\u00e9"}'.encode(encoding))


@each_row(
    "written",
    [
        {"jobs": ["status_changed"], "job_events": ["*"], "ad_hoc_command_events": [42, "43"]},
        ["jobs.status_changed", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"],
    ],
)
def test_both_ways_to_write_grants_say_the_same(written: object) -> None:
    """A table of groups and a list of names mean the same: exact topics, and `*` for all topics of a group."""
    grants = parse_grants(written)
    for granted in ("jobs.status_changed", "job_events.1", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"):
        assert grants.allow(granted), granted
    for other in ("jobs.summary", "jobs.*", "job_events_.1", "ad_hoc_command_events.4", "ad_hoc_command_events.*", "control.x", ""):
        assert not grants.allow(other), other


def test_nothing_grants_nothing() -> None:
    """An empty list is valid. A topic that is not in the list is not granted."""
    assert parse_grants([]) == parse_grants({}) == parse_grants({"jobs": []}) == Grants()
    assert not Grants().allow("jobs.status_changed")


@each_row(
    "written",
    [
        None, 1, True, "jobs.status_changed", {"jobs": "status_changed"}, {"jobs": True}, {"jobs": {"a": 1}}, {"jobs": [1.0]},
        {"jobs": [True]}, {"jobs": [None]}, {"*": ["*"]}, {"jobs": [""]}, {"": ["a"]}, {"jobs": ["a*"]},
        {"jobs": ["#"]}, ["*"], ["#"], ["*.*"], ["jobs"], ["jobs."], [".a"], ["jobs.#"], ["jobs.*.a"], ["jobs-1"], ["jobs.\u00e9"],
        [1], {"jobs": ["a.b"]},
        ["jobs.a\n"], {"jobs": [["a"]]}, [None], {"jobs\n": ["*"]}, {"jobs": [-1.5]},
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_an_error(written: object) -> None:
    """One bad name makes the whole list unusable, and the text does not repeat it."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_grants(written)
    assert "status_changed" not in str(caught.value)


def test_the_number_of_grants_is_bounded() -> None:
    """10,000 names are accepted and one more is refused, in both forms."""
    names = [f"job_events.{number}" for number in range(MAX_GRANTS)]
    assert len(parse_grants(names).topics) == MAX_GRANTS
    assert len(parse_grants({"job_events": list(range(MAX_GRANTS))}).topics) == MAX_GRANTS
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants([*names, "jobs.a"])
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants({"job_events": list(range(MAX_GRANTS + 1))})


@each_row(
    ("written", "topics", "groups", "others"),
    [
        (["/keycloak/group", "jobs.a"], {"jobs.a"}, set(), 1),
        (["offline_access", "uma_authorization", "default-roles-awx"], set(), set(), 3),
        (["jobs.a", "jobs.*", "*", "#", "*.*", "jobs.#", "jobs.*.a"], {"jobs.a"}, {"jobs"}, 5),
        (["cn=ops,dc=example,dc=com", "jobs.a"], {"jobs.a"}, set(), 1),
        (["00000000-0000-0000-0000-000000000000", "jobs.a"], {"jobs.a"}, set(), 1),
        (["jobs.a", None, 1, True, 1.5, {}, ["jobs.b"]], {"jobs.a"}, set(), 6),
        (["jobs.a", "", " jobs.b", "jobs.c\n", "J\u00f6bs.d"], {"jobs.a"}, set(), 4),
        ({"jobs": ["a"], "/keycloak/group": ["x"]}, {"jobs.a"}, set(), 1),
        ({"jobs": ["a", None, True, 1.5, ["b"]], "chat": "x", "other": {"a": 1}, "more": None}, {"jobs.a"}, set(), 7),
        ({"*": ["*"], "jobs": ["*", "#"]}, set(), {"jobs"}, 2),
        ([], set(), set(), 0),
        ("jobs.*", set(), {"jobs"}, 0),
        ("jobs.a job_events.42 chat.*", {"jobs.a", "job_events.42"}, {"chat"}, 0),
        ("openid profile jobs.a", {"jobs.a"}, set(), 2),
        ("/keycloak/group", set(), set(), 1),
        ("jobs.a,jobs.b", set(), set(), 1),
        ("jobs.a  jobs.b ", {"jobs.a", "jobs.b"}, set(), 2),
        ("jobs.a\tjobs.b\njobs.c", set(), set(), 1),
        ('["jobs.a"]', set(), set(), 1),
        ("*", set(), set(), 1),
        ("", set(), set(), 0),
    ],
)
def test_a_claim_may_hold_what_is_not_ours(written: object, topics: set[str], groups: set[str], others: int) -> None:
    """Entries that are no topics are counted and grant nothing. They do not change what the others grant."""
    assert read_claim(written) == (Grants(frozenset(topics), frozenset(groups)), others)


@each_row("written", [None, 1, True, 1.5])
def test_a_claim_that_is_no_list(written: object) -> None:
    """A claim of another type is refused, since the configuration probably names the wrong claim."""
    with pytest.raises(ValueError, match="neither"):
        read_claim(written)


@each_row("name", ["jobs.a", "/keycloak/group", None])
def test_the_entries_of_a_claim_are_bounded(name: object) -> None:
    """More than 10,000 entries of any kind are refused."""
    with pytest.raises(ValueError, match="more than 10000"):
        read_claim("jobs.a " * (MAX_GRANTS + 1))
    assert read_claim([name] * MAX_GRANTS)
    with pytest.raises(ValueError, match="more than 10000"):
        read_claim([name] * (MAX_GRANTS + 1))
