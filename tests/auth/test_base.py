"""The helpers that all authentication methods share."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed

from towerws.auth.base import Refused, result_if_ready


def test_an_answer_given_at_once_is_had_without_a_callback() -> None:
    """A Deferred that has fired gives its result each time."""
    asked = succeed({"jobs.summary": "no"})
    assert result_if_ready(asked) == result_if_ready(asked) == {"jobs.summary": "no"}
    assert result_if_ready(succeed({})) == {}


def test_what_is_awaited_or_failed_is_no_answer() -> None:
    """The result is None for a pending, chained, paused or failed Deferred. The failure stays to be handled."""
    pending: Deferred[int] = Deferred()
    assert result_if_ready(pending) is None
    chained = succeed(1).addCallback(lambda _: pending)
    assert result_if_ready(chained) is None
    paused = succeed(1)
    paused.pause()
    assert result_if_ready(paused) is None
    failed: Deferred[int] = fail(Refused("no"))
    assert result_if_ready(failed) is None
    caught: list[type[BaseException] | None] = []
    failed.addErrback(lambda failure: caught.append(failure.type))
    assert caught == [Refused]
    pending.callback(2)
    assert result_if_ready(chained) == 2
