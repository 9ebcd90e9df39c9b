"""Promise 17. `FUZZ_INPUTS=1000000` runs a million. `FUZZ_SEED` and `FUZZ_CONVERSATION` repeat a failed conversation alone."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

from tests.kit.fuzz import HEAP_BYTES, HTTP_STATUSES, INPUT_S, Conversation, FuzzTarget, Generator, Step, fails, fuzz_target, heap, shrunk
from tests.kit.ws_kit import PING, frame, request

INPUTS = int(os.environ.get("FUZZ_INPUTS") or 20_000)
SEED = int(os.environ["FUZZ_SEED"])  # tests/conftest.py chooses one if none is given, and prints it
ONLY = os.environ.get("FUZZ_CONVERSATION")

WARM = 4000
"""Conversations until caches and counters have reached their size."""

BATCH = 500


def say(line: str) -> None:
    """Print a line. pytest shows it for a failed test, and with -s for any."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.timeout(120 + INPUTS // 200)
def test_generated_clients() -> None:
    """Promise 17: any input, before or after the opening, however cut, causes no exception, no leak and no effect on others.

    Each input takes less than 50 ms of CPU time, closes have documented codes, and the heap stays within 5 MiB.
    """
    generator = Generator(SEED)
    number = int(ONLY or 0)
    start = None
    with fuzz_target() as found:
        while found.inputs < INPUTS:
            conversation = generator.conversation(number)
            try:
                cost = found.cost(conversation)
                # The garbage collector may cause one such time. Three in a row are caused by the input.
                assert cost < INPUT_S or min(found.cost(conversation) for _ in range(3)) < INPUT_S, f"an input took {cost:.3f} s"
            except Exception:
                say(f"FUZZ_SEED={SEED} FUZZ_CONVERSATION={number}")
                if fails(conversation):
                    say(f"the smallest that fails as well: {shrunk(conversation, fails)}")
                raise
            if ONLY is not None:
                return
            number += 1
            if number % BATCH == 0:
                found.settle()
            if number == WARM:
                start = heap()
        found.settle()
        say(f"{found.inputs} inputs in {number} conversations; answers {found.statuses}, closes {found.codes}")
        if start is not None:
            blocks, resident = (now - then for now, then in zip(heap(), start, strict=True))
            say(f"the heap grew by {blocks} blocks, the process by {resident} bytes")
            assert resident < HEAP_BYTES
            assert blocks < HEAP_BYTES // 64
    if INPUTS < 50_000:
        return
    assert set(found.statuses) >= HTTP_STATUSES, "what is generated reaches all of it"
    assert set(found.codes) >= {None, 1000, 1002, 1007, 1008, 1009}


def test_a_seed_and_a_number_give_the_same_conversation() -> None:
    """A seed and a number always give the same conversation. Other numbers give other ones."""
    assert Generator(1).conversation(5) == Generator(1).conversation(5)
    assert len({Generator(seed).conversation(number) for seed in (1, 2) for number in range(20)}) > 30


@pytest.fixture
def _no_rubbish() -> Iterator[None]:
    """Planted faults leave Deferreds with errors, which are logged when collected: here, and not in another test."""
    yield
    gc.collect()


@pytest.mark.usefixtures("_no_rubbish")
@pytest.mark.parametrize("fault", ["leak", "exception", "logged", "timer", "bystander"])
def test_a_fault_is_found_and_made_small(fault: str) -> None:
    """Each kind of planted fault is found, and its conversation is cut down to the part that causes it."""

    def spoil(found: FuzzTarget) -> None:
        hub, context = found.edge.hub, found.edge.context

        def fail(*arguments: object) -> None:
            raise ValueError("planted")

        planted: dict[str, tuple[object, str, object]] = {
            "leak": (hub, "leave", lambda subscriber: None),
            "exception": (found.edge.factory.protocol, "onPing", fail),
            "logged": (context.auth, "refusals", fail),
            "timer": (found.edge.factory.protocol, "onPing", lambda *arguments: context.reactor.callLater(1000, print)),
            "bystander": (hub, "flush", lambda: None),
        }
        setattr(*planted[fault])

    whole = Conversation(
        "in",
        (
            Step("send", (request(), b"")),
            Step("publish"),
            Step("send", (frame(1, b'{"groups": {"job_events": [1]}}') + frame(PING), frame(2, b"x"))),
            Step("wait", seconds=3),
            Step("send", (frame(1, b"xyz"),)),
        ),
    )
    assert not fails(whole)
    assert fails(whole, spoil)
    small = shrunk(whole, lambda conversation: fails(conversation, spoil))
    assert fails(small, spoil)
    assert sum(len(read) for step in small.steps for read in step.reads) < sum(len(read) for step in whole.steps for read in step.reads)
    assert len(small.steps) <= 3
