from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.origins import Origins

LISTED = Origins(["https://portal.example.com", "http://10.0.0.1:3000"])

TABLE = [
    # origin, Host, allowed
    (None, "tower.example.com", True),
    ("https://tower.example.com", "tower.example.com", True),
    ("http://tower.example.com", "tower.example.com", True),
    ("https://tower.example.com", "tower.example.com:443", True),
    ("https://tower.example.com:443", "tower.example.com", True),
    ("https://tower.example.com:8043", "tower.example.com:8043", True),
    ("http://tower.example.com:8043", "tower.example.com:8043", True),
    ("HTTPS://TOWER.example.COM", "tower.EXAMPLE.com", True),
    ("http://[2001:db8::1]:8051", "[2001:DB8::1]:8051", True),
    ("http://localhost", "localhost", True),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example", True),
    ("https://portal.example.com", "tower.example.com", True),
    ("https://portal.example.com:443", "tower.example.com", True),
    ("http://10.0.0.1:3000", "tower.example.com", True),
    ("http://portal.example.com", "tower.example.com", False),
    ("https://portal.example.com:444", "tower.example.com", False),
    ("null", "tower.example.com", False),
    ("null", "null", False),
    ("", "", False),
    ("file://", "tower.example.com", False),
    ("file://tower.example.com", "tower.example.com", False),
    ("chrome-extension://tower.example.com", "tower.example.com", False),
    ("https://tower.example.com.evil.example", "tower.example.com", False),
    ("https://evil-tower.example.com", "tower.example.com", False),
    ("https://eviltower.example.com", "tower.example.com", False),
    ("https://tower.example.com@evil.example", "tower.example.com", False),
    ("https://tower.example.com:x@evil.example", "tower.example.com", False),
    ("https://evil.example/tower.example.com", "tower.example.com", False),
    ("https://tower.example.com/", "tower.example.com", False),
    ("https://tower.example.com:8043", "tower.example.com", False),
    ("https://tower.example.com", "tower.example.com:8043", False),
    ("http://tower.example.com:443", "tower.example.com", False),
    ("https://tower.example.com.", "tower.example.com", False),
    ("https://tower%2eexample.com", "tower.example.com", False),
    ("https://tower.example.com, https://evil.example", "tower.example.com", False),
    ("https://2001:db8::1", "2001:db8::1", False),
    ("https://" + "a" * 5000, "a" * 5000, False),
    ("//tower.example.com", "tower.example.com", False),
    ("tower.example.com", "tower.example.com", False),
]


@pytest.mark.parametrize(("origin", "host", "allowed"), TABLE)
def test_table_of_origins(origin: str | None, host: str, allowed: bool) -> None:
    """Only the host's own pages, those listed, and what is no browser may use a cookie."""
    assert LISTED.allow(origin, [host]) is allowed


def test_any_of_the_hosts() -> None:
    """A proxy may tell the host that the browser asked for beside the one that it asks for itself."""
    assert LISTED.allow("https://tower.example.com", ["127.0.0.1:8051", " tower.example.com"])
    assert not LISTED.allow("https://tower.example.com", [])


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_nothing_else_gets_in(origin: str) -> None:
    """What is not an origin is refused, whatever the host says, and raises nothing."""
    if not origin.lower().startswith(("http", "ws")):
        assert not LISTED.allow(origin, [origin, "tower.example.com"])
    assert not LISTED.allow(f"https://{origin}.evil.example", ["tower.example.com"])


@pytest.mark.parametrize("text", ["portal.example.com", "*", "https://portal.example.com/", "https://*.example.com", "null"])
def test_what_is_no_origin(text: str) -> None:
    """A list with something that can never match is a mistake that is said."""
    with pytest.raises(ValueError, match="is not an origin"):
        Origins([text])
