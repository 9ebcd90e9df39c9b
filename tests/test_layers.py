"""Imports go in one direction: wiring -> edges -> core."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from tests.kit.rows import each_row

PACKAGE = Path(__file__).parents[1] / "towerws"

PACKAGES = ["broker", "commands", "config", "core", "demo", "doctor", "handover", "tail", "websocket", "workers"]

PLAIN = [
    *PACKAGES,
    "client.frames",
    "client.items",
    "client.options",
    "client.topics",
    "config.addresses",
    "config.options",
    "config.rules",
    "config.units",
    "core.*",
    "demo.*",
    "tail.text",
]
"""Plain Python: no Twisted, no I/O, no clock. Imports plain modules only."""

EDGES = {
    "admin": ["admin", "admin.*"],
    "amqp": ["amqp", "broker.*"],
    "auth": ["auth", "auth.*"],
    "client": ["client", "client.*", "tail.session"],
    "control": ["control"],
    "embedded": ["embedded"],
    "publisher": ["commands.publisher"],
    "logs": ["logs"],
    "service_manager": ["service_manager"],
    "outgoing": ["outgoing"],
    "terminal": ["commands.terminal"],
    "websocket": ["protocol", "websocket.*"],
}
"""Each edge talks to one thing outside. It imports its own modules, plain ones, and the `SEAMS`."""

WIRING = [
    "cli",
    "commands.admin_port",
    "commands.config",
    "commands.demo",
    "commands.doctor",
    "commands.publish",
    "commands.tail",
    "config.certificates",
    "config.exposure",
    "config.load",
    "doctor.*",
    "handover.*",
    "listening",
    "process",
    "reload",
    "service",
    "status",
    "tap",
    "workers.*",
]
"""Makes the parts and joins them. It may import any module."""

SEAMS = {"auth.base", "auth.transfer", "logs", "outgoing"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


CORE = sorted(name for name in MODULES if any(fnmatch(name, pattern) for pattern in PLAIN))


@each_row("name", MODULES)
def test_each_module_imports_only_what_its_layer_may(name: str) -> None:
    """Core imports core. An edge imports no other edge. Only wiring imports wiring."""
    room = _room(name)
    allowed = {"wiring": None, "core": {"core"}}.get(room, {"core", room})
    if allowed is None:
        return
    ours = {module.removeprefix("towerws.") for module in _imports(name) if module.startswith("towerws.")} & MODULES.keys()
    for imported in ours - SEAMS:
        assert _room(imported) in allowed, f"{name} ({room}) imports {imported} ({_room(imported)})"


@each_row("name", CORE)
def test_core_has_no_clock_and_no_io(name: str) -> None:
    """Core gets the time and the data as arguments, so that tests need no waiting and no network."""
    assert not _libraries(name) & {"asyncio", "os", "select", "socket", "subprocess", "threading", "time"}


@each_row(
    "name", [name for name in MODULES if name not in {"amqp", "commands.publisher", "doctor.broker"} and not name.startswith("broker.")]
)
def test_pika_stays_in_its_edges(name: str) -> None:
    """Only the broker's package and the publisher know the AMQP library."""
    assert "pika" not in _libraries(name)


def test_core_pulls_in_no_framework() -> None:
    """Importing all of core in a fresh interpreter loads none of the edges' libraries, not even indirectly."""
    program = f"""
import importlib, sys
for name in {CORE!r}:
    importlib.import_module("towerws." + name)
print(*sorted({{"autobahn", "pika", "twisted", "txaio", "zope"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent, stdin=subprocess.DEVNULL
    )
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_the_client_pulls_in_no_daemon() -> None:
    """A program that imports the client loads neither Twisted nor pika nor any library that only the daemon needs."""
    program = """
import sys, towerws.client, towerws.client.sync
print(*sorted({"autobahn", "click", "jwt", "msgspec", "pika", "prometheus_client", "twisted", "txaio", "zope"} & set(sys.modules)))
print(*sorted(name for name in sys.modules if name.startswith("towerws.") and name.split(".")[1] not in {"client", "core"}))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent, stdin=subprocess.DEVNULL
    )
    assert (result.stdout.strip(), result.stderr) == ("", "")


def _room(name: str) -> str:
    if name in CORE:
        return "core"
    if any(fnmatch(name, pattern) for pattern in WIRING):
        return "wiring"
    for edge, patterns in EDGES.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return edge
    raise AssertionError(f"towerws.{name} has no layer yet: give it one in {__file__}")


def _imports(name: str) -> set[str]:
    """The full names of the modules that this one imports, anywhere in its text."""
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            dotted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return dotted


def _libraries(name: str) -> set[str]:
    return {module.split(".")[0] for module in _imports(name)}
