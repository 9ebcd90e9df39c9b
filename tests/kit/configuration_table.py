"""The table in docs/configuration.md, made from the table of options. `python -m tests.kit.configuration_table` writes it."""

from __future__ import annotations

from pathlib import Path

from towerws.config.options import OPTIONS, Option

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN = "<!-- table of options: begin -->\n"
END = "<!-- table of options: end -->\n"


def table() -> str:
    """The table's lines, as the document must have them."""
    head = "| Key in the file | Flag | Environment variable | Type | Default | SIGHUP | Meaning |\n" + "| --- " * 7 + "|\n"
    return head + "".join(_row(option) for option in OPTIONS)


def split_document() -> tuple[str, str, str]:
    """The text before the table, the table, and the text after it."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    present, _, after = rest.partition(END)
    return before, present, after


def _row(option: Option) -> str:
    if option.default is None:
        default = "none: must be given"
    else:
        default = "empty" if option.default in ("", ()) else f"`{option.format(option.default)}`"
    reload = "reloads" if option.reload else "restart"
    cells = (f"`{option.key}`", f"`--{option.flag}`", f"`{option.variable}`", _type(option), default, reload, option.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _type(option: Option) -> str:
    if option.choices:
        return " or ".join(f"`{choice}`" for choice in option.choices)
    noun = option.kind.noun + (f", {option.kind.unit}" if option.kind.unit else "")
    if option.low is None or option.high is None:
        return noun
    return f"{noun}; {option.format(option.low)} to {option.format(option.high)}"


if __name__ == "__main__":
    before, _, after = split_document()
    DOCUMENT.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
