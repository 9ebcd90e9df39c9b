"""Checks the wording of the project's texts against the rules in script/prose.toml.

usage: script/prose [--all | --count | PATH...]

  no arguments   the paths that prose.toml lists as clean, as script/lint does
  PATH...        these files or folders, clean or not
  --all          every file of the project
  --count        every file, and only the number of findings for each

Checked are Markdown, docstrings, comments, messages in code (strings of more than five words) and the text of pages.
One line for each finding: `file:line: rule: the words`. Exit status 1 if there is one, 2 if a path does not exist.

A path whose texts are rewritten goes into `[clean] paths`. A quotation that needs one of the listed words goes into `[allow] phrases`.
"""

import ast
import html
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "script" / "prose.toml"

CODE = "\N{REPLACEMENT CHARACTER}"  # stands for a piece of code: one word of a sentence, none of the listed words
HASH_COMMENTS = {".sh", ".service", ".conf", ".toml", ".cfg", ".yml", ".yaml", ".ini", ".in", ".mk"}
HASH_NAMES = {"Makefile", "MANIFEST.in", ".gitignore", "Dockerfile"}
SHOWN = {".ci", ".github"}  # of the folders with a dot, those that hold texts of the project
MADE = {"__pycache__", "node_modules"}
PARSED = HASH_COMMENTS | {".md", ".py", ".js", ".css", ".html"}


class Rules(NamedTuple):
    """What script/prose.toml says."""

    sentence_words: int
    cell_characters: int
    paragraph_characters: int
    semicolons: int
    literal_words: int
    clean: tuple[str, ...]
    skip: tuple[str, ...]
    phrases: re.Pattern[str] | None
    words: re.Pattern[str]
    instead: tuple[tuple[re.Pattern[str], str], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A run of words that belongs together: a paragraph, a table's cell, a comment, a message. `lines` has each line with its number."""

    kind: str  # "paragraph", "cell", "message"
    lines: tuple[tuple[int, str], ...]


class Finding(NamedTuple):
    """One violation, as it is printed."""

    path: str
    line: int
    rule: str
    words: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.words}"


