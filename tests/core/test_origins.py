from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.hostile_heads import LISTED, PAGE_ORIGINS
from tests.kit.rows import each_row
from towerws.core.origins import Origins

OURS = Origins(LISTED)


@each_row(("origin", "host", "allowed"), PAGE_ORIGINS)
def test_table_of_origins(origin: str | None, host: str, allowed: bool) -> None:
    """Only the host's own pages, those listed, and what is no browser may use a cookie."""
    assert OURS.allow(origin, [host]) is allowed


def test_any_of_the_hosts() -> None:
    """A proxy may send the browser's host in addition to its own."""
    assert OURS.allow("https://tower.example.com", ["127.0.0.1:8051", " tower.example.com"])
    assert not OURS.allow("https://tower.example.com", [])


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_nothing_else_gets_in(origin: str) -> None:
    """A text that is not an origin is refused for any host, and raises nothing."""
    if not origin.lower().startswith(("http", "ws")):
        assert not OURS.allow(origin, [origin, "tower.example.com"])
    assert not OURS.allow(f"https://{origin}.evil.example", ["tower.example.com"])


@each_row("text", ["portal.example.com", "*", "https://portal.example.com/", "https://*.example.com", "null"])
def test_what_is_no_origin(text: str) -> None:
    """A list with something that can never match is a mistake that is said."""
    with pytest.raises(ValueError, match="is not an origin"):
        Origins([text])
