from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel

from tests.auth.tower_kit import logged
from towerws.logs import FoldedLog


def test_a_storm_is_a_few_lines() -> None:
    """The first line of a kind is written at once. Then one follows in ten seconds, with the number of lines left out."""
    clock = Clock()
    log = FoldedLog(Logger("test"), clock)
    with logged() as lines:
        for number in range(100):
            log.info("no cookie from {address}", address=number)
            clock.advance(0.25)
        log.warning("down: {why}", why="x{y}")
    assert lines.texts == [
        "no cookie from 0",
        "no cookie from 40 (39 more like it in the last 10 s)",
        "no cookie from 80 (39 more like it in the last 10 s)",
        "down: x{y}",
    ]
    assert [event["log_level"] for event in lines.events[-2:]] == [LogLevel.info, LogLevel.warn]