def read_rules(path: Path = RULES) -> Rules:
    """Read the rules file."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    phrases = [re.escape(phrase) for phrase in data["allow"]["phrases"]]
    instead = tuple((re.compile(_between_words(_word_body(word)), re.IGNORECASE), hint) for word, hint in data["words"].items())
    return Rules(
        **data["limits"],
        clean=tuple(data["clean"]["paths"]),
        skip=tuple(data["skip"]["paths"]),
        phrases=re.compile("|".join(phrases)) if phrases else None,
        words=re.compile(_between_words("|".join(map(_word_body, data["words"]))), re.IGNORECASE),
        instead=instead,
    )


def _word_body(word: str) -> str:
    """The pattern of a listed word: "*" is the rest of a word, "?" one letter, a space any white space."""
    return re.escape(word).replace(r"\*", r"[\w'\u2019]*").replace(r"\?", r"\w").replace(r"\ ", r"\s+")


def _between_words(pattern: str) -> str:
    """The pattern where no word goes on before or behind it. One look back for all alternatives: half of the time for 150 words."""
    return rf"(?<![\w-])(?:{pattern})(?![\w-])"


# --- Rules ---


def findings(path: str, text: Text, rules: Rules) -> Iterator[Finding]:
    """Apply every rule to one text."""
    # Lines are joined with one character between them, so that a place in the whole tells the line.
    starts: list[tuple[int, int]] = []
    whole = ""
    for number, line in text.lines:
        starts.append((len(whole), number))
        whole += line.strip() + "\n"

    def line_at(place: int) -> int:
        return max((start, number) for start, number in starts if start <= place)[1]

    plain = _without_code(whole)
    first = text.lines[0][0]
    visible = len(_visible(whole).strip())
    if text.kind == "cell" and visible > rules.cell_characters:
        yield Finding(path, first, "cell", f"{visible} characters, at most {rules.cell_characters}: {_start_of(whole)}")
    if text.kind == "paragraph" and visible > rules.paragraph_characters:
        yield Finding(path, first, "paragraph", f"{visible} characters, at most {rules.paragraph_characters}: {_start_of(whole)}")
    for place, sentence in _sentences(plain):
        count = sum(1 for word in sentence.split() if CODE in word or any(letter.isalnum() for letter in word))
        if count > rules.sentence_words:
            yield Finding(path, line_at(place), "sentence", f"{count} words, at most {rules.sentence_words}: {_start_of(sentence)}")
        if sentence.count(";") > rules.semicolons:
            yield Finding(path, line_at(place), "semicolons", f"{sentence.count(';')}, at most {rules.semicolons}: {_start_of(sentence)}")
        if re.match(r"Who(?:se|m)?\b", sentence.lstrip("\"'(*_")) and not sentence.rstrip("\"')*_ ").endswith("?"):
            yield Finding(path, line_at(place), "noun", f"name the noun before the relative clause: {_start_of(sentence)}")
    allowed = rules.phrases.sub(lambda match: " " * len(match[0]), plain) if rules.phrases else plain
    for match in rules.words.finditer(allowed):
        hint = next(hint for pattern, hint in rules.instead if pattern.fullmatch(match[0]))
        yield Finding(path, line_at(match.start()), "word", f'"{" ".join(match[0].split())}": {hint}')


def _blank(match: re.Match[str]) -> str:
    """The same length as the match, as one word of code. Keeps line ends, so that lines can still be counted."""
    kept = "".join("\n" if letter == "\n" else CODE for letter in match[0])
    return kept if len(kept) < 2 else CODE + "".join("\n" if letter == "\n" else CODE for letter in match[0][1:])


_CODE = re.compile(
    r"``.+?``|`[^`]+`"  # code in Markdown and docstrings
    r"|(?<=\])\([^)\s]+\)"  # the target of a link
    r"|<?\b(?:https?|amqps?|wss?)://[^\s>)]+>?"
    r"|\{[^{}\s]*\}"  # a value to be filled in
    r"|\b[a-z]+-src [^;\n]*;"  # a rule of a Content-Security-Policy
    r"|%[sdr]\b",
    re.DOTALL,
)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")


def _without_code(text: str) -> str:
    """The text with code, addresses and placeholders blanked, each place as it was."""
    return _CODE.sub(_blank, text)


def _visible(text: str) -> str:
    """What a reader sees of a text: links by their text."""
    return _LINK.sub(r"\1", text).replace("`", "").replace("**", "")


_END = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019*_]*\s+|(?<=[.!?][\"')\]\u201d\u2019])\s+")
_ABBREVIATION = re.compile(r"(?:\b(?i:e\.g|i\.e|etc|vs|cf|approx|sec|fig|ca)|(?<![\w'])[A-Z])\.$")


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Each sentence with its place in the text."""
    start = 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text[start : end.start()]):
            yield start, text[start : end.start()]
            start = end.end()
    if text[start:].strip():
        yield start, text[start:]


def _start_of(text: str) -> str:
    words = re.sub(f"{CODE}+", "…", " ".join(text.split()))
    return words if len(words) <= 90 else words[:90].rsplit(" ", 1)[0] + " …"


# --- Texts of a file ---


def texts_of(path: Path, rules: Rules) -> Iterator[Text]:
    """The texts of a file, by its kind."""
    source = path.read_text(encoding="utf-8")
    kind = _kind_of(path, source)
    if kind == ".md":
        yield from _markdown(list(enumerate(source.split("\n"), 1)))
    elif kind == ".py":
        is_test = "tests" in path.parts or path.name.startswith("test_")
        yield from _python(source, rules, messages=not is_test)
    elif kind == ".html":
        yield from _page(source)
    elif kind in {".js", ".css"}:
        yield from _script(source, rules)
    elif kind == "hash":
        yield from _hash_comments(source, rules)


