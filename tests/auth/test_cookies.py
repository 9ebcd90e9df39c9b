from __future__ import annotations

from tests.kit.rows import each_row
from towerws.auth.base import parse_cookies


@each_row(
    ("header", "cookies"),
    [
        ("a=b; c=d", {"a": "b", "c": "d"}),
        ('awx_sessionid="x";csrftoken=y', {"awx_sessionid": "x", "csrftoken": "y"}),
        ('token="x";', {"token": "x"}),
        ("a=b;", {"a": "b"}),
        ("", {}),
        (";;", {}),
        ("word", {}),
        ("a=", {"a": ""}),
        ('a="', {"a": '"'}),
        ('a=""', {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        (" a = b ;\tc\t=\td", {"a": "b", "c": "d"}),
        ("a=1; a=2", {"a": "2"}),
        ("token=%22x%22", {"token": "%22x%22"}),
    ],
)
def test_cookies_as_clients_write_them(header: str, cookies: dict[str, str]) -> None:
    """Cookies as browsers and awxkit write them, and odd ones, are read as Django reads them."""
    assert parse_cookies(header) == cookies
