from __future__ import annotations

import os
import signal
import time

import pytest

from tests.kit.daemon import DEADLINE_S
from tests.kit.rows import each_row
from towerws.commands.terminal import StatusLine, interrupted_by

ENDING = (signal.SIGINT, signal.SIGTERM)


class Signalled:
    """Gets a signal while it is freed. Python drops what a finalizer raises."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self._number)
        time.sleep(0)  # the handler runs at the next instruction


@each_row("number", ENDING)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer(number: signal.Signals) -> None:
    """It interrupts a little later. After the block all handlers are as before, and no timer is left."""
    before = [signal.getsignal(each) for each in (*ENDING, signal.SIGALRM)]

    def work() -> None:
        with interrupted_by(*ENDING):
            Signalled(number)
            time.sleep(DEADLINE_S)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [signal.getsignal(each) for each in (*ENDING, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_ignored_signal_stays_ignored() -> None:
    """A shell starts its background jobs so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted_by(*ENDING):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_notice_without_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell started the command with `2>&-`. The notice goes nowhere else, and the exit code says it."""
    line = StatusLine(None)
    line.show("under way")
    line.say("done")
    line.clear()
    assert capsys.readouterr() == ("", "")