def _kind_of(path: Path, source: str) -> str:
    first = source.split("\n", 1)[0]
    if path.suffix in PARSED:
        return "hash" if path.suffix in HASH_COMMENTS else path.suffix
    if first.startswith("#!") and "python" in first:
        return ".py"
    if first.startswith("#!") or path.name in HASH_NAMES or (path.parent.name == "script" and not path.suffix):
        return "hash"
    return ""


_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
_TABLE_RULE = re.compile(r"^\s*\|?[\s:|-]+\|?\s*$")
_CELLS = re.compile(r"(?<!\\)\|")
_PLAIN_CELLS = re.compile(r"\s+\|\s+|(?<=\S) {2,}(?=\S)")  # tables of docstrings and comments: " | " or a wide gap between columns


def _markdown(lines: list[tuple[int, str]]) -> Iterator[Text]:  # noqa: C901, PLR0912 - one branch for each kind of line
    """Paragraphs, list items and cells of Markdown. Docstrings are read as Markdown. Code, diagrams and generated tables are left out."""
    block: list[tuple[int, str]] = []
    fence = generated = ""
    after_blank = True
    in_list = False

    def ended() -> Iterator[Text]:
        if block:
            yield Text("paragraph", tuple(block))
            block.clear()

    for number, line in lines:
        stripped = line.strip()
        if fence:
            fence = "" if stripped.startswith(fence) else fence
        elif generated:
            generated = "" if stripped.endswith(": end -->") else generated
        elif stripped.startswith(("```", "~~~")):
            yield from ended()
            fence = stripped[:3]
        elif stripped.startswith("<!--"):
            yield from ended()
            generated = stripped if stripped.endswith(": begin -->") else ""
        elif not stripped or stripped.startswith(">>> ") or _is_drawing(stripped):
            yield from ended()
            in_list = in_list and not stripped
        elif line.startswith("    ") and after_blank and not in_list:
            pass  # a block of code by its indentation
        elif stripped.startswith("|"):
            yield from ended()
            if not _TABLE_RULE.match(line):
                yield from _cells(number, _CELLS.split(stripped.strip("|")))
        elif _PLAIN_CELLS.search(stripped):
            yield from ended()
            yield from _cells(number, _PLAIN_CELLS.split(stripped))
        elif stripped.startswith("#"):
            yield from ended()
            yield Text("paragraph", ((number, stripped.lstrip("# ")),))
        else:
            if _ITEM.match(line):
                yield from ended()
                in_list = True
            elif after_blank and not line.startswith(" "):
                in_list = False
            block.append((number, _ITEM.sub("", line)))
        after_blank = not stripped
    yield from ended()


def _cells(number: int, cells: list[str]) -> Iterator[Text]:
    for cell in cells:
        if cell.strip():
            yield Text("cell", ((number, cell),))


def _is_drawing(line: str) -> bool:
    """Whether a line is a diagram, a ruler or a formula: fewer than half of its characters are letters, digits or spaces."""
    return len(line) >= 3 and sum(letter.isalnum() or letter == " " for letter in line) * 2 < len(line)


_DIRECTIVE = re.compile(r"^#\s*(?:!|noqa|type:|pragma|ruff:|mypy:|fmt:|shellcheck|pylint|nosec|-\*-|isort|%%)|^#!", re.IGNORECASE)
_TRAILING_DIRECTIVE = re.compile(r"\s*#\s*(?:noqa|type:|pragma).*$")


