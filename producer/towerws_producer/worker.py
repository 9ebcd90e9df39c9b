"""The thread that publishes, one per producer and process, and the state that it shares with the callers.

Callers put events into the buffer under a lock and return. The thread owns the connection: it sends, reads confirms, reconnects.
After a fork the child has its own worker (towerws_producer.producer). Its buffer is empty, because the parent sends the events that
were buffered before the fork.
"""

import logging
import os
import random
import threading
import time
from collections import Counter
from itertools import count
from typing import Any, Dict, List, Optional
from uuid import uuid4

from towerws_producer.address import Address
from towerws_producer.buffer import EVENT_BYTES, Buffer, Dropped, Event, Publication
from towerws_producer.connection import Connection
from towerws_producer.errors import Blocked, BufferFull, NotConfirmed, PayloadTooLarge, ProducerClosed, ProducerError, Unroutable
from towerws_producer.failures import Failure, judge, no_queue_yet
from towerws_producer.folded_log import FoldedLog, say
from towerws_producer.pika_log import forget_quiet, quiet_pika
from towerws_producer.publishing import ROUTE_S, Events
from towerws_producer.settings import MIB, Settings

WINDOW_EVENTS = 1000
WINDOW_BYTES = MIB
"""Most events in flight: enough to keep the broker busy over a slow network, and few enough to send again after a lost connection."""

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 15.0

CLOSE_S = 2.0
"""How long `close` waits until the thread has closed the connection."""


