from __future__ import annotations

import pytest

from towerws.core.revocation import Revocation, parse_revocation


@pytest.mark.parametrize(
    ("body", "revocation"),
    [
        (b'{"user": 7}', Revocation(user=7)),
        (b'{"user": "ada"}', Revocation(user="ada")),
        (b' {"session": "5e55"} ', Revocation(session="5e55")),
    ],
)
def test_revocations(body: bytes, revocation: Revocation) -> None:
    """A user, by number or by name, or a credential's hash."""
    assert parse_revocation(body) == revocation


BAD = [
    "",
    "{}",
    "[]",
    "7",
    "null",
    '{"user": null}',
    '{"user": true}',
    '{"user": 7.5}',
    '{"user": ""}',
    '{"session": ""}',
    '{"session": 7}',
]
BAD += ['{"user": 7, "session": "x"}', '{"user": 7, "more": 1}', '{"user": [7]}', "[" * 100_000, f'{{"user": "{"x" * 513}"}}', "\udcff"]


@pytest.mark.parametrize("body", BAD)
def test_anything_else_revokes_nobody(body: str) -> None:
    """Half a revocation is none: the sender is told what one looks like."""
    with pytest.raises(ValueError, match="user"):
        parse_revocation(body.encode("utf-8", "surrogateescape"))
