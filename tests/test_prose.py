"""script/prose: each rule finds its bad samples, and no good one."""

from __future__ import annotations

from pathlib import Path

import prose
import pytest

from tests.kit.rows import each_row

RULES = prose.read_rules()

LONG = " ".join(["word"] * 36) + "."
FITTING = " ".join(["word"] * 35) + "."


def _found(tmp_path: Path, name: str, source: str) -> list[tuple[int, str]]:
    """Line and rule of each finding in a file with this name and text."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return [(finding.line, finding.rule) for finding in prose.check([path], RULES, tmp_path)]


@each_row(
    ("text", "rules"),
    [
        ("The hub drops the subscriber.", []),
        (FITTING, []),
        (LONG, ["sentence"]),
        (f"{FITTING} {FITTING}", []),
        ("See `a b c`, that is e.g. " + FITTING, ["sentence"]),  # an abbreviation ends no sentence
        (f"It is the state's. {FITTING}", []),  # no initial
        (f"One [link]({'x' * 700}) and a few words.", []),  # what nobody sees does not count
        ("It is checked anew.", ["word"]),
        ("It is checked `anew`.", []),
        ("Ask the desk, the doorman and the doormen.", ["word", "word", "word"]),
        ("The option `max_octets` bounds the bytes.", []),
        ("Old names max_octets and desk_size are identifiers.", []),
        ("Octets of a payload", ["word"]),
        ("RFC 6455 says `*( %x00-FF ) octets`, and besides, “%x00-FF octets” is a quotation.", []),
        ("It goes on all\nthe same.", ["word"]),
        ("First; second.", []),
        ("First; second; third.", ["semicolons"]),
        ("Who publishes is answered.", ["noun", "word"]),
        ("Who decides that? The hub does.", []),
        ("A paragraph. " * 46, []),
        ("A paragraph. " * 50, ["paragraph"]),
        ("- An item. " * 20 + "\n" + "- An item. " * 40, []),
        ("```\nthe desk anew\n```\n\n    the desk anew\n", []),
        ("<!-- table: begin -->\n| the desk |\n<!-- table: end -->\nthe desk", ["word"]),
        (f"| a | b |\n| --- | --- |\n| {'x' * 200} | [y]({'y' * 200}) |", []),
        (f"| a | b |\n| --- | --- |\n| {'x' * 201} | y |", ["cell"]),
        ("| anew | `a|b` |", ["word"]),
    ],
)
def test_markdown(tmp_path: Path, text: str, rules: list[str]) -> None:
    """Documents: words, sentences, paragraphs and cells, without code."""
    assert sorted(rule for _, rule in _found(tmp_path, "x.md", text)) == sorted(rules)


def test_a_finding_names_file_line_rule_and_words(tmp_path: Path) -> None:
    """The line is that of the word, also in the middle of a paragraph."""
    path = tmp_path / "docs" / "x.md"
    path.parent.mkdir()
    path.write_text("# Title\n\nOne line,\nthen it is read anew.\n")
    assert [str(finding) for finding in prose.check([path], RULES, tmp_path)] == ['docs/x.md:4: word: "anew": again']


def test_python_docstrings_comments_and_messages(tmp_path: Path) -> None:
    """Docstrings, comments and strings of more than five words are prose; names and short strings are not."""
    source = f'''"""A module.

Its desk is mentioned here.

state | what
idle | {"word " * 20}
busy | {"word " * 20}
"""

# A comment, which goes on
# about the lobby here.
import os  # noqa: F401

desk = 1  # beside
LIMIT = 1
"""An attribute's docstring, read anew."""


def f() -> None:
    raise ValueError("desk")  # type: ignore[anew]


def g(name: str) -> str:
    """Say it."""
    return f"the broker {{name}} is asked " "anew in a while"


HELP = "A key of the file, as an octet string of some length"
PATTERN = r"^(?:anew|beside) [a-z]+ \\d+ (?P<x>.*) \\w{{3}} [^;]*$"
'''
    assert _found(tmp_path, "x.py", source) == [(3, "word"), (11, "word"), (14, "word"), (16, "word"), (25, "word"), (28, "word")]


def test_strings_of_tests_are_their_data(tmp_path: Path) -> None:
    """In tests, docstrings and comments count; strings do not."""
    source = '"""Anew."""\nX = "the desk is asked anew in a while"\n'
    assert _found(tmp_path, "tests/test_x.py", source) == [(1, "word")]


def test_a_docstring_may_hold_code(tmp_path: Path) -> None:
    """An indented block and a doctest are code."""
    source = '"""A thing.\n\n    desk = anew\n\n>>> desk\n\nUse it.\n"""\n'
    assert _found(tmp_path, "x.py", source) == []


@each_row(
    ("name", "source", "lines"),
    [
        ("run.sh", '#!/bin/sh\n# asked anew\nsay "the broker is asked anew in $seconds seconds"\necho "#desk"\n', [2, 3]),
        ("tool", "#!/bin/sh\nx=1 # anew\n", [2]),
        ("Makefile", '# made anew\nhelp:\n\t@echo "make lock  writes the list of packages anew"\n', [1, 3]),
        ("a.service", "# the desk\n[Unit]\nDescription=desk\n", [1]),
        ("a.js", "// made\n// anew\nconst a = 'the page asks the server anew, twice'; /* the desk */\n", [2, 3, 3]),
        ("a.css", "/* beside\n   the desk */\n", [1, 2]),
        ("a.html", "<p title='desk'>Asked\n<b>anew</b>.</p><!-- the desk --><script>desk</script><code>desk</code>\n", [2, 2]),
        ("a.bin", "the desk\n", []),
    ],
)
def test_other_kinds(tmp_path: Path, name: str, source: str, lines: list[int]) -> None:
    """Comments and messages of every kind of file; data is left alone."""
    assert [line for line, _ in _found(tmp_path, name, source)] == lines


def test_paths(tmp_path: Path) -> None:
    """A folder stands for all below it, without what is hidden, made or skipped. A path that is none is an error."""
    rules = RULES._replace(skip=("docs/skipped",))
    for name in ("docs/a.md", "docs/skipped/b.md", "docs/.git/c.md", ".github/d.md", "x.egg-info/e.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [str(path.relative_to(tmp_path)) for path in prose.files_in(["."], rules, tmp_path)] == [".github/d.md", "docs/a.md"]
    with pytest.raises(FileNotFoundError):
        prose.files_in(["nowhere"], rules, tmp_path)
