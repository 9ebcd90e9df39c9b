"""The thread that publishes: it starts, and goes on, after what the machine or an event does to it."""

import threading
from typing import NoReturn

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
