"""Finds the lines that use the insides of a library. It reads our sources, so that a renamed module needs no change here.

A name is an inside of a library if it is private there, or public without documentation. There are three ways to use one:

- an import of a private module or name;
- in a class that derives from a class of the library: a name on `self`, `cls` or `super()`, or one that the class overrides;
- on any other object, or as a string (`getattr`, a dictionary of attributes): recognized by its name alone.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PACKAGES = {"towerws": ROOT / "towerws", "towerws_producer": ROOT / "producer" / "towerws_producer"}

NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
"""Documented, and private in spelling only, because a named tuple's fields have the other names."""

_private_text = re.compile(r"_[a-z][A-Za-z0-9_]*").fullmatch


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line in our sources."""

    path: str
    line: int

    def __str__(self) -> str:
        """In a compiler's format."""
        return f"{self.path}:{self.line}"


def is_private(name: str) -> bool:
    """Whether it has one leading underscore. Two mean Python's own protocols, which are public."""
    return name.startswith("_") and not name.startswith("__")


@cache
def sources() -> dict[str, Path]:
    """Our modules, by their full names."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a source file."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imported_privately(library: str) -> dict[str, list[Place]]:
    """The private names that we import from a library, with their module."""
    found: dict[str, list[Place]] = defaultdict(list)
    for path in sources().values():
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    if any(is_private(part) for part in full.split(".")):
                        found[full].append(_place(path, node))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == library and any(is_private(part) for part in alias.name.split(".")):
                        found[alias.name].append(_place(path, node))
    return found


@cache
def inherited(library: str) -> dict[str, list[Place]]:
    """Names of a library's classes that our derived classes use or override."""
    found: dict[str, list[Place]] = defaultdict(list)
    for name, path in sources().items():
        module = _imported(name)
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and module is not None and isinstance(ours := getattr(module, node.name, None), type):
                theirs: set[str] = set()
                for base in ours.__mro__:
                    if base.__module__.split(".")[0] == library:
                        theirs |= names_of(base)
                if theirs:
                    for used, place in _names_in_class(node, path):
                        if used in theirs:
                            found[used].append(place)
    return found


@cache
def private_elsewhere() -> dict[str, list[Place]]:
    """Private names on other objects, and such names as strings, that are not defined in the module itself."""
    found: dict[str, list[Place]] = defaultdict(list)
    for path in sources().values():
        own = _own_names(path)
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_self(node.value):
                name = node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _private_text(node.value):
                name = node.value
            else:
                continue
            if name not in own and name not in NAMED_TUPLE:
                found[name].append(_place(path, node))
    return found


def spelled(name: str, on: str = "") -> list[Place]:
    """The places of a name: an attribute, a string, or a definition in a class. With `on` only attributes of objects spelled so."""
    return sorted(
        {place for place, owner in _spellings().get(name, []) if not on or (owner is not None and ast.unparse(owner).endswith(on))}
    )


@cache
def _spellings() -> dict[str, list[tuple[Place, ast.expr | None]]]:
    """All names that `spelled` may be asked for, with the object that an attribute is on."""
    found: dict[str, list[tuple[Place, ast.expr | None]]] = defaultdict(list)
    for path in sources().values():
        for node in nodes(path):
            if isinstance(node, ast.Attribute):
                found[node.attr].append((_place(path, node), node.value))
            elif isinstance(node, ast.Constant):
                if isinstance(node.value, str):
                    found[node.value].append((_place(path, node), None))
            elif isinstance(node, ast.stmt):
                for name in _defined_by(node):
                    found[name].append((_place(path, node), None))
    return found


@cache
def names_of(cls: type) -> frozenset[str]:
    """Names that a class defines, and those that its methods set on `self`. Python's own names are left out."""
    names = {name for name in vars(cls) if not name.startswith("__")}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # compiled
        return frozenset(names)
    return frozenset(names | _set_on_self(ast.walk(ast.parse(source))))


def _set_on_self(nodes: Iterable[ast.AST]) -> set[str]:
    attributes = (node for node in nodes if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and _is_self(node.value)}


def _is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def _names_in_class(node: ast.ClassDef, path: Path) -> Iterator[tuple[str, Place]]:
    for statement in node.body:
        for name in _defined_by(statement):
            yield name, _place(path, statement)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and _is_self(inner.value):
            yield inner.attr, _place(path, inner)


def _defined_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [] if statement.name.startswith("__") else [statement.name]
    if isinstance(statement, ast.AnnAssign):
        return [statement.target.id] if isinstance(statement.target, ast.Name) else []
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name) and target.id != "__slots__"]
    return []


def _own_names(path: Path) -> set[str]:
    """Names of the module's own classes and functions, and of their attributes."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.ClassDef):
            names |= {name for statement in node.body for name in _defined_by(statement)}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names | _set_on_self(nodes(path))


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The producer's channel layers and Celery's signals need packages that this environment lacks.
        if (error.name or "").split(".")[0] in PACKAGES:
            raise
        return None


def _place(path: Path, node: ast.AST) -> Place:
    return Place(_shown(path), getattr(node, "lineno", 1))


@cache
def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
