"""Fixtures with real parts: a private RabbitMQ node and a browser, started once, and private nginx processes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from private_rabbitmq import PrivateRabbit, rabbitmq_bin

from tests.integration.redis_server import PrivateRedis, redis_binary
from tests.integration.tower_api import Api, serve_tower
from tests.kit.chromium import Chromium, chromium_binary
from tests.kit.nginx import Nginx, nginx_binary
from tests.kit.producer_pythons import PYENV, Environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NO_BROKER = "RabbitMQ is not installed"
NO_NGINX = "nginx is not installed"
NO_CHROMIUM = "Chromium is not installed"
NO_REDIS = "Redis is not installed"
NO_PYTHON = "this Python is missing"
NO_LANGUAGE = "this language is missing"
NO_FAIL2BAN = "fail2ban is not installed"
NO_SYSTEMD = "systemd's programs are not installed"
NO_HAPROXY = "HAProxy is not installed"
NO_CADDY = "Caddy is not installed"
NO_SUPERVISOR = "supervisord is not installed"
NO_PROMTOOL = "promtool is not installed"

PARTS = {
    NO_BROKER: ("RABBITMQ", "apt-get install rabbitmq-server"),
    NO_NGINX: ("NGINX", "apt-get install nginx"),
    NO_CHROMIUM: ("CHROMIUM", "apt-get install chromium chromium-headless-shell"),
    NO_REDIS: ("REDIS", "apt-get install redis-server"),
    NO_LANGUAGE: (
        "OTHER LANGUAGES",
        "apt-get install nodejs npm golang-go default-jdk-headless librabbitmq-client-java php-cli php-amqplib",
    ),
    NO_FAIL2BAN: ("FAIL2BAN", "apt-get install fail2ban"),
    NO_SYSTEMD: ("SYSTEMD", "apt-get install systemd"),
    NO_HAPROXY: ("HAPROXY", "apt-get install haproxy"),
    NO_CADDY: ("CADDY", "apt-get install caddy"),
    NO_SUPERVISOR: ("SUPERVISORD", "apt-get install supervisor"),
    NO_PROMTOOL: ("PROMTOOL", "apt-get install prometheus"),
    NO_PYTHON: ("OLD PYTHONS", "pyenv install 3.6 3.7 3.8 3.9 3.10 3.11 3.12 3.13"),
}


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbit]:
    """The session's node. Tests share it: each uses its own exchange and queue names, and leaves the node running."""
    require(NO_BROKER, rabbitmq_bin())
    with PrivateRabbit(tmp_path_factory.mktemp("rabbit")) as node:
        yield node


@pytest.fixture(scope="session")
def second_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbit]:
    """The node of `rabbit_to_kill`, not started."""
    require(NO_BROKER, rabbitmq_bin())
    node = PrivateRabbit(tmp_path_factory.mktemp("second-rabbit"))
    yield node
    node.kill()


@pytest.fixture
def rabbit_to_kill(second_rabbit: PrivateRabbit) -> PrivateRabbit:
    """A running node that a test may freeze, block, stop and kill. Tests share it: each uses its own exchange and queue names."""
    second_rabbit.resume()
    second_rabbit.start()
    second_rabbit.limit_memory("0.4")  # an earlier test may have left an alarm
    return second_rabbit


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Nginx]]:
    """A maker of nginx processes with the shipped configuration, for the address of towerws. They end with the module."""
    require(NO_NGINX, nginx_binary())
    with ExitStack() as leave:

        def make(upstream: str, **more: Any) -> Nginx:
            return leave.enter_context(Nginx(tmp_path_factory.mktemp("nginx"), upstream, **more))

        yield make


@pytest.fixture(scope="session")
def session_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The browser of all tests. It has no windows: test_chromium.py uses the whole browser."""
    require(NO_CHROMIUM, chromium_binary())
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def chromium(session_browser: Chromium) -> Iterator[Chromium]:
    """The session's browser. Each test opens its own pages, which have no cookies of other tests and are closed after it."""
    yield session_browser
    session_browser.close_pages()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """The module's Redis."""
    require(NO_REDIS, redis_binary())
    with PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def tower() -> Iterator[tuple[type[Api], str]]:
    """A Tower API, and its URL."""
    with serve_tower() as found:
        yield found


@pytest.fixture
def producer_python() -> Callable[[Environment], Path]:
    """A maker of interpreters with an environment's wheels. A missing Python skips the test, or fails it where pyenv is installed."""

    def make(environment: Environment) -> Path:
        interpreter = environment.interpreter
        if interpreter is None:
            reason = f"{NO_PYTHON}: {environment.python}"
            if os.environ.get("CI") == "true" and PYENV.is_dir():
                pytest.fail(f"{reason}, and this machine has pyenv (pyenv install {environment.python})", pytrace=False)
            pytest.skip(reason)
        environment.prepare()
        return interpreter

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many tests had no broker, proxy or browser: a green run without them proves little."""
    reports = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for reason, (part, command) in PARTS.items():
        if skipped := sum(reason in report for report in reports):
            terminalreporter.section(f"NO {part}", sep="!", red=True, bold=True)
            terminalreporter.line(f"{skipped} tests that need it were SKIPPED. To run them: {command}", red=True)
            terminalreporter.line("(its service need not run: the tests start processes of their own)")


def require(reason: str, found: object) -> None:
    """Skip the test when nothing was found, or fail it where every part is required."""
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI promises it", pytrace=False)
        pytest.skip(reason)
