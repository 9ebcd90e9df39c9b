"""History's bound in bytes is what it weighs."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from towerws.core.deliveries import Fingerprint
from towerws.core.history import History

STREAM = Fingerprint(b"a key")


@pytest.mark.parametrize("message_id", [False, True])
@pytest.mark.parametrize("count", [20_000, 40_000])
@pytest.mark.parametrize(("topics", "raw"), [(1, 40), (50, 40), (5_000, 40), (1 << 30, 40), (1 << 30, 2), (10, 400), (50, 4_000)])
def test_what_is_counted_is_what_it_weighs(topics: int, raw: int, count: int, message_id: bool) -> None:
    """Within 15 %, for few topics and many, small payloads and large ones, with `message_id` and without."""
    gc.collect()
    tracemalloc.start()
    try:
        history = History(1 << 40, 120)
        for number in range(count):
            name = f"{number:032x}" if message_id else None
            payload = bytes(raw)
            history.append(f"job_events.{number % topics}", payload, 100_000 + number, STREAM, name, float(number))
        gc.collect()
        weight, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert history.weight_bytes == pytest.approx(weight, rel=0.15)
    history.clear()
    assert history.weight_bytes == 0
