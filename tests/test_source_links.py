"""Links from the documents to the code lead to the definition that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.rows import each_row
from tests.kit.source_links import DOCUMENTS, LINK, ROOT, line_of, refreshed


@each_row("document", [path for path in DOCUMENTS if LINK.search(path.read_text())], ids=lambda path: path.name)
def test_each_link_has_the_line_of_its_definition(document: Path) -> None:
    """If this fails after a change to the code: `python -m tests.kit.source_links`."""
    assert document.read_text() == refreshed(document)


def test_the_path_of_a_message_has_twelve_stations() -> None:
    """From the broker's bytes to `socket.send`, each with its link."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("\n## The path of a message\n")[2].partition("\n## ")[0]
    stations = [line for line in section.splitlines() if line[:1].isdigit()]
    assert len(stations) == 12
    assert all(LINK.search(station) for station in stations)


def test_a_definition_that_is_gone_is_named() -> None:
    """The error says which file has no such definition."""
    source = ROOT / "towerws" / "core" / "hub.py"
    assert line_of("Hub", source) < line_of("Hub.flush", source)
    with pytest.raises(LookupError, match=r"hub\.py defines no Hub\.settle"):
        line_of("Hub.settle", source)
    with pytest.raises(LookupError, match="there is no file"):
        line_of("Hub", source.with_name("gone.py"))
