"""Asks a worker's admin port, on its UNIX socket: one connection for each question, with a deadline and a bound on the answer.

Both ends are ours: a worker says how long its answer is, and closes the connection after it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from towerws.admin.endpoint import Answer
from towerws.core.errors import TowerwsError
from towerws.workers.processes import Worker

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Longest answer that is read."""

MAX_HEAD_BYTES: Final = 16 * 1024

_read_status = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ").match
_find_length = re.compile(rb"\r\ncontent-length: *([0-9]{1,12})\r\n", re.IGNORECASE).search
_find_type = re.compile(rb"\r\ncontent-type: *([ -~]{1,200})\r\n", re.IGNORECASE).search

_find_allow = re.compile(rb"\r\nallow: *([A-Z, ]{1,100})\r\n", re.IGNORECASE).search


class NoAnswer(TowerwsError):
    """A worker did not answer. `sent` tells whether it may have got the question."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


def ask(
    reactor: Any,
    worker: Worker,
    path: bytes,
    *,
    deadline_s: float,
    method: bytes = b"GET",
    body: bytes = b"",
    headers: Mapping[bytes, bytes] | None = None,
) -> Deferred[Answer]:
    """Fires with the worker's answer. Fails with `NoAnswer`. `path` has the query, too."""
    lines = {b"host": b"localhost", **(headers or {}), b"connection": b"close", b"content-length": b"%d" % len(body)}
    head = b"".join(b"%s: %s\r\n" % line for line in lines.items())
    exchange = _Exchange(worker, b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, path, head, body))
    try:
        connector = reactor.connectUNIX(worker.membership.admin_path, _Factory(exchange), timeout=deadline_s)
    except OSError as error:  # no descriptor is left for the socket
        exchange.fail(f"can't be asked: {error.strerror}")
        return exchange.answer

    def late() -> None:
        exchange.fail(f"did not answer within {deadline_s:g} s")
        connector.disconnect()

    timer = reactor.callLater(deadline_s, late)

    def stop(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        return result

    return exchange.answer.addBoth(stop)


class _Exchange(Protocol):
    """One question, and its answer."""

    transport: Any

    def __init__(self, worker: Worker, question: bytes) -> None:
        self.answer: Deferred[Answer] = Deferred()
        self._worker = worker
        self._question = question
        self._received = bytearray()
        self._sent = False

    def fail(self, why: str) -> None:
        """Give up, unless there is an answer."""
        if not self.answer.called:
            self.answer.errback(NoAnswer(f"worker {self._worker.number} {why}", sent=self._sent))

    def connectionMade(self) -> None:
        """Send the question."""
        self._sent = True
        self.transport.write(self._question)
        self._question = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece of the answer."""
        self._received += data
        if len(self._received) > MAX_ANSWER_BYTES:
            self.fail(f"answered more than {MAX_ANSWER_BYTES} bytes")
            self._received.clear()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Read the answer: it is whole, or the worker ended."""
        if self.answer.called:
            return
        end = self._received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        head, body = bytes(self._received[: end + 2]), bytes(self._received[end + 4 :])
        status, length = _read_status(head), _find_length(head)
        if end < 0 or status is None or length is None or int(length[1]) != len(body):
            self.fail("closed the connection before its answer was whole")
        else:
            kind, allow = _find_type(head), _find_allow(head)
            self.answer.callback(Answer(int(status[1]), body, kind[1] if kind else b"application/json", allow[1] if allow else b""))


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def buildProtocol(self, addr: object) -> Protocol:
        """Return the exchange."""
        return self._exchange

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """There is no process at the socket, or the kernel refuses one more question."""
        self._exchange.fail(f"can't be asked: {_why_not_connected(reason.value)}")


def _why_not_connected(error: Any) -> str:
    number = getattr(error, "osError", None)
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        return "it has no process, or one that starts"
    if number is not None:
        return os.strerror(number)
    # EAGAIN of connect(2): the queue is full (unix(7)). Twisted takes it for a connection that is under way, and then sees it closed.
    return "too many questions wait for it already; try again in a moment"