class Worker(Events):
    """The buffer, the counters and the thread of one process."""

    def __init__(self, settings: Settings, log: FoldedLog) -> None:
        self.pid = os.getpid()
        self._settings = settings
        self._log = log
        # Reentrant, because a signal handler or a log handler may call `emit` while its thread holds the lock.
        self._lock = threading.RLock()
        self._buffer = Buffer(settings.buffer_bytes)
        self._largest = settings.buffer_bytes - EVENT_BYTES
        self._ids = uuid4().hex[:20]
        self._numbers = count(1)  # `next` is one step of C, so a signal handler that emits at the same time gets another number
        self._emitted = 0
        self._thread: Optional[threading.Thread] = None
        self._starting = threading.Lock()
        """Held while the thread is started. A signal handler that emits at this time can't acquire it, and so starts no second thread."""
        self._connection: Optional[Connection] = None
        self._pause = threading.Event()
        self._awake = False
        self._closing = False
        self._state = "idle"
        self._down: Optional[ProducerError] = None
        self._rounds_failed = 0
        """Rounds of attempts since the broker last answered an event. A round tries each address."""
        self._unreachable = False
        """Whether no broker of the last round could be used."""
        self._suspects = 0
        """How many of the next events may be the one because of which the broker closed a channel. Each is sent alone."""
        self._may_declare = settings.declare
        self.counters: Dict[str, int] = {"sent": 0, "confirmed": 0, "resent": 0, "nacked": 0, "connected": 0}
        self.dropped: Counter[str] = Counter()

    # Called from any thread

    def put(self, topic: str, body: bytes, publication: Optional[Publication] = None) -> None:
        """Buffer an event, and return at once. The oldest events are dropped if there is no room.

        Raises `PayloadTooLarge` for an event that is larger than the whole buffer, and `ProducerClosed` after `close`.
        """
        if len(body) > self._largest:
            text = f"the payload has {len(body)} bytes, and buffer_bytes = {self._settings.buffer_bytes} has room for {self._largest}"
            raise PayloadTooLarge(text)
        emitted_ms = int(time.time() * 1000)
        with self._lock:
            if self._closing:
                raise ProducerClosed("the producer is closed")
            self._emitted += 1
            gone = self._buffer.add((topic, body, next(self._numbers), emitted_ms, publication))
            fault = None if self._awake else self._wake()
        if gone:
            self._evict(gone)
        if fault is not None:
            self._say_not_started(fault)

    def refuse(self, topic: str, error: ProducerError) -> None:
        """Count an event that never reached the buffer, and log it."""
        self._lose((topic, None), error)

    def message_id(self, event: Event) -> str:
        """Return the event's id: the caller's, or one that is made of the event's number."""
        publication = event.publication
        if publication is None:
            return f"{self._ids}-{event.number:x}"
        if publication.message_id is None:
            publication.message_id = f"{self._ids}-{event.number:x}"
        return publication.message_id

    def give_up(self, publication: Publication) -> ProducerError:
        """Report no result for this event any more. It is still published. Returns why it isn't confirmed yet."""
        with self._lock:
            publication.resolve = None
            error = publication.error or self._down
            if error is not None:
                return error
            if self._state == "ready":
                return NotConfirmed("the broker has not confirmed the event in time")
            return NotConfirmed(f"no connection to {self._settings.addresses[0]} yet")

    def flush(self, timeout: float, give_up_s: Optional[float] = None) -> bool:
        """Wait until the events buffered before this call are confirmed or dropped. Returns False after `timeout` seconds.

        With `give_up_s`, it also returns False if no event was confirmed for that many seconds, or no broker could be used.
        """
        done = threading.Event()
        with self._lock:
            watch = self._buffer.watch(next(self._numbers), done.set)
            if watch is None:
                return True
            fault = None if self._awake or self._thread is not None else self._wake()
        if fault is not None:
            self._say_not_started(fault)
        deadline = time.monotonic() + timeout
        moved, progress = time.monotonic(), -1
        try:
            while not done.is_set():
                now = time.monotonic()
                if self.counters["confirmed"] != progress:
                    moved, progress = now, self.counters["confirmed"]
                left = deadline - now
                if give_up_s is not None:
                    left = min(left, moved + give_up_s - now)
                    if self._unreachable:  # a longer wait at the end of the process does not help
                        return False
                    left = min(left, 0.05) if left > 0 else left
                if left <= 0:
                    return False
                done.wait(left)
        finally:
            with self._lock:
                self._buffer.unwatch(watch)
        return True

    def close(self) -> None:
        """End the thread and the connection. Events that are still buffered are dropped and counted."""
        with self._lock:
            self._closing = True
            thread, connection = self._thread, self._connection
            self._pause.set()
            if connection is not None:
                connection.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S)
        self.drop_rest()

    def drop_rest(self) -> None:
        """Drop all buffered events."""
        with self._lock:
            gone = self._buffer.clear()
        for dropped in gone:
            self._lose(dropped, ProducerClosed("the producer ended before the event was confirmed"))

    def stats(self) -> Dict[str, Any]:
        """Return the figures. See `Producer.stats`."""
        with self._lock:
            return {
                "emitted": self._emitted,
                **self.counters,
                "dropped": dict(self.dropped),
                "buffered": len(self._buffer),
                "buffered_bytes": self._buffer.bytes,
                "state": self._state,
                "reason": None if self._down is None else str(self._down),
            }

    # Events: called from the thread

    def take(self, most: int) -> List[Event]:
        """Return up to `most` events, if the bounds for events in flight allow."""
        with self._lock:
            window = 1 if self._suspects else WINDOW_EVENTS
            events = self._buffer.take(most, window, WINDOW_BYTES)
            # If events still wait, the next confirm or iteration takes them. If none waits, the next event must wake the thread.
            self._awake = self._buffer.waiting > 0
            self.counters["sent"] += len(events)
            self.counters["resent"] += sum(event.sends > 0 for event in events)
        return events

    def confirmed(self, events: List[Event]) -> None:
        """Remove confirmed events, and report to their callers."""
        told = []
        with self._lock:
            for event in events:
                if self._buffer.done(event):
                    self.counters["confirmed"] += 1
                    if event.publication is not None:
                        told.append(event.publication)
            self._rounds_failed = 0
            self._suspects = max(0, self._suspects - len(events))
            self._routed()
        for publication in told:
            _resolve(publication, None)

    def failed(self, event: Event, error: ProducerError) -> None:
        """Drop an event, and report to its caller."""
        with self._lock:
            ours = self._buffer.done(event)
            self._suspects = max(0, self._suspects - 1)
            if isinstance(error, Unroutable):
                self._rounds_failed = 0
                self._routed()
        if ours:
            self._lose((event.topic, event.publication), error)

    def returned(self, event: Event) -> None:
        """Let a returned event wait again, before all others. If its caller's timeout ends meanwhile, `publish` raises this reason."""
        error = no_queue_yet(self._settings.exchange)
        with self._lock:
            self._buffer.put_back(event)
            self._rounds_failed = 0
            self._down = error
        hint = f"the event is sent again for up to {ROUTE_S:g} s, because a broker that has just started is not ready"
        self._log.fold("no queue", f"{error}; {hint}")

    def _routed(self) -> None:
        """Note that no event waits for a queue any more. The caller holds the lock."""
        if isinstance(self._down, NotConfirmed):
            self._down = None

    def nacked(self, events: List[Event], error: ProducerError) -> None:
        """Keep nacked events for `retry`, and log that."""
        with self._lock:
            for event in events:
                if self._buffer.put_aside(event):
                    self.counters["nacked"] += 1
                    event.nacks += 1
                    if event.publication is not None:
                        event.publication.error = error
            self._suspects = max(0, self._suspects - len(events))
            self._rounds_failed = 0
        if events:
            self._log.fold("nacked", f"{error} They are sent again, and kept meanwhile, up to {self._settings.buffer_bytes} bytes")

    def retry(self, most: int) -> bool:
        """Let up to `most` of the nacked events wait again. Returns whether there are more of them."""
        with self._lock:
            self._buffer.release(most)
            return self._buffer.set_aside > 0

    def ready(self) -> None:
        """Note that the connection can publish. Log that, if there was an outage before."""
        with self._lock:
            was_down, self._down = self._down, None
            self._unreachable = False
            self.counters["connected"] += 1
            self._state = "ready"
        if was_down is not None:
            dropped = sum(self.dropped.values())
            say(logging.INFO, f"publishing to the broker again; {dropped} events were dropped since the start")

    def blocked(self, reason: Optional[str]) -> None:
        """Note the broker's alarm or its end, and log an alarm. The connection stays."""
        with self._lock:
            self._state = "ready" if reason is None else "blocked"
            self._down = None if reason is None else Blocked(f"the broker takes no messages: {reason}")
        if reason is not None:
            self._log.fold("blocked", f"{self._down}; events are kept, up to {self._settings.buffer_bytes} bytes")

    # The thread

    def _wake(self) -> Optional[ProducerError]:
        """Wake the thread for waiting events. Returns why no thread can be started. The caller holds the lock."""
        fault = self._start() if self._thread is None else None
        if self._thread is None:
            return fault
        self._awake = True
        if self._connection is not None:
            self._connection.wake()
        return None

    def _start(self) -> Optional[ProducerError]:
        """Start the thread, or return why it can't be started.

        The process may be at its limit of threads, and an ending interpreter starts none. Then the event stays buffered, and the next event
        or flush tries again. In a signal handler that has interrupted this method, it does nothing.
        """
        if not self._starting.acquire(blocking=False):
            return None
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="towerws-producer", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as error:
            self._down = NotConfirmed(f"can't start the publishing thread: {error}")
            return self._down
        finally:
            self._starting.release()
        return None

    def _say_not_started(self, error: ProducerError) -> None:
        """Log that the thread can't be started. The caller must not hold the lock: a log handler may wait for a thread that emits."""
        text = f"{error}. The next event or flush tries again, and events are kept, up to {self._settings.buffer_bytes} bytes"
        self._log.fold("no thread", text)

    def _run(self) -> None:
        quiet_pika()
        addresses = list(self._settings.addresses)
        try:
            while not self._is_closing():
                connected, refusals = self.counters["connected"], 0
                for address in addresses:
                    failure = self._one_connection(address)
                    if self._is_closing():
                        return
                    self._note(failure)
                    if failure.may_not_declare or failure.suspect:
                        break
                    refusals += not failure.retryable
                if refusals == len(addresses):
                    self._refuse_published(failure.error)
                self._unreachable = self.counters["connected"] == connected and not failure.may_not_declare
                self._wait(failure)
        except Exception as error:
            text = f"the publishing thread failed with {type(error).__name__}: the next event starts another"
            self._log.fold("thread", text, logging.ERROR)
            logging.getLogger("towerws_producer").debug("traceback", exc_info=True)  # for a developer, and without any payload
        finally:
            forget_quiet()
            with self._lock:
                self._connection, self._thread, self._awake, self._state = None, None, False, "idle"
                self._buffer.recall()

    def _is_closing(self) -> bool:
        with self._lock:
            return self._closing

    def _one_connection(self, address: Address) -> Failure:
        again = self.counters["connected"] > 0 or self._down is not None
        try:
            connection = Connection(address, self._settings, self, self._may_declare, again)
        except OSError as error:
            with self._lock:
                self._state = "down"
            return judge(error, f"connecting to {address}", self._settings.exchange, ready=False)
        with self._lock:
            self._connection, self._state, self._awake = connection, "connecting", True
            if self._closing:
                connection.stop()
        try:
            return connection.run()
        finally:
            with self._lock:
                self._connection, self._state = None, "down"
                connection.close_loop()

    def _note(self, failure: Failure) -> None:
        """Let events in flight wait again, and log the failure.

        If the broker closed the channel because of an event, and that event is known, drop it.
        """
        error = failure.error
        culprit: Optional[Event] = None
        with self._lock:
            self._down = error
            recalled = self._buffer.recall()
            if failure.may_not_declare:
                self._may_declare, self._down = False, None
                return
            if failure.suspect:
                # The broker closed the channel because of one of these events. They are sent again one by one, which shows the event.
                self._suspects = len(recalled)
                if len(recalled) == 1:
                    (culprit,) = recalled
                    self._buffer.remove_again(culprit)
                    self._suspects = 0
        if culprit is not None:
            self._lose((culprit.topic, culprit.publication), error)
        self._log.fold("down " + error.reason, f"{error}; events are kept, up to {self._settings.buffer_bytes} bytes")

    def _refuse_published(self, error: ProducerError) -> None:
        """Drop the events whose callers wait, and report the error to them: each broker refuses, and a retry can't help."""
        with self._lock:
            gone = self._buffer.remove_published()
        for dropped in gone:
            self._lose(dropped, error)

    def _wait(self, failure: Failure) -> None:
        """Wait before the next round, with jitter. The longest pause doubles with each round until the broker answers an event."""
        if failure.may_not_declare or (failure.suspect and self._suspects):
            return
        with self._lock:
            self._rounds_failed += 1
            bound = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self._rounds_failed, 10))
        self._pause.wait(random.uniform(bound / 2, bound))  # noqa: S311 - only spreads the attempts

    def _lose(self, dropped: Dropped, error: ProducerError) -> None:
        """Count a dropped event, and report it to its caller. Log it if no caller waits."""
        topic, publication = dropped
        with self._lock:
            self.dropped[error.reason] += 1
        if publication is None or not _resolve(publication, error):
            self._say_dropped(topic, error)

    def _evict(self, gone: List[Dropped]) -> None:
        """Count events that were dropped because the buffer is full, and report them to their callers. Log those without one."""
        error = BufferFull(f"the buffer of {self._settings.buffer_bytes} bytes is full")
        with self._lock:
            self.dropped[error.reason] += len(gone)
        unseen = [topic for topic, publication in gone if publication is None or not _resolve(publication, error)]
        if unseen:
            self._say_dropped(unseen[0], error)

    def _say_dropped(self, topic: str, error: ProducerError) -> None:
        """Log a dropped event, folded, and without its payload."""
        self._log.fold("dropped " + error.reason, f"dropped an event on {topic[:200]!r}: {error}")


def _resolve(publication: Publication, error: Optional[ProducerError]) -> bool:
    """Report to the event's caller. Returns False if the caller waits no longer."""
    resolve, publication.resolve = publication.resolve, None
    if resolve is None:
        return False
    resolve(error)
    return True
