"""A real RabbitMQ for the tests in this folder: a private node, started once, ended with the session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from private_rabbitmq import PrivateRabbit, rabbitmq_bin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_BROKER = "RabbitMQ is not installed"


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbit]:
    """The session's node. Tests share it: each uses exchange and queue names of its own, and leaves it running."""
    _require_broker()
    with PrivateRabbit(tmp_path_factory.mktemp("rabbit")) as node:
        yield node


@pytest.fixture
def fresh_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], PrivateRabbit]]:
    """A maker of started nodes of the test's own, for those that kill and restart them; they end with the test."""
    _require_broker()
    nodes: list[PrivateRabbit] = []

    def make() -> PrivateRabbit:
        node = PrivateRabbit(tmp_path_factory.mktemp("fresh-rabbit"))
        nodes.append(node)
        node.start()
        return node

    yield make
    for node in nodes:
        node.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly how many tests had no broker: a green run without them promises little."""
    skipped = sum(NO_BROKER in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.section("NO RABBITMQ", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{skipped} tests against a real RabbitMQ were SKIPPED. To run them: apt-get install rabbitmq-server", red=True
        )
        terminalreporter.line("(the service need not run: the tests start a node of their own)")


def _require_broker() -> None:
    if rabbitmq_bin() is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{NO_BROKER}, and CI promises it", pytrace=False)
        pytest.skip(NO_BROKER)
