"""The commented configuration file of `towerws config --example`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from towerws.config.options import OPTIONS, Kind, Option

WIDTH = 100

_HEAD = """\
towerws: an example of its configuration file, with every option.

A line that begins with #, without a space after it, is an option with its default. Remove the # and change the value.
`towerws check --config FILE` says whether the file can be used, and `towerws doctor --config FILE` whether the world fits it.
A flag and an environment variable win over the file. docs/configuration.md explains the forms of sizes and durations."""

_GROUPS = """\
Groups of your own, one table each. `events`: "id" for numbers, "any" for any word, or a list of words. `policy`: "authenticated",
"own" (the user whose id the event is), "object" (with `object_url`, a path of Tower's API), or "never"."""

_GROUP_LINES = ("#[groups.orders]", '#events = ["created", "paid"]', '#policy = "authenticated"')


def example() -> Iterator[str]:
    """Yield the lines of a TOML file with each option: its help, type, unit, bounds and default.

    `auth`, which has no default, is set to `open`. Everything else is a comment, so the file as it is gives the defaults.
    """
    yield from _comment(_HEAD)
    section = ""
    for option in OPTIONS:
        table, _, name = option.key.rpartition(".")
        if table != section:
            section = table
            yield from ("", "", f"[{table}]")
        yield ""
        yield from _comment(option.help)
        yield f"# {_form(option)}"
        yield f'{name} = ["open"]' if option.default is None else f"#{name} = {_default(option)}"
    yield from ("", "")
    yield from _comment(_GROUPS)
    yield from _GROUP_LINES


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n"):
        yield from (f"# {line}".rstrip() for line in textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False) or [""])


def _form(option: Option) -> str:
    """Return the type and the unit of an option, its choices or bounds, and its default."""
    parts = [f"{option.kind.noun}{option.kind.unit and f' ({option.kind.unit})'}"]
    if option.choices:
        parts = [" or ".join(option.choices)]
    if option.low is not None:
        parts.append(f"at least {option.format(option.low)}")
    if option.high is not None:
        parts.append(f"at most {option.format(option.high)}")
    default = "no default: it must be set" if option.default is None else f"default: {option.format(option.default) or 'empty'}"
    return f"{', '.join(parts)}; {default}"


def _default(option: Option) -> str:
    value = option.default
    if option.kind is Kind.URLS or isinstance(value, tuple):
        return json.dumps([value] if isinstance(value, str) else value)
    assert value is not None
    quoted = isinstance(value, str) or option.kind is Kind.SIZE
    return json.dumps(option.format(value)) if quoted else option.format(value)
