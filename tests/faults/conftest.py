"""The node for the short selection."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from private_rabbitmq import rabbitmq_bin

from tests.faults.brokers import installed_version
from tests.faults.case import Brokers


@pytest.fixture(scope="package")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The installed RabbitMQ. Without one these tests are skipped, or fail in CI, where it is required."""
    if rabbitmq_bin() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("RabbitMQ is not installed, and CI promises it", pytrace=False)
        pytest.skip("RabbitMQ is not installed")
    made = Brokers(installed_version(), tmp_path_factory.mktemp("brokers"))
    yield made
    made.spoil()
