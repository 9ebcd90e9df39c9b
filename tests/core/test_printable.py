from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.printable import MAX_CHARACTERS, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ada", "ada"),
        (7, "7"),
        (None, "None"),
        ("Zoë 愛", "Zoë 愛"),
        ("a\r\n2026-01-01 root logged in", r"a\r\n2026-01-01 root logged in"),
        ("a\x1b[2Jb\x00\x85", r"a\x1b[2Jb\x00\x85"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("\ud800", r"\ud800"),
        (r"a\nb", r"a\\nb"),
        ("x" * 500, "x" * MAX_CHARACTERS + "…"),
    ],
)
def test_what_is_shown(text: object, shown: str) -> None:
    """People can read it, and nothing in it does anything."""
    assert printable(text) == shown


@given(st.text(alphabet=st.characters()))
def test_whatever_comes(text: str) -> None:
    """It is one line, printable, and survives the trip to a file; short texts that differ are shown differently."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    if len(text) < MAX_CHARACTERS:
        assert printable(text + "\n") == shown + r"\n"