def _comment_blocks(comments: Iterable[tuple[int, int, str]]) -> Iterator[Text]:
    """Comments as paragraphs: neighbours in the same column belong together. Each is (line, column, text with its #)."""
    block: list[tuple[int, str]] = []
    last = (-2, -1)
    for number, column, comment in comments:
        if block and (number, column) != (last[0] + 1, last[1]):
            yield from _markdown(block)
            block = []
        last = (number, column)
        if not _DIRECTIVE.match(comment):
            block.append((number, _TRAILING_DIRECTIVE.sub("", comment.lstrip("#")).removeprefix(" ")))
    yield from _markdown(block)


_STRING_OR_COMMENT = re.compile(
    r"\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|(?P<comment>#[^\n]*)", re.DOTALL
)


def _python_comments(source: str) -> Iterator[tuple[int, int, str]]:
    """Each comment's line, column and text. A comment outside of strings is all that is looked for: `tokenize` takes ten times as long."""
    number, counted = 1, 0
    for match in _STRING_OR_COMMENT.finditer(source):
        if match["comment"] is None:
            continue
        start = match.start()
        number, counted = number + source.count("\n", counted, start), start
        column = start - (source.rfind("\n", 0, start) + 1)
        alone = not source[start - column : start].strip()
        # A comment behind code has the column of its line's end: no neighbour of the next.
        yield number, column if alone else -number, match["comment"]


def _python(source: str, rules: Rules, *, messages: bool) -> Iterator[Text]:
    yield from _comment_blocks(_python_comments(source))

    tree = ast.parse(source)
    docstrings = set()
    for node in _statements(tree):
        # A string that is a statement: a docstring, also of an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.add(node.value)
            lines = node.value.value.split("\n")
            indent = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
            yield from _markdown([(node.value.lineno + index, line if index == 0 else line[indent:]) for index, line in enumerate(lines)])
    if messages:
        yield from _messages(tree, docstrings, rules)


def _statements(parent: ast.AST) -> Iterator[ast.stmt]:
    """All statements below a node. Expressions are not looked into: nine of ten nodes are theirs."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(parent, name, ()) if isinstance(getattr(parent, name, ()), list) else ():
            if isinstance(node, ast.stmt):
                yield node
            yield from _statements(node)


def _messages(tree: ast.AST, docstrings: set[ast.Constant], rules: Rules) -> Iterator[Text]:
    """Strings that a person reads: option texts, log lines, errors."""
    nodes = list(ast.walk(tree))
    parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            value = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings and node not in parts:
            value = node.value
        else:
            continue
        yield from _message(node.lineno, value, rules)


_WORD = re.compile(r"(?<![\w-])[A-Za-z][a-z'\u2019-]*(?![\w-])")


def _message(number: int, value: str, rules: Rules) -> Iterator[Text]:
    """A string in code, if it is prose: enough words, and hardly anything but words."""
    if len(_WORD.findall(value)) <= rules.literal_words:
        return
    letters = sum(letter.isalpha() or letter in " ,.'\u2019:;-\n" for letter in _CODE.sub("x", value))
    if letters < 0.85 * len(_CODE.sub("x", value)):
        return
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] )", value):
        lines = tuple((number, line) for line in paragraph.split("\n") if line.strip())
        if lines:
            yield Text("message", lines)


def _hash_comments(source: str, rules: Rules) -> Iterator[Text]:
    """Comments and messages of shell, Makefiles, units and configuration."""
    comments = []
    for number, line in enumerate(source.split("\n"), 1):
        match = re.search(r"(?:^|(?<=\s))#.*$", line)
        code = line
        if match and line[: match.start()].count('"') % 2 == 0 and line[: match.start()].count("'") % 2 == 0:
            code = line[: match.start()]
            comments.append((number, match.start() if not code.strip() else -number, match[0]))
        for quoted in re.findall(r'"((?:[^"\\]|\\.)*)"', code):
            yield from _message(number, re.sub(r"\$\(.*?\)|\$\{.*?\}|\$\w+", "{}", quoted), rules)
    yield from _comment_blocks(comments)


def _script(source: str, rules: Rules) -> Iterator[Text]:
    """Comments and messages of JavaScript and CSS."""
    token = re.compile(
        r"/\*(?P<block>.*?)\*/|(?P<line>//[^\n]*)|\"(?P<double>(?:[^\"\\\n]|\\.)*)\"|'(?P<single>(?:[^'\\\n]|\\.)*)'|`(?P<template>(?:[^`\\]|\\.)*)`",
        re.DOTALL,
    )
    comments = []
    for match in token.finditer(source):
        number = source.count("\n", 0, match.start()) + 1
        column = match.start() - source.rfind("\n", 0, match.start())
        if match["block"] is not None:
            body = [re.sub(r"^\s*\*? ?", "", line) for line in match["block"].split("\n")]
            yield from _markdown([(number + index, line) for index, line in enumerate(body)])
        elif match["line"] is not None:
            comments.append((number, column, "#" + match["line"].lstrip("/")))
        else:
            value = next(value for value in (match["double"], match["single"], match["template"]) if value is not None)
            yield from _message(number, re.sub(r"\$\{.*?\}", "{}", value), rules)
    yield from _comment_blocks(comments)


def _page(source: str) -> Iterator[Text]:
    """What a page shows, and its comments. A block's text belongs together; inline tags do not end it."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    source = re.sub(r"<(script|style)\b.*?</\1>", blank, source, flags=re.DOTALL)
    source = re.sub(r"<(code|kbd)\b[^>]*>.*?</\1>", lambda match: "`x`" + blank(match), source, flags=re.DOTALL)
    source = re.sub(r"</?(?:a|b|i|em|strong|span|small|abbr)\b[^>]*>", blank, source)
    number = 1
    for piece in re.split(r"(<!--|-->|<[^>]*>)", source):
        if piece.strip() and not piece.startswith(("<", "-->")):
            lines = html.unescape(piece).split("\n")
            found = tuple((number + index, line) for index, line in enumerate(lines) if line.strip())
            yield Text("paragraph", found)
        number += piece.count("\n")


