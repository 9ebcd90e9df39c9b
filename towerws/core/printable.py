"""Text that came from outside, for a line of the log: nothing in it can look like another line, or turn one around."""

from __future__ import annotations

MAX_CHARACTERS = 128


def printable(text: object) -> str:
    """The text, shortened; what is not printable (control characters, line ends of all kinds, marks of direction) is escaped."""
    whole = str(text)
    shown = whole[:MAX_CHARACTERS]
    if not shown.isprintable() or "\\" in shown:
        shown = "".join(each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in shown)
    return shown if len(whole) <= MAX_CHARACTERS else f"{shown}…"
