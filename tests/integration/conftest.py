"""The real parts for the tests in this folder: a private RabbitMQ node, started once, and private nginx processes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from private_rabbitmq import PrivateRabbit, rabbitmq_bin

from tests.nginx import Nginx, nginx_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_BROKER = "RabbitMQ is not installed"
NO_NGINX = "nginx is not installed"
NO_FAIL2BAN = "fail2ban is not installed"

PARTS = {
    NO_BROKER: ("RABBITMQ", "apt-get install rabbitmq-server"),
    NO_NGINX: ("NGINX", "apt-get install nginx"),
    NO_FAIL2BAN: ("FAIL2BAN", "apt-get install fail2ban"),
}


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbit]:
    """The session's node. Tests share it: each uses exchange and queue names of its own, and leaves it running."""
    require(NO_BROKER, rabbitmq_bin())
    with PrivateRabbit(tmp_path_factory.mktemp("rabbit")) as node:
        yield node


@pytest.fixture
def fresh_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], PrivateRabbit]]:
    """A maker of started nodes of the test's own, for those that kill and restart them; they end with the test."""
    require(NO_BROKER, rabbitmq_bin())
    nodes: list[PrivateRabbit] = []

    def make() -> PrivateRabbit:
        node = PrivateRabbit(tmp_path_factory.mktemp("fresh-rabbit"))
        nodes.append(node)
        node.start()
        return node

    yield make
    for node in nodes:
        node.kill()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Nginx]]:
    """A maker of running nginx processes with the shipped configuration, by where towerws listens; they end with the module."""
    require(NO_NGINX, nginx_binary())
    with ExitStack() as leave:

        def make(upstream: str, **more: Any) -> Nginx:
            return leave.enter_context(Nginx(tmp_path_factory.mktemp("nginx"), upstream, **more))

        yield make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly how many tests had no broker or proxy: a green run without them promises little."""
    reports = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for reason, (part, command) in PARTS.items():
        if skipped := sum(reason in report for report in reports):
            terminalreporter.section(f"NO {part}", sep="!", red=True, bold=True)
            terminalreporter.line(f"{skipped} tests that need it were SKIPPED. To run them: {command}", red=True)
            terminalreporter.line("(its service need not run: the tests start processes of their own)")


def require(reason: str, found: object) -> None:
    """Skip the test when nothing was found, or fail it where everything is promised."""
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI promises it", pytrace=False)
        pytest.skip(reason)