# --- Files ---


def files_in(paths: Iterable[str], rules: Rules, root: Path = ROOT) -> list[Path]:
    """Every file below the paths that has texts, without those that are skipped. Raises FileNotFoundError for a path that is none."""
    found: dict[Path, None] = {}
    for name in paths:
        path = (root / name).resolve()
        if not path.exists():
            raise FileNotFoundError(name)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(root).parts
            hidden = any((part.startswith(".") and part not in SHOWN) or part in MADE or part.endswith(".egg-info") for part in parts[:-1])
            skipped = any(parts[: len(Path(skip).parts)] == Path(skip).parts for skip in rules.skip)
            if file.is_file() and not hidden and not skipped:
                found[file] = None
    return list(found)


def check(files: Iterable[Path], rules: Rules, root: Path = ROOT) -> list[Finding]:
    """All findings in the files, by line."""
    result: list[Finding] = []
    for file in files:
        name = str(file.relative_to(root))
        try:
            texts = list(texts_of(file, rules))
        except UnicodeDecodeError:
            continue  # not a text
        result += sorted({finding for text in texts for finding in findings(name, text, rules)})
    return result


def main(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    rules = read_rules()
    options = {argument for argument in arguments if argument.startswith("-")}
    if unknown := options - {"--all", "--count"}:
        print(f"script/prose: there is no option {min(unknown)}. See script/prose --help.", file=sys.stderr)
        return 2
    here = [argument for argument in arguments if argument not in options]
    paths = ["."] if options else here or list(rules.clean)
    try:
        found = check(files_in(paths, rules), rules)
    except (FileNotFoundError, ValueError) as error:
        print(f"script/prose: no such file or folder in the project: {error}", file=sys.stderr)
        return 2
    if "--count" in options:
        for path, count in Counter(finding.path for finding in found).most_common():
            print(f"{count:5} {path}")
        print(f"{len(found):5} in all")
    else:
        for finding in found:
            print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
