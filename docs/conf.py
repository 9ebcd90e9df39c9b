"""Sphinx's configuration. script/docs.py prepares what is built with it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "producer"))

from towerws import __version__  # noqa: E402 - after the path

project = "towerws"
version = release = __version__
author = copyright = "the towerws authors"  # noqa: A001 - Sphinx's name
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = f"towerws {version}"
html_extra_path = [str(ROOT / "build" / "docs-extra")]
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# What the producer's channel layers build on. None of it is installed here.
autodoc_mock_imports = ["asgiref", "celery", "channels", "channels_redis", "django", "gevent", "redis"]

_table = re.compile(r".* \| .*").fullmatch


class MarkdownDocstring(SphinxDirective):
    """Our docstrings are Markdown, as our documents are."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """The nodes that the text comes to."""
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return list(document.children)


def preformatted(lines: list[str]) -> list[str]:
    """Fence what is drawn: tables of states without Markdown's rule, and indented lines outside of a list."""
    done: list[str] = []
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and (_table(lines[end]) or lines[end].startswith("  ")):
            end += 1
        in_list = at > 0 and re.match(r"\s*(- |\d+\. |  )", lines[at - 1])
        if end - at >= 2 and not in_list:
            done += ["```text", *lines[at:end], "```"]
        else:
            end = max(end, at + 1)
            done += lines[at:end]
        at = end
    return done


def as_markdown(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Hand a docstring to `MarkdownDocstring`."""
    if lines:
        lines[:] = [".. markdown-docstring::", "", *(f"   {line}".rstrip() for line in preformatted(lines)), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("markdown-docstring", MarkdownDocstring)
    app.connect("autodoc-process-docstring", as_markdown)
    return {"parallel_read_safe": True}
