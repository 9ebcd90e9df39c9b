from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

STATIC = files("towerws").joinpath("static")
PAGE = STATIC.joinpath("live.html").read_text(encoding="utf-8")
SCRIPT = STATIC.joinpath("live.js").read_text(encoding="utf-8")
STYLE = STATIC.joinpath("live.css").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def tags() -> list[tuple[str, dict[str, str | None]]]:
    """The page's tags."""
    parser = Tags()
    parser.feed(PAGE)
    parser.close()
    return parser.found


def test_port_is_written_into_it() -> None:
    """The daemon puts its websocket's port in one place."""
    assert PAGE.count("{{WEBSOCKET_PORT}}") == 1


def test_self_contained(tags: list[tuple[str, dict[str, str | None]]]) -> None:
    """Nothing is loaded from anywhere: the policy it is served with forbids it, and a console often has no internet."""
    for tag, attributes in tags:
        assert attributes.get("src", "live.js") == "live.js"
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        assert re.match(r"data:|live\.css$", attributes.get("href") or "data:") or (tag, attributes) == ("a", {"href": "./"})
        assert "style" not in attributes
        assert tag != "style"
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_data_never_becomes_markup(tags: list[tuple[str, dict[str, str | None]]]) -> None:
    """What producers send is shown as text only: the page has no way of its own to parse HTML or code from a string."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc", PAGE + SCRIPT)
    assert not re.search(r"setTimeout\(['\"`]|setInterval\(['\"`]", SCRIPT)
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_accessible(tags: list[tuple[str, dict[str, str | None]]]) -> None:
    """It says its language, announces the connection's state, and gives every region a name."""
    assert ("html", {"lang": "en"}) in tags
    by_id = {attributes["id"]: attributes for _, attributes in tags if "id" in attributes}
    assert by_id["state"]["role"] == "status"
    assert by_id["notices"]["role"] == "log"
    for tag, attributes in tags:
        if tag == "section" or attributes.get("role") == "region":
            assert attributes["aria-labelledby"] in by_id
