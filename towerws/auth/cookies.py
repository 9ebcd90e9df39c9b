"""Cookies, as clients of every kind write them."""

from __future__ import annotations


def parse_cookies(header: str) -> dict[str, str]:
    """The cookies of a `Cookie` header by name, without the double quotes around a value.

    Read as Django reads it, so that what is looked at here is what AWX looks at: with or without a space after `;`
    (browsers, awxkit), with a `;` at the end, and of two cookies with one name the last.
    """
    cookies = {}
    for part in header.split(";"):
        name, equals, value = part.partition("=")
        value = value.strip(" \t")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if equals:
            cookies[name.strip(" \t")] = value
    return cookies
