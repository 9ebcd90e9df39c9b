"""The links from docs/ to lines of the code: `python -m tests.kit.source_links` writes each definition's present line into them.

A link is written as [`Class.method`](../towerws/module.py#L1), with any number at first.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))

LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<target>[./\w]+\.py)#L(?P<line>\d+)\)")


def refreshed(document: Path) -> str:
    """Return the document's text with the present line in each link. Raise `LookupError` for a definition that does not exist."""

    def refresh(link: re.Match[str]) -> str:
        source = (document.parent / link["target"]).resolve()
        return f"[`{link['name']}`]({link['target']}#L{line_of(link['name'], source)})"

    return LINK.sub(refresh, document.read_text(encoding="utf-8"))


def line_of(name: str, source: Path) -> int:
    """Return the line of the function, class or method with this name."""
    try:
        found: ast.Module | ast.stmt = ast.parse(source.read_text(encoding="utf-8"))
    except OSError:
        raise LookupError(f"there is no file {source}") from None
    for part in name.split("."):
        body = found.body if isinstance(found, ast.Module | ast.ClassDef) else []
        matches = [each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == part]
        if not matches:
            raise LookupError(f"{source} defines no {name}")
        found = matches[0]
    assert isinstance(found, ast.stmt)
    return found.lineno


def main() -> None:
    """Write the links."""
    for document in DOCUMENTS:
        text = refreshed(document)
        if text != document.read_text(encoding="utf-8"):
            document.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{document.relative_to(ROOT)}: links written\n")


if __name__ == "__main__":
    main()
