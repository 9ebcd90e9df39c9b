"""The entries in the lists of insides, and their comparison with the installed library.

A failing entry has one text: which name of which library changed, what we need it for, which lines use it, and the next step.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.insides import uses
from tests.insides.uses import Place

GONE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A name of a library that is private, or public without documentation."""

    owner: str
    """`package.module:Class`, or `package.module` for a name of the module itself."""
    name: str
    why: str
    """What we need it for. Completes "we need it …"."""
    signature: str | None = None
    """For a callable: its parameters without annotations, `(self, data)`."""
    value: object = GONE
    """For a constant."""
    phrases: tuple[str, ...] = ()
    """Texts in its source, in this order: behaviour that we rely on, or that we replace."""
    on: str = ""
    """The object's spelling in our sources, for a name that many objects have."""
    through: str = ""
    """The name by which our code reaches it, if our code never spells its own."""

    def __str__(self) -> str:
        """The entry's name in pytest's list."""
        return f"{self.owner.partition(':')[2] or self.owner}.{self.name}"

    def places(self) -> list[Place]:
        """The lines in our sources that use it."""
        library, name = self.owner.split(".")[0], self.through or self.name
        found = {
            *uses.inherited(library).get(name, []),
            *uses.private_elsewhere().get(name, []),
            *uses.imported_privately(library).get(f"{self.owner}.{name}", []),
        }
        return sorted(found) or uses.spelled(name, self.on)


def check(inside: Inside, file: str) -> None:
    """Fail if the installed library lacks or changed it, or if our code does not use it. `file` has the list."""
    listed_in = Path(file).relative_to(uses.ROOT)
    places = inside.places()
    assert places, f"{inside} stands in {listed_in}, but nothing in towerws or the producer uses it: remove the entry"
    problem = _problem(inside)
    if problem is None:
        return
    library = inside.owner.split(".")[0]
    raise AssertionError(
        f"{library} {version(library)} moved something that we build on: {inside.owner}.{inside.name} {problem}.\n"
        f"  We need it {inside.why}.\n"
        f"  Used in {', '.join(map(str, places))}.\n"
        f"  Next: read the library's source, change these lines, then the entry in {listed_in}, and the bound of {library} in setup.cfg."
    )


def unlisted(found: dict[str, list[Place]], insides: Sequence[Inside], documented: frozenset[str] = frozenset()) -> list[str]:
    """The names that are used and on no list, each with its lines."""
    listed = {inside.name for inside in insides} | {f"{inside.owner}.{inside.name}" for inside in insides} | documented
    return [f"{name}: {', '.join(map(str, places))}" for name, places in sorted(found.items()) if name not in listed]


def _problem(inside: Inside) -> str | None:
    try:
        owner = _resolved(inside.owner)
    except (ImportError, AttributeError) as error:
        return f"can't be found ({error})"
    found = inspect.getattr_static(owner, inside.name, GONE)
    if found is GONE:
        # Names that only instances have are found in the source of the class that sets them.
        if not isinstance(owner, type) or not any(inside.name in uses.names_of(base) for base in owner.__mro__):
            return "is gone"
        return None
    if inside.signature is not None:
        signature = parameters(getattr(owner, inside.name))
        if signature != inside.signature:
            return f"takes {signature} now, no longer {inside.signature}"
    if inside.value is not GONE and found != inside.value:
        return f"is {found!r} now, no longer {inside.value!r}"
    return _missing_phrase(getattr(owner, inside.name), inside.phrases)


def _missing_phrase(function: Any, phrases: tuple[str, ...]) -> str | None:
    if not phrases:
        return None
    source = " ".join(inspect.getsource(function).split())
    at = 0
    for phrase in phrases:
        at = source.find(phrase, at)
        if at < 0:
            return f"no longer has {phrase!r} in its source, or no longer in its place"
        at += len(phrase)
    return None


def parameters(function: Any) -> str:
    """The signature without annotations."""
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _resolved(owner: str) -> Any:
    module, _, qualified = owner.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualified.split(".") if qualified else []:
        found = getattr(found, part)
    return found
