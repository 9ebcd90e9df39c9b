"""The live page: the page itself, its files, and the topics that it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from towerws.admin.endpoint import Answer, json_answer
from towerws.core.history import History

DELIVERIES = 2000
"""How many of the newest deliveries are searched for the live page's topics: 0.08 ms."""

TOPICS = 100
"""How many topics the live page gets at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """What the live page has to know about its daemon.

    `groups` are those of the configuration (`GroupTable.configured`). `auth` has the names of the methods. `takes_tokens` says
    whether a client may send its token in a message. `topics` returns the newest topics of the configured groups, and `position`
    the position of the newest delivery.
    """

    groups: Mapping[str, object] = field(default_factory=dict)
    auth: Sequence[str] = ("open",)
    takes_tokens: bool = False
    topics: Callable[[], Sequence[str]] = list
    position: Callable[[], str | None] = lambda: None


def topics_of(groups: Container[str], history: History) -> list[str]:
    """Return the newest topics of these groups, the newest first, for `PageContent.topics`."""
    return [topic for topic in history.recent_topics(DELIVERIES) if topic.partition(".")[0] in groups][:TOPICS]


def live_page(content: PageContent, websocket_port: int) -> Answer:
    """Return the page, with the daemon's settings in its `data-` attributes."""
    page = files("towerws").joinpath("static/live.html").read_text(encoding="utf-8")
    values = {
        "WEBSOCKET_PORT": str(websocket_port),
        "GROUPS": json.dumps(content.groups),
        "AUTH": " ".join(content.auth),
        "TAKES_TOKENS": "yes" if content.takes_tokens else "no",
    }
    for name, value in values.items():
        page = page.replace(f"{{{{{name}}}}}", escape(value))
    return Answer(200, page.encode(), b"text/html; charset=utf-8")


def static_file(name: str, content_type: bytes) -> Answer:
    """Return a file of `towerws/static`."""
    return Answer(200, files("towerws").joinpath(f"static/{name}").read_bytes(), content_type)


def newest_topics(content: PageContent) -> Answer:
    """Return the topics that the page can't list from the configuration, and the newest position."""
    return json_answer(200, {"topics": list(content.topics()), "position": content.position()})
