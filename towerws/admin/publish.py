"""`POST /publish`: one event, or a batch with one event per line (docs/publish.md).

- The body of one event is `{"topic": "job_events.42", "payload": {…}}` or `{"group": "job_events", "event": "42", "payload": {…}}`. The
  answer's HTTP status and its `outcome` say what became of it.
- A batch has the content type `application/x-ndjson` and an envelope per line. The answer is 200 with one line per event, in their order.
  Each has the `status` that the event would have had alone.

A batch is published in pieces, one in each turn of the reactor. A client that disconnects does not stop its batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure
from twisted.web.server import Request

from towerws.admin.endpoint import Answer, HttpError, body_of, json_answer
from towerws.core.errors import BadDelivery
from towerws.core.publication import Outcome, Publication, Published, parse_idempotency_key, parse_publication, split_batch

BATCH_TYPE = "application/x-ndjson"

LINES_PER_TURN = 20
"""Most lines of a batch in one turn of the reactor. A line takes 0.1 ms, so a turn takes 2 ms."""

BYTES_PER_TURN = 256 * 1024
"""After this many bytes of lines, the rest of a batch waits for the next turn of the reactor."""

INVALID = "invalid"
"""The word in the counter for an event that was not published because of a mistake in it. Answers have no such outcome."""

STATUS = {
    Outcome.CONFIRMED: 202,
    Outcome.DUPLICATE: 202,
    Outcome.UNROUTABLE: 502,
    Outcome.NACKED: 502,
    Outcome.REFUSED: 502,
    Outcome.UNAVAILABLE: 503,
    Outcome.BLOCKED: 503,
    Outcome.FULL: 503,
    Outcome.UNKNOWN: 504,
}
"""The HTTP status of each outcome."""

Publish = Callable[[Publication], Deferred[Published]]
"""Publishes an event. Fires with what became of it, and never fails. Raises `BadDelivery` for an event that can't be forwarded."""


class PublishEndpoint:
    """Answers `POST /publish`. `counts` has the number of events by outcome.

    `flush` is called after the events of one turn of the reactor were given to `publish`. `why_no_subscriber` takes a group and an event.
    It returns why no client can subscribe to them, or None. `later` calls a function in a later turn of the reactor.
    """

    def __init__(
        self,
        publish: Publish,
        flush: Callable[[], None],
        why_no_subscriber: Callable[[str, str], str | None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._publish = publish
        self._flush = flush
        self._why_no_subscriber = why_no_subscriber
        self._later = later
        self.counts: Counter[str] = Counter()

    def answer(self, request: Request) -> Deferred[Answer]:
        """Publish the event or the batch in the body. Raises `HttpError` for a body or a header that can't be used."""
        try:
            key = _idempotency_key(request)
            content_type = (request.getHeader("content-type") or "").partition(";")[0].strip().lower()
            if content_type != BATCH_TYPE:
                published = self._publish_one(body_of(request), key)
                self._flush()
                return published.addCallback(_http_answer)
            lines = split_batch(body_of(request))
        except ValueError as error:
            self.counts[INVALID] += 1
            raise HttpError(400, str(error)) from None
        except HttpError:
            self.counts[INVALID] += 1
            raise
        return _Batch(lines, key, self._publish_line, self._flush, self._later).answer

    def _publish_one(self, body: bytes, key: str | None) -> Deferred[dict[str, object]]:
        """Publish one envelope. Fires with the answer's keys. Raises `HttpError`."""
        try:
            publication = parse_publication(body)
        except ValueError as error:
            raise HttpError(400, str(error)) from None
        if key is not None:
            if publication.message_id is not None:
                raise HttpError(400, "there is an id twice: give either message_id or the header Idempotency-Key")
            publication = Publication(publication.topic, publication.payload, key)
        try:
            published = self._publish(publication)
        except BadDelivery as bad:
            raise HttpError(413 if bad.reason == "too_large" else 400, str(bad)) from None
        return published.addCallback(self._describe, publication)

    def _publish_line(self, line: bytes, key: str | None) -> Deferred[dict[str, object]]:
        """Publish one line of a batch. Fires with the answer's keys, also for a mistake in the line."""
        try:
            return self._publish_one(line, key)
        except HttpError as error:
            self.counts[INVALID] += 1
            return succeed({"status": error.status, "error": str(error)})

    def _describe(self, done: Published, publication: Publication) -> dict[str, object]:
        self.counts[done.outcome.value] += 1
        answer: dict[str, object] = {"status": STATUS[done.outcome], "outcome": done.outcome.value, "published": done.published}
        more = {"message_id": done.message_id, "position": done.position, "error": done.error}
        answer |= {name: value for name, value in more.items() if value is not None}
        if (warning := self._why_no_subscriber(publication.topic.group, publication.topic.event)) is not None:
            answer["warning"] = warning
        return answer


class _Batch:
    """One batch that is being published. `answer` fires when every line has its answer."""

    def __init__(
        self,
        lines: list[bytes],
        key: str | None,
        publish: Callable[[bytes, str | None], Deferred[dict[str, object]]],
        flush: Callable[[], None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.answer: Deferred[Answer] = Deferred()
        self._lines = lines
        self._key = key
        self._publish = publish
        self._flush = flush
        self._later = later
        self._next = 0
        self._answers: list[bytes] = [b""] * len(lines)
        self._missing = len(lines)
        self._continue()

    def _continue(self) -> None:
        """Publish the lines of one turn of the reactor."""
        taken = 0
        end = min(self._next + LINES_PER_TURN, len(self._lines))
        while self._next < end and taken < BYTES_PER_TURN:
            number = self._next
            self._next += 1
            line, self._lines[number] = self._lines[number], b""
            taken += len(line)
            key = None if self._key is None else f"{self._key}/{number + 1}"
            maybeDeferred(self._publish, line, key).addCallbacks(self._answered, self._failed, callbackArgs=(number,))
        self._flush()
        if self._next < len(self._lines):
            self._later(self._continue)

    def _answered(self, answer: dict[str, object], number: int) -> None:
        self._answers[number] = json.dumps(answer).encode("ascii") + b"\n"
        self._missing -= 1
        if not self._missing and not self.answer.called:
            self.answer.callback(Answer(200, b"".join(self._answers), BATCH_TYPE.encode()))

    def _failed(self, failure: Failure) -> None:
        """Handle a fault of towerws: the whole request is answered with 500, and the log has a traceback."""
        if not self.answer.called:
            self.answer.errback(failure)


def _idempotency_key(request: Request) -> str | None:
    values = request.requestHeaders.getRawHeaders(b"idempotency-key", [])
    if len(values) > 1:
        raise ValueError("there are several headers Idempotency-Key: send one")
    return parse_idempotency_key(values[0]) if values else None


def _http_answer(answer: dict[str, object]) -> Answer:
    status = answer.pop("status")
    assert isinstance(status, int)
    return json_answer(status, answer)
