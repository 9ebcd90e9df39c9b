"""What comments, docstrings and documents refer to by a number exists in the document that has the numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.kit.daemon import Daemon
from tests.kit.rows import each_row
from towerws.config.options import OPTIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("towerws", "tests", "docs", "producer", "script", "benchmarks", "deploy", "systemd")
SUFFIXES = {".py", ".md", ".js", ".conf", ".service", ""}
NUMBERS = r"(\d+(?:(?:, | and | to )\d+)*)"


def _sources() -> list[Path]:
    """Every text that may refer to something."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    return [path for path in found if path != Path(__file__) and not any(_is_made(part) for part in path.relative_to(ROOT).parts)]


def _is_made(part: str) -> bool:
    """Whether tools write a folder of this name."""
    return part.startswith(".") or part in {"__pycache__", "build", "dist"}


def _numbers(text: str) -> list[int]:
    """`3`, `20 and 22`, `28, 34 and 39` or `1 to 3` as numbers."""
    whole: list[int] = []
    for part in re.split(r", | and ", text):
        first, _, last = part.partition(" to ")
        whole += range(int(first), int(last or first) + 1)
    return whole


def _promised() -> set[int]:
    return {int(number) for number in re.findall(r"^\| (\d+) \|", (DOCS / "promises.md").read_text(), re.MULTILINE)}


def _pitfalls() -> set[str]:
    text = (DOCS / "pitfalls.md").read_text()
    return {*re.findall(r"^\*\*([A-Z]\d+)\. ", text, re.MULTILINE), *re.findall(r"^\| ([A-Z]\d+) \|", text, re.MULTILINE)}


def _contract() -> set[str]:
    """Sections, and their numbered points: `1.4`, `1.4.11`, `0.12`."""
    sections: set[str] = set()
    section = ""
    for line in (DOCS / "awx-contract.md").read_text().split("\n"):
        if found := re.match(r"#{2,3} (\d+(?:\.\d+)?)\.? ", line):
            section = found[1]
            sections.add(section)
        elif found := re.match(r"(\d+)\. ", line):
            sections.add(f"{section}.{found[1]}")
    return sections


def _references(pattern: str) -> list[tuple[Path, str]]:
    """Each file with what the pattern's group found in it."""
    return [(path, found[1]) for path in _sources() for found in re.finditer(pattern, path.read_text(), re.MULTILINE)]


def test_the_documents_are_complete() -> None:
    """Forty promises, seventeen findings, all cases of continuity and the whole contract."""
    assert _promised() == set(range(1, 41))
    assert _pitfalls() == {*(f"F{number}" for number in range(1, 18)), *(f"C{number}" for number in range(1, 15)), "P5"}
    assert {"0.1", "0.12", "1.1", "1.2", "1.3", "1.4.1", "1.4.17", "1.5", "2.6", "3.4", "4.4", "5.4", "6"} <= _contract()


def test_promises() -> None:
    """`Promise 31`, `Promises 20 and 22`."""
    found = _references(rf"\b[Pp]romises? {NUMBERS}")
    assert len(found) > 20
    for path, numbers in found:
        assert set(_numbers(numbers)) <= _promised(), f"{path}: promise {numbers} is not in docs/promises.md"


def test_pitfalls() -> None:
    """`pitfall F7`, `(F5)`, `(C1, C7)`, `findings P5`."""
    found = _references(r"(?:\b[Pp]itfalls? |\bfindings |\()([CFP]\d+(?:, [CFP]\d+)*)\b")
    assert len(found) > 20
    for path, names in found:
        assert set(names.split(", ")) <= _pitfalls(), f"{path}: {names} is not in docs/pitfalls.md"


def test_contract() -> None:
    """`awx-contract 1.3`, `Contract 1.2 bad credential, 1.4.2`, `contract sections 3.1 to 3.3`, `1.4 point 5`."""
    found = _references(r"\b[Cc]ontract (?:sections? )?((?:\d+(?:\.\d+)*(?: point \d+)?)[^\n:\"`]*)")
    assert len(found) > 20
    for path, text in found:
        for name in re.findall(r"(?<![\w.])\d+(?:\.\d+)+(?: point \d+)?|^\d+", text):
            assert name.replace(" point ", ".") in _contract(), f"{path}: section {name} is not in docs/awx-contract.md"


def test_each_promise_names_tests_that_exist() -> None:
    """`file.py::test_name`, relative to tests/; `::test_other` is in the same file."""
    named = 0
    known: dict[str, set[str]] = {}
    for line in (DOCS / "promises.md").read_text().split("\n"):
        file = ""
        for found in re.finditer(r"`([\w/]*\.py)?::(\w+)`", line):
            file = found[1] or file
            if file not in known:
                tree = ast.parse((ROOT / "tests" / file).read_text())
                known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert found[2] in known[file], f"docs/promises.md: tests/{file} has no {found[2]}"
            named += 1
    assert named > 40


def test_each_promise_names_scenarios_that_exist() -> None:
    """`make stress`: names or globs of scenarios."""
    scenarios = (DOCS / "reliability.md").read_text()
    for line in (DOCS / "promises.md").read_text().split("\n"):
        _, _, named = line.partition("`make stress`: ")
        for name in re.findall(r"`([a-z-]+)\*?`", named):
            assert name in scenarios, f"docs/promises.md: there is no scenario {name}"


@each_row("document", ["README.md", "SECURITY.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_links_between_documents(document: str) -> None:
    """A link to a file finds it; a link to a heading finds that, too."""
    source = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", source.read_text()):
        file, _, heading = target.partition("#")
        path = (source.parent / file).resolve() if file else source
        assert path.exists(), f"{document}: {target}"
        if heading and path.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{document}: {target}"


def test_the_architecture_names_every_module() -> None:
    """The tables of modules are complete, and name no module that is gone."""
    text = (DOCS / "architecture.md").read_text()
    tables = text[text.index("\n## Modules\n") : text.index("\n### Around the daemon\n")]
    named: set[str] = set()
    for section in re.split(r"^### ", tables, flags=re.MULTILINE)[1:]:
        title, _, rows = section.partition("\n")
        package = title.rstrip("/") if title.endswith("/") and " " not in title else ""
        prefix = "" if package in ("", "towerws") else f"{package}/"
        for row in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE):
            named |= {prefix + name for name in re.findall(r"`([\w/]+)`", row)}
    there = {str(path.relative_to(ROOT / "towerws").with_suffix("")) for path in (ROOT / "towerws").rglob("*.py")}
    assert named == {name for name in there if not name.endswith("__init__")}


FIGURES = {
    # Keys of /status that look like options.
    *("history.bytes", "history.deliveries", "history.span_s"),
}


def test_options_that_documents_name_exist() -> None:
    """`websocket.ping_s` and the like are keys of the configuration."""
    keys = {option.key for option in OPTIONS}
    tables = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")):
        for name in re.findall(rf"`((?:{tables})\.[a-z_]+)`", path.read_text()):
            assert name in keys | FIGURES, f"{path.name}: there is no option {name}"


def test_figures_that_operations_names_exist(tmp_path: Path) -> None:
    """The tables of `/status` name figures that a daemon has."""
    with Daemon(tmp_path, "embedded:") as daemon:
        status = daemon.get("/status")[1]
    for name in re.findall(r"`((?:ingest|history|hub|connections|requests|compression)\.[a-z_]+)`", (DOCS / "operations.md").read_text()):
        group, _, key = name.partition(".")
        assert key in status[group] or name in {option.key for option in OPTIONS}, f"docs/operations.md: /status has no {name}"
