"""Makes the documentation's site: `script/docs` runs this with Sphinx, MyST and Furo installed.

The documents stay as they are: Markdown whose links work in the repository. This copies them to build/docs-source with the same
paths, and adds a page for each package. A link to a file that is no document leads to a page that shows that file, with numbered lines.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import api_pages
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "docs-source"
EXTRA = ROOT / "build" / "docs-extra"
SITE = ROOT / "build" / "site"

DOCUMENTS = ["*.md", "docs/**/*.md", "producer/*.md", "clients/*/*.md", "examples/*.md"]
PICTURES = ["docs/**/*.svg", "docs/**/*.png"]
PACKAGES = {"towerws": ROOT / "towerws", "towerws_producer": ROOT / "producer" / "towerws_producer"}

CONTENTS = {
    "Using it": [
        "README",
        "docs/quickstart-front-end",
        "docs/quickstart-django",
        "docs/quickstart-shell",
        "docs/quickstart-operator",
        "docs/protocol",
        "docs/websocket-api",
        "clients/js/README",
        "clients/react/README",
        "examples/README",
        "docs/python-client",
        "docs/publish",
        "docs/admin-api",
        "producer/README",
        "docs/migrate-awx",
    ],
    "Running it": [
        "docs/configuration",
        "docs/operations",
        "docs/security",
        "docs/reliability",
        "docs/performance",
        "docs/capacity",
        "docs/versions",
        "CHANGELOG",
        "SECURITY",
    ],
    "Changing it": ["docs/architecture", "docs/decisions/README", "CONTRIBUTING", "CODE_OF_CONDUCT", "docs/modules/index"],
}
"""The site's table of contents. Every other document comes under "More"."""

_link = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_line = re.compile(r"L(\d+)(?:-L(\d+))?").fullmatch


def main() -> int:
    """Build the site. 0 when nothing was wrong."""
    for folder in (SOURCE, EXTRA, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    documents = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    problems = [problem for path in documents for problem in _copy(path, set(documents))]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    for path in {path for pattern in PICTURES for path in ROOT.glob(pattern)}:
        _target(SOURCE, path).write_bytes(path.read_bytes())
    for name, text in api_pages.pages(ROOT / "docs").items():
        (SOURCE / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    _modules()
    _contents()
    status = sphinx_build(["-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT / "docs"), "-b", "html", str(SOURCE), str(SITE)])
    (SITE / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>towerws</title>\n')
    if status == 0:
        print(SITE / "index.html")
    return int(status)


def _target(folder: Path, path: Path) -> Path:
    target = folder / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(path: Path, documents: set[Path]) -> Iterator[str]:
    """Copy a document, with links to other files led to their pages. Yields what is wrong with its links."""
    lines, fenced = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            for match in _link.finditer(line):
                if problem := _problem(path, match[2], documents):
                    yield f"{path.relative_to(ROOT)}:{number}: {match[2]}: {problem}"
            line = _link.sub(lambda match: _led(path, match, documents), line)  # noqa: PLW2901 - used at once
        lines.append(line)
    _target(SOURCE, path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_document(path: Path, link: str, documents: set[Path]) -> bool:
    name = link.partition("#")[0]
    return not name or "://" in link or link.startswith("mailto:") or (path.parent / name).resolve() in documents


def _problem(path: Path, link: str, documents: set[Path]) -> str:
    """What is wrong with a link to a file of the repository. MyST looks at links between documents."""
    if _is_document(path, link, documents):
        return ""
    name, _, anchor = link.partition("#")
    file = (path.parent / name).resolve()
    if not file.is_relative_to(ROOT) or not file.exists():
        return "there is no such file"
    if not anchor:
        return ""
    lines = _line(anchor)
    if lines is None or not file.is_file():
        return "a file has anchors #L12 and #L12-L20 only"
    last = int(lines[2] or lines[1])
    return "" if last <= len(file.read_text(encoding="utf-8").splitlines()) else f"the file has no line {last}"


def _led(path: Path, match: re.Match[str], documents: set[Path]) -> str:
    text, link = match[1], match[2]
    if _is_document(path, link, documents) or _problem(path, link, documents):
        return match[0]
    name, _, anchor = link.partition("#")
    file = (path.parent / name).resolve()
    page = _show(file)
    lines = _line(anchor)
    to = os.path.relpath(page, (EXTRA / path.relative_to(ROOT)).parent)
    return f'<a href="{to}{f"#L-{lines[1]}" if lines else ""}">{text}</a>'


def _show(file: Path) -> Path:
    """The page that shows a file, or a folder's list."""
    name = file.relative_to(ROOT)
    page = EXTRA / "files" / (name / "index.html" if file.is_dir() else name.with_name(name.name + ".html"))
    if page.exists():
        return page
    page.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        inside = sorted(each for each in file.iterdir() if each.is_file())
        items = "".join(f'<li><a href="{os.path.relpath(_show(each), page.parent)}">{each.name}</a></li>\n' for each in inside)
        page.write_text(f"<!doctype html><title>{name}</title><h1>{name}</h1>\n<ul>\n{items}</ul>\n", encoding="utf-8")
        return page
    try:
        lexer = get_lexer_for_filename(file.name)
    except ClassNotFound:
        lexer = TextLexer()
    formatter = HtmlFormatter(full=True, title=str(name), linenos="inline", lineanchors="L", anchorlinenos=True)
    page.write_text(highlight(file.read_text(encoding="utf-8"), lexer, formatter), encoding="utf-8")
    return page


def _contents() -> None:
    """Give Sphinx its tree. It is no part of the documents, which are read in the repository as well."""
    named = {"docs/index", *(name for names in CONTENTS.values() for name in names)}
    found = {path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.md")}
    records = {name for name in found if name.startswith("docs/decisions/")}
    pages = {name for name in found if name.startswith("docs/modules/")}
    contents = {**CONTENTS, "More": sorted(found - named - records - pages)}
    with (SOURCE / "docs" / "index.md").open("a", encoding="utf-8") as index:
        for caption, names in contents.items():
            index.write("\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *(f"/{name}" for name in names), "```", ""]))
    with (SOURCE / "docs" / "decisions" / "README.md").open("a", encoding="utf-8") as index:
        index.write("\n".join(["", "```{toctree}", ":hidden:", "", *(f"/{name}" for name in sorted(records - named)), "```", ""]))


def _modules() -> None:
    """A page for each package, with all its modules."""
    pages = []
    for package, folder in PACKAGES.items():
        names: dict[str, list[str]] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
                names.setdefault(".".join(parts), []).insert(0, ".".join(parts))
            else:
                names.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
        for page, modules in names.items():
            pages.append(page)
            text = [f"# {page}", ""]
            for module in modules:
                text += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:", "```", ""]
            target = SOURCE / "docs" / "modules" / f"{page}.md"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\n".join(text), encoding="utf-8")
    toctree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *sorted(pages), "```"])
    (SOURCE / "docs" / "modules" / "index.md").write_text(
        f"# The modules\n\nFrom the docstrings. [architecture](../architecture.md) says how they fit together.\n\n{toctree}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
