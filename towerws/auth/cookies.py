"""Reads the `Cookie` header."""

from __future__ import annotations


def parse_cookies(header: str) -> dict[str, str]:
    """Return the cookies by name. Of two cookies with one name the last counts, as in Django and so in AWX."""
    return dict(list_cookies(header))


def list_cookies(header: str) -> list[tuple[str, str]]:
    """Return every cookie of a `Cookie` header as name and value, without the double quotes around a value.

    It reads as Django does, so that it finds the cookie that AWX finds. Browsers and awxkit write `;` with and without a space,
    and some clients end with one.
    """
    cookies = []
    for part in header.split(";"):
        name, equals, value = part.partition("=")
        value = value.strip(" \t")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if equals:
            cookies.append((name.strip(" \t"), value))
    return cookies
