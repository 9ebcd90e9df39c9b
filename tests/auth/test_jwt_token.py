from __future__ import annotations

import pytest

from tests.auth.jwt_kit import CANARY, b64, sign
from tests.kit.rows import each_row
from towerws.auth.base import Refused
from towerws.auth.jwt_token import MAX_TOKEN_BYTES, is_shaped_like_token, parse_token, read_object


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
