"""The thread that publishes: it starts, and goes on, after what the machine or an event does to it."""

import errno
import gc
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import pytest
from tests.kit.daemon import DEADLINE_S
from tests.kit.unconfirming_broker import UnconfirmingBroker

from towerws_producer import NotConfirmed, Producer


def cant_start(thread: threading.Thread) -> NoReturn:
    """The machine has no thread left, and Python says so."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("by", ["emit", "flush"])
def test_a_thread_that_cant_be_started(by: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so, and `publish` names it. The next event or flush starts the thread, and then everything is sent."""
    with UnconfirmingBroker() as broker:
        producer = Producer(broker.url)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(threading.Thread, "start", cant_start)
            for _ in range(20):
                assert producer.emit("jobs.1", {})
            with pytest.raises(NotConfirmed, match="can't start the publishing thread: can't start new thread"):
                producer.publish("jobs.1", {}, timeout=0.01)
            assert not producer.flush(0.01)
        assert len(caplog.messages) == 1
        assert "can't start new thread" in caplog.text
        if by == "emit":
            producer.emit("jobs.1", {})
        else:
            producer.flush(0.01)
        assert broker.got_one.wait(DEADLINE_S)
        producer.close(timeout=0)


@pytest.mark.parametrize("moment", ["construction", "before the start", "after the start", "a failed start"])
def test_a_signal_handler_that_emits_while_the_thread_is_started(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread is started, whenever the signal comes, and its event is sent. A failed start is tried again by the next event."""
    construct, start = threading.Thread.__init__, threading.Thread.start
    signals, started = iter([signal.SIGUSR1]), []

    def raise_signal() -> None:
        for each in signals:
            signal.raise_signal(each)

    def constructs(thread: threading.Thread, **arguments: Any) -> None:
        construct(thread, **arguments)
        if moment == "construction":
            raise_signal()

    def starts(thread: threading.Thread) -> None:
        if moment in {"before the start", "a failed start"}:
            raise_signal()
        if moment == "a failed start":
            cant_start(thread)
        start(thread)
        started.append(thread)
        if moment == "after the start":
            raise_signal()

    with UnconfirmingBroker() as broker:
        producer = Producer(broker.url)
        before = signal.signal(signal.SIGUSR1, lambda *_: producer.emit("jobs.2", {}))
        try:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "__init__", constructs)
                patched.setattr(threading.Thread, "start", starts)
                producer.emit("jobs.1", {})
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert next(signals, None) is None
        assert len(started) == (moment != "a failed start")
        if moment == "a failed start":
            producer.emit("jobs.3", {})
        assert broker.got_one.wait(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        sent = 1 if moment == "a failed start" else 2  # after a failure, one event waits for its confirm before the others are sent
        while producer.stats()["sent"] < sent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        producer.close(timeout=0)


@pytest.mark.parametrize("resource", ["towerws_producer.connection.IOLoop", "select.epoll"])
def test_a_process_without_a_free_descriptor(resource: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is a failed attempt: the thread backs off and goes on by itself. One line says so, and nothing is left open."""
    module, _, name = resource.rpartition(".")
    make, missing = getattr(sys.modules[module], name), iter(range(5))

    def scarce(*args: Any) -> Any:
        if next(missing, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return make(*args)

    monkeypatch.setattr("towerws_producer.worker.BACKOFF_MAX_S", 0.01)
    monkeypatch.setattr(resource, scarce)
    with UnconfirmingBroker() as broker:
        producer = Producer(broker.url)
        producer.emit("jobs.1", {})
        assert broker.got_one.wait(DEADLINE_S)
        producer.close(timeout=0)
    assert next(missing, None) is None
    lines = [message for message in caplog.messages if "Too many open files; events are kept" in message]
    assert len(lines) == 1
    gc.collect()  # an open socket that is collected is a ResourceWarning, which fails the test


def test_a_thread_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so, however many threads fail. Each event starts another one."""
    failed = threading.Semaphore(0)

    def fail(*_: object) -> NoReturn:
        failed.release()
        raise ZeroDivisionError("a mistake of ours")

    with UnconfirmingBroker() as broker:
        producer = Producer(broker.url)
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr("towerws_producer.worker.Worker._one_connection", fail)
            for _ in range(5):
                producer.emit("jobs.1", {})
                assert failed.acquire(timeout=DEADLINE_S)
                thread = producer._worker()._thread
                if thread is not None:
                    thread.join(DEADLINE_S)
        producer.emit("jobs.1", {})
        assert broker.got_one.wait(DEADLINE_S)
        producer.close(timeout=0)
    lines = [record.levelname for record in caplog.records if "the publishing thread failed with ZeroDivisionError" in record.getMessage()]
    assert lines == ["ERROR"]
